//! SIGKILL at random moments while clients write and requests run.
//!
//! `EMBER_CRASH_ROUNDS` is how often (5), `EMBER_CRASH_SEED` repeats a run's choices; how the machine schedules what is
//! chosen differs from run to run.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use ember_tests::http::{Client, host};
use ember_tests::instance::{Ember, program};
use ember_tests::load::Load;
use ember_tests::{PATIENCE, eventually};
use fastrand::Rng;
use serde_json::{Value, json};
use tokio::task::JoinSet;

use crate::declarations::{Declaration, Gone, Kind};
use crate::processes::{marked, no_orphans};
use crate::versions::Seen;

/// Clients that write, and the objects of each.
const CLIENTS: usize = 4;
const OBJECTS: [Kind; 5] = [Kind::ConfigMap, Kind::ConfigMap, Kind::Secret, Kind::Secret, Kind::Service];
/// Acknowledged writes before the kill.
const WRITES: std::ops::Range<u64> = 1..150;
/// What is left to chance after the last of them.
const SLACK_MICROS: std::ops::Range<u64> = 0..30_000;
/// Where in its start an instance is killed that does not get further.
const START_MILLIS: std::ops::Range<u64> = 0..1_500;

/// How the apps start: each leaves processes behind that it does not wait for.
const APPS: [(&str, &str); 3] = [
    ("plain", "exec"),
    ("background", "sleep 1000 & exec"),
    ("detached", "(setsid sh -c 'sleep 1000 & sleep 1000' &) ; exec"),
];

fn number(name: &str) -> Option<u64> {
    let text = std::env::var(name).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{name}={text} is not a number")))
}

/// A service whose app is started by a shell line ending in `exec`.
fn service(name: &str, line: &str, mark: &str, annotations: &Value) -> String {
    let (variable, value) = mark.split_once('=').expect("NAME=value");
    let program = program();
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": annotations},
            "spec": {"containers": [{
                "image": "dev.local/host",
                "command": ["sh", "-c", format!("{line} '{}' demo-app hello", program.display())],
                "env": [{"name": "TARGET", "value": name}, {"name": variable, "value": value}],
            }]},
        }},
    })
    .to_string()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_acknowledged_survives_kills_at_random_moments() {
    let rounds = number("EMBER_CRASH_ROUNDS").unwrap_or(5);
    let seed = number("EMBER_CRASH_SEED").unwrap_or_else(|| fastrand::u64(..));
    eprintln!("EMBER_CRASH_ROUNDS={rounds} EMBER_CRASH_SEED={seed}");
    let mut rng = Rng::with_seed(seed);
    let begun = Instant::now();
    let mark = format!("EMBER_CRASH_MARK={}-{seed}", std::process::id());

    let mut ember = Ember::start().await;
    // Never asked for: it leaves a trace if it is started all the same.
    let trace = ember.data_dir().parent().expect("a folder").join("started");
    let line = format!("echo started >> '{}'; exec", trace.display());
    ember.apply(&service("idle", &line, &mark, &json!({"autoscaling.knative.dev/initial-scale": "0"})));
    for (name, line) in APPS {
        ember.apply(&service(name, line, &mark, &json!({"autoscaling.knative.dev/window": "6s"})));
    }
    for name in APPS.map(|(name, _)| name).into_iter().chain(["idle"]) {
        ember.ready(name).await;
    }

    let mut owned: Vec<Vec<Declaration>> = (0..CLIENTS)
        .map(|client| {
            let named = |(at, kind)| Declaration::new(kind, format!("w{client}-{at}"));
            OBJECTS.into_iter().enumerate().map(named).collect()
        })
        .collect();
    let (mut written, mut kills, mut requests, mut seen) = (0, 0, 0, Seen::default());
    for round in 0..rounds {
        let target = rng.u64(WRITES);
        let slack = Duration::from_micros(rng.u64(SLACK_MICROS));
        let acknowledged = Arc::new(AtomicU64::new(0));
        let loads = APPS.map(|(name, _)| Load::start(ember.gateway, &host(name), "/", 1));
        let mut writers = JoinSet::new();
        for mut objects in owned.drain(..) {
            let (client, mut rng, acknowledged) =
                (ember.client.clone(), Rng::with_seed(rng.u64(..)), Arc::clone(&acknowledged));
            writers.spawn(async move {
                loop {
                    let at = rng.usize(..objects.len());
                    if let Err(Gone) = objects[at].write(&client, &mut rng, &acknowledged).await {
                        return objects;
                    }
                }
            });
        }
        let (client, mut reader) = (ember.client.clone(), seen);
        let reader = tokio::spawn(async move {
            while reader.look(&client).await.is_ok() {}
            reader
        });

        eventually("the writes of the round", PATIENCE, || async {
            let so_far = acknowledged.load(Ordering::Relaxed);
            if so_far >= target { Ok(()) } else { Err(so_far) }
        })
        .await;
        // The crash comes at any moment after that, not only right after an acknowledgement.
        tokio::time::sleep(slack).await;
        let remains = ember.crash();
        kills += 1;
        while let Some(objects) = writers.join_next().await {
            owned.push(objects.expect("no unexpected answer"));
        }
        seen = reader.await.expect("no version went back");
        for load in loads {
            requests += load.stop().await.answered();
        }
        written += acknowledged.load(Ordering::Relaxed);

        // Some starts are cut short too, and some come when nothing of the dead instance is left.
        if rng.u8(0..4) == 0 {
            remains.start_and_crash(Duration::from_millis(rng.u64(START_MILLIS))).await;
            kills += 1;
        }
        if rng.bool() {
            no_orphans(&mark, None).await;
        }
        ember = remains.start().await;
        let restarted = ember.pid().as_raw();

        for declaration in owned.iter_mut().flatten() {
            declaration.check(&ember.client).await;
        }
        let before = seen.clone();
        seen.look(&ember.client).await.expect("lists");
        before.check_watches(&ember.client).await;
        for (name, _) in APPS {
            let answer = Client::new(ember.gateway).ok(&host(name), "/").await;
            assert_eq!(answer, format!("Hello {name}!\n"));
        }
        no_orphans(&mark, Some(restarted)).await;
        assert_eq!(ember.running("idle").await, Vec::<String>::new(), "round {round}");
        assert!(!trace.exists(), "round {round}: a service was started that nobody asked for");
        eprintln!("round {}: {written} acknowledged writes, {kills} kills so far", round + 1);
    }
    assert!(!marked(&mark).is_empty(), "the apps carry the mark");
    drop(ember);
    no_orphans(&mark, None).await;
    eprintln!(
        "{rounds} rounds: {written} acknowledged writes, {requests} answered requests, {kills} kills, {:.0?}",
        begun.elapsed()
    );
}
