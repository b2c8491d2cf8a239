//! Server-side apply: owners, conflicts, removal.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{DynamicObject, Patch, PatchParams, PostParams};
use kube::{Api, Error, ResourceExt};
use serde_json::{Value, json};

use crate::harness::*;

fn by(manager: &str) -> PatchParams {
    PatchParams::apply(manager)
}

fn map(data: &Value) -> Patch<Value> {
    Patch::Apply(
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "m" }, "data": data }),
    )
}

/// `(manager, operation, subresource, fields)` of every entry.
fn owners(managed: &Value) -> Vec<(String, String, String, Value)> {
    let text = |entry: &Value, field: &str| entry[field].as_str().unwrap_or_default().to_owned();
    let entries = managed.as_array().into_iter().flatten();
    entries
        .map(|e| {
            assert_eq!(e["fieldsType"], "FieldsV1");
            assert!(e["time"].is_string());
            (text(e, "manager"), text(e, "operation"), text(e, "subresource"), e["fieldsV1"].clone())
        })
        .collect()
}

fn account(object: &impl ResourceExt) -> Vec<(String, String, String, Value)> {
    owners(&serde_json::to_value(object.managed_fields()).unwrap())
}

fn own(manager: &str, operation: &str, fields: Value) -> (String, String, String, Value) {
    (manager.to_owned(), operation.to_owned(), String::new(), fields)
}

#[tokio::test]
async fn appliers_share_conflict_force_and_let_go() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let made = api.patch("m", &by("a"), &map(&json!({ "x": "1", "y": "1" }))).await.unwrap();
    assert_eq!(account(&made), [own("a", "Apply", json!({ "f:data": { "f:x": {}, "f:y": {} } }))]);
    let again = api.patch("m", &by("a"), &map(&json!({ "x": "1", "y": "1" }))).await.unwrap();
    assert_eq!(again.resource_version(), made.resource_version(), "nothing changed, so nothing is written");

    // The same value is shared, another one is a conflict.
    api.patch("m", &by("b"), &map(&json!({ "x": "1", "z": "1" }))).await.unwrap();
    let Err(Error::Api(status)) = api.patch("m", &by("b"), &map(&json!({ "x": "2", "y": "2" }))).await else {
        panic!("no conflict")
    };
    assert_eq!((status.code, status.reason.as_str()), (409, "Conflict"));
    assert_eq!(status.message, "Apply failed with 2 conflicts: conflicts with \"a\":\n- .data.x\n- .data.y");
    let causes = status.details.unwrap().causes;
    assert_eq!((causes[0].reason.as_str(), causes[0].field.as_str()), ("FieldManagerConflict", ".data.x"));
    assert_eq!(causes[0].message, "conflict with \"a\"");
    let one = api.patch("m", &by("b"), &map(&json!({ "x": "2", "z": "1" }))).await;
    assert_eq!(message(one), "Apply failed with 1 conflict: conflict with \"a\": .data.x");

    let forced = api.patch("m", &by("b").force(), &map(&json!({ "x": "2", "z": "1" }))).await.unwrap();
    assert_eq!(
        account(&forced),
        [
            own("a", "Apply", json!({ "f:data": { "f:y": {} } })),
            own("b", "Apply", json!({ "f:data": { "f:x": {}, "f:z": {} } })),
        ]
    );
    // What is dropped goes, unless somebody else owns it.
    api.patch("m", &by("a").force(), &map(&json!({ "x": "2", "y": "1" }))).await.unwrap();
    let left = api.patch("m", &by("b"), &map(&json!({}))).await.unwrap();
    assert_eq!(serde_json::to_value(left.data).unwrap(), json!({ "x": "2", "y": "1" }));
}

