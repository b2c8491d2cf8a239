//! Splits, tags, roll-outs and roll-backs.

use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;
use ember_tests::load::Load;
use ember_tests::{PATIENCE, api, eventually};
use serde_json::json;

use crate::manifests::{greeting, sample};

const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";

#[tokio::test(flavor = "multi_thread")]
async fn a_canary_gets_exactly_its_share_and_every_tag_a_host() {
    let ember = Ember::start().await;
    ember.apply(&sample("canary.yaml"));
    ember.ready("canary").await;
    let client = Client::new(ember.gateway);
    let mut canary = 0;
    for _ in 0..1000 {
        match client.ok(&host("canary"), "/").await.as_str() {
            "Hello canary!\n" => canary += 1,
            "Hello stable!\n" => {}
            other => panic!("{other}"),
        }
    }
    assert_eq!(canary, 100);
    for (tag, text) in
        [("stable", "Hello stable!\n"), ("canary", "Hello canary!\n"), ("latest", "Hello canary!\n")]
    {
        assert_eq!(client.ok(&host(&format!("{tag}-canary")), "/").await, text);
    }
    let unknown = client.get(&host("nobody-canary"), "/").await.unwrap();
    assert_eq!(unknown.status, http::StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn blue_green_switches_by_traffic_alone() {
    let ember = Ember::start().await;
    ember.apply(&sample("blue-green.yaml"));
    ember.ready("blue-green").await;
    let client = Client::new(ember.gateway);
    assert_eq!(client.ok(&host("blue-green"), "/").await, "Hello blue!\n");
    assert_eq!(client.ok(&host("green-blue-green"), "/").await, "Hello green!\n");
    let switch = json!({"spec": {"traffic": [
        {"revisionName": "blue-green-blue", "percent": 0, "tag": "blue"},
        {"revisionName": "blue-green-green", "percent": 100, "tag": "green"}]}});
    api::merge(&ember.client, &format!("{SERVICES}/blue-green"), &switch).await.unwrap();
    ember.ready("blue-green").await;
    assert_eq!(client.ok(&host("blue-green"), "/").await, "Hello green!\n");
    assert_eq!(client.ok(&host("blue-blue-green"), "/").await, "Hello blue!\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_new_revision_takes_over_under_load_and_a_rollback_gives_it_back() {
    let ember = Ember::start().await;
    let window = [("window", "6s")];
    ember.apply(&greeting("rolling", "one", &window).to_string());
    ember.ready("rolling").await;
    let load = Load::start(ember.gateway, &host("rolling"), "/", 4);
    answered_with(&load, "Hello one!").await;

    ember.apply(&greeting("rolling", "two", &window).to_string());
    answered_with(&load, "Hello two!").await;
    ember.ready("rolling").await;
    only(&load, "Hello two!").await;

    // The first revision sleeps by now or soon; it is woken by the traffic that comes back.
    let back = json!({"spec": {"traffic": [{"revisionName": "rolling-00001", "percent": 100}]}});
    api::merge(&ember.client, &format!("{SERVICES}/rolling"), &back).await.unwrap();
    ember.ready("rolling").await;
    only(&load, "Hello one!").await;
    let tally = load.stop().await;
    assert!(
        tally.failures.is_empty(),
        "{} of {}: {:?}",
        tally.failures.len(),
        tally.answered(),
        tally.failures
    );
}

async fn answered_with(load: &Load, text: &str) {
    let before = load.tally().answers.get(text).copied().unwrap_or(0);
    eventually(&format!("an answer {text:?}"), PATIENCE, || async {
        let tally = load.tally();
        if tally.answers.get(text).copied().unwrap_or(0) > before { Ok(()) } else { Err(tally) }
    })
    .await;
}

/// From some answer on all the next hundred are the same.
async fn only(load: &Load, text: &str) {
    eventually(&format!("only {text:?}"), PATIENCE, || async {
        let before = load.tally();
        eventually("a hundred more answers", PATIENCE, || async {
            let enough = load.tally().answered() >= before.answered() + 100;
            if enough { Ok(()) } else { Err(load.tally()) }
        })
        .await;
        let after = load.tally();
        let others = |tally: &ember_tests::load::Tally| {
            tally.answered() - tally.answers.get(text).copied().unwrap_or(0)
        };
        if others(&after) == others(&before) { Ok(()) } else { Err(after) }
    })
    .await;
}
