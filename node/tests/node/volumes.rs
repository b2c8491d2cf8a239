//! Volumes of pods, and what containers of a pod share by them.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use serde_json::{Value, json};

use crate::cluster::{Cluster, app_status, deployment, eventually};

/// A Deployment of one pod: the container is a script, and `pod` is merged into the pod's spec.
async fn deploy(cluster: &Cluster, name: &str, script: &str, container: Value, pod: Value) {
    let mut app = json!({"command": ["sh", "-c", script], "args": []});
    for (key, value) in container.as_object().unwrap() {
        app[key] = value.clone();
    }
    let mut deployment = serde_json::to_value(deployment(name, 1, app)).unwrap();
    for (key, value) in pod.as_object().unwrap() {
        deployment["spec"]["template"]["spec"][key] = value.clone();
    }
    let deployment: Deployment = serde_json::from_value(deployment).unwrap();
    cluster.api().create(&PostParams::default(), &deployment).await.unwrap();
}

/// What the script of a pod said before it failed.
async fn said(cluster: &Cluster) -> String {
    let what = |pods: &[Pod]| {
        let status = app_status(pods)?;
        [&status["lastState"], &status["state"]]
            .into_iter()
            .find_map(|s| s["terminated"]["message"].as_str().map(str::to_owned))
    };
    let pods = cluster.pods("the script's words", |pods| what(pods).is_some()).await;
    what(&pods).unwrap()
}

async fn config_map(cluster: &Cluster, name: &str, data: Value) {
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap();
    cluster.api().create(&PostParams::default(), &map).await.unwrap();
}

pub(crate) async fn lie_where_the_container_wants_them() {
    let cluster = Cluster::start().await;
    let data = json!({"k": "value", "run.sh": "#!/bin/sh\necho in $(pwd)\nexec sh -c \"$1\"\n"});
    config_map(&cluster, "cm", data).await;
    let secret: Secret =
        serde_json::from_value(json!({"metadata": {"name": "s"}, "stringData": {"password": "hidden"}}))
            .unwrap();
    cluster.api().create(&PostParams::default(), &secret).await.unwrap();
    let script = "cat /ember-test/cm/k; echo; cat /etc/ember-test/secret/password; echo; cat /etc/ember-test.conf; echo; \
        cat /etc/hostname >/dev/null && echo host; echo more > /var/lib/ember-test/empty/own && cat /tmp/same/own; \
        echo x 2>/dev/null > /ember-test/cm/k || echo read only; stat -L -c %a /etc/ember-test/secret/password; \
        cat /ember-test/pod/name; ls -d /ember-test/none; exit 1";
    let container = json!({
        "command": ["./run.sh", script], "workingDir": "/ember-test/cm",
        "env": [{"name": "PORT", "value": "8080"}, {"name": "SUB", "value": "a/b"}],
        "volumeMounts": [
            {"name": "cm", "mountPath": "/ember-test/cm"},
            {"name": "secret", "mountPath": "/etc/ember-test/secret"},
            {"name": "cm", "mountPath": "/etc/ember-test.conf", "subPath": "k"},
            {"name": "empty", "mountPath": "/var/lib/ember-test/empty", "subPathExpr": "$(SUB)"},
            {"name": "empty", "mountPath": "/tmp/same", "subPath": "a/b"},
            {"name": "pod", "mountPath": "/ember-test/pod"},
            {"name": "none", "mountPath": "/ember-test/none"}
        ]
    });
    let volumes = json!([
        {"name": "cm", "configMap": {"name": "cm", "defaultMode": 0o755}},
        {"name": "secret", "secret": {"secretName": "s", "defaultMode": 0o400}},
        {"name": "empty", "emptyDir": {"medium": "Memory"}},
        {"name": "pod", "downwardAPI": {"items": [{"path": "name", "fieldRef": {"fieldPath": "metadata.name"}}]}},
        {"name": "none", "secret": {"secretName": "no", "optional": true}}
    ]);
    deploy(&cluster, "mounts", "", container, json!({"volumes": volumes})).await;
    let said = said(&cluster).await;
    let lines: Vec<&str> = said.lines().collect();
    let expected = ["in /ember-test/cm", "value", "hidden", "value", "host", "more", "read only", "400"];
    assert_eq!(lines[..8], expected, "{said}");
    assert!(lines[8].starts_with("mounts-") && lines[8].ends_with("/ember-test/none"), "{said}");
    for path in ["/ember-test", "/etc/ember-test", "/etc/ember-test.conf", "/var/lib/ember-test", "/tmp/same"]
    {
        assert!(!std::path::Path::new(path).exists(), "{path} was left on this machine");
    }
    cluster.stop().await;
}