#[tokio::test]
async fn updates_take_fields_and_appliers_meet_them() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    api.patch("m", &by("a"), &map(&json!({ "x": "1" }))).await.unwrap();
    let params = PatchParams { field_manager: Some("hand".into()), ..PatchParams::default() };
    let patch = Patch::Merge(json!({ "data": { "x": "2", "n": "1" } }));
    let patched = api.patch("m", &params, &patch).await.unwrap();
    assert_eq!(account(&patched), [own("hand", "Update", json!({ "f:data": { "f:n": {}, "f:x": {} } }))]);
    let failed = api.patch("m", &by("a"), &map(&json!({ "x": "1" }))).await;
    assert_eq!(message(failed), "Apply failed with 1 conflict: conflict with \"hand\" using v1: .data.x");

    // A write that knows nothing of the account leaves it; one empty entry ends it.
    let mut blind = patched.clone();
    blind.metadata.managed_fields = None;
    let kept = api.replace("m", &PostParams::default(), &blind).await.unwrap();
    assert_eq!(kept.managed_fields(), patched.managed_fields());
    let reset = Patch::Merge(json!({ "metadata": { "managedFields": [{}] } }));
    let reset = api.patch("m", &PatchParams::default(), &reset).await.unwrap();
    assert!(reset.managed_fields().is_empty());
    assert_eq!(serde_json::to_value(reset.data).unwrap(), json!({ "x": "2", "n": "1" }));
}

#[tokio::test]
async fn objects_of_components_are_accounted_for_from_their_first_apply_on() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let made = api.create(&PostParams::default(), &config_map("m", &[("x", "1")])).await.unwrap();
    assert!(made.managed_fields().is_empty());
    let failed = api.patch("m", &by("a"), &map(&json!({ "x": "2" }))).await;
    assert_eq!(
        message(failed),
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .data.x"
    );
    let forced = api.patch("m", &by("a").force(), &map(&json!({ "x": "2" }))).await.unwrap();
    assert_eq!(
        account(&forced),
        [
            own("a", "Apply", json!({ "f:data": { "f:x": {} } })),
            own("before-first-apply", "Update", json!({ "f:data": {} })),
        ]
    );
}

#[tokio::test]
async fn lists_are_applied_by_their_keys() {
    let h = harness();
    let api: Api<Deployment> = Api::namespaced(h.client.clone(), "default");
    let deployment = |containers: Value| {
        Patch::Apply(json!({ "apiVersion": "apps/v1", "kind": "Deployment", "metadata": { "name": "d" },
            "spec": { "selector": { "matchLabels": { "app": "d" } },
                      "template": { "metadata": { "labels": { "app": "d" } }, "spec": { "containers": containers } } } }))
    };
    let main = json!({ "name": "main", "image": "1", "ports": [{ "containerPort": 80, "name": "http" }] });
    api.patch("d", &by("a"), &deployment(json!([main]))).await.unwrap();
    let injected =
        json!([{ "name": "main", "env": [{ "name": "E", "value": "1" }] }, { "name": "side", "image": "2" }]);
    api.patch("d", &by("b"), &deployment(injected)).await.unwrap();
    let main = json!({ "name": "main", "image": "3" });
    let after = api.patch("d", &by("a"), &deployment(json!([main]))).await.unwrap();
    assert_eq!(
        serde_json::to_value(&after.spec.unwrap().template.spec.unwrap().containers).unwrap(),
        json!([{ "name": "main", "image": "3", "env": [{ "name": "E", "value": "1" }] },
               { "name": "side", "image": "2" }])
    );
    let nameless = api.patch("d", &by("a"), &deployment(json!([{ "image": "1" }]))).await;
    assert!(message(nameless).contains("omits key field \"name\""));

    // Who scales owns the replicas.
    let scale = json!({ "apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": { "name": "d" },
                        "spec": { "replicas": 3 } });
    let scaled = api.patch_scale("d", &by("scaler").force(), &Patch::Apply(&scale)).await.unwrap();
    assert_eq!(scaled.spec.unwrap().replicas, Some(3));
    let entry = account(&api.get("d").await.unwrap()).into_iter().find(|e| e.0 == "scaler").unwrap();
    assert_eq!((entry.2.as_str(), entry.3), ("scale", json!({ "f:spec": { "f:replicas": {} } })));
}

