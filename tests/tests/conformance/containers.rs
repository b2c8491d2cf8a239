//! Several containers, and what probes make of them.

use std::time::Duration;

use ember_tests::instance::Ember;
use ember_tests::{PATIENCE, eventually};
use serde_json::json;

use crate::app::{container, create, enable, ready, service, status};

#[tokio::test(flavor = "multi_thread")]
async fn test_service_create_with_multiple_containers() {
    let ember = Ember::start().await;
    // Containers of a pod share the machine's ports with everyone: the sidecar takes any, and tells it.
    let fields = |name: &str| {
        json!({
            "name": name, "volumeMounts": [{"name": "shared", "mountPath": "/shared"}],
            "env": [{"name": "NAME", "value": name}, {"name": "PORT_FILE", "value": "/shared/port"}]
        })
    };
    let mut serving = container(&fields("serving"));
    serving["ports"] = json!([{"containerPort": 8881}]);
    let mut sidecar = container(&fields("sidecar"));
    // `PORT` is Knative's to set, and only for the container that serves.
    sidecar["args"] = sidecar["command"].take();
    sidecar["command"] = json!(["sh", "-c", "PORT=0 exec \"$@\"", "sh"]);
    let spec = json!({"containers": [serving, sidecar], "volumes": [{"name": "shared", "emptyDir": {}}]});
    let app = ready(&ember, &service("multi", &json!({}), &spec)).await;
    let said = eventually("the sidecar answers", PATIENCE, || async {
        let answer = app.client.get(&app.host, "/forward").await?;
        if answer.status.is_success() { Ok(answer.text) } else { Err(answer.text) }
    })
    .await;
    assert_eq!(said, "sidecar");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_init_containers() {
    let ember = Ember::start().await;
    enable(&ember, &["kubernetes.podspec-init-containers"]).await;
    let mounts = json!([{"name": "v", "mountPath": "/data"}]);
    let init = json!({
        "name": "init", "image": "dev.local/host", "volumeMounts": mounts,
        "command": ["sh", "-c", "echo from the init container > /data/testfile"]
    });
    let pod = json!({"initContainers": [init], "volumes": [{"name": "v", "emptyDir": {}}]});
    let app = ready(&ember, &service("init", &json!({"volumeMounts": mounts}), &pod)).await;
    assert_eq!(app.get("/data/testfile").await, "from the init container\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_liveness_with_fail() {
    let ember = Ember::start().await;
    let probe = json!({"httpGet": {"path": "/healthz"}, "periodSeconds": 1, "failureThreshold": 3});
    let app = ready(&ember, &service("alive", &json!({"livenessProbe": probe}), &json!({}))).await;
    let probed = async || {
        eventually("the probe comes by", PATIENCE, || async {
            let answer = app.client.get(&app.host, "/count").await?;
            match answer.text.parse::<u32>() {
                Ok(count) if count >= 3 => Ok(()),
                _ => Err(answer.text),
            }
        })
        .await;
    };
    probed().await;
    assert_eq!(status(&ember, "alive", "user-container").await.unwrap()["restartCount"], 0);
    app.get("/start-failing").await;
    eventually("a restart", PATIENCE, || async {
        let status = status(&ember, "alive", "user-container").await?;
        if status["restartCount"] == 1 && status["ready"] == true { Ok(()) } else { Err(status.to_string()) }
    })
    .await;
    probed().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_startup_probe_needs_no_port() {
    let ember = Ember::start().await;
    let probe = json!({"httpGet": {"path": "/healthz"}, "periodSeconds": 1, "failureThreshold": 3});
    ready(&ember, &service("begun", &json!({"startupProbe": probe}), &json!({}))).await;
    let status = status(&ember, "begun", "user-container").await.unwrap();
    assert_eq!((&status["started"], &status["restartCount"]), (&json!(true), &json!(0)), "{status}");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_probe_runtime() {
    let ember = Ember::start().await;
    let ask =
        "import os, urllib.request as u; u.urlopen('http://127.0.0.1:' + os.environ['PORT'] + '/healthz')";
    let exec = json!({"exec": {"command": ["/usr/bin/python3", "-c", ask]}, "timeoutSeconds": 5});
    let probes = [
        ("http", json!({"httpGet": {"path": "/healthz"}}), "READY_DELAY"),
        ("tcp", json!({"tcpSocket": {}}), "LISTEN_DELAY"),
        ("exec", exec, "READY_DELAY"),
    ];
    for (kind, probe, delay) in &probes {
        for period in [0, 1] {
            // Exec probes are the kubelet's, which knows no period of zero.
            if *kind == "exec" && period == 0 {
                continue;
            }
            let mut probe = probe.clone();
            probe["periodSeconds"] = period.into();
            let fields = json!({"readinessProbe": probe, "env": [{"name": delay, "value": "1"}]});
            create(&ember, &service(&format!("{kind}{period}"), &fields, &json!({}))).await;
        }
    }
    for name in ["http0", "http1", "tcp0", "tcp1", "exec1"] {
        ember.ready(name).await;
        let client = ember_tests::http::Client::new(ember.gateway);
        client.ok(&ember_tests::http::host(name), "/name").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_probe_runtime_after_startup() {
    /// What upstream's client gives a request.
    const LIMIT: Duration = Duration::from_secs(5);
    let ember = Ember::start().await;
    let fails = async |period: u32| {
        let probe = json!({"httpGet": {"path": "/healthz"}, "periodSeconds": period});
        let fields = json!({"readinessProbe": probe});
        let app = ready(&ember, &service(&format!("sick{period}"), &fields, &json!({}))).await;
        app.get("/start-failing").await;
        // Requests that are on their way, or come before the probe does, are answered.
        eventually("nothing goes to an app that is not ready", PATIENCE, || async {
            let asked = tokio::time::timeout(LIMIT, app.client.get(&app.host, "/name")).await;
            match asked {
                Err(_) => Ok(()),
                Ok(Ok(answer)) if answer.status == 503 => Ok(()),
                Ok(Ok(answer)) if answer.status == 200 => Err(answer.text),
                Ok(other) => panic!("period {period}: {other:?}"),
            }
        })
        .await;
    };
    tokio::join!(fails(0), fails(1));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_named_in_the_pods_status() {
    let ember = Ember::start().await;
    let token = json!([{"name": "v", "projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}]);
    let fields = json!({"volumeMounts": [{"name": "v", "mountPath": "/token"}]});
    create(&ember, &service("refused", &fields, &json!({"volumes": token}))).await;
    let message = eventually("a reason", PATIENCE, || async {
        let status = status(&ember, "refused", "user-container").await?;
        let waiting = &status["state"]["waiting"];
        match waiting["message"].as_str() {
            Some(message) if waiting["reason"] == "CreateContainerConfigError" => Ok(message.to_owned()),
            _ => Err(status.to_string()),
        }
    })
    .await;
    assert!(message.contains("projected.sources[0].serviceAccountToken is not supported"), "{message}");
}
