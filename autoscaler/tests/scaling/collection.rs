//! What a Metric says of the scrapes it asked for, and what a PodAutoscaler says whose labels are not in order.

use std::collections::BTreeSet;
use std::time::Duration;

use ember_api::autoscaling::v1alpha1::{Metric, PodAutoscaler};
use http::StatusCode;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::stage::cluster::create;
use crate::stage::{eventually, no_timers};
use crate::world::{World, sleepy};

/// Waits for the condition `Ready` of a Metric to be so.
async fn until_ready(world: &World, name: &str, status: &str, reason: &str, message: &str) {
    let expected = (status.to_owned(), reason.to_owned(), message.to_owned());
    eventually(&format!("{expected:?}"), async || {
        let metric = world.api::<Metric>().get(name).await.unwrap();
        let ready = metric.status?.conditions.get("Ready")?.clone();
        ((ready.status.as_str().to_owned(), ready.reason, ready.message) == expected).then_some(())
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_failed_scrape_is_the_metrics_status_until_one_succeeds() {
    let world = World::start(sleepy(), |config| config.scrape_interval = Duration::from_millis(100)).await;
    world.revision("rev", 2, json!({"autoscaling.knative.dev/min-scale": "2"})).await;
    for name in ["rev-1", "rev-2"] {
        world.pod("rev", name).await;
    }
    let answer = |pod: u16, service: u16| {
        let mut scrapes = world.answers.scrapes.lock();
        scrapes.pod = StatusCode::from_u16(pod).unwrap();
        scrapes.service = StatusCode::from_u16(service).unwrap();
    };
    answer(500, 200);
    let exhausted = "Failed to reconcile metric collection: pods exhausted";
    until_ready(&world, "rev", "False", "CollectionFailed", exhausted).await;
    answer(200, 200);
    until_ready(&world, "rev", "True", "", "").await;
    assert_eq!(*world.answers.services.lock(), [""; 0], "only a mesh makes it ask the Service");

    // As a mesh answers: the Service is asked, of which only one pod answers, or none.
    answer(503, 200);
    let unseen = "unsuccessful scrape, sampleSize=2: did not receive stat from an unscraped pod";
    until_ready(&world, "rev", "False", "DidNotReceiveStat", unseen).await;
    let host = format!("rev-private.ns:{}", world.scrape_port());
    let hosts: BTreeSet<String> = world.answers.services.lock().drain(..).collect();
    assert_eq!(hosts, BTreeSet::from([host.clone()]));
    answer(502, 404);
    let refused = format!(
        "Failed to reconcile metric collection: unsuccessful scrape, sampleSize=2: GET request for URL \
         \"http://{host}/metrics\" returned HTTP status 404"
    );
    until_ready(&world, "rev", "False", "CollectionFailed", &refused).await;

    // What was not to be reached by the Service either is asked directly again.
    answer(200, 404);
    until_ready(&world, "rev", "True", "", "").await;
    answer(500, 200);
    until_ready(&world, "rev", "False", "CollectionFailed", exhausted).await;

    // No pod that could fail is no failure.
    for name in ["rev-1", "rev-2"] {
        world.api::<Pod>().delete(name, &DeleteParams::default().grace_period(0)).await.unwrap();
    }
    until_ready(&world, "rev", "True", "", "").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_metric_tells_which_revision_to_scrape() {
    let world = World::start(sleepy(), no_timers).await;
    let metric = json!({
        "metadata": {"name": "stray", "labels": {"serving.knative.dev/revision": ""}},
        "spec": {"stableWindow": 60_000_000_000_i64, "panicWindow": 6_000_000_000_i64, "scrapeTarget": "stray-private"},
    });
    create::<Metric>(&world.client, "ns", metric).await;
    let missing = "Failed to reconcile metric collection: label \"serving.knative.dev/revision\" not found or empty \
                   in Metric stray";
    until_ready(&world, "stray", "False", "CollectionFailed", missing).await;
    let labels = Patch::Merge(json!({"metadata": {"labels": {"serving.knative.dev/revision": "stray"}}}));
    world.api::<Metric>().patch("stray", &PatchParams::default(), &labels).await.unwrap();
    until_ready(&world, "stray", "True", "", "").await;

    // Nothing is scraped for this one, whoever it belongs to.
    let metric = json!({
        "metadata": {"name": "silent"},
        "spec": {"stableWindow": 60_000_000_000_i64, "panicWindow": 6_000_000_000_i64, "scrapeTarget": ""},
    });
    create::<Metric>(&world.client, "ns", metric).await;
    until_ready(&world, "silent", "True", "", "").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn labels_of_configuration_and_revision_are_required() {
    let world = World::start(sleepy(), no_timers).await;
    let zero = json!({"autoscaling.knative.dev/initial-scale": "0"});
    let label = |name: &str| format!("serving.knative.dev/{name}");
    let all = json!({
        label("revision"): "any", label("revisionUID"): "u-1", label("configuration"): "hello", label("service"): "hello",
    });
    let without = |missing: &str, value: Option<&str>| {
        let mut labels = all.clone();
        let map = labels.as_object_mut().unwrap();
        map.remove(&label(missing));
        if let Some(value) = value {
            map.insert(label(missing), Value::from(value));
        }
        labels
    };
    let failing = [
        ("a", "configuration", without("configuration", None)),
        ("b", "revision", without("revision", None)),
        ("c", "configuration", without("configuration", Some(""))),
    ];
    for (name, missing, labels) in failing {
        world.objects(name, 0, zero.clone(), labels).await;
        let wanted = format!(
            "error reconciling Decider: error creating Decider: label \"{}\" not found or empty in Decider {name}",
            label(missing)
        );
        eventually(&wanted, async || {
            let events = world.api::<Event>().list(&Default::default()).await.unwrap();
            let mut events =
                events.into_iter().filter(|event| event.reason.as_deref() == Some("InternalError"));
            events.find(|event| event.message.as_deref() == Some(&wanted))
        })
        .await;
        assert!(world.api::<Metric>().get_opt(name).await.unwrap().is_none(), "it stops there");
    }
    // Once they are there, it goes on; a Service is nothing that has to be.
    let labels = Patch::Merge(json!({"metadata": {"labels": {label("configuration"): "hello"}}}));
    world.api::<PodAutoscaler>().patch("a", &PatchParams::default(), &labels).await.unwrap();
    world.until_active("a", "False", "NoTraffic").await;
    world.objects("free", 0, zero, without("service", None)).await;
    world.until_active("free", "False", "NoTraffic").await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_data_nothing_is_decided_unless_nothing_is_scraped() {
    let world = World::start(sleepy(), |config| config.tick = Duration::from_millis(500)).await;
    world.answers.scrapes.lock().pod = StatusCode::INTERNAL_SERVER_ERROR;
    world.revision("scraped", 1, json!({})).await;
    world.revision("silent", 1, json!({"autoscaling.knative.dev/target-burst-capacity": "-1"})).await;
    let target = async |name: &str| world.api::<Metric>().get(name).await.unwrap().spec.scrape_target;
    assert_eq!((target("scraped").await.as_str(), target("silent").await.as_str()), ("scraped-private", ""));
    for name in ["scraped", "silent"] {
        world.pod(name, &format!("{name}-1")).await;
        world.until_active(name, "True", "").await;
    }
    // No word of an activator is silence.
    world.until_active("silent", "False", "NoTraffic").await;
    world.until_replicas("silent", 0).await;
    // No word of a pod is not.
    let pa = world.until_active("scraped", "True", "").await;
    assert_eq!((pa.status.unwrap().desired_scale, world.replicas("scraped").await), (Some(-1), Some(1)));
    world.answers.scrapes.lock().pod = StatusCode::OK;
    world.until_active("scraped", "False", "NoTraffic").await;
    world.stop().await;
}
