//! Labels and annotations that travel from object to object: `migration_test`, `propagation_test`.

use ember_tests::api;
use serde_json::{Value, json};

use crate::objects::{get, patch, ready_with, says, serving, until};

#[tokio::test(flavor = "multi_thread")]
async fn test_annotation_propagation() {
    let ember = serving("annotated", "spaceport").await;
    // A new revision is the marker: it comes after what has been changed before.
    let mut change = says("pizza");
    change["metadata"] = json!({"annotations": {"juicy": "jamba"}});
    patch(&ember, "services", "annotated", &change).await;
    ready_with(&ember, "services", "annotated", "annotated-00002").await;
    let juicy =
        async |kind: &str| get(&ember, kind, "annotated").await["metadata"]["annotations"]["juicy"].clone();
    let placeholder = "/api/v1/namespaces/default/services/annotated";
    let placeholder = api::get(&ember.client, placeholder).await.unwrap();
    assert_eq!(placeholder["metadata"]["annotations"]["juicy"], "jamba");
    for kind in ["routes", "configurations"] {
        assert_eq!(juicy(kind).await, "jamba", "{kind}");
    }
    let mut change = says("noodles");
    change["metadata"] = json!({"annotations": {"juicy": null}});
    patch(&ember, "services", "annotated", &change).await;
    ready_with(&ember, "services", "annotated", "annotated-00003").await;
    // The placeholder keeps what it once had.
    for kind in ["routes", "configurations"] {
        assert_eq!(juicy(kind).await, json!(null), "{kind}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_label_propagation() {
    let ember = serving("labelled", "spaceport").await;
    let label = |object: &Value, name: &str| {
        object["metadata"]["labels"][format!("serving.knative.dev/{name}")].clone()
    };
    for kind in ["configurations", "routes"] {
        assert_eq!(label(&get(&ember, kind, "labelled").await, "service"), "labelled");
    }
    let routed = |object: &Value| label(object, "routingState") == "active";
    let first = until(&ember, "revisions", "labelled-00001", "active", routed).await;
    assert_eq!(first["metadata"]["annotations"]["serving.knative.dev/routes"], "labelled");
    assert_eq!(label(&first, "configurationGeneration"), "1");

    patch(&ember, "services", "labelled", &says("pizza")).await;
    ready_with(&ember, "services", "labelled", "labelled-00002").await;
    let second = until(&ember, "revisions", "labelled-00002", "active", routed).await;
    assert_eq!(label(&second, "configurationGeneration"), "2");
    let retired = |object: &Value| label(object, "routingState") == "reserve";
    let first = until(&ember, "revisions", "labelled-00001", "in reserve", retired).await;
    assert_eq!(first["metadata"]["annotations"]["serving.knative.dev/routes"], json!(null), "{first}");
    for revision in [&first, &second] {
        assert_eq!(label(revision, "service"), "labelled");
        assert_eq!(label(revision, "configuration"), "labelled");
    }
}
