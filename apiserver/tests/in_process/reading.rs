//! Lists, pages, selectors and watches.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{
    DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams, WatchEvent, WatchParams,
};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::harness::*;

#[tokio::test]
async fn watches_tell_what_happens_in_order_and_resume() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let start = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut stream = api.watch(&WatchParams::default(), &start).await.unwrap().boxed();
    api.create(&PostParams::default(), &config_map("a", &[])).await.unwrap();
    let patch = json!({ "data": { "x": "y" } });
    api.patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    api.delete("a", &DeleteParams::default()).await.unwrap();
    let WatchEvent::Added(added) = next(&mut stream).await else { panic!("not added") };
    let WatchEvent::Modified(modified) = next(&mut stream).await else { panic!("not modified") };
    let WatchEvent::Deleted(deleted) = next(&mut stream).await else { panic!("not deleted") };
    let version = |o: &ConfigMap| o.resource_version().unwrap().parse::<u64>().unwrap();
    assert!(version(&added) < version(&modified) && version(&modified) < version(&deleted));
    assert_eq!(deleted.data, modified.data);

    // From the middle: only what came after.
    let mut again =
        api.watch(&WatchParams::default(), &added.resource_version().unwrap()).await.unwrap().boxed();
    assert!(matches!(next(&mut again).await, WatchEvent::Modified(_)));
    // From zero: what is there first.
    api.create(&PostParams::default(), &config_map("b", &[])).await.unwrap();
    let mut zero = api.watch(&WatchParams::default(), "0").await.unwrap().boxed();
    assert!(matches!(next(&mut zero).await, WatchEvent::Added(o) if o.name_any() == "b"));
}

#[tokio::test]
async fn selectors_narrow_lists_and_watches() {
    let h = harness();
    let api: Api<Pod> = Api::namespaced(h.client.clone(), "default");
    for name in ["a", "b"] {
        api.create(&PostParams::default(), &pod(name)).await.unwrap();
    }
    let names = |params: ListParams| {
        let api = api.clone();
        async move { api.list(&params).await.unwrap().iter().map(ResourceExt::name_any).collect::<Vec<_>>() }
    };
    assert_eq!(names(ListParams::default().labels("app=a")).await, ["a"]);
    assert_eq!(names(ListParams::default().labels("app in (a,b)")).await, ["a", "b"]);
    assert_eq!(names(ListParams::default().fields("metadata.name=b")).await, ["b"]);
    assert_eq!(
        names(ListParams::default().fields("spec.nodeName=n1,status.phase=Pending")).await,
        ["a", "b"]
    );
    assert_eq!(code(api.list(&ListParams::default().fields("spec.foo=x")).await), 400);

    let version = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut stream = api.watch(&WatchParams::default().labels("app=a"), &version).await.unwrap().boxed();
    let relabel = |app: &str| Patch::Merge(json!({ "metadata": { "labels": { "app": app } } }));
    api.patch("b", &PatchParams::default(), &relabel("a")).await.unwrap();
    api.patch("a", &PatchParams::default(), &relabel("c")).await.unwrap();
    assert!(matches!(next(&mut stream).await, WatchEvent::Added(p) if p.name_any() == "b"));
    assert!(matches!(next(&mut stream).await, WatchEvent::Deleted(p) if p.name_any() == "a"));
}

#[tokio::test]
async fn lists_come_in_pages() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    for index in 0..5 {
        api.create(&PostParams::default(), &config_map(&format!("m{index}"), &[])).await.unwrap();
    }
    let (mut seen, mut token) = (Vec::new(), None::<String>);
    loop {
        let mut params = ListParams::default().limit(2);
        params.continue_token = token;
        let page = api.list(&params).await.unwrap();
        seen.extend(page.iter().map(ResourceExt::name_any));
        token = page.metadata.continue_.clone().filter(|t| !t.is_empty());
        if token.is_none() {
            break;
        }
    }
    assert_eq!(seen, ["m0", "m1", "m2", "m3", "m4"]);
}

