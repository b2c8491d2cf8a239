//! The server through its in-process client: what controllers rely on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ember_apiserver::{ApiServer, Config};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event, Namespace, Pod, Secret};
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams,
    WatchEvent, WatchParams,
};
use kube::{Api, Client, Error, ResourceExt};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

const LIMIT: Duration = Duration::from_secs(10);

struct Harness {
    server: ApiServer,
    client: Client,
    folder: TempDir,
}

fn open_at(path: &Path) -> ApiServer {
    ApiServer::open(Config::new(path)).expect("opens")
}

fn harness_with(change: impl FnOnce(&mut Config)) -> Harness {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path().join("data"));
    change(&mut config);
    let server = ApiServer::open(config).expect("opens");
    let client = server.client();
    Harness { server, client, folder }
}

fn harness() -> Harness {
    harness_with(|_| {})
}

fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

fn config_map(name: &str, data: &[(&str, &str)]) -> ConfigMap {
    let data: BTreeMap<&str, &str> = data.iter().copied().collect();
    object(json!({ "metadata": { "name": name }, "data": data }))
}

fn code(result: Result<impl std::fmt::Debug, Error>) -> u16 {
    match result {
        Err(Error::Api(status)) => status.code,
        other => panic!("expected a failure, got {other:?}"),
    }
}

fn message(result: Result<impl std::fmt::Debug, Error>) -> String {
    match result {
        Err(Error::Api(status)) => status.message.clone(),
        other => panic!("expected a failure, got {other:?}"),
    }
}

fn serving(kind: &str, plural: &str) -> ApiResource {
    let gvk = GroupVersionKind::gvk("serving.knative.dev", "v1", kind);
    ApiResource::from_gvk_with_plural(&gvk, plural)
}

fn ksvc(name: &str) -> DynamicObject {
    object(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "template": { "spec": { "containers": [{ "image": "dev.local/host", "name": "c" }] } } },
    }))
}

fn pod(name: &str) -> Pod {
    object(json!({ "metadata": { "name": name, "labels": { "app": name } },
                   "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] } }))
}

async fn next<K: DeserializeOwned + Clone + std::fmt::Debug + 'static>(
    stream: &mut (impl futures::Stream<Item = Result<WatchEvent<K>, Error>> + Unpin),
) -> WatchEvent<K> {
    tokio::time::timeout(LIMIT, stream.next())
        .await
        .expect("an event in time")
        .expect("the stream goes on")
        .expect("an event")
}

#[tokio::test]
async fn objects_are_created_read_changed_and_deleted() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let made = api.create(&PostParams::default(), &config_map("a", &[("k", "1")])).await.unwrap();
    assert!(made.uid().is_some() && made.creation_timestamp().is_some() && made.resource_version().is_some());
    assert_eq!(code(api.create(&PostParams::default(), &config_map("a", &[])).await), 409);

    let mut changed = made.clone();
    changed.data = Some([("k".to_owned(), "2".to_owned())].into());
    let second = api.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_ne!(second.resource_version(), made.resource_version());
    // The older version is refused, one without a version is not.
    assert_eq!(code(api.replace("a", &PostParams::default(), &changed).await), 409);
    changed.metadata.resource_version = None;
    let same = api.replace("a", &PostParams::default(), &changed).await.unwrap();
    assert_eq!(same.resource_version(), second.resource_version(), "nothing changed, so nothing is written");

    assert_eq!(code(api.get("b").await), 404);
    assert_eq!(message(api.get("b").await), "configmaps \"b\" not found");
    assert!(api.delete("a", &DeleteParams::default()).await.unwrap().is_right());
    assert_eq!(code(api.get("a").await), 404);
    let elsewhere: Api<ConfigMap> = Api::namespaced(h.client.clone(), "nowhere");
    let failed = elsewhere.create(&PostParams::default(), &config_map("a", &[])).await;
    assert_eq!(message(failed), "namespaces \"nowhere\" not found");
}

#[tokio::test]
async fn names_are_generated_and_checked() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let made: ConfigMap = object(json!({ "metadata": { "generateName": "gen-" } }));
    let made = api.create(&PostParams::default(), &made).await.unwrap();
    assert!(made.name_any().starts_with("gen-") && made.name_any().len() == 9);
    let failed = api.create(&PostParams::default(), &config_map("Bad_Name", &[])).await;
    let Err(Error::Api(status)) = failed else { panic!("accepted") };
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    assert!(status.message.contains("a lowercase RFC 1123 subdomain must consist of"), "{}", status.message);
}

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
async fn patches_of_every_type_apply() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    api.create(&PostParams::default(), &config_map("a", &[("k", "1")])).await.unwrap();
    let params = PatchParams::default();
    let operations = json!([{ "op": "add", "path": "/data/j", "value": "2" }]);
    api.patch("a", &params, &Patch::Json::<()>(object(operations))).await.unwrap();
    api.patch("a", &params, &Patch::Strategic(json!({ "data": { "k": null, "s": "3" } }))).await.unwrap();
    let after = api.get("a").await.unwrap().data.unwrap();
    assert_eq!(after, [("j".to_owned(), "2".to_owned()), ("s".to_owned(), "3".to_owned())].into());

    let stale = json!({ "metadata": { "resourceVersion": "1" }, "data": { "k": "9" } });
    assert_eq!(code(api.patch("a", &params, &Patch::Merge(&stale)).await), 409);
    let failing = json!([{ "op": "test", "path": "/data/j", "value": "x" }]);
    assert_eq!(code(api.patch("a", &params, &Patch::Json::<()>(object(failing))).await), 422);

    let services: Api<DynamicObject> =
        Api::namespaced_with(h.client.clone(), "default", &serving("Service", "services"));
    services.create(&PostParams::default(), &ksvc("x")).await.unwrap();
    let labels = json!({ "metadata": { "labels": { "a": "b" } } });
    assert_eq!(code(services.patch("x", &params, &Patch::Strategic(&labels)).await), 415);
    assert_eq!(code(services.patch("x", &PatchParams::apply("t"), &Patch::Apply(&labels)).await), 415);
    let made = services.patch("x", &params, &Patch::Merge(&labels)).await.unwrap();
    assert_eq!(made.labels()["a"], "b");
}