#[tokio::test]
async fn status_is_applied_apart() {
    let h = harness();
    let api: Api<DynamicObject> =
        Api::namespaced_with(h.client.clone(), "default", &serving("Service", "services"));
    let mut wanted = serde_json::to_value(ksvc("x")).unwrap();
    wanted["status"] = json!({ "url": "http://ignored" });
    let made = api.patch("x", &by("a"), &Patch::Apply(&wanted)).await.unwrap();
    assert!(made.data.get("status").is_none());
    assert_eq!(made.metadata.generation, Some(1));
    // What admission filled in is nobody's.
    assert_eq!(
        account(&made),
        [own("a", "Apply", json!({ "f:spec": { "f:template": { "f:spec": { "f:containers": {} } } } }))]
    );
    // A status that a component writes is not accounted for.
    let own_status = json!({ "status": { "url": "http://x" } });
    api.patch_status("x", &PatchParams::default(), &Patch::Merge(&own_status)).await.unwrap();
    let condition = |manager: &str, status: &str| {
        let body = json!({ "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": { "name": "x" },
            "spec": { "template": {} }, "status": { "observedGeneration": 7, "url": status } });
        let (api, params) = (api.clone(), by(manager));
        async move { api.patch_status("x", &params, &Patch::Apply(&body)).await }
    };
    let applied = condition("s", "http://y").await.unwrap();
    assert_eq!(applied.data["status"]["url"], "http://y");
    assert_eq!(applied.data["spec"], made.data["spec"]);
    let entries = account(&applied);
    assert_eq!(entries.len(), 2);
    let status = entries.iter().find(|e| e.2 == "status").unwrap();
    assert_eq!(status.3, json!({ "f:status": { "f:observedGeneration": {}, "f:url": {} } }));
    let failed = condition("t", "http://z").await;
    let text = "Apply failed with 1 conflict: conflict with \"s\" with subresource \"status\": .status.url";
    assert_eq!(message(failed), text);
    // From now on a component's write of it counts.
    api.patch_status("x", &PatchParams::default(), &Patch::Merge(&own_status)).await.unwrap();
    let failed = condition("s", "http://y").await;
    assert!(message(failed).contains("using serving.knative.dev/v1: .status.url"));
    // No status without an object.
    let body = json!({ "apiVersion": "serving.knative.dev/v1", "kind": "Service", "status": {} });
    assert_eq!(code(api.patch_status("none", &by("s"), &Patch::Apply(&body)).await), 404);
}