#[tokio::test]
async fn versions_that_history_does_not_reach_are_gone() {
    let h = harness_with(|c| c.watch_history = 4);
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let old = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    for index in 0..10 {
        api.create(&PostParams::default(), &config_map(&format!("m{index}"), &[])).await.unwrap();
    }
    let mut stream = api.watch(&WatchParams::default(), &old).await.unwrap().boxed();
    let WatchEvent::Error(status) = next(&mut stream).await else { panic!("not an error") };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
}

/// The past is bounded by what it takes too, but for the last few events.
#[tokio::test]
async fn the_past_of_large_objects_is_short() {
    let h = harness_with(|c| c.watch_history_bytes = 10_000);
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let large = "x".repeat(1000);
    let mut map = api.create(&PostParams::default(), &config_map("m", &[("k", &large)])).await.unwrap();
    let mut versions = Vec::new();
    for round in 0..50 {
        map.data.get_or_insert_default().insert("round".into(), round.to_string());
        map = api.replace("m", &PostParams::default(), &map).await.unwrap();
        versions.push(map.metadata.resource_version.clone().unwrap());
    }
    let mut stream = api.watch(&WatchParams::default(), &versions[10]).await.unwrap().boxed();
    assert!(matches!(next(&mut stream).await, WatchEvent::Error(status) if status.code == 410));
    let mut stream = api.watch(&WatchParams::default(), &versions[49 - 32]).await.unwrap().boxed();
    assert!(matches!(next(&mut stream).await, WatchEvent::Modified(_)));
}

#[tokio::test]
async fn initial_events_end_with_a_bookmark_and_bookmarks_follow() {
    let h = harness_with(|c| c.bookmark_interval = Duration::from_millis(20));
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    api.create(&PostParams::default(), &config_map("a", &[])).await.unwrap();
    let mut stream = api.watch(&WatchParams::default().initial_events(), "0").await.unwrap().boxed();
    assert!(matches!(next(&mut stream).await, WatchEvent::Added(o) if o.name_any() == "a"));
    let WatchEvent::Bookmark(end) = next(&mut stream).await else { panic!("no bookmark") };
    assert_eq!(end.metadata.annotations["k8s.io/initial-events-end"], "true");
    assert!(matches!(next(&mut stream).await, WatchEvent::Bookmark(_)));
}

#[tokio::test]
async fn watches_end_at_their_timeout() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let params = WatchParams::default().timeout(1).disable_bookmarks();
    let stream = api.watch(&params, "0").await.unwrap();
    let events: Vec<_> = tokio::time::timeout(LIMIT, stream.try_collect()).await.unwrap().unwrap();
    assert!(events.is_empty());
}

/// Intent waits for the disk and status does not, yet one table tells both in the order of their versions.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn mixed_writes_are_told_once_and_in_order() {
    const OBJECTS: usize = 8;
    const ROUNDS: usize = 20;
    let h = harness();
    let api: Api<DynamicObject> =
        Api::namespaced_with(h.client.clone(), "default", &serving("Service", "services"));
    for index in 0..OBJECTS {
        api.create(&PostParams::default(), &ksvc(&format!("s{index}"))).await.unwrap();
    }
    let start = api.list(&ListParams::default()).await.unwrap().metadata.resource_version.unwrap();
    let mut stream = api.watch(&WatchParams::default(), &start).await.unwrap().boxed();
    let mut writers = tokio::task::JoinSet::new();
    for index in 0..OBJECTS {
        for status in [false, true] {
            let api = api.clone();
            writers.spawn(async move {
                let (name, params) = (format!("s{index}"), PatchParams::default());
                let mut versions = Vec::new();
                for round in 0..ROUNDS {
                    let written = if status {
                        let patch = json!({ "status": { "url": format!("http://{round}") } });
                        api.patch_status(&name, &params, &Patch::Merge(patch)).await
                    } else {
                        let patch = json!({ "metadata": { "labels": { "round": round.to_string() } } });
                        api.patch(&name, &params, &Patch::Merge(patch)).await
                    };
                    let version = written.unwrap().resource_version().unwrap();
                    // What is acknowledged is visible.
                    let seen = api.get(&name).await.unwrap().resource_version().unwrap();
                    assert!(seen.parse::<u64>().unwrap() >= version.parse::<u64>().unwrap());
                    versions.push(version.parse::<u64>().unwrap());
                }
                versions
            });
        }
    }
    let mut written: Vec<u64> = writers.join_all().await.concat();
    written.sort_unstable();
    assert_eq!(written.len(), OBJECTS * ROUNDS * 2);
    let mut told = Vec::new();
    while told.len() < written.len() {
        let WatchEvent::Modified(object) = next(&mut stream).await else { panic!("not a change") };
        told.push(object.resource_version().unwrap().parse::<u64>().unwrap());
    }
    assert_eq!(told, written);
}