#[tokio::test]
async fn status_and_spec_are_written_apart() {
    let h = harness();
    let api: Api<DynamicObject> =
        Api::namespaced_with(h.client.clone(), "default", &serving("Service", "services"));
    let mut first = ksvc("x");
    first.data["status"] = json!({ "url": "http://ignored" });
    let made = api.create(&PostParams::default(), &first).await.unwrap();
    assert_eq!(made.metadata.generation, Some(1));
    assert!(made.data.get("status").is_none());

    let mut with_status = made.clone();
    with_status.data["status"] = json!({ "url": "http://x" });
    with_status.data["spec"]["template"]["spec"]["containers"][0]["image"] = "changed".into();
    let reported = api.replace_status("x", &PostParams::default(), &with_status).await.unwrap();
    assert_eq!(reported.data["status"]["url"], "http://x");
    assert_eq!(reported.metadata.generation, Some(1));
    assert_eq!(reported.data["spec"], made.data["spec"]);

    let mut respecified = reported.clone();
    respecified.data["status"] = json!({});
    respecified.data["spec"]["template"]["spec"]["containers"][0]["image"] = "other".into();
    let respecified = api.replace("x", &PostParams::default(), &respecified).await.unwrap();
    assert_eq!(respecified.metadata.generation, Some(2));
    assert_eq!(respecified.data["status"]["url"], "http://x");

    let mut unversioned = respecified.clone();
    unversioned.metadata.resource_version = None;
    let failed = api.replace("x", &PostParams::default(), &unversioned).await;
    assert!(message(failed).contains("must be specified for an update"));
}

