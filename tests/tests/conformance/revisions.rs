//! Revisions and Configurations: `revision_test`, `configuration_test`, `revision_timeout_test`.

use ember_tests::instance::Ember;
use serde_json::json;

use crate::app;
use crate::objects::{create, get, greeter, list, patch, ready_with, says, serving, until};

#[tokio::test(flavor = "multi_thread")]
async fn test_revision_get_and_list() {
    let ember = serving("listed", "noodles").await;
    let revision = get(&ember, "revisions", "listed-00001").await;
    let listed = list(&ember, "revisions").await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["metadata"]["uid"], revision["metadata"]["uid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn test_configuration_get_and_list() {
    let ember = serving("listed", "noodles").await;
    let configuration = get(&ember, "configurations", "listed").await;
    let listed = list(&ember, "configurations").await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["metadata"]["uid"], configuration["metadata"]["uid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn test_update_configuration_metadata() {
    let ember = Ember::start().await;
    create(&ember, "configurations", &greeter("Configuration", &json!({"name": "meta"}), "noodles")).await;
    ready_with(&ember, "configurations", "meta", "meta-00001").await;
    let labels = json!({"metadata": {"labels": {"labelX": "abc", "labelY": "def"}}});
    let annotations = json!({"metadata": {"annotations": {"annotationA": "123", "annotationB": "456"}}});
    for change in [&labels, &annotations] {
        let changed = patch(&ember, "configurations", "meta", change).await;
        assert_eq!(changed["metadata"]["generation"], 1, "{changed}");
    }
    // What comes later is seen later: with a second revision there, the first changes have been looked at.
    patch(&ember, "configurations", "meta", &says("pizza")).await;
    ready_with(&ember, "configurations", "meta", "meta-00002").await;
    let revisions = list(&ember, "revisions").await;
    assert_eq!(revisions.len(), 2, "{revisions:?}");
    for revision in revisions {
        assert_eq!(revision["metadata"]["labels"]["labelX"], json!(null), "{revision}");
        assert_eq!(revision["metadata"]["annotations"]["annotationA"], json!(null), "{revision}");
    }
    let configuration = get(&ember, "configurations", "meta").await;
    assert_eq!(configuration["metadata"]["labels"]["labelY"], "def");
    assert_eq!(configuration["metadata"]["annotations"]["annotationB"], "456");
}

/// With a fifth of upstream's times.
#[tokio::test(flavor = "multi_thread")]
async fn test_revision_timeout() {
    let ember = Ember::start().await;
    let app = app::ready(&ember, &app::service("slow", &json!({}), &json!({"timeoutSeconds": 2}))).await;
    let is = |object: &serde_json::Value| object["spec"]["timeoutSeconds"] == 2;
    until(&ember, "revisions", "slow-00001", "with its timeout", is).await;
    for (first_then, expected) in [("0.4,0", 200), ("3,0", 504), ("0,1.5", 200)] {
        let answer = app.client.get(&app.host, &format!("/sleep?{first_then}")).await.unwrap();
        assert_eq!(answer.status.as_u16(), expected, "{first_then}: {}", answer.text);
    }
}
