//! What a broken container shows: `errorcondition_test`.

use ember_tests::instance::Ember;
use ember_tests::{PATIENCE, api, eventually};
use serde_json::{Value, json};

use crate::app::{self, enable};
use crate::objects::{create, get, is_ready, list, until};

/// Creates a service with this container and waits until it and its children have failed, with words for it.
async fn fails(name: &str, container: &Value) {
    let ember = Ember::start().await;
    let service = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": {"serving.knative.dev/progress-deadline": "4s"}},
            "spec": {"containers": [container]}
        }}
    });
    create(&ember, "services", &service).await;
    let failed = |object: &Value| is_ready(object, "False");
    until(&ember, "services", name, "failed", failed).await;
    until(&ember, "routes", name, "failed", failed).await;
    let configuration = until(&ember, "configurations", name, "failed", failed).await;
    let revision = configuration["status"]["latestCreatedRevisionName"].as_str().unwrap();
    for object in [&configuration, &get(&ember, "revisions", revision).await] {
        let ready = api::condition(object, "Ready").unwrap();
        assert_eq!(ready["status"], "False", "{ready}");
        for field in ["reason", "message"] {
            assert!(ready[field].as_str().is_some_and(|text| !text.is_empty()), "{ready}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_container_error_msg() {
    fails("missing", &json!({"image": "registry.invalid/no/such-image"})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_container_exiting_msg() {
    let script = "echo this container ends >&2; exit 5";
    fails("exiting", &json!({"image": "dev.local/host", "command": ["sh", "-c", script]})).await;
}

/// What the Revision of a service says that asks for a feature and cannot run, once its pod has been given up.
async fn after_its_pod(feature: &str, name: &str, pod: &Value) -> Value {
    let ember = Ember::start().await;
    enable(&ember, &[feature]).await;
    let service = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": {"serving.knative.dev/progress-deadline": "4s"}}, "spec": pod
        }}
    });
    app::create(&ember, &service).await;
    let failed = |object: &Value| is_ready(object, "False");
    until(&ember, "services", name, "failed", failed).await;
    let revision = format!("{name}-00001");
    let inactive = |object: &Value| api::condition(object, "Active").is_some_and(|c| c["status"] == "False");
    until(&ember, "revisions", &revision, "given up", inactive).await;
    eventually("its pod is gone", PATIENCE, || async {
        let pods =
            api::get(&ember.client, "/api/v1/namespaces/default/pods").await.map_err(|e| e.to_string())?;
        let path = format!("/apis/apps/v1/namespaces/default/deployments/{revision}-deployment");
        let deployment = api::get(&ember.client, &path).await.map_err(|e| e.to_string())?;
        let is_done = api::condition(&deployment, "Progressing").is_some_and(|c| c["status"] == "True");
        let is_gone = pods["items"].as_array().is_some_and(Vec::is_empty);
        if is_done && is_gone { Ok(()) } else { Err(deployment["status"].to_string()) }
    })
    .await;
    assert_eq!(list(&ember, "revisions").await.len(), 1);
    api::condition(&get(&ember, "revisions", &revision).await, "Ready").unwrap().clone()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_failing_init_container_is_told_with_its_words() {
    let app = json!({"image": "dev.local/host", "command": ["ember", "app"]});
    let script = "echo no database here; exit 5";
    let init = json!({"name": "wait", "image": "dev.local/host", "command": ["sh", "-c", script]});
    let pod = json!({"initContainers": [init], "containers": [app]});
    let ready = after_its_pod("kubernetes.podspec-init-containers", "init", &pod).await;
    assert_eq!(ready["reason"], "ExitCode5", "{ready}");
    assert!(ready["message"].as_str().unwrap().contains("no database here"), "{ready}");
}