#[tokio::test]
async fn finalizers_hold_objects_back() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let mut held = config_map("a", &[]);
    held.metadata.finalizers = Some(vec!["example.com/hold".into()]);
    api.create(&PostParams::default(), &held).await.unwrap();
    let marked = api.delete("a", &DeleteParams::default()).await.unwrap().left().expect("still there");
    assert!(marked.metadata.deletion_timestamp.is_some());
    let add = json!({ "metadata": { "finalizers": ["example.com/hold", "example.com/more"] } });
    assert_eq!(code(api.patch("a", &PatchParams::default(), &Patch::Merge(&add)).await), 422);
    let free = json!({ "metadata": { "finalizers": null } });
    api.patch("a", &PatchParams::default(), &Patch::Merge(&free)).await.unwrap();
    assert_eq!(code(api.get("a").await), 404);
}

#[tokio::test]
async fn pods_go_with_grace_and_preconditions_hold() {
    let h = harness();
    let api: Api<Pod> = Api::namespaced(h.client.clone(), "default");
    let made = api.create(&PostParams::default(), &pod("p")).await.unwrap();
    assert_eq!(made.status.unwrap().phase.as_deref(), Some("Pending"));
    let wrong = DeleteParams::default()
        .preconditions(kube::api::Preconditions { uid: Some("other".into()), resource_version: None });
    assert_eq!(code(api.delete("p", &wrong).await), 409);
    let marked = api.delete("p", &DeleteParams::default()).await.unwrap().left().expect("still there");
    assert_eq!(marked.metadata.deletion_grace_period_seconds, Some(30));
    let status = json!({ "status": { "phase": "Running" } });
    api.patch_status("p", &PatchParams::default(), &Patch::Merge(&status)).await.unwrap();
    api.get("p").await.expect("still there");
    api.delete("p", &DeleteParams::default().grace_period(0)).await.unwrap();
    assert_eq!(code(api.get("p").await), 404);
}

#[tokio::test]
async fn deployments_scale() {
    let h = harness();
    let api: Api<Deployment> = Api::namespaced(h.client.clone(), "default");
    let deployment: Deployment = object(json!({
        "metadata": { "name": "d" },
        "spec": { "selector": { "matchLabels": { "app": "d" } },
                  "template": { "metadata": { "labels": { "app": "d" } },
                                "spec": { "containers": [{ "name": "c", "image": "i" }] } } } }));
    let made = api.create(&PostParams::default(), &deployment).await.unwrap();
    assert_eq!(made.spec.unwrap().replicas, Some(1));
    let scaled = api
        .patch_scale("d", &PatchParams::default(), &Patch::Merge(json!({ "spec": { "replicas": 3 } })))
        .await
        .unwrap();
    assert_eq!(scaled.spec.unwrap().replicas, Some(3));
    let read = api.get_scale("d").await.unwrap();
    assert_eq!(read.status.unwrap().selector.as_deref(), Some("app=d"));
    let after = api.get("d").await.unwrap();
    assert_eq!((after.spec.unwrap().replicas, after.metadata.generation), (Some(3), Some(2)));
    let services: Api<DynamicObject> =
        Api::namespaced_with(h.client.clone(), "default", &serving("Service", "services"));
    services.create(&PostParams::default(), &ksvc("x")).await.unwrap();
    assert_eq!(code(services.get_scale("x").await), 404);
}

#[tokio::test]
async fn collections_are_deleted_by_selector() {
    let h = harness();
    let api: Api<Secret> = Api::namespaced(h.client.clone(), "default");
    for (name, app) in [("a", "x"), ("b", "x"), ("c", "y")] {
        let secret: Secret = object(json!({ "metadata": { "name": name, "labels": { "app": app } },
                                            "stringData": { "k": "v" } }));
        let made = api.create(&PostParams::default(), &secret).await.unwrap();
        assert_eq!(made.data.unwrap()["k"].0, b"v");
        assert_eq!(made.type_.as_deref(), Some("Opaque"));
    }
    api.delete_collection(&DeleteParams::default(), &ListParams::default().labels("app=x")).await.unwrap();
    let left: Vec<String> =
        api.list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect();
    assert_eq!(left, ["c"]);
}

#[tokio::test]
async fn dry_runs_leave_no_trace() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&dry, &config_map("a", &[])).await.unwrap();
    assert_eq!(code(api.get("a").await), 404);
}

