//! What the autoscaler is told of each revision's concurrency.
//!
//! Knative activator: concurrency reporter. The first request of a revision that nobody was told of is reported at
//! once (that is what wakes it); everything else once a second.

use ember_dataplane::stat::Stat;
use ember_dataplane::stats::{Kind, RequestStats};
use parking_lot::Mutex;

#[derive(Debug)]
struct Active {
    stats: RequestStats,
    /// The immediate report has counted one request ahead of the next tick.
    ahead: bool,
    /// Requests that have entered and not left.
    references: u64,
}

/// The reporting state of one revision. Times are monotonic nanoseconds.
#[derive(Debug, Default)]
pub struct Reporter(Mutex<Option<Active>>);

impl Reporter {
    /// A request arrives. Returns whether the autoscaler has to be told at once.
    #[must_use]
    pub fn enter(&self, now: u64) -> bool {
        let mut state = self.0.lock();
        let first = state.is_none();
        let active =
            state.get_or_insert_with(|| Active { stats: RequestStats::new(now), ahead: true, references: 0 });
        active.references += 1;
        active.stats.arrive(now, Kind::Direct);
        first
    }

    /// A request that entered is over.
    pub fn leave(&self, now: u64) {
        if let Some(active) = self.0.lock().as_mut() {
            active.stats.depart(now, Kind::Direct);
            active.references = active.references.saturating_sub(1);
        }
    }

    /// What was told at once may not have arrived: the next report counts it again.
    pub fn told_in_vain(&self) {
        if let Some(active) = self.0.lock().as_mut() {
            active.ahead = false;
        }
    }

    /// Whether there is nothing to report: the next request is reported at once.
    #[must_use]
    pub fn is_idle(&self) -> bool {
        self.0.lock().is_none()
    }

    /// The report of the time since the last one; `None` for a revision without traffic. After a window without any
    /// concurrency, which is reported as zero once, the next request is reported at once again.
    #[must_use]
    pub fn report(&self, now: u64, pod_name: &str) -> Option<Stat> {
        let mut state = self.0.lock();
        let active = state.as_mut()?;
        let report = active.stats.report(now);
        let ahead = if std::mem::take(&mut active.ahead) { 1.0 } else { 0.0 };
        let idle = report.average_concurrency == 0.0 && active.references == 0;
        if idle {
            *state = None;
        }
        Some(Stat {
            pod_name: pod_name.to_owned(),
            average_concurrent_requests: (report.average_concurrency - ahead).max(0.0),
            request_count: report.request_count - ahead,
            ..Stat::default()
        })
    }
}

/// The report of one request that wakes a revision.
#[must_use]
pub fn immediate(pod_name: &str) -> Stat {
    Stat {
        pod_name: pod_name.to_owned(),
        average_concurrent_requests: 1.0,
        request_count: 1.0,
        ..Stat::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn numbers(stat: Option<Stat>) -> Option<(f64, f64)> {
        stat.map(|stat| (stat.average_concurrent_requests, stat.request_count))
    }

    #[test]
    fn contract_vectors() {
        let reporter = Reporter::default();
        assert!(reporter.enter(0));
        reporter.leave(MS);
        assert!(!reporter.enter(MS));
        reporter.leave(2 * MS);
        assert_eq!(numbers(reporter.report(2 * MS, "a")), Some((0.0, 1.0)));

        let reporter = Reporter::default();
        assert!(reporter.enter(0));
        assert!(!reporter.enter(0));
        assert_eq!(numbers(reporter.report(MS, "a")), Some((1.0, 1.0)));
        assert_eq!(numbers(reporter.report(2 * MS, "a")), Some((2.0, 0.0)));

        let reporter = Reporter::default();
        assert!(reporter.enter(0));
        assert!(!reporter.enter(0));
        reporter.leave(MS);
        reporter.leave(2 * MS);
        assert_eq!(numbers(reporter.report(2 * MS, "a")), Some((0.5, 1.0)));

        let reporter = Reporter::default();
        assert!(reporter.enter(0));
        reporter.leave(MS);
        assert_eq!(numbers(reporter.report(MS, "a")), Some((0.0, 0.0)));
        assert_eq!(numbers(reporter.report(2 * MS, "a")), Some((0.0, 0.0)));
        assert_eq!(numbers(reporter.report(3 * MS, "a")), None);
        assert!(reporter.enter(3 * MS));
    }

    #[test]
    fn what_may_not_have_arrived_is_counted_again() {
        let reporter = Reporter::default();
        reporter.told_in_vain();
        assert!(reporter.enter(0));
        reporter.told_in_vain();
        assert_eq!(numbers(reporter.report(MS, "a")), Some((1.0, 1.0)));
    }
}
