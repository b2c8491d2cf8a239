//! Steady load, and pods that come and go as they are asked for: the number of pods settles where the load calls for it.

use std::time::Duration;

use ember_api::autoscaling::v1alpha1::Metric;
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use kube::api::DeleteParams;
use serde_json::json;

use crate::stage::eventually;
use crate::world::{World, sleepy};

/// Longer than a stable window: a decision of every second of one has been made.
const SETTLED: Duration = Duration::from_secs(8);

impl World {
    /// Makes the pods of the revision those that its Deployment asks for; returns how many they are.
    async fn follow(&self, pods: &mut i32) -> i32 {
        let wanted = self.replicas("rev").await.unwrap();
        while *pods < wanted {
            *pods += 1;
            // The load is spread over more before the new one is scraped.
            self.answers.scrapes.lock().shared_by = usize::try_from(*pods).unwrap();
            self.pod("rev", &format!("rev-{pods}")).await;
        }
        while *pods > wanted {
            let now = DeleteParams::default().grace_period(0);
            self.api::<Pod>().delete(&format!("rev-{pods}"), &now).await.unwrap();
            *pods -= 1;
            self.answers.scrapes.lock().shared_by = usize::try_from(*pods).unwrap();
        }
        *pods
    }

    /// Waits until the revision has so many pods and has kept them for a while.
    async fn converge(&self, pods: &mut i32, wanted: i32) -> Vec<i32> {
        let mut course = vec![*pods];
        let mut since = tokio::time::Instant::now();
        eventually(&format!("{wanted} pods for good"), async || {
            let now = self.follow(pods).await;
            if course.last() != Some(&now) {
                course.push(now);
                since = tokio::time::Instant::now();
            }
            (now == wanted && since.elapsed() > SETTLED).then_some(())
        })
        .await;
        course
    }
}

async fn converges(algorithm: &str) {
    // An evaluation each second, late in it: the weighted window counts the last second for most.
    let world = World::start(sleepy(), |config| config.tick = Duration::from_secs(1)).await;
    let annotations = json!({
        "autoscaling.knative.dev/target": "10",
        "autoscaling.knative.dev/metric-aggregation-algorithm": algorithm,
    });
    world.revision("rev", 1, annotations).await;
    let metric = world.api::<Metric>().get("rev").await.unwrap();
    assert_eq!(metric.annotations()["autoscaling.knative.dev/metric-aggregation-algorithm"], algorithm);

    // 7 are wanted on a pod: 33 take 5.
    let mut pods = 0;
    world.answers.scrapes.lock().load = 33.0;
    let up = world.converge(&mut pods, 5).await;
    assert!(up.is_sorted(), "nothing is given up on the way: {up:?}");
    // And 12 take 2.
    world.answers.scrapes.lock().load = 12.0;
    let down = world.converge(&mut pods, 2).await;
    assert!(down.iter().rev().is_sorted(), "nor started: {down:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_linear_window_converges() {
    converges("linear").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_weighted_window_converges() {
    converges("weighted-exponential").await;
}
