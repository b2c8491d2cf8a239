//! What Prometheus reads from a running autoscaler.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use ember_api::autoscaling::v1alpha1::PodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{DeleteParams, Patch, PatchParams};
use serde_json::{Value, json};

use crate::stage::cluster::create;
use crate::stage::eventually;
use crate::world::{World, sleepy};

const SCOPE: [(&str, &str); 3] = [
    ("otel_scope_name", "knative.dev/serving/pkg/autoscaler"),
    ("otel_scope_schema_url", ""),
    ("otel_scope_version", ""),
];

/// A series: its name and labels, `name{a="b",c="d"}` with the labels in order.
fn series(name: &str, labels: &[(&str, &str)]) -> String {
    let labels: BTreeSet<_> = labels.iter().chain(&SCOPE).collect();
    let labels: Vec<_> = labels.iter().map(|(name, value)| format!("{name}=\"{value}\"")).collect();
    format!("{name}{{{}}}", labels.join(","))
}

/// An exposition: types by family, values by series.
#[derive(Debug, Default)]
struct Exposition {
    types: BTreeMap<String, String>,
    values: BTreeMap<String, f64>,
}

impl Exposition {
    async fn read(world: &World) -> Self {
        let answer = world.get(world.metrics.unwrap(), "/metrics").await;
        assert!(answer.starts_with("HTTP/1.1 200 OK"), "{answer}");
        let mut read = Self::default();
        for line in answer.split_once("\r\n\r\n").unwrap().1.lines() {
            if let Some((family, type_)) = line.strip_prefix("# TYPE ").and_then(|l| l.split_once(' ')) {
                read.types.insert(family.to_owned(), type_.to_owned());
            } else if let Some((name, value)) = line.rsplit_once(' ').filter(|_| !line.starts_with('#')) {
                let (name, labels) = name.split_once('{').unwrap();
                let mut labels: Vec<_> = labels.trim_end_matches('}').split(',').collect();
                labels.sort_unstable();
                let series = format!("{name}{{{}}}", labels.join(","));
                assert_eq!(read.values.insert(series, value.parse().unwrap()), None, "{line} stands twice");
            }
        }
        read
    }

    /// The gauges of a revision, by name.
    fn of(&self, service: &str, revision: &str) -> BTreeMap<&str, f64> {
        let labels = [
            ("k8s_namespace_name", "ns"),
            ("kn_configuration_name", "hello"),
            ("kn_revision_name", revision),
            ("kn_service_name", service),
        ];
        let gauges = self.types.iter().filter(|(_, type_)| *type_ == "gauge");
        gauges
            .filter_map(|(name, _)| Some((name.as_str(), *self.values.get(&series(name, &labels))?)))
            .collect()
    }
}

/// The gauges that every revision has, as they are where nothing has happened yet.
const BEGIN: [(&str, f64); 8] = [
    ("kn_revision_pods_desired", 0.0),
    ("kn_revision_capacity_excess", -211.0),
    ("kn_revision_panic_mode", 0.0),
    ("kn_revision_pods_count", 0.0),
    ("kn_revision_pods_not_ready_count", 0.0),
    ("kn_revision_pods_pending_count", 0.0),
    ("kn_revision_pods_terminating_count", 0.0),
    ("kn_revision_pods_requested", 0.0),
];