#[tokio::test]
async fn namespaces_wait_to_be_finalized() {
    let h = harness();
    let api: Api<Namespace> = Api::all(h.client.clone());
    let namespace: Namespace = object(json!({ "metadata": { "name": "n" } }));
    api.create(&PostParams::default(), &namespace).await.unwrap();
    let marked = api.delete("n", &DeleteParams::default()).await.unwrap().left().expect("still there");
    assert_eq!(marked.status.as_ref().unwrap().phase.as_deref(), Some("Terminating"));
    let maps: Api<ConfigMap> = Api::namespaced(h.client.clone(), "n");
    assert_eq!(code(maps.create(&PostParams::default(), &config_map("a", &[])).await), 403);
    let mut freed = marked;
    freed.spec.as_mut().unwrap().finalizers = Some(Vec::new());
    api.replace_subresource("finalize", "n", &PostParams::default(), &freed).await.unwrap();
    assert_eq!(code(api.get("n").await), 404);
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
        "spec": { "selector": {}, "template": { "spec": { "containers": [] } } } }));
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

#[tokio::test]
async fn concurrent_writers_lose_no_update() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    api.create(&PostParams::default(), &config_map("a", &[])).await.unwrap();
    let writers = (0..40).map(|index| {
        let api = api.clone();
        async move {
            let patch = json!({ "data": { format!("k{index}"): "v" } });
            api.patch("a", &PatchParams::default(), &Patch::Merge(&patch)).await
        }
    });
    futures::future::try_join_all(writers).await.unwrap();
    assert_eq!(api.get("a").await.unwrap().data.unwrap().len(), 40);
}

#[tokio::test]
async fn events_and_endpoints_are_served() {
    let h = harness();
    let events: Api<Event> = Api::namespaced(h.client.clone(), "default");
    let event: Event = object(json!({ "metadata": { "name": "e" }, "reason": "Because",
        "involvedObject": { "kind": "Service", "name": "x" } }));
    events.create(&PostParams::default(), &event).await.unwrap();
    let found = events.list(&ListParams::default().fields("involvedObject.name=x")).await.unwrap();
    assert_eq!(found.items.len(), 1);
    let endpoints: Api<Endpoints> = Api::namespaced(h.client.clone(), "default");
    let made: Endpoints = object(json!({ "metadata": { "name": "e" },
        "subsets": [{ "addresses": [{ "ip": "127.0.0.2" }], "ports": [{ "port": 80 }] }] }));
    endpoints.create(&PostParams::default(), &made).await.unwrap();
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
async fn admission_fills_in_refuses_and_follows_the_config_maps() {
    let h = harness();
    let api: Api<DynamicObject> =
        Api::namespaced_with(h.client.clone(), "default", &serving("Service", "services"));
    let made = api.create(&PostParams::default(), &ksvc("x")).await.unwrap();
    let timeout = |o: &DynamicObject| o.data["spec"]["template"]["spec"]["timeoutSeconds"].as_i64();
    assert_eq!(timeout(&made), Some(300));
    assert!(made.annotations().contains_key("serving.knative.dev/creator"));

    let mut imageless = ksvc("y");
    imageless.data["spec"]["template"]["spec"]["containers"][0]["image"] = "".into();
    let Err(Error::Api(status)) = api.create(&PostParams::default(), &imageless).await else {
        panic!("accepted")
    };
    assert_eq!(status.code, 400);
    assert!(
        status.message.starts_with(
            "admission webhook \"validation.webhook.serving.knative.dev\" denied the request: validation failed: "
        ),
        "{}",
        status.message
    );

    let namespace: Namespace = object(json!({ "metadata": { "name": "knative-serving" } }));
    Api::all(h.client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(h.client.clone(), "knative-serving");
    let bad = config_map("config-defaults", &[("revision-timeout-seconds", "soon")]);
    assert_eq!(code(maps.create(&PostParams::default(), &bad).await), 400);
    let good = config_map("config-defaults", &[("revision-timeout-seconds", "42")]);
    maps.create(&PostParams::default(), &good).await.unwrap();
    let made = api.create(&PostParams::default(), &ksvc("z")).await.unwrap();
    assert_eq!(timeout(&made), Some(42));
}
