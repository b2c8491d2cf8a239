//! Creation, updates, patches, and what is checked of them.

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Event, Namespace, Pod, Secret};
use kube::api::{DeleteParams, DynamicObject, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, Error, ResourceExt};
use serde_json::json;

use crate::harness::*;

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

/// What is stored has to be read again, and parsers have limits.
#[tokio::test]
async fn objects_are_not_nested_deeper_than_can_be_read() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    api.create(&PostParams::default(), &config_map("a", &[("k", "1")])).await.unwrap();
    let nested = (0..90).fold(json!({}), |inner, _| json!({ "x": inner }));
    let path = format!("/deep{}", "/x".repeat(90));
    let operations = json!([{ "op": "add", "path": "/deep", "value": nested },
                            { "op": "add", "path": format!("{path}/x"), "value": nested }]);
    let patched = api.patch("a", &PatchParams::default(), &Patch::Json::<()>(object(operations))).await;
    let Err(Error::Api(status)) = patched else { panic!("accepted") };
    assert_eq!(status.code, 400);
    assert!(status.message.contains("exceeded max depth of 100"), "{}", status.message);
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
    for (replicas, wanted) in
        [(json!("x"), 400), (json!(1.5), 400), (json!(3_000_000_000_i64), 400), (json!(-1), 422)]
    {
        let patch = Patch::Merge(json!({ "spec": { "replicas": replicas } }));
        assert_eq!(code(api.patch_scale("d", &PatchParams::default(), &patch).await), wanted, "{replicas}");
    }
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
async fn dry_runs_leave_no_trace() {
    let h = harness();
    let api: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let dry = PostParams { dry_run: true, ..PostParams::default() };
    api.create(&dry, &config_map("a", &[])).await.unwrap();
    assert_eq!(code(api.get("a").await), 404);
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

#[tokio::test]
async fn contents_of_builtin_kinds_are_checked() {
    let h = harness();
    let maps: Api<ConfigMap> = Api::namespaced(h.client.clone(), "default");
    let refused = maps.create(&PostParams::default(), &config_map("a", &[("a/b", "1")])).await;
    let Err(Error::Api(status)) = refused else { panic!("accepted") };
    assert_eq!((status.code, status.reason.as_str()), (422, "Invalid"));
    let cause = &status.details.as_ref().unwrap().causes[0];
    assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("FieldValueInvalid", "data[a/b]"));
    assert!(
        status.message.starts_with("ConfigMap \"a\" is invalid: data[a/b]: Invalid value: \"a/b\": a valid")
    );

    let mut frozen = config_map("a", &[("k", "1")]);
    frozen.immutable = Some(true);
    maps.create(&PostParams::default(), &frozen).await.unwrap();
    let params = PatchParams::default();
    for patch in
        [json!({ "data": { "k": "2" } }), json!({ "immutable": false }), json!({ "immutable": null })]
    {
        assert_eq!(code(maps.patch("a", &params, &Patch::Merge(&patch)).await), 422, "{patch}");
        let applied = json!({ "apiVersion": "v1", "kind": "ConfigMap", "immutable": patch.get("immutable").is_none(),
            "data": { "k": "2" } });
        let forced = PatchParams::apply("x").force();
        assert_eq!(code(maps.patch("a", &forced, &Patch::Apply(&applied)).await), 422, "{applied}");
    }
    let labels = json!({ "metadata": { "labels": { "a": "b" } } });
    maps.patch("a", &params, &Patch::Merge(&labels)).await.unwrap();
    maps.delete("a", &DeleteParams::default()).await.unwrap();

    let secrets: Api<Secret> = Api::namespaced(h.client.clone(), "default");
    let secret = object(json!({ "metadata": { "name": "s" }, "stringData": { "a": "b" } }));
    secrets.create(&PostParams::default(), &secret).await.unwrap();
    let retyped = secrets.patch("s", &params, &Patch::Merge(json!({ "type": "kubernetes.io/tls" }))).await;
    let message = message(retyped);
    assert!(message.contains("type: Invalid value: \"kubernetes.io/tls\": field is immutable"), "{message}");
    assert!(message.contains("data[tls.key]: Required value"), "{message}");

    let pods: Api<Pod> = Api::namespaced(h.client.clone(), "default");
    pods.create(&PostParams::default(), &pod("p")).await.unwrap();
    let command = json!({ "spec": { "containers": [{ "name": "c", "command": ["x"] }] } });
    assert_eq!(code(pods.patch("p", &params, &Patch::Strategic(&command)).await), 422);
    let image = json!({ "spec": { "containers": [{ "name": "c", "image": "j" }] } });
    pods.patch("p", &params, &Patch::Strategic(&image)).await.unwrap();
    pods.patch_status("p", &params, &Patch::Merge(json!({ "status": { "phase": "Running" } })))
        .await
        .unwrap();

    let deployments: Api<Deployment> = Api::namespaced(h.client.clone(), "default");
    let deployment: Deployment = object(json!({ "metadata": { "name": "d" }, "spec": {
        "selector": { "matchLabels": { "app": "d" } }, "template": { "metadata": { "labels": { "app": "d", "b": "c" } },
        "spec": { "containers": [{ "name": "c", "image": "i" }] } } } }));
    deployments.create(&PostParams::default(), &deployment).await.unwrap();
    let selector = json!({ "spec": { "selector": { "matchLabels": { "b": "c" } } } });
    assert_eq!(code(deployments.patch("d", &params, &Patch::Merge(&selector)).await), 422);
}

#[tokio::test]
async fn type_errors_say_where() {
    let h = harness();
    let services: Api<DynamicObject> =
        Api::namespaced_with(h.client.clone(), "default", &serving("Service", "services"));
    let mut service = ksvc("x");
    service.data["spec"]["template"]["spec"]["containers"][0]["image"] = 5.into();
    let text = message(services.create(&PostParams::default(), &service).await);
    let wanted = "json: spec.template.spec.containers[0].image: invalid type: integer `5`, expected a string";
    assert!(text.ends_with(wanted), "{text}");

    let request = http::Request::post("/api/v1/namespaces/default/configmaps")
        .header("content-type", "application/json")
        .body(br#"{"metadata":{"name":"m"},"data":{"a":1}}"#.to_vec())
        .unwrap();
    let text = message(h.client.request::<ConfigMap>(request).await);
    assert!(text.ends_with("data.a: invalid type: integer `1`, expected a string"), "{text}");
}
