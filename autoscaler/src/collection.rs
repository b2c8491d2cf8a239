//! The metric windows of one revision, and when they count as data.

use std::time::Duration;

use ember_dataplane::stat::Stat;

use crate::decider::{Load, ScalingMetric};
use crate::time::Time;
use crate::window::{Algorithm, Window};

/// The bucket of every metric window.
const GRANULARITY: Duration = Duration::from_secs(1);

/// What a Metric asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CollectionSpec {
    /// The long window.
    pub stable_window: Duration,
    /// The short window.
    pub panic_window: Duration,
    /// The Service whose pods are scraped; empty: only activators report.
    pub scrape_target: String,
    /// How windows average; fixed at creation.
    pub algorithm: Algorithm,
}

#[derive(Debug)]
struct Pair {
    stable: Window,
    panic: Window,
}

impl Pair {
    fn new(spec: &CollectionSpec) -> Self {
        Self {
            stable: Window::new(spec.algorithm, spec.stable_window, GRANULARITY),
            panic: Window::new(spec.algorithm, spec.panic_window, GRANULARITY),
        }
    }

    fn record(&mut self, at: Time, value: f64) {
        self.stable.record(at, value);
        self.panic.record(at, value);
    }

    fn resize(&mut self, now: Time, spec: &CollectionSpec) {
        self.stable.resize(now, spec.stable_window);
        self.panic.resize(now, spec.panic_window);
    }
}

/// The four windows of a revision.
#[derive(Debug)]
pub struct Collection {
    spec: CollectionSpec,
    concurrency: Pair,
    rps: Pair,
}

impl Collection {
    /// Empty windows.
    #[must_use]
    pub fn new(spec: CollectionSpec) -> Self {
        Self { concurrency: Pair::new(&spec), rps: Pair::new(&spec), spec }
    }

    /// What it was asked for.
    #[must_use]
    pub fn spec(&self) -> &CollectionSpec {
        &self.spec
    }

    /// Follows a changed Metric. The algorithm stays.
    pub fn update(&mut self, now: Time, spec: CollectionSpec) {
        self.concurrency.resize(now, &spec);
        self.rps.resize(now, &spec);
        self.spec = CollectionSpec { algorithm: self.spec.algorithm, ..spec };
    }

    /// Adds what a pod or an activator reports. A report that holds anything but numbers is dropped: one NaN would
    /// spoil the windows for their whole length.
    pub fn record(&mut self, at: Time, stat: &Stat) {
        let (concurrency, rps) = contribution(stat);
        if concurrency.is_finite() && rps.is_finite() {
            self.concurrency.record(at, concurrency);
            self.rps.record(at, rps);
        }
    }

    /// The averages, `None` without data. Where nothing is scraped, silence means no load.
    #[must_use]
    pub fn load(&self, metric: ScalingMetric, now: Time) -> Option<Load> {
        let pair = match metric {
            ScalingMetric::Concurrency => &self.concurrency,
            ScalingMetric::Rps => &self.rps,
        };
        if pair.stable.is_empty(now) && !self.spec.scrape_target.is_empty() {
            return None;
        }
        Some(Load { stable: pair.stable.average(now), panic: pair.panic.average(now) })
    }
}

/// Concurrency and requests that a report adds: what came through an activator is the activator's to report.
#[must_use]
pub fn contribution(stat: &Stat) -> (f64, f64) {
    (
        stat.average_concurrent_requests - stat.average_proxied_concurrent_requests,
        stat.request_count - stat.proxied_request_count,
    )
}
