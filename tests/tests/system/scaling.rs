//! Scaling by load and by annotation. Windows are the shortest that Knative allows.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;
use ember_tests::load::Load;
use ember_tests::{PATIENCE, api, eventually};
use futures::future::join_all;
use serde_json::{Value, json};
use tokio::time::Instant;

use crate::manifests::service;

#[tokio::test(flavor = "multi_thread")]
async fn a_burst_scales_out_in_panic_without_a_failed_request_and_back_to_zero() {
    let ember = Ember::start().await;
    let annotations =
        [("target", "2"), ("window", "20s"), ("panic-window-percentage", "10.0"), ("max-scale", "8")];
    ember.apply(&service("burst", "autoscale", &annotations).to_string());
    ember.ready("burst").await;
    ember.pods("burst", 0).await;
    let load = Load::start(ember.gateway, &host("burst"), "/?sleep=100", 30);
    // Sooner than a stable window: that is panic.
    ember.pods_within("burst", 5..=8, Duration::from_secs(19)).await;
    let tally = load.stop().await;
    assert!(tally.failures.is_empty(), "{:?}", tally.failures);
    assert!(tally.answered() > 100, "{}", tally.answered());
    ember.pods("burst", 0).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn min_max_and_initial_scale_bound_the_pods() {
    let ember = Ember::start().await;
    let window = ("window", "6s");
    ember.apply(&service("min", "hello", &[("min-scale", "2"), window]).to_string());
    ember.apply(&service("max", "autoscale", &[("max-scale", "2"), ("target", "1"), window]).to_string());
    ember.apply(&service("initial", "hello", &[("initial-scale", "3"), window]).to_string());
    ember.ready("initial").await;
    assert_eq!(ember.running("initial").await.len(), 3, "Ready means that the initial scale was reached");
    ember.ready("min").await;
    ember.ready("max").await;

    let load = Load::start(ember.gateway, &host("max"), "/?sleep=50", 10);
    ember.pods("max", 2).await;
    // Long enough for a decision on a full window of overload.
    let seen = most_pods(&ember, "max", Duration::from_secs(8)).await;
    let tally = load.stop().await;
    assert_eq!(seen, 2);
    assert!(tally.failures.is_empty(), "{:?}", tally.failures);

    ember.pods("initial", 0).await;
    ember.pods("min", 2).await;
}

/// The most pods of a service at any time until `period` is over.
async fn most_pods(ember: &Ember, service: &str, period: Duration) -> usize {
    let deadline = Instant::now() + period;
    let mut most = 0;
    while Instant::now() < deadline {
        most = most.max(ember.running(service).await.len());
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    most
}

/// Addresses of a revision's pods, and those that its public Service leads to.
async fn addresses(ember: &Ember, revision: &str) -> (BTreeSet<String>, BTreeSet<String>) {
    let base = "/api/v1/namespaces/default";
    let pods = format!("{base}/pods?labelSelector=serving.knative.dev%2Frevision%3D{revision}");
    let pods = api::get(&ember.client, &pods).await.unwrap();
    let endpoints =
        api::get(&ember.client, &format!("{base}/endpoints/{revision}")).await.unwrap_or_default();
    let texts = |list: &Value, pointer: &str| -> Vec<String> {
        let list = list.as_array().into_iter().flatten();
        list.filter_map(|item| Some(item.pointer(pointer)?.as_str()?.to_owned())).collect()
    };
    let subsets = endpoints["subsets"].as_array().cloned().unwrap_or_default();
    let led = subsets.iter().flat_map(|subset| texts(&subset["addresses"], "/ip"));
    (texts(&pods["items"], "/status/podIP").into_iter().collect(), led.collect())
}

async fn mode(ember: &Ember, revision: &str, wanted: &str) {
    let path = format!(
        "/apis/networking.internal.knative.dev/v1alpha1/namespaces/default/serverlessservices/{revision}"
    );
    eventually(&format!("{revision} in mode {wanted}"), PATIENCE, || async {
        let object = api::get(&ember.client, &path).await.map_err(|e| e.to_string())?;
        if object["spec"]["mode"] == wanted { Ok(()) } else { Err(object["spec"].to_string()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn burst_capacity_puts_the_activator_in_and_out_of_the_path() {
    let ember = Ember::start().await;
    let sized = |name: &str, capacity: &str| {
        let annotations =
            [("min-scale", "2"), ("max-scale", "2"), ("target-burst-capacity", capacity), ("window", "6s")];
        let mut service = service(name, "autoscale", &annotations);
        service["spec"]["template"]["spec"]["containerConcurrency"] = 10.into();
        service.to_string()
    };
    ember.apply(&sized("always", "-1"));
    ember.apply(&sized("never", "0"));
    // Two pods of ten hold 20 requests: 5 are to spare until 15 are under way.
    ember.apply(&sized("some", "5"));
    for name in ["always", "never", "some"] {
        ember.ready(name).await;
    }
    mode(&ember, "always-00001", "Proxy").await;
    mode(&ember, "never-00001", "Serve").await;
    mode(&ember, "some-00001", "Serve").await;
    for name in ["always", "never", "some"] {
        Client::new(ember.gateway).ok(&host(name), "/").await;
    }
    eventually("each Service leads where it should", PATIENCE, || async {
        let (always, never) =
            (addresses(&ember, "always-00001").await, addresses(&ember, "never-00001").await);
        let activator = !always.1.is_empty() && always.0.is_disjoint(&always.1);
        if activator && never.0.len() == 2 && never.0 == never.1 { Ok(()) } else { Err((always, never)) }
    })
    .await;
    let load = Load::start(ember.gateway, &host("some"), "/?sleep=200", 40);
    mode(&ember, "some-00001", "Proxy").await;
    let tally = load.stop().await;
    assert!(tally.failures.is_empty(), "{:?}", tally.failures);
    mode(&ember, "some-00001", "Serve").await;
}

/// Where the activator has been in the path for the grace period, nothing is waited for before the last pod goes but the
/// window.
#[tokio::test(flavor = "multi_thread")]
async fn a_revision_behind_the_activator_sleeps_after_its_window() {
    const GRACE: Duration = Duration::from_secs(20);
    let ember = Ember::start().await;
    ember.configure_autoscaler(&json!({"scale-to-zero-grace-period": "20s"})).await;
    ember.apply(&service("fast", "hello", &[("target-burst-capacity", "-1"), ("window", "6s")]).to_string());
    ember.ready("fast").await;
    mode(&ember, "fast-00001", "Proxy").await;
    let (load, proxied) = (Load::start(ember.gateway, &host("fast"), "/", 1), Instant::now());
    eventually("the grace period is over", PATIENCE, || async {
        let waited = proxied.elapsed();
        if waited > GRACE { Ok(()) } else { Err(waited) }
    })
    .await;
    ember.pods("fast", 1).await;
    let tally = load.stop().await;
    assert!(tally.failures.is_empty(), "{:?}", tally.failures);
    let idle = Instant::now();
    // Another one would need both the window and the grace period.
    ember.pods_within("fast", 0..=0, GRACE).await;
    println!("asleep after {:?}", idle.elapsed());
}

#[tokio::test(flavor = "multi_thread")]
async fn container_concurrency_one_never_overlaps() {
    let ember = Ember::start().await;
    let mut single = service("single", "autoscale", &[("max-scale", "3"), ("window", "6s")]);
    single["spec"]["template"]["spec"]["containerConcurrency"] = 1.into();
    ember.apply(&single.to_string());
    ember.ready("single").await;
    let most = Arc::new(AtomicUsize::new(0));
    let clients = (0..12).map(|_| {
        let (client, most) = (Client::new(ember.gateway), Arc::clone(&most));
        async move {
            for _ in 0..15 {
                let answer = client.get(&host("single"), "/?sleep=20").await.unwrap();
                assert_eq!(answer.status, http::StatusCode::OK, "{}", answer.text);
                let at_once = answer.headers["demo-in-flight"].to_str().unwrap().parse().unwrap();
                most.fetch_max(at_once, Ordering::Relaxed);
            }
        }
    });
    join_all(clients).await;
    assert_eq!(most.load(Ordering::Relaxed), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_per_second_scale_too() {
    let ember = Ember::start().await;
    let annotations = [("metric", "rps"), ("target", "20"), ("max-scale", "3"), ("window", "6s")];
    ember.apply(&service("rate", "autoscale", &annotations).to_string());
    ember.ready("rate").await;
    // Hardly any concurrency, but some 150 requests a second.
    let load = Load::start(ember.gateway, &host("rate"), "/?sleep=20", 4);
    ember.pods("rate", 3).await;
    let tally = load.stop().await;
    assert!(tally.failures.is_empty(), "{:?}", tally.failures);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bad_autoscaler_configuration_is_refused_and_the_good_one_stays() {
    let ember = Ember::start().await;
    let path = "/api/v1/namespaces/knative-serving/configmaps/config-autoscaler";
    let bad = json!({"data": {"stable-window": "1s"}});
    let error = api::merge(&ember.client, path, &bad).await.unwrap_err().to_string();
    assert!(error.contains("stable-window"), "{error}");
    let stored = api::get(&ember.client, path).await.unwrap();
    assert_eq!(stored["data"]["stable-window"], serde_json::Value::Null);
    ember.configure_autoscaler(&json!({"stable-window": "6s"})).await;
    ember.apply(&service("configured", "hello", &[]).to_string());
    ember.ready("configured").await;
    ember.pods("configured", 0).await;
}