fn begin(metric: &[(&'static str, f64)]) -> BTreeMap<&'static str, f64> {
    BEGIN.iter().chain(metric).copied().collect()
}

async fn until_gauges(world: &World, service: &str, revision: &str, expected: &BTreeMap<&str, f64>) {
    let mut last = Exposition::default();
    let what = format!("the gauges of {revision}");
    let waiting = eventually(&what, async || {
        last = Exposition::read(world).await;
        (last.of(service, revision) == *expected).then_some(())
    });
    if tokio::time::timeout(Duration::from_secs(20), waiting).await.is_err() {
        assert_eq!(last.of(service, revision), *expected);
    }
}

async fn phase(world: &World, name: &str, status: Value) {
    let pod = json!({
        "metadata": {"name": name, "finalizers": ["tests/kept"], "labels": {
            "serving.knative.dev/revision": "rev", "serving.knative.dev/revisionUID": "u-1",
        }},
        "spec": {"containers": [{"name": "user-container", "image": "dev.local/host"}]},
    });
    create::<Pod>(&world.client, "ns", pod).await;
    let status = Patch::Merge(json!({"status": status}));
    world.api::<Pod>().patch_status(name, &PatchParams::default(), &status).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn gauges_follow_the_load_and_the_pods_and_end_with_their_revision() {
    let world = World::start(sleepy(), |config| {
        config.metrics_addr = Some("127.0.0.1:0".parse().unwrap());
        config.tick = Duration::from_millis(500);
    })
    .await;
    let zero = |more: Value| {
        let mut all =
            json!({"autoscaling.knative.dev/initial-scale": "0", "autoscaling.knative.dev/target": "10"});
        all.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        all
    };
    let rps = json!({"autoscaling.knative.dev/metric": "rps"});
    world.revision("rev", 0, zero(json!({}))).await;
    world.revision("rate", 0, zero(rps)).await;
    world.unserved("alone", 0, zero(json!({}))).await;

    // From the beginning on: there is no data yet, but the gauges are there.
    for (service, revision) in [("hello", "rev"), ("", "alone")] {
        let expected = begin(&[
            ("kn_revision_concurrency_stable", 0.0),
            ("kn_revision_concurrency_panic", 0.0),
            ("kn_revision_concurrency_target", 7.0),
        ]);
        until_gauges(&world, service, revision, &expected).await;
    }
    let exposition = Exposition::read(&world).await;
    assert_eq!(exposition.types.get("kn_autoscaler_scrape_duration_seconds"), None, "nothing was scraped");

    // One pod carries 14 where 7 are wanted, and 28 requests a second of another revision: both panic.
    {
        let mut scrapes = world.answers.scrapes.lock();
        (scrapes.load, scrapes.requests) = (14.0, 28.0);
    }
    world.pod("rev", "rev-1").await;
    world.pod("rate", "rate-1").await;
    let gauges = |more: &[(&'static str, f64)]| {
        let mut expected = begin(more);
        expected.insert("kn_revision_panic_mode", 1.0);
        expected.insert("kn_revision_pods_count", 1.0);
        expected
    };
    let mut expected = gauges(&[
        ("kn_revision_pods_desired", 2.0),
        ("kn_revision_pods_requested", 2.0),
        ("kn_revision_capacity_excess", -215.0),
        ("kn_revision_concurrency_stable", 14.0),
        ("kn_revision_concurrency_panic", 14.0),
        ("kn_revision_concurrency_target", 7.0),
    ]);
    until_gauges(&world, "hello", "rev", &expected).await;
    let rate = gauges(&[
        ("kn_revision_pods_desired", 4.0),
        ("kn_revision_pods_requested", 4.0),
        ("kn_revision_capacity_excess", -229.0),
        ("kn_revision_rps_stable_per_second", 28.0),
        ("kn_revision_rps_panic_per_second", 28.0),
        ("kn_revision_rps_target_per_second", 7.0),
    ]);
    until_gauges(&world, "hello", "rate", &rate).await;

    // Pods in every state; those that are not ready are counted as such whatever the state is.
    phase(&world, "rev-2", json!({"phase": "Pending"})).await;
    phase(&world, "rev-3", json!({"phase": "Running"})).await;
    phase(&world, "rev-4", json!({"phase": "Running"})).await;
    phase(&world, "rev-5", json!({"phase": "Failed"})).await;
    world.api::<Pod>().delete("rev-4", &DeleteParams::default()).await.unwrap();
    expected.insert("kn_revision_pods_not_ready_count", 3.0);
    expected.insert("kn_revision_pods_pending_count", 1.0);
    expected.insert("kn_revision_pods_terminating_count", 1.0);
    until_gauges(&world, "hello", "rev", &expected).await;

    let exposition = Exposition::read(&world).await;
    let (histograms, gauges): (Vec<_>, Vec<_>) =
        exposition.types.iter().partition(|(_, type_)| *type_ == "histogram");
    assert_eq!(gauges.len(), 14, "{gauges:?}");
    assert!(gauges.iter().all(|(_, type_)| *type_ == "gauge"), "{gauges:?}");
    assert_eq!(histograms.len(), 1, "{histograms:?}");
    let family = "kn_autoscaler_scrape_duration_seconds";
    let labels =
        [("k8s_namespace_name", "ns"), ("kn_configuration_name", "hello"), ("kn_service_name", "hello")];
    let bounds: BTreeSet<_> = exposition
        .values
        .keys()
        .filter(|name| name.starts_with(&format!("{family}_bucket")))
        .map(|name| name.split("le=\"").nth(1).unwrap().split('"').next().unwrap())
        .collect();
    let wanted = "0.005 0.01 0.025 0.05 0.075 0.1 0.25 0.5 0.75 1.0 2.5 5.0 7.5 10.0 +Inf";
    assert_eq!(bounds, wanted.split(' ').collect());
    assert!(
        exposition.values[&series(&format!("{family}_count"), &labels)] >= 2.0,
        "both revisions' scrapes"
    );

    // Panic ends a stable window after its cause, and the scale that was asked for last stays told.
    world.answers.scrapes.lock().load = 0.0;
    let exposition = eventually("an idle revision", async || {
        let exposition = Exposition::read(&world).await;
        let gauges = exposition.of("hello", "rev");
        let calm = gauges["kn_revision_panic_mode"] == 0.0 && gauges["kn_revision_pods_desired"] == 0.0;
        calm.then_some(exposition)
    })
    .await;
    assert_eq!(exposition.of("hello", "rev")["kn_revision_concurrency_stable"], 0.0);

    world.api::<PodAutoscaler>().delete("rev", &DeleteParams::default()).await.unwrap();
    until_gauges(&world, "hello", "rev", &BTreeMap::new()).await;
    assert!(!Exposition::read(&world).await.of("hello", "rate").is_empty());
    let elsewhere = world.get(world.metrics.unwrap(), "/").await;
    assert!(elsewhere.starts_with("HTTP/1.1 404"), "{elsewhere}");
    world.stop().await;
}
