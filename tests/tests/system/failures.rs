//! What goes wrong with an app is told in the service's conditions, in Knative's words.

use ember_tests::instance::Ember;
use ember_tests::{PATIENCE, api, eventually};
use serde_json::{Value, json};

use crate::manifests::service;

/// A service with a short deadline whose container is `container`.
fn broken(name: &str, container: &Value) -> String {
    let mut service = service(name, "hello", &[]);
    service["spec"]["template"]["metadata"]["annotations"]["serving.knative.dev/progress-deadline"] =
        "4s".into();
    service["spec"]["template"]["spec"]["containers"][0] = container.clone();
    service.to_string()
}

/// Waits until the service has failed; returns its conditions by type.
async fn failed(ember: &Ember, name: &str) -> std::collections::BTreeMap<String, (String, String)> {
    let path = format!("/apis/serving.knative.dev/v1/namespaces/default/services/{name}");
    let object = eventually(&format!("{name} not Ready"), PATIENCE, || async {
        let object = api::get(&ember.client, &path).await.map_err(|e| e.to_string())?;
        match api::condition(&object, "Ready") {
            Some(ready) if ready["status"] == "False" => Ok(object),
            other => Err(format!("{other:?}")),
        }
    })
    .await;
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    conditions.iter().map(|c| (text(&c["type"]), (text(&c["reason"]), text(&c["message"])))).collect()
}

async fn check(ember: &Ember, name: &str, container: &Value, reason: &str, parts: &[&str]) {
    ember.apply(&broken(name, container));
    let conditions = failed(ember, name).await;
    let (found, message) = &conditions["ConfigurationsReady"];
    assert_eq!(found, reason, "{conditions:?}");
    for part in parts {
        assert!(message.contains(part), "{part:?} in {message:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_exits_shows_its_last_words_and_code() {
    let ember = Ember::start().await;
    let script = json!({"image": "dev.local/host", "command": ["sh", "-c", "echo out of luck >&2; exit 3"]});
    check(
        &ember,
        "exits",
        &script,
        "RevisionFailed",
        &["Revision \"exits-00001\" failed with message", "out of luck"],
    )
    .await;
    let path = "/apis/serving.knative.dev/v1/namespaces/default/revisions/exits-00001";
    let revision = api::get(&ember.client, path).await.unwrap();
    let healthy = api::condition(&revision, "ContainerHealthy").unwrap();
    assert_eq!(healthy["reason"], "ExitCode3", "{revision}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_missing_program_is_named() {
    let ember = Ember::start().await;
    let missing = json!({"image": "dev.local/host", "command": ["no-such-program"]});
    check(&ember, "missing", &missing, "RevisionFailed", &["no-such-program"]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_image_this_machine_cannot_run_is_named() {
    let ember = Ember::start().await;
    let foreign = json!({"image": "ghcr.io/knative/helloworld-go:latest"});
    let parts = [
        "failed with message: Unable to fetch image \"ghcr.io/knative/helloworld-go:latest\": ",
        "dev.local/host",
    ];
    check(&ember, "foreign", &foreign, "RevisionFailed", &parts).await;
    let path = "/apis/serving.knative.dev/v1/namespaces/default/revisions/foreign-00001";
    let revision = api::get(&ember.client, path).await.unwrap();
    let healthy = api::condition(&revision, "ContainerHealthy").unwrap();
    assert_eq!(healthy["reason"], "ContainerMissing", "{revision}");
    // By digest there is nothing to resolve: the pod itself says that it cannot be run.
    let digest = format!("ghcr.io/knative/helloworld-go@sha256:{}", "0".repeat(64));
    let pinned = json!({"image": digest});
    check(&ember, "pinned", &pinned, "RevisionFailed", &[&digest]).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_probe_that_never_succeeds_runs_into_the_progress_deadline() {
    let ember = Ember::start().await;
    let unready = json!({
        "image": "dev.local/host",
        "command": ["sh", "-c", "exec sleep 1000"],
        "readinessProbe": {"httpGet": {"path": "/ready"}},
    });
    check(&ember, "unready", &unready, "RevisionFailed", &["failed with message"]).await;
    let path = "/apis/serving.knative.dev/v1/namespaces/default/revisions/unready-00001";
    let revision = api::get(&ember.client, path).await.unwrap();
    let available = api::condition(&revision, "ResourcesAvailable").unwrap();
    assert_eq!(available["reason"], "ProgressDeadlineExceeded", "{revision}");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_killed_shows_the_signal() {
    let ember = Ember::start().await;
    // The doubled dollars become single ones: a container's command may name variables of its environment.
    let killed = json!({"image": "dev.local/host", "command": ["sh", "-c", "kill -9 $$$$"]});
    check(&ember, "killed", &killed, "RevisionFailed", &["Revision \"killed-00001\" failed with message"])
        .await;
    let path = "/apis/serving.knative.dev/v1/namespaces/default/revisions/killed-00001";
    let revision = api::get(&ember.client, path).await.unwrap();
    let healthy = api::condition(&revision, "ContainerHealthy").unwrap();
    assert_eq!(healthy["reason"], "ExitCode137", "{revision}");
}
