//! Many revisions and pods: what concerns one does not touch the others.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod world;

use std::time::Duration;

use ember_api::serving::v1::Revision;
use k8s_openapi::api::core::v1::Endpoints;
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use serde_json::{Value, json};

use world::*;

const REVISIONS: usize = 1000;
const PODS: usize = 10;

/// Revisions that nobody asks for, each with its pods.
async fn crowd(world: &World) {
    let revisions: Api<Revision> = Api::namespaced(world.client.clone(), "ns");
    let endpoints: Api<Endpoints> = Api::namespaced(world.client.clone(), "ns");
    let spec = json!({"containers": [{"name": "user-container", "image": "dev.local/host"}]});
    let create = async |n: usize| {
        let name = format!("crowd-{n}");
        let revision: Revision = serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": {"name": name}, "spec": spec,
        }))
        .unwrap();
        let uid = revisions.create(&PostParams::default(), &revision).await.unwrap().uid().unwrap();
        let addresses: Vec<Value> =
            (0..PODS).map(|pod| json!({"ip": format!("10.{}.{}.{pod}", n / 250, n % 250)})).collect();
        let object: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": format!("{name}-private"), "labels": {
                "serving.knative.dev/revision": name,
                "serving.knative.dev/revisionUID": uid,
                "networking.internal.knative.dev/serviceType": "Private",
            }},
            "subsets": [{"addresses": addresses, "ports": [{"name": "http", "port": 8012}]}],
        }))
        .unwrap();
        endpoints.create(&PostParams::default(), &object).await.unwrap();
    };
    futures::future::join_all((0..REVISIONS).map(create)).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_thousand_revisions_at_rest_are_not_looked_at() {
    // Ready pods are trusted: there is nothing at these addresses to probe.
    let network = json!({"mesh-compatibility-mode": "disabled"});
    let mut world = World::start_in(&network, json!({"containerConcurrency": 1}), |config| {
        config.report_interval = Duration::from_millis(50);
    })
    .await;
    crowd(&world).await;
    let pod = Pod::start("a").await;
    // Endpoints arrive in order: when these are known all are.
    let waiting: Vec<_> = (0..50).map(|_| world.spawn("/", " body")).collect();
    world.pods(&[&pod], &[]).await;
    for request in waiting {
        assert_eq!(soon("an answer", request).await.unwrap(), ok("a body"));
    }
    // Only the one that was asked for is reported, and shown.
    world.until_concurrency(0.0).await;
    let text = world.scrape().await;
    assert!(text.contains(r#"="rev""#) && !text.contains("crowd"), "{} bytes of metrics", text.len());
    assert_eq!(pod.paths().len(), 50);
    world.stop().await;
}