#[tokio::test]
async fn pages_are_of_one_version_or_gone() {
    let h = harness_with(|c| c.watch_history = 8);
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    for index in 0..4 {
        api.create(&PostParams::default(), &config_map(&format!("m{index}"), &[])).await.unwrap();
    }
    let first = api.list(&ListParams::default().limit(1)).await.unwrap();
    assert_eq!(first.metadata.remaining_item_count, Some(3));
    api.delete("m1", &kube::api::DeleteParams::default()).await.unwrap();
    api.create(&PostParams::default(), &config_map("m9", &[])).await.unwrap();
    let patch = json!({ "data": { "x": "y" } });
    api.patch("m2", &PatchParams::default(), &Patch::Merge(&patch)).await.unwrap();
    let params = ListParams { continue_token: first.metadata.continue_, ..ListParams::default() };
    let rest = api.list(&params).await.unwrap();
    assert_eq!(rest.iter().map(ResourceExt::name_any).collect::<Vec<_>>(), ["m1", "m2", "m3"]);
    assert_eq!(rest.metadata.resource_version, first.metadata.resource_version);
    assert!(rest.items[1].data.iter().all(BTreeMap::is_empty));
    for index in 0..9 {
        api.create(&PostParams::default(), &config_map(&format!("n{index}"), &[])).await.unwrap();
    }
    assert_eq!(code(api.list(&params).await), 410);
}

#[tokio::test]
async fn parameters_that_a_cluster_refuses_are_refused() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    for name in ["a", "b"] {
        api.create(&PostParams::default(), &config_map(name, &[])).await.unwrap();
    }
    let token = api.list(&ListParams::default().limit(1)).await.unwrap().metadata.continue_.unwrap();
    let maps = "/api/v1/namespaces/default/configmaps";
    for (method, path, wanted) in [
        ("GET", format!("{maps}?resourceVersionMatch=Exact"), 422),
        ("GET", format!("{maps}?resourceVersion=0&resourceVersionMatch=Exact"), 422),
        ("GET", format!("{maps}?watch=true&sendInitialEvents=true"), 422),
        ("GET", format!("{maps}?continue={token}&resourceVersion=5"), 400),
        ("GET", format!("{maps}?labelSelector=a%3D%3D%3Db"), 400),
        ("GET", format!("{maps}?resourceVersion=abc"), 400),
        ("GET", format!("{maps}?resourceVersion=9999999999"), 504),
        ("GET", format!("{maps}/a?resourceVersion=abc"), 400),
        ("GET", format!("{maps}/a?resourceVersion=9999999999"), 504),
        ("DELETE", format!("{maps}/a?propagationPolicy=Orphan&orphanDependents=true"), 422),
        ("DELETE", format!("{maps}/a?propagationPolicy=Upwards"), 422),
    ] {
        let request = http::Request::builder().method(method).uri(&path).body(Vec::new()).unwrap();
        assert_eq!(code(h.client.request::<serde_json::Value>(request).await), wanted, "{method} {path}");
    }
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 2);
}
