//! No request is lost, and no POST executed twice, while pods, the path and the activators change under load.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::time::Duration;

use ember_bench::soak::{Plan, Summary, soak};

/// A third of the time for each limit of concurrency; one after another, so that they do not slow each other down.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_or_repeated_while_everything_changes() {
    let mut summary = Summary::default();
    for concurrency in [0, 1, 10] {
        let plan = Plan {
            concurrency,
            length: Duration::from_secs(20),
            rate: 300,
            quiet_period: Duration::from_secs(2),
        };
        summary.rows.push(soak(plan).await.unwrap());
    }
    assert!(summary.is_flawless(), "{summary}");
    for row in &summary.rows {
        // It was a soak, on however slow a machine.
        assert!(row.posts > 100 && row.gets > 100, "{summary}");
        assert!(row.pods_ended > 3 && row.path_switches > 1 && row.activator_restarts > 0, "{summary}");
    }
    println!("{summary}");
}
