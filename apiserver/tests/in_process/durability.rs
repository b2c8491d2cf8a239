//! What survives, and what is made of what does not.

use std::path::Path;
use std::time::Duration;

use ember_apiserver::{ApiServer, Config};
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::harness::*;

/// A second server on a copy of the files: what a machine finds after the process was killed.
fn copy_of(data: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    std::fs::copy(data.join("store.redb"), to.join("store.redb")).unwrap();
}

#[tokio::test]
async fn acknowledged_intent_survives_a_kill() {
    let h = harness_with(|c| c.flush_interval = Duration::from_secs(3600));
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    // The namespace is seeded behind, so it is written by hand here.
    let namespaces: Api<Namespace> = Api::all(h.client.clone());
    let label = json!({ "metadata": { "labels": { "a": "b" } } });
    namespaces.patch("default", &PatchParams::default(), &Patch::Merge(&label)).await.unwrap();
    let services: Api<DynamicObject> =
        Api::namespaced_with(h.client.clone(), "default", &serving("Service", "services"));
    let made = services.create(&PostParams::default(), &ksvc("x")).await.unwrap();
    let parallel = (0..50).map(|index| {
        let api = api.clone();
        async move { api.create(&PostParams::default(), &config_map(&format!("m{index}"), &[])).await }
    });
    let last = futures::future::try_join_all(parallel).await.unwrap();
    let pods: Api<Pod> = Api::namespaced(h.client.clone(), "default");
    pods.create(&PostParams::default(), &pod("p")).await.unwrap();
    let highest = |versions: Vec<String>| versions.iter().map(|v| v.parse::<u64>().unwrap()).max().unwrap();
    let before = highest(last.iter().map(|m| m.resource_version().unwrap()).collect());

    let copy = h.folder.path().join("copy");
    copy_of(&h.folder.path().join("data"), &copy);
    let again = open_at(&copy);
    let client = again.client();
    let api: Api<ConfigMap> = Api::namespaced(client.clone(), "default");
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 50);
    let services: Api<DynamicObject> =
        Api::namespaced_with(client.clone(), "default", &serving("Service", "services"));
    let found = services.get("x").await.unwrap();
    assert_eq!((found.uid(), found.data), (made.uid(), made.data));
    let pods: Api<Pod> = Api::namespaced(client, "default");
    assert!(pods.list(&ListParams::default()).await.unwrap().items.is_empty(), "pods are of one run only");

    let next_version = api.create(&PostParams::default(), &config_map("new", &[])).await.unwrap();
    assert!(next_version.resource_version().unwrap().parse::<u64>().unwrap() > before);
    let mut stream = api.watch(&WatchParams::default(), &before.to_string()).await.unwrap().boxed();
    assert!(matches!(next(&mut stream).await, WatchEvent::Error(status) if status.code == 410));
}

#[tokio::test]
async fn what_controllers_write_is_logged_behind() {
    let h = harness();
    let api: Api<Deployment> = Api::namespaced(h.client.clone(), "default");
    let deployment: Deployment = object(json!({ "metadata": { "name": "d" },
        "spec": { "selector": { "matchLabels": { "app": "d" } }, "template": { "metadata": { "labels": { "app": "d" } },
            "spec": { "containers": [{ "name": "c", "image": "i" }] } } } }));
    api.create(&PostParams::default(), &deployment).await.unwrap();
    let services: Api<DynamicObject> =
        Api::namespaced_with(h.client.clone(), "default", &serving("Service", "services"));
    services.create(&PostParams::default(), &ksvc("x")).await.unwrap();
    let status = json!({ "status": { "url": "http://x" } });
    services.patch_status("x", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    h.server.flush().await.unwrap();
    let copy = h.folder.path().join("copy");
    copy_of(&h.folder.path().join("data"), &copy);
    let client = open_at(&copy).client();
    Api::<Deployment>::namespaced(client.clone(), "default").get("d").await.unwrap();
    let services: Api<DynamicObject> =
        Api::namespaced_with(client, "default", &serving("Service", "services"));
    assert_eq!(services.get("x").await.unwrap().data["status"]["url"], "http://x");
}

#[tokio::test]
async fn a_data_directory_has_one_server_and_can_be_taken_over() {
    let h = harness();
    let data = h.folder.path().join("data");
    let second = ApiServer::open(Config::new(&data)).map(|_| ());
    assert!(second.unwrap_err().to_string().contains("in use by process"));
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let made = api.create(&PostParams::default(), &config_map("a", &[])).await.unwrap();
    h.server.close();
    let failed = api.create(&PostParams::default(), &config_map("b", &[])).await;
    assert_eq!(code(failed), 500);
    let again = open_at(&data);
    let api: Api<ConfigMap> = Api::namespaced(again.client(), "default");
    assert_eq!(api.get("a").await.unwrap().uid(), made.uid());
    assert_eq!(code(api.get("b").await), 404);
}

#[tokio::test]
async fn damaged_stores_are_refused_and_left_alone() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let needle = "needle-in-the-store-0123456789";
    for index in 0..20 {
        api.create(&PostParams::default(), &config_map(&format!("m{index}"), &[("k", needle)]))
            .await
            .unwrap();
    }
    h.server.close();
    let whole = std::fs::read(h.folder.path().join("data/store.redb")).unwrap();
    let flipped = {
        let mut bytes = whole.clone();
        let starts: Vec<usize> = bytes
            .windows(needle.len())
            .enumerate()
            .filter(|(_, w)| *w == needle.as_bytes())
            .map(|(at, _)| at)
            .collect();
        assert!(!starts.is_empty());
        for at in starts {
            bytes[at] ^= 1;
        }
        bytes
    };
    let cases = [
        ("empty", Vec::new()),
        ("torn", whole[..whole.len() / 2].to_vec()),
        ("flipped", flipped),
        ("text", b"hello".to_vec()),
    ];
    for (name, bytes) in cases {
        let folder = h.folder.path().join(name);
        std::fs::create_dir_all(&folder).unwrap();
        std::fs::write(folder.join("store.redb"), &bytes).unwrap();
        let error = ApiServer::open(Config::new(&folder)).map(|_| ()).expect_err(name).to_string();
        assert!(error.contains("is damaged") && error.contains("move it away"), "{name}: {error}");
    }
}
