//! Containers that do not run, or do not run on.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::api::DeleteParams;
use serde_json::{Value, json};

use crate::cluster::{Cluster, app_status, eventually, is_ready};
use crate::processes::gone;

pub(crate) async fn a_crash_loop_is_told_as_kubernetes_does() {
    let cluster = Cluster::start().await;
    let app = json!({"command": ["sh", "-c", "echo the reason is $REASON; exit 5"], "args": [],
        "env": [{"name": "PORT", "value": "8080"}, {"name": "REASON", "value": "port $(PORT)"}]});
    cluster.deploy("crash", 1, app).await;
    let pods = cluster
        .pods("a crash loop", |pods| {
            app_status(pods).is_some_and(|s| {
                s["state"]["waiting"]["reason"] == "CrashLoopBackOff" && s["restartCount"].as_i64() >= Some(2)
            })
        })
        .await;
    let status = app_status(&pods).unwrap();
    let last = &status["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(5), &json!("Error")), "{status}");
    let message = last["message"].as_str().unwrap();
    assert!(message.starts_with("the reason is port 2"), "{message}: the picked port");
    let waiting = status["state"]["waiting"]["message"].as_str().unwrap();
    assert!(waiting.contains("restarting failed container=user-container pod=crash-"), "{waiting}");
    let again = "Back-off restarting failed container user-container in pod crash-";
    let event = cluster.event("BackOff", again, |event| event.count > Some(1)).await;
    assert_eq!(event.involved_object.uid, pods[0].metadata.uid);
    let path = event.involved_object.field_path.as_deref();
    assert_eq!((event.type_.as_deref(), path), (Some("Warning"), Some("spec.containers{user-container}")));
    assert_eq!(event.source.unwrap().component.as_deref(), Some("kubelet"));
    assert_eq!(cluster.condition("crash", "Progressing", "ProgressDeadlineExceeded").await, "False");
    cluster.stop().await;
}

pub(crate) async fn what_cannot_run_says_why() {
    let cluster = Cluster::start().await;
    let expect = async |name: &str, app: Value, reason: &str, part: &str, told: &str| {
        cluster.deploy(name, 1, app).await;
        let message = eventually(reason, async || {
            let pods = cluster.api::<Pod>().list(&Default::default()).await.unwrap().items;
            let own: Vec<Pod> =
                pods.into_iter().filter(|p| p.metadata.name.as_ref().unwrap().starts_with(name)).collect();
            let status = app_status(&own)?;
            let all = [
                &status["state"]["waiting"],
                &status["state"]["terminated"],
                &status["lastState"]["terminated"],
            ];
            all.into_iter().find(|s| s["reason"] == reason).map(|s| s["message"].as_str().unwrap().to_owned())
        })
        .await;
        assert!(message.contains(part), "{name}: {message}");
        let event = cluster.event(told, part, |event| {
            event.involved_object.name.as_ref().is_some_and(|pod| pod.starts_with(name))
        });
        event.await;
        cluster.api::<Deployment>().delete(name, &DeleteParams::default()).await.unwrap();
    };
    let image = json!({"image": "docker.io/library/nginx"});
    expect("image", image.clone(), "ErrImagePull", "\"docker.io/library/nginx\"", "Failed").await;
    expect("image2", image, "ImagePullBackOff", "dev.local/host", "Failed").await;
    let missing = json!({"command": ["nope"]});
    expect("missing", missing, "StartError", "exec: \"nope\": executable file not found in $PATH", "Failed")
        .await;
    expect("command", json!({"command": []}), "CreateContainerConfigError", "command", "Failed").await;
    let env = json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]});
    expect("env", env, "CreateContainerConfigError", "configmap \"cm\" not found", "Failed").await;
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/data"}]});
    expect("mounts", mounts, "CreateContainerConfigError", "there is no volume \"v\"", "FailedMount").await;
    cluster.stop().await;
}

pub(crate) async fn an_unhealthy_container_is_restarted() {
    let cluster = Cluster::start().await;
    // The app runs as a user of its own, who has to see the file.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let sick = folder.path().join("sick");
    let app = json!({
        "env": [{"name": "PORT", "value": "8080"}, {"name": "SICK", "value": sick}],
        "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
    });
    cluster.deploy("sick", 1, app).await;
    let pods = cluster.pods("ready", |pods| pods.iter().any(is_ready)).await;
    let first = cluster.pid(&pods[0]).await;
    std::fs::write(&sick, "").unwrap();
    cluster.pods("a restart", |pods| app_status(pods).is_some_and(|s| s["restartCount"] == 1)).await;
    gone(first).await;
    std::fs::remove_file(&sick).unwrap();
    cluster.pods("ready again", |pods| pods.iter().any(is_ready)).await;
    cluster
        .event("Unhealthy", "Liveness probe failed: HTTP probe failed with statuscode: 500", |_| true)
        .await;
    let killing = "Container user-container failed liveness probe, will be restarted";
    cluster.event("Killing", killing, |event| event.type_.as_deref() == Some("Normal")).await;
    cluster.stop().await;
}
