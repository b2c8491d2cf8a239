//! The life of a Service: `service_test`, `service_account_test`, `single_threaded_test`.

use ember_tests::http::host;
use ember_tests::instance::Ember;
use ember_tests::load::Load;
use ember_tests::{PATIENCE, api, eventually};
use serde_json::json;

use crate::app;
use crate::objects::{
    Prober, all, create, get, greeter, list, one, only_says, patch, ready_with, says, serving, template,
};

#[tokio::test(flavor = "multi_thread")]
async fn test_service_create_list_and_delete() {
    let ember = serving("brief", "noodles").await;
    let listed = list(&ember, "services").await;
    assert_eq!(listed[0]["metadata"]["name"], "brief", "{listed:?}");
    api::delete(&ember.client, &one("services", "brief")).await.unwrap();
    eventually("nothing is left", PATIENCE, || async {
        for kind in ["services", "routes", "configurations"] {
            let left = list(&ember, kind).await;
            if !left.is_empty() {
                return Err(left);
            }
        }
        Ok(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_service_create_and_update() {
    let ember = serving("updated", "spaceport").await;
    let generation = async |revision: &str| {
        let service = ready_with(&ember, "services", "updated", revision).await;
        assert_eq!(service["status"]["latestCreatedRevisionName"], revision);
        let revision = get(&ember, "revisions", revision).await;
        revision["metadata"]["labels"]["serving.knative.dev/configurationGeneration"].clone()
    };
    assert_eq!(generation("updated-00001").await, "1");
    only_says(&ember, "updated", "spaceport").await;

    let prober = Prober::start(&ember, "updated");
    patch(&ember, "services", "updated", &says("pizza")).await;
    assert_eq!(generation("updated-00002").await, "2");
    only_says(&ember, "updated", "pizza").await;

    // Metadata of the template makes revisions too.
    let labels = json!({"spec": {"template": {"metadata": {"labels": {"labelX": "abc", "labelY": "def"}}}}});
    patch(&ember, "services", "updated", &labels).await;
    assert_eq!(generation("updated-00003").await, "3");
    let annotations = json!({"spec": {"template": {"metadata": {"annotations": {"annotationA": "123", "annotationB": "456"}}}}});
    patch(&ember, "services", "updated", &annotations).await;
    assert_eq!(generation("updated-00004").await, "4");
    let last = get(&ember, "revisions", "updated-00004").await;
    assert_eq!(last["metadata"]["labels"]["labelX"], "abc");
    assert_eq!(last["metadata"]["annotations"]["annotationB"], "456");
    only_says(&ember, "updated", "pizza").await;
    prober.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_service_byo_name() {
    let ember = Ember::start().await;
    let mut service = greeter("Service", &json!({"name": "own"}), "spaceport");
    service["spec"]["template"]["metadata"] = json!({"name": "own-byoname"});
    create(&ember, "services", &service).await;
    ready_with(&ember, "services", "own", "own-byoname").await;
    only_says(&ember, "own", "spaceport").await;

    let prober = Prober::start(&ember, "own");
    let refused = api::merge(&ember.client, &one("services", "own"), &says("pizza")).await;
    let message = refused.unwrap_err().to_string();
    assert!(message.contains("changes without a name change"), "{message}");
    let mut change = says("pizza");
    change["spec"]["template"]["metadata"] = json!({"name": "own-next"});
    patch(&ember, "services", "own", &change).await;
    ready_with(&ember, "services", "own", "own-next").await;
    only_says(&ember, "own", "pizza").await;
    prober.stop().await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_service_account_validation() {
    let ember = Ember::start().await;
    let mut service = greeter("Service", &json!({"name": "account"}), "nobody");
    service["spec"]["template"] = template("nobody");
    service["spec"]["template"]["spec"]["serviceAccountName"] = "foo@bar.baz".into();
    let refused = api::create(&ember.client, &all("services"), &service).await.unwrap_err().to_string();
    assert!(refused.contains("spec.template.spec.serviceAccountName"), "{refused}");
    assert!(refused.contains("foo@bar.baz"), "{refused}");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_single_concurrency() {
    let ember = Ember::start().await;
    app::ready(&ember, &app::service("alone", &json!({}), &json!({"containerConcurrency": 1}))).await;
    let load = Load::start(ember.gateway, &host("alone"), "/alone", 5);
    eventually("a hundred answers", PATIENCE, || async {
        let tally = load.tally();
        if tally.answers.get("One at a time").is_some_and(|count| *count >= 100) {
            Ok(())
        } else {
            Err(tally)
        }
    })
    .await;
    let tally = load.stop().await;
    assert!(tally.failures.is_empty(), "{:?}", tally.failures);
}
