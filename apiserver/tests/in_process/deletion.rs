//! Deletion: grace, finalizers, owners, preconditions, collections.

use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Secret};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt};
use serde_json::json;

use crate::harness::*;

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
async fn collections_are_deleted_in_part_and_for_show() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    for name in ["a", "b", "c"] {
        api.create(&PostParams::default(), &config_map(name, &[])).await.unwrap();
    }
    let names = || async {
        api.list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect::<Vec<_>>()
    };
    let dry = DeleteParams { dry_run: true, ..DeleteParams::default() };
    api.delete_collection(&dry, &ListParams::default()).await.unwrap();
    api.delete("a", &dry).await.unwrap();
    assert_eq!(names().await, ["a", "b", "c"]);
    // The client's own call knows no limit.
    let request =
        http::Request::delete("/api/v1/namespaces/default/configmaps?limit=2").body(Vec::new()).unwrap();
    h.client.request::<serde_json::Value>(request).await.unwrap();
    assert_eq!(names().await, ["c"]);
}

#[tokio::test]
async fn owners_wait_for_or_let_go_of_what_they_own() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    for (name, params, finalizer) in [
        ("f", DeleteParams::foreground(), Some("foregroundDeletion")),
        ("o", DeleteParams::orphan(), Some("orphan")),
        ("b", DeleteParams::background(), None),
    ] {
        let made = api.create(&PostParams::default(), &config_map(name, &[])).await.unwrap();
        let stale = params
            .clone()
            .preconditions(kube::api::Preconditions { uid: made.uid(), resource_version: Some("1".into()) });
        assert_eq!(code(api.delete(name, &stale).await), 409);
        let exact = params.preconditions(kube::api::Preconditions {
            uid: made.uid(),
            resource_version: made.resource_version(),
        });
        let marked = api.delete(name, &exact).await.unwrap().left();
        let held = marked.and_then(|m| m.metadata.finalizers);
        assert_eq!(held, finalizer.map(|f| vec![f.to_owned()]), "{name}");
    }
    assert_eq!(code(api.get("b").await), 404);
}

#[tokio::test]
async fn nothing_is_deleted_or_made_across_namespaces() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    api.create(&PostParams::default(), &config_map("a", &[])).await.unwrap();
    let call = |method: &str, path: &'static str| {
        let request =
            http::Request::builder().method(method).uri(path).header("content-type", "application/json");
        let body = serde_json::to_vec(&config_map("b", &[])).unwrap();
        let body = if method == "POST" { body } else { Vec::new() };
        h.client.request::<serde_json::Value>(request.body(body).unwrap())
    };
    for (path, wanted) in [
        ("/api/v1/configmaps", 405),
        ("/apis/apps/v1/deployments", 405),
        ("/api/v1/namespaces", 405),
        ("/apis/serving.knative.dev/v1/services", 404),
    ] {
        assert_eq!(code(call("DELETE", path).await), wanted, "{path}");
        if path != "/api/v1/namespaces" {
            assert_eq!(code(call("POST", path).await), wanted, "{path}");
        }
    }
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), 1);
}

#[tokio::test]
async fn namespaces_of_the_machine_itself_stay() {
    let h = harness();
    let api: Api<Namespace> = Api::all(h.client.clone());
    let dry = DeleteParams { dry_run: true, ..DeleteParams::default() };
    for name in ["default", "kube-system", "kube-public", "knative-serving"] {
        for params in [DeleteParams::default(), dry.clone()] {
            let failed = api.delete(name, &params).await;
            let wanted = format!("namespaces \"{name}\" is forbidden: this namespace may not be deleted");
            assert_eq!(message(failed), wanted);
        }
    }
    assert_eq!(code(api.delete("default", &DeleteParams::default()).await), 403);
    assert!(api.get("default").await.is_ok());
}

#[tokio::test]
async fn a_finalized_namespace_is_named() {
    let h = harness();
    let finalize = |body: &'static str| {
        let request = http::Request::put("/api/v1/namespaces/default/finalize");
        let request = request.header("content-type", "application/json").body(body.as_bytes().to_vec());
        h.client.request::<Namespace>(request.unwrap())
    };
    for body in [r#"{"a":1}"#, r#"{"metadata":{"name":"other"}}"#] {
        assert_eq!(code(finalize(body).await), 400, "{body}");
    }
    let api: Api<Namespace> = Api::all(h.client.clone());
    assert_eq!(api.get("default").await.unwrap().spec.unwrap().finalizers.unwrap(), ["kubernetes"]);
}
