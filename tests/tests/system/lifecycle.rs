//! Starting, sleeping, waking, crashing, ending.

use std::time::Duration;

use ember_tests::http::{Client, host};
use ember_tests::instance::{Ember, program, run};
use ember_tests::{api, eventually};
use futures::future::join_all;

use crate::manifests::{sample, service};

const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";

#[tokio::test(flavor = "multi_thread")]
async fn hello_answers_sleeps_and_wakes() {
    let path = format!("{}/../samples/hello.yaml", env!("CARGO_MANIFEST_DIR"));
    let ember = Ember::start_with(&["-f", &path]).await;
    let client = Client::new(ember.gateway);
    ember.ready("hello").await;
    assert_eq!(client.ok(&host("hello"), "/").await, "Hello Ember!\n");
    ember.pods("hello", 0).await;
    let waking = (0..20).map(|_| {
        let client = Client::new(ember.gateway);
        async move { client.ok(&host("hello"), "/").await }
    });
    for answer in join_all(waking).await {
        assert_eq!(answer, "Hello Ember!\n");
    }
    // The URL that the status shows can be pasted: it carries the gateway's port.
    let object = api::get(&ember.client, &format!("{SERVICES}/hello")).await.unwrap();
    let url = format!("http://hello.default.localhost:{}", ember.gateway.port());
    assert_eq!(object["status"]["url"], url.as_str());
    assert!(
        ember.output().contains(&format!("service default/hello is ready at {url}")),
        "{}",
        ember.output()
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_service_that_never_ran_and_one_after_a_crash_wake_at_the_first_request() {
    let mut ember = Ember::start().await;
    ember.apply(&service("cold", "hello", &[("initial-scale", "0"), ("window", "6s")]).to_string());
    ember.ready("cold").await;
    assert_eq!(ember.running("cold").await, Vec::<String>::new());
    assert_eq!(Client::new(ember.gateway).ok(&host("cold"), "/").await, "Hello cold!\n");

    ember.pods("cold", 0).await;
    let before = api::get(&ember.client, &format!("{SERVICES}/cold")).await.unwrap();
    ember = ember.crash_and_restart().await;
    assert_eq!(Client::new(ember.gateway).ok(&host("cold"), "/").await, "Hello cold!\n");
    let after = api::get(&ember.client, &format!("{SERVICES}/cold")).await.unwrap();
    assert_eq!(before["metadata"]["uid"], after["metadata"]["uid"]);
    let version = |object: &serde_json::Value| {
        object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse::<u64>().ok()).unwrap()
    };
    assert!(version(&after) >= version(&before), "resourceVersions never go back");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_running_service_survives_a_crash_of_ember() {
    let mut ember = Ember::start().await;
    ember.apply(&service("steady", "hello", &[("min-scale", "1")]).to_string());
    ember.ready("steady").await;
    ember = ember.crash_and_restart().await;
    assert_eq!(Client::new(ember.gateway).ok(&host("steady"), "/").await, "Hello steady!\n");
    ember.pods("steady", 1).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn ctrl_c_ends_everything_within_ten_seconds() {
    let mut ember = Ember::start().await;
    ember.apply(&service("ending", "hello", &[("min-scale", "2")]).to_string());
    ember.ready("ending").await;
    let pid = ember.pid();
    let children = descendants(pid.as_raw());
    assert!(children.len() >= 3, "helper and two apps: {children:?}");
    let (took, well) = ember.interrupt();
    assert!(well, "{}", ember.output());
    assert!(took < Duration::from_secs(10), "{took:?}");
    eventually("no process left", Duration::from_secs(5), || async {
        let left: Vec<i32> = children.iter().copied().filter(|pid| is_running(*pid)).collect();
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_data_folder_belongs_to_one_process() {
    let ember = Ember::start().await;
    let folder = ember.data_dir();
    let arguments =
        ["up", "--http", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data-dir", folder.to_str().unwrap()];
    let second = run(&program(), &arguments, &ember.kubeconfig, "");
    let error = String::from_utf8_lossy(&second.stderr);
    assert!(!second.status.success());
    assert!(error.contains(folder.to_str().unwrap()), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn two_instances_run_side_by_side() {
    let (first, second) = tokio::join!(Ember::start(), Ember::start());
    for (ember, target) in [(&first, "first"), (&second, "second")] {
        let mut same = service("same", "hello", &[]);
        same["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = target.into();
        ember.apply(&same.to_string());
    }
    for (ember, text) in [(&first, "Hello first!\n"), (&second, "Hello second!\n")] {
        ember.ready("same").await;
        assert_eq!(Client::new(ember.gateway).ok(&host("same"), "/").await, text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_command_line_applies_shows_logs_and_deletes() {
    let ember = Ember::start().await;
    ember.apply(&sample("hello.yaml"));
    ember.ready("hello").await;
    let said = |arguments: &[&str]| {
        let output = ember.run(arguments, "");
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    };
    let table = said(&["get", "ksvc"]);
    let words: Vec<&str> = table.split_whitespace().collect();
    assert_eq!(words[..5], ["NAME", "URL", "LATESTCREATED", "LATESTREADY", "READY"], "{table}");
    assert!(table.contains("hello-00001"), "{table}");
    assert!(said(&["get", "ksvc", "hello", "-o", "yaml"]).contains("kind: Service"));
    let again = ember.run(&["apply", "-f", "-"], &sample("hello.yaml"));
    assert_eq!(String::from_utf8_lossy(&again.stdout), "service/hello unchanged\n");
    said(&["logs", "hello"]);
    assert_eq!(said(&["delete", "ksvc", "hello"]), "service/hello deleted\n");
    eventually("nothing is left of hello", Duration::from_secs(30), || async {
        let mut left = Vec::new();
        for path in [
            SERVICES,
            "/apis/serving.knative.dev/v1/namespaces/default/revisions",
            "/apis/apps/v1/namespaces/default/deployments",
            "/api/v1/namespaces/default/pods",
            "/apis/networking.internal.knative.dev/v1alpha1/namespaces/default/ingresses",
        ] {
            let list = api::get(&ember.client, path).await.map_err(|e| vec![e.to_string()])?;
            left.extend(
                list["items"].as_array().into_iter().flatten().map(|o| o["metadata"]["name"].to_string()),
            );
        }
        if left.is_empty() { Ok(()) } else { Err(left) }
    })
    .await;
    let answer = Client::new(ember.gateway).get(&host("hello"), "/").await.unwrap();
    assert_eq!(answer.status, http::StatusCode::NOT_FOUND);
    let unknown = ember.run(&["get", "nonsense"], "");
    let error = String::from_utf8_lossy(&unknown.stderr);
    assert!(error.contains("the server doesn't have a resource type \"nonsense\""), "{error}");
}

/// All processes below one.
fn descendants(of: i32) -> Vec<i32> {
    let mut parents = Vec::new();
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse::<i32>().ok()) else {
            continue;
        };
        let Ok(stat) = std::fs::read_to_string(entry.path().join("stat")) else { continue };
        let after = stat.rsplit_once(')').map(|(_, rest)| rest.to_owned()).unwrap_or_default();
        if let Some(parent) = after.split_whitespace().nth(1).and_then(|p| p.parse::<i32>().ok()) {
            parents.push((pid, parent));
        }
    }
    let mut found = vec![of];
    let mut next = 0;
    while next < found.len() {
        let parent = found[next];
        found.extend(parents.iter().filter(|(_, p)| *p == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.split_off(1)
}

fn is_running(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(')').is_some_and(|(_, rest)| rest.trim_start().starts_with('Z')))
}
