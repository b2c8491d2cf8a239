//! What the core costs for one revision: a report into its windows, their averages, a decision.

#![allow(missing_docs, reason = "the macros of criterion write functions without any")]

use std::hint::black_box;
use std::time::Duration;

use criterion::{Criterion, criterion_group, criterion_main};
use ember_autoscaler::collection::{Collection, CollectionSpec};
use ember_autoscaler::decider::{Decider, DeciderSpec, Load};
use ember_autoscaler::time::Time;
use ember_autoscaler::window::{Algorithm, Window};
use ember_dataplane::stat::Stat;

const STABLE_WINDOW: Duration = Duration::from_secs(60);
const GRANULARITY: Duration = Duration::from_secs(1);
const ALGORITHMS: [(&str, Algorithm); 2] =
    [("linear", Algorithm::Linear), ("weighted", Algorithm::WeightedExponential)];

/// A load that comes and goes, so that scales do too.
fn load_at(second: i64) -> f64 {
    (second % 600) as f64
}

fn window(c: &mut Criterion) {
    for (name, algorithm) in ALGORITHMS {
        let mut window = Window::new(algorithm, STABLE_WINDOW, GRANULARITY);
        for second in 0..120 {
            window.record(Time::from_millis(second * 1000), load_at(second));
        }
        let now = Time::from_millis(119_000);
        c.bench_function(&format!("window/{name}/average"), |b| b.iter(|| window.average(black_box(now))));

        // Every report is of the next second: the one that has to clear a bucket first.
        let mut second = 120;
        c.bench_function(&format!("window/{name}/record"), |b| {
            b.iter(|| {
                second += 1;
                window.record(Time::from_millis(second * 1000), black_box(load_at(second)));
            });
        });
    }
}

/// From averages to a decision with its reasons.
fn decision(c: &mut Criterion) {
    for (name, delay) in [("decision", 0), ("decision/scale-down-delay", 600)] {
        let scale_down_delay = Duration::from_secs(delay);
        let spec = DeciderSpec { scale_down_delay, ..DeciderSpec::default() };
        let mut decider = Decider::new(&spec, 1, Time::from_millis(0));
        let mut second = 0;
        c.bench_function(name, |b| {
            b.iter(|| {
                second += 2;
                let load = Load { stable: load_at(second), panic: load_at(second + 30) };
                decider.evaluate(&spec, Time::from_millis(second * 1000), 3, black_box(load))
            });
        });
    }
}

/// All that a tick does for a revision that reports: the averages of both windows, and the decision.
fn tick(c: &mut Criterion) {
    for (name, algorithm) in ALGORITHMS {
        let spec = DeciderSpec::default();
        let mut collection = Collection::new(CollectionSpec {
            stable_window: STABLE_WINDOW,
            panic_window: Duration::from_secs(6),
            scrape_target: "revision-private".to_owned(),
            algorithm,
        });
        let mut decider = Decider::new(&spec, 1, Time::from_millis(0));
        let mut second = 0;
        c.bench_function(&format!("report and decision/{name}"), |b| {
            b.iter(|| {
                second += 1;
                let now = Time::from_millis(second * 1000);
                let stat = Stat { average_concurrent_requests: load_at(second), ..Stat::default() };
                collection.record(now, black_box(&stat));
                let load = collection.load(spec.scaling_metric, now)?;
                decider.evaluate(&spec, now, 3, load)
            });
        });
    }
}

criterion_group!(benches, window, decision, tick);
criterion_main!(benches);
