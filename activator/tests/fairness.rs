//! Places and those who wait for them: none is idle while somebody waits, none is taken twice.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod world;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::StatusCode;
use serde_json::json;
use tokio::time::Instant;

use world::*;

const PODS: usize = 10;
const REQUESTS: usize = 60;
/// How long a pod may be without a request while one waits.
const IDLE: Duration = Duration::from_millis(5);
/// The machine does other things too: what one run shows too late another may not. What Ember does late shows in all.
const RUNS: usize = 12;

/// Watches how the machine treats threads: when each was kept from running, and for how long.
struct Stalls {
    stop: Arc<AtomicBool>,
    threads: Vec<std::thread::JoinHandle<Vec<(Instant, Instant)>>>,
}

impl Stalls {
    fn watch() -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let watch = || {
            let stop = Arc::clone(&stop);
            std::thread::spawn(move || {
                let (nap, mut stalls) = (Duration::from_micros(500), Vec::new());
                while !stop.load(Ordering::Relaxed) {
                    let due = Instant::now() + nap;
                    #[expect(clippy::disallowed_methods, reason = "a thread of its own")]
                    std::thread::sleep(nap);
                    stalls.push((due, Instant::now()));
                }
                stalls
            })
        };
        let threads = (0..4).map(|_| watch()).collect();
        Self { stop, threads }
    }

    fn end(self) -> Vec<Vec<(Instant, Instant)>> {
        self.stop.store(true, Ordering::Relaxed);
        self.threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    }
}

/// Runs of one pod after another, from 10 to 200 ms, of all lengths between, in an order that repeats itself.
fn lengths() -> impl Iterator<Item = u64> {
    (0..REQUESTS as u64).map(|n| 10 + (n * 67) % 191)
}

/// How long each pod was idle, beyond what the machine took, each time while somebody waited.
async fn idle_times() -> Vec<Duration> {
    let world = World::start(json!({"containerConcurrency": 1}), |_| {}).await;
    let waiting: Vec<_> = lengths().map(|millis| world.spawn(&format!("/takes/{millis}"), "")).collect();
    #[expect(clippy::cast_precision_loss, reason = "small")]
    world.until_held(REQUESTS as f64, 0.0).await;
    let stalls = Stalls::watch();
    let mut pods = Vec::new();
    for _ in 0..PODS {
        pods.push(Pod::start("a").await);
    }
    world.pods(&pods.iter().map(AsRef::as_ref).collect::<Vec<_>>(), &[]).await;
    for request in waiting {
        assert_eq!(soon("an answer", request).await.unwrap().0, StatusCode::OK);
    }
    let stalls = stalls.end();
    let work: Vec<Vec<(Instant, Instant)>> = pods.iter().map(|pod| pod.work.lock().clone()).collect();
    assert_eq!(work.iter().map(Vec::len).sum::<usize>(), REQUESTS);
    for pod in &pods {
        assert_eq!(pod.most.load(Ordering::SeqCst), 1, "a pod had two requests at once");
    }
    // Somebody waited until the last of them began.
    let last = work.iter().flatten().map(|(began, _)| *began).max().unwrap();
    let gaps = work.iter().flat_map(|runs| runs.windows(2)).map(|pair| (pair[0].1, pair[1].0));
    let idle = gaps
        .filter(|(_, until)| *until <= last)
        .map(|(since, until)| {
            let within = |stalls: &Vec<(Instant, Instant)>| {
                stalls
                    .iter()
                    .filter(|(from, to)| *from < until && *to > since)
                    .map(|(from, to)| *to - *from)
                    .sum::<Duration>()
            };
            let stalled = stalls.iter().map(within).max().unwrap_or_default();
            (until - since).saturating_sub(stalled)
        })
        .collect();
    world.stop().await;
    idle
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_place_is_idle_while_somebody_waits() {
    let mut longest = Vec::new();
    for _ in 0..RUNS {
        let idle = idle_times().await;
        assert!(idle.len() >= REQUESTS - 2 * PODS, "{} of the places were taken again", idle.len());
        let most = idle.into_iter().max().unwrap();
        if most <= IDLE {
            return;
        }
        longest.push(most);
    }
    panic!("pods were idle for {longest:?} while somebody waited");
}
