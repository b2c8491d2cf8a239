//! Routes, and the traffic that a Service gives its own: `blue_green_test`, `route_test`, `service_test`.

use ember_tests::instance::Ember;
use serde_json::{Value, json};

use crate::objects::{
    Prober, answers, create, get, greeter, list, only_says, patch, ready, ready_with, says, serving, until,
};

#[tokio::test(flavor = "multi_thread")]
async fn test_blue_green_route() {
    let ember = serving("colours", "spaceport").await;
    patch(&ember, "services", "colours", &says("pizza")).await;
    ready_with(&ember, "services", "colours", "colours-00002").await;
    let split = json!({"spec": {"traffic": [
        {"tag": "blue", "revisionName": "colours-00001", "percent": 50},
        {"tag": "green", "revisionName": "colours-00002", "percent": 50}
    ]}});
    patch(&ember, "services", "colours", &split).await;
    ready(&ember, "services", "colours").await;
    only_says(&ember, "blue-colours", "spaceport").await;
    only_says(&ember, "green-colours", "pizza").await;
    let counts = answers(&ember, "colours", 200).await;
    assert_eq!(counts.values().sum::<usize>(), 200, "{counts:?}");
    assert!(counts["Hello spaceport!"] >= 50 && counts["Hello pizza!"] >= 50, "{counts:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_route_get_and_list() {
    let ember = serving("listed", "noodles").await;
    let route = get(&ember, "routes", "listed").await;
    let listed = list(&ember, "routes").await;
    assert_eq!(listed.len(), 1);
    assert_eq!(listed[0]["metadata"]["uid"], route["metadata"]["uid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn test_route_creation() {
    let ember = Ember::start().await;
    create(&ember, "configurations", &greeter("Configuration", &json!({"name": "own"}), "spaceport")).await;
    let route = json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Route", "metadata": {"name": "own"},
        "spec": {"traffic": [{"configurationName": "own", "percent": 100}]}
    });
    create(&ember, "routes", &route).await;
    ready_with(&ember, "configurations", "own", "own-00001").await;
    let route = ready(&ember, "routes", "own").await;
    assert_eq!(route["status"]["traffic"][0]["revisionName"], "own-00001");
    let first = get(&ember, "revisions", "own-00001").await;
    assert_eq!(first["metadata"]["labels"]["serving.knative.dev/configurationGeneration"], "1");
    only_says(&ember, "own", "spaceport").await;

    let prober = Prober::start(&ember, "own");
    patch(&ember, "configurations", "own", &says("pizza")).await;
    ready_with(&ember, "configurations", "own", "own-00002").await;
    let second = get(&ember, "revisions", "own-00002").await;
    assert_eq!(second["metadata"]["labels"]["serving.knative.dev/configurationGeneration"], "2");
    let moved = |route: &Value| {
        route["status"]["traffic"][0]["revisionName"] == "own-00002"
            && crate::objects::is_ready(route, "True")
    };
    until(&ember, "routes", "own", "on the second revision", moved).await;
    only_says(&ember, "own", "pizza").await;
    prober.stop().await;
}

/// The traffic of a status, without its URLs.
fn traffic(object: &Value) -> Value {
    let mut traffic = object["status"]["traffic"].clone();
    for target in traffic.as_array_mut().unwrap() {
        assert!(target.as_object_mut().unwrap().remove("url").is_some(), "{target}");
    }
    traffic
}

/// The traffic that the Service and its Route have in the end.
async fn has_traffic(ember: &Ember, expected: &Value) {
    let service = ready(ember, "services", "split").await;
    assert_eq!(traffic(&service), *expected);
    assert_eq!(traffic(&get(ember, "routes", "split").await), *expected);
}

/// A target by name or, with an empty one, of the latest revision.
fn target(tag: &str, revision: &str, percent: u32) -> Value {
    let mut target = json!({"tag": tag, "latestRevision": revision.is_empty(), "percent": percent});
    if !revision.is_empty() {
        target["revisionName"] = revision.into();
    }
    target
}

/// What the status says of a target of the latest revision.
fn latest(revision: &str, percent: u32) -> Value {
    let mut target = target("latest", "", percent);
    target["revisionName"] = revision.into();
    target
}

async fn set_traffic(ember: &Ember, targets: &[Value]) {
    patch(ember, "services", "split", &json!({"spec": {"traffic": targets}})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_service_with_traffic_split() {
    const ONE: &str = "split-00001";
    const TWO: &str = "split-00002";
    const THREE: &str = "split-00003";
    let ember = serving("split", "spaceport").await;

    // The first revision is current and latest.
    set_traffic(&ember, &[target("current", ONE, 100), target("latest", "", 0)]).await;
    has_traffic(&ember, &json!([target("current", ONE, 100), latest(ONE, 0)])).await;
    for name in ["split", "current-split", "latest-split"] {
        only_says(&ember, name, "spaceport").await;
    }

    // A second revision is the latest; the current one keeps the traffic.
    patch(&ember, "services", "split", &says("pizza")).await;
    ready_with(&ember, "services", "split", TWO).await;
    has_traffic(&ember, &json!([target("current", ONE, 100), latest(TWO, 0)])).await;
    only_says(&ember, "split", "spaceport").await;
    only_says(&ember, "latest-split", "pizza").await;

    // It becomes a candidate with half of the traffic.
    let halves = [target("current", ONE, 50), target("candidate", TWO, 50)];
    set_traffic(&ember, &[&halves[..], &[target("latest", "", 0)]].concat()).await;
    has_traffic(&ember, &json!([halves[0], halves[1], latest(TWO, 0)])).await;
    let counts = answers(&ember, "split", 200).await;
    assert!(counts["Hello spaceport!"] >= 50 && counts["Hello pizza!"] >= 50, "{counts:?}");
    only_says(&ember, "candidate-split", "pizza").await;
    only_says(&ember, "latest-split", "pizza").await;

    // A third revision changes only the tag `latest`.
    patch(&ember, "services", "split", &says("noodles")).await;
    ready_with(&ember, "services", "split", THREE).await;
    has_traffic(&ember, &json!([halves[0], halves[1], latest(THREE, 0)])).await;
    let counts = answers(&ember, "split", 200).await;
    assert!(counts["Hello spaceport!"] >= 50 && counts["Hello pizza!"] >= 50, "{counts:?}");
    only_says(&ember, "current-split", "spaceport").await;
    only_says(&ember, "candidate-split", "pizza").await;
    only_says(&ember, "latest-split", "noodles").await;

    // The candidate is promoted, and the latest revision gets its half.
    set_traffic(&ember, &[target("current", TWO, 50), target("latest", "", 50)]).await;
    has_traffic(&ember, &json!([target("current", TWO, 50), latest(THREE, 50)])).await;
    let counts = answers(&ember, "split", 200).await;
    assert!(counts["Hello pizza!"] >= 50 && counts["Hello noodles!"] >= 50, "{counts:?}");
    only_says(&ember, "current-split", "pizza").await;
    only_says(&ember, "latest-split", "noodles").await;
}