pub(crate) async fn follow_their_objects() {
    let cluster = Cluster::start().await;
    config_map(&cluster, "cm", json!({"k": "old"})).await;
    let script = "cp /cm/k /work/seen; while [ \"$(cat /cm/k)\" = old ]; do sleep 0.01; done; \
        cat /cm/k /fixed; ls /cm; exit 1";
    let container = json!({"volumeMounts": [
        {"name": "cm", "mountPath": "/cm"}, {"name": "cm", "mountPath": "/fixed", "subPath": "k"},
        {"name": "work", "mountPath": "/work"}
    ], "readinessProbe": {"exec": {"command": ["cat", "/work/seen"]}, "periodSeconds": 1}});
    let volumes = json!([{"name": "cm", "configMap": {"name": "cm"}}, {"name": "work", "emptyDir": {}}]);
    deploy(&cluster, "follow", script, container, json!({"volumes": volumes})).await;
    cluster
        .pods("the script has seen the old value", |pods| {
            app_status(pods).is_some_and(|status| status["ready"] == true)
        })
        .await;
    let patch = Patch::Merge(json!({"data": {"k": "new\n", "added": ""}}));
    cluster.api::<ConfigMap>().patch("cm", &PatchParams::default(), &patch).await.unwrap();
    assert_eq!(said(&cluster).await, "new\noldadded\nk\n");
    cluster.stop().await;
}

pub(crate) async fn are_refused_by_name() {
    let cluster = Cluster::start().await;
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/ember-test"}]});
    for (name, volume, part) in [
        ("host", json!({"hostPath": {"path": "/etc"}}), "hostPath is not supported"),
        ("missing", json!({"configMap": {"name": "no"}}), "configmap \"no\" not found"),
        (
            "token",
            json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}),
            "projected.sources[0].serviceAccountToken is not supported",
        ),
    ] {
        let mut volume = volume;
        volume["name"] = "v".into();
        deploy(&cluster, name, "exit 0", mounts.clone(), json!({"volumes": [volume]})).await;
        let message = eventually(part, async || {
            let pods = cluster.api::<Pod>().list(&Default::default()).await.unwrap().items;
            let own: Vec<Pod> =
                pods.into_iter().filter(|p| p.metadata.name.as_ref().unwrap().starts_with(name)).collect();
            let waiting = app_status(&own)?["state"]["waiting"].clone();
            (waiting["reason"] == "CreateContainerConfigError").then(|| waiting["message"].to_string())
        })
        .await;
        assert!(
            message.contains("volume \\\"v\\\"") && message.contains(&part.replace('"', "\\\"")),
            "{message}"
        );
    }
    // What was missing may come.
    config_map(&cluster, "no", json!({})).await;
    eventually("the pod runs", async || {
        let pods = cluster.api::<Pod>().list(&Default::default()).await.unwrap().items;
        let ran = |p: &Pod| {
            app_status(std::slice::from_ref(p)).is_some_and(|s| !s["lastState"]["terminated"].is_null())
        };
        pods.iter().any(ran).then_some(())
    })
    .await;
    cluster.stop().await;
}

pub(crate) async fn init_containers_run_in_order_and_again_when_they_fail() {
    let cluster = Cluster::start().await;
    let mounts = json!([{"name": "work", "mountPath": "/work"}]);
    let init = |name: &str, script: &str| json!({"name": name, "image": "dev.local/host", "command": ["sh", "-c", script], "volumeMounts": mounts});
    let pod = json!({
        "volumes": [{"name": "work", "emptyDir": {}}],
        "initContainers": [
            init("one", "[ -e /work/failed ] || { touch /work/failed; exit 3; }; echo one >> /work/log"),
            init("two", "echo two >> /work/log")
        ]
    });
    deploy(&cluster, "init", "cat /work/log; exit 1", json!({"volumeMounts": mounts}), pod).await;
    assert_eq!(said(&cluster).await, "one\ntwo\n");
    let pods = cluster.pods("a pod", |pods| !pods.is_empty()).await;
    let statuses = serde_json::to_value(&pods[0].status.as_ref().unwrap().init_container_statuses).unwrap();
    assert_eq!(statuses[0]["restartCount"], 1, "{statuses}");
    assert_eq!(statuses[0]["lastState"]["terminated"]["exitCode"], 3, "{statuses}");
    assert_eq!(statuses[1]["state"]["terminated"]["reason"], "Completed", "{statuses}");
    cluster.stop().await;
}

pub(crate) async fn last_words_are_read_from_the_declared_file() {
    let cluster = Cluster::start().await;
    let script = "echo not this; [ -s /run/last-words ] && exit 4; printf 'good bye' > /run/last-words; kill -KILL $$$$";
    deploy(&cluster, "words", script, json!({"terminationMessagePath": "/run/last-words"}), json!({})).await;
    assert_eq!(said(&cluster).await, "good bye");
    let pods = cluster
        .pods("a second end", |pods| app_status(pods).is_some_and(|s| s["restartCount"].as_i64() >= Some(1)))
        .await;
    let status = app_status(&pods).unwrap();
    assert_eq!(
        status["lastState"]["terminated"]["exitCode"], 137,
        "each run starts with an empty file: {status}"
    );
    cluster.stop().await;
}
