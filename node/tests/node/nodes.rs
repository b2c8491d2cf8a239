//! Nodes as a whole: their end, and another beside.

use std::time::{Duration, Instant};

use k8s_openapi::api::core::v1::Pod;
use serde_json::json;

use crate::cluster::{Cluster, is_ready};
use crate::processes::gone;

pub(crate) async fn shutdown_ends_every_process() {
    let cluster = Cluster::start().await;
    cluster.deploy("a", 2, json!({})).await;
    let deaf = json!({"command": ["sh", "-c", "trap '' TERM; echo pid $$$$; while :; do sleep 0.05; done"], "args": []});
    cluster.deploy("deaf", 1, deaf).await;
    let pods = cluster
        .pods("running", |pods| {
            let running = |p: &Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
            pods.len() == 3 && pods.iter().all(running)
        })
        .await;
    let mut pids = Vec::new();
    for pod in &pods {
        pids.push(cluster.pid(pod).await);
    }
    let began = Instant::now();
    cluster.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    for pid in pids {
        gone(pid).await;
    }
}

pub(crate) async fn two_nodes_run_side_by_side() {
    let (one, two) = (Cluster::start().await, Cluster::start().await);
    assert_ne!(one.block, two.block);
    for cluster in [&one, &two] {
        cluster.deploy("same", 3, json!({})).await;
    }
    for cluster in [&one, &two] {
        cluster.pods("three ready pods", |pods| pods.len() == 3 && pods.iter().all(is_ready)).await;
    }
    one.stop().await;
    assert_eq!(
        two.api::<Pod>()
            .list(&Default::default())
            .await
            .unwrap()
            .items
            .iter()
            .filter(|p| is_ready(p))
            .count(),
        3
    );
    two.stop().await;
}
