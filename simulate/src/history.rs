//! What a simulated revision lived through.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::trace::Unit;

/// A history has no more points than this, however long it is.
pub const MAX_POINTS: i64 = 1200;

/// What a revision lived through under one setting.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct History {
    /// What the setting is called.
    pub setting: String,
    /// What the load was given in.
    pub unit: Unit,
    /// The whole in figures.
    pub summary: Summary,
    /// Seconds from one point to the next.
    pub step_seconds: f64,
    /// The course of it.
    pub points: Vec<Point>,
    /// Spans of panic: begin and end in seconds since the start.
    pub panics: Vec<(f64, f64)>,
    /// Seconds for which each rule determined the decider's wish.
    pub reasons: BTreeMap<&'static str, f64>,
    /// Seconds for which each rule determined the scale that followed from the wish: bounds, and the care for zero.
    pub scale_reasons: BTreeMap<&'static str, f64>,
    /// Seconds for which each rule determined the excess burst capacity: whether the activator had to be in the path.
    pub burst_reasons: BTreeMap<&'static str, f64>,
}

/// One interval of a history; of everything the most within it.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Point {
    /// Seconds since the start.
    pub time: f64,
    /// Requests in flight, if none had to wait.
    pub offered_concurrency: f64,
    /// Requests that arrive in a second.
    pub offered_rps: f64,
    /// Pods asked for.
    pub wanted_pods: i32,
    /// Pods that take requests.
    pub ready_pods: i32,
    /// Pods that the load needs.
    pub ideal_pods: i32,
    /// Requests that wait.
    pub queued: f64,
    /// Whether the decider panicked.
    pub panic: bool,
    /// Whether requests went through the activator.
    pub activator_in_path: bool,
}

/// A history in figures.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize)]
pub struct Summary {
    /// How long it is, in seconds.
    pub seconds: f64,
    /// Requests that arrived.
    pub requests: f64,
    /// Requests that arrived while there was no room.
    pub waited: f64,
    /// Waiting time, in seconds, over all requests, mean.
    pub mean_wait_seconds: f64,
    /// The most requests that waited at a time.
    pub longest_queue: f64,
    /// Requests that still wait at the end.
    pub queued_at_end: f64,
    /// Seconds of all pods, from their creation.
    pub pod_seconds: f64,
    /// Seconds of the fewest pods that could have carried the load without a queue, known in advance.
    pub ideal_pod_seconds: f64,
    /// The most pods at a time.
    pub most_pods: i32,
    /// Pods that were created, besides those at the start.
    pub pods_started: u64,
    /// Starts from no pod at all.
    pub wakes: u64,
    /// Seconds without any pod.
    pub seconds_at_zero: f64,
    /// Times of panic.
    pub panics: u64,
    /// Seconds of panic.
    pub panic_seconds: f64,
    /// Seconds with the activator in the path of requests.
    pub activator_seconds: f64,
}

impl Point {
    /// Takes what is larger of either.
    pub(crate) fn raise(&mut self, other: &Self) {
        self.offered_concurrency = self.offered_concurrency.max(other.offered_concurrency);
        self.offered_rps = self.offered_rps.max(other.offered_rps);
        self.wanted_pods = self.wanted_pods.max(other.wanted_pods);
        self.ready_pods = self.ready_pods.max(other.ready_pods);
        self.ideal_pods = self.ideal_pods.max(other.ideal_pods);
        self.queued = self.queued.max(other.queued);
        self.panic |= other.panic;
        self.activator_in_path |= other.activator_in_path;
    }
}