#[tokio::test]
async fn an_apply_is_checked() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let apply = |body: Value| {
        let api = api.clone();
        async move { api.patch("m", &by("a"), &Patch::Apply(&body)).await }
    };
    let body = |metadata: Value| json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": { "x": "1" } });
    let managed = json!([{ "manager": "a", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {} }]);
    let failed = apply(body(json!({ "name": "m", "managedFields": managed }))).await;
    assert_eq!(message(failed), "metadata.managedFields must be nil");
    assert_eq!(code(apply(json!({ "metadata": { "name": "m" } })).await), 400);
    assert_eq!(code(apply(body(json!({ "name": "other" }))).await), 400);
    assert_eq!(code(apply(body(json!({ "name": "m", "resourceVersion": "7" }))).await), 409);
    assert_eq!(code(apply(body(json!({ "name": "m", "uid": "7" }))).await), 409);
    let dry = by("a").dry_run();
    api.patch("m", &dry, &Patch::Apply(&body(json!({})))).await.unwrap();
    assert_eq!(code(api.get("m").await), 404);

    let made = apply(body(json!({ "creationTimestamp": null }))).await.unwrap();
    assert_eq!(account(&made), [own("a", "Apply", json!({ "f:data": { "f:x": {} } }))]);
    let stale = body(json!({ "name": "m", "resourceVersion": "1" }));
    assert_eq!(code(apply(stale).await), 409);
    apply(body(json!({ "name": "m", "resourceVersion": made.resource_version(), "uid": made.uid() })))
        .await
        .unwrap();
    let dry = api.patch("m", &dry, &map(&json!({ "y": "1" }))).await.unwrap();
    assert!(dry.data.unwrap().contains_key("y"));
    assert!(!api.get("m").await.unwrap().data.unwrap().contains_key("y"));

    let request = |query: &str, kind: &str, body: &str| {
        let request = http::Request::patch(format!("/api/v1/namespaces/default/configmaps/m{query}"))
            .header("content-type", kind)
            .body(body.as_bytes().to_vec())
            .unwrap();
        let client = h.client.clone();
        async move { client.request::<ConfigMap>(request).await }
    };
    let yaml = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: m }\ndata: { x: '1', z: '3' }\n";
    let apply_yaml = "application/apply-patch+yaml";
    let made = request("?fieldManager=a", apply_yaml, yaml).await.unwrap();
    assert_eq!(made.data.unwrap()["z"], "3");
    assert_eq!(
        message(request("", apply_yaml, yaml).await),
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
    );
    assert_eq!(code(request("?force=true", "application/merge-patch+json", "{}").await), 422);
    let long = format!("?fieldManager={}", "x".repeat(129));
    assert_eq!(code(request(&long, apply_yaml, yaml).await), 422);
    assert_eq!(code(request("?fieldManager=a", apply_yaml, "- 1\n").await), 400);
    assert_eq!(code(request("?fieldManager=a", apply_yaml, "{").await), 400);
    let odd = yaml.replace("data:", "dta: { a: b }\ndata:");
    let failed = request("?fieldManager=a&fieldValidation=Strict", apply_yaml, &odd).await;
    assert!(message(failed).contains("unknown field \"dta\""));
}

/// Finalizers are a set, owners a map.
#[tokio::test]
async fn metadata_is_shared_item_by_item() {
    let h = harness();
    let api: Api<Pod> = Api::namespaced(h.client.clone(), "default");
    let body = |finalizer: &str, owner: &str| {
        Patch::Apply(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p",
            "finalizers": [finalizer],
            "ownerReferences": [{ "apiVersion": "v1", "kind": "ConfigMap", "name": owner, "uid": owner }] },
            "spec": { "containers": [{ "name": "c", "image": "i" }] } }))
    };
    api.patch("p", &by("a"), &body("x.io/a", "a")).await.unwrap();
    let both = api.patch("p", &by("b"), &body("x.io/b", "b")).await.unwrap();
    assert_eq!(both.finalizers(), ["x.io/a", "x.io/b"]);
    assert_eq!(both.owner_references().len(), 2);
    let bare = Patch::Apply(json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p" } }));
    let left = api.patch("p", &by("a"), &bare).await.unwrap();
    assert_eq!(left.finalizers(), ["x.io/b"]);
    assert_eq!(left.owner_references()[0].uid, "b");
}

#[tokio::test]
async fn an_apply_that_creates_fills_in_what_one_that_changes_does() {
    let h = harness();
    let api: Api<DynamicObject> =
        Api::namespaced_with(h.client.clone(), "default", &serving("Service", "services"));
    let wanted = Patch::Apply(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": { "name": "x" },
        "spec": { "template": { "spec": { "containers": [
            { "image": "dev.local/host", "name": "c", "ports": [{ "containerPort": 8080 }] }
        ] } } },
    }));
    let made = api.patch("x", &by("a"), &wanted).await.unwrap();
    assert_eq!(made.data["spec"]["template"]["spec"]["containers"][0]["ports"][0]["protocol"], "TCP");
    let again = api.patch("x", &by("a"), &wanted).await.unwrap();
    assert_eq!(again.metadata.generation, Some(1));
    assert_eq!(again.resource_version(), made.resource_version(), "nothing changed, so nothing is written");
}
