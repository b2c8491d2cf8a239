//! Where the time of a cold start goes.
//!
//! A request that finds no usable pod passes milestones until it has one; a [`Phase`] is the time up to a milestone
//! since the one before. What happened before the request came took it no time, and a milestone that is overtaken by a
//! later one neither, so that the phases of a request always add up to what it waited.

use std::fmt::Write as _;

/// A part of a cold start, named by the milestone that ends it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Phase {
    /// `reported`: until the autoscaler was told.
    Reported,
    /// `pod_seen`: until the Endpoints showed a pod: the autoscaler, Kubernetes, the scheduler.
    PodSeen,
    /// `ready`: until a pod, or the Service in front of all, answered a probe: image, container, app.
    Ready,
    /// `forwarded`: until the request had a place in a pod: the queue.
    Forwarded,
    /// `total`: all of them.
    Total,
}

impl Phase {
    /// All, in order.
    pub const ALL: [Self; 5] = [Self::Reported, Self::PodSeen, Self::Ready, Self::Forwarded, Self::Total];

    /// As metrics and headers write it.
    #[must_use]
    pub const fn name(self) -> &'static str {
        match self {
            Self::Reported => "reported",
            Self::PodSeen => "pod_seen",
            Self::Ready => "ready",
            Self::Forwarded => "forwarded",
            Self::Total => "total",
        }
    }
}

/// How far a revision is on its way to a usable pod. Times are monotonic nanoseconds.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Progress {
    reported: Option<u64>,
    pod_seen: Option<u64>,
    ready: Option<u64>,
}

impl Progress {
    /// The autoscaler was told that the revision has a request.
    pub fn reported(&mut self, now: u64) {
        self.reported = Some(now);
    }

    /// Whether there are pods, and any that can be used, from now on.
    pub fn pods(&mut self, any: bool, any_usable: bool, now: u64) {
        let since = |since: Option<u64>, holds: bool| holds.then(|| since.unwrap_or(now));
        self.pod_seen = since(self.pod_seen, any);
        self.ready = since(self.ready, any_usable);
    }

    /// The phases of a request that came at `queued` and has its place `now`.
    #[must_use]
    pub fn phases(&self, queued: u64, now: u64) -> Phases {
        let now = now.max(queued);
        let mut since = queued;
        let mut step = |milestone: Option<u64>| {
            let reached = milestone.unwrap_or(since).clamp(since, now);
            reached - std::mem::replace(&mut since, reached)
        };
        let milestones = [self.reported, self.pod_seen, self.ready, Some(now)].map(&mut step);
        let [reported, pod_seen, ready, forwarded] = milestones;
        Phases([reported, pod_seen, ready, forwarded, now - queued])
    }
}

/// How long each of [`Phase::ALL`] took a request, in nanoseconds.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Phases([u64; Phase::ALL.len()]);

impl Phases {
    /// Each phase and its seconds.
    pub fn seconds(&self) -> impl Iterator<Item = (Phase, f64)> + '_ {
        Phase::ALL.into_iter().zip(self.0.iter().map(|nanos| *nanos as f64 / 1e9))
    }

    /// The value of a `Server-Timing` header; durations are milliseconds there.
    #[must_use]
    pub fn server_timing(&self) -> String {
        let mut text = String::new();
        for (phase, seconds) in self.seconds() {
            let separator = if text.is_empty() { "" } else { ", " };
            // Writing to a string does not fail.
            let _ = write!(text, "{separator}{};dur={:.3}", phase.name(), seconds * 1e3);
        }
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn millis(phases: Phases) -> [u64; 5] {
        phases.0.map(|nanos| nanos / MS)
    }

    #[test]
    fn the_phases_of_the_request_that_wakes_a_revision() {
        let mut progress = Progress::default();
        progress.reported(12 * MS);
        progress.pods(true, false, 30 * MS);
        progress.pods(true, false, 35 * MS);
        progress.pods(true, true, 80 * MS);
        let phases = progress.phases(10 * MS, 81 * MS);
        assert_eq!(millis(phases), [2, 18, 50, 1, 71]);
        assert_eq!(
            phases.server_timing(),
            "reported;dur=2.000, pod_seen;dur=18.000, ready;dur=50.000, forwarded;dur=1.000, total;dur=71.000"
        );
    }

    #[test]
    fn what_was_before_the_request_took_it_no_time() {
        let mut progress = Progress::default();
        progress.reported(10 * MS);
        progress.pods(true, false, 30 * MS);
        let late = 40 * MS;
        progress.pods(true, true, 80 * MS);
        assert_eq!(millis(progress.phases(late, 90 * MS)), [0, 0, 40, 10, 50]);
    }

    #[test]
    fn a_milestone_that_was_overtaken_took_no_time() {
        let mut progress = Progress::default();
        progress.pods(true, true, 20 * MS);
        progress.reported(50 * MS);
        assert_eq!(millis(progress.phases(0, 60 * MS)), [50, 0, 0, 10, 60]);
        assert_eq!(millis(progress.phases(0, 30 * MS)), [30, 0, 0, 0, 30]);
        assert_eq!(millis(progress.phases(70 * MS, 60 * MS)), [0; 5]);
    }

    #[test]
    fn what_is_gone_has_to_be_reached_again() {
        let mut progress = Progress::default();
        progress.reported(MS);
        progress.pods(true, true, 2 * MS);
        // Its only pod stops answering, then goes.
        progress.pods(true, false, 100 * MS);
        assert_eq!(progress.phases(150 * MS, 200 * MS).0[..2], [0, 0]);
        progress.pods(false, false, 300 * MS);
        progress.reported(401 * MS);
        progress.pods(true, false, 410 * MS);
        progress.pods(true, true, 430 * MS);
        assert_eq!(millis(progress.phases(400 * MS, 431 * MS)), [1, 9, 20, 1, 31]);
    }

    #[test]
    fn names_are_those_of_the_milestones() {
        let names = Phase::ALL.map(Phase::name);
        assert_eq!(names, ["reported", "pod_seen", "ready", "forwarded", "total"]);
    }
}
