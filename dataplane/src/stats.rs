//! Request statistics: concurrency averaged over time, and arrivals.
//!
//! Time is a monotonic count of nanoseconds, given by the caller. The sums are integers, so they are exact. The state
//! belongs behind one small lock: count and time sum must be read together.

/// Where a request came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Straight from the ingress.
    Direct,
    /// Through the activator; counted in the unqualified numbers too.
    Proxied,
}

/// What happened in a window.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Report {
    /// Requests in flight, averaged over the time seen; 0 if no time passed.
    pub average_concurrency: f64,
    /// As above, those through the activator.
    pub average_proxied_concurrency: f64,
    /// Arrivals.
    pub request_count: f64,
    /// Arrivals through the activator.
    pub proxied_request_count: f64,
}

/// The accumulators of one pod or revision.
#[derive(Debug, Clone)]
pub struct RequestStats {
    last: u64,
    concurrency: u64,
    proxied_concurrency: u64,
    arrivals: u64,
    proxied_arrivals: u64,
    /// Request-nanoseconds.
    area: u128,
    proxied_area: u128,
    used: u64,
}

impl RequestStats {
    /// Nothing in flight at `start` (nanoseconds).
    #[must_use]
    pub fn new(start: u64) -> Self {
        Self {
            last: start,
            concurrency: 0,
            proxied_concurrency: 0,
            arrivals: 0,
            proxied_arrivals: 0,
            area: 0,
            proxied_area: 0,
            used: 0,
        }
    }

    /// Accounts for the time up to `now`. Time that does not advance is ignored.
    fn advance(&mut self, now: u64) {
        if now > self.last {
            let passed = now - self.last;
            self.used += passed;
            self.area += u128::from(self.concurrency) * u128::from(passed);
            self.proxied_area += u128::from(self.proxied_concurrency) * u128::from(passed);
            self.last = now;
        }
    }

    /// A request arrives.
    pub fn arrive(&mut self, now: u64, kind: Kind) {
        self.advance(now);
        self.concurrency += 1;
        self.arrivals += 1;
        if kind == Kind::Proxied {
            self.proxied_concurrency += 1;
            self.proxied_arrivals += 1;
        }
    }

    /// A request that arrived as `kind` is over.
    pub fn depart(&mut self, now: u64, kind: Kind) {
        self.advance(now);
        self.concurrency = self.concurrency.saturating_sub(1);
        if kind == Kind::Proxied {
            self.proxied_concurrency = self.proxied_concurrency.saturating_sub(1);
        }
    }

    /// Requests in flight.
    #[must_use]
    pub fn concurrency(&self) -> u64 {
        self.concurrency
    }

    /// Ends the window at `now` and begins the next.
    pub fn report(&mut self, now: u64) -> Report {
        self.advance(now);
        let average = |area: u128| if self.used == 0 { 0.0 } else { area as f64 / self.used as f64 };
        let report = Report {
            average_concurrency: average(self.area),
            average_proxied_concurrency: average(self.proxied_area),
            request_count: self.arrivals as f64,
            proxied_request_count: self.proxied_arrivals as f64,
        };
        self.arrivals = 0;
        self.proxied_arrivals = 0;
        self.area = 0;
        self.proxied_area = 0;
        self.used = 0;
        report
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: u64 = 1_000_000;

    fn report(concurrency: f64, proxied: f64, count: f64, proxied_count: f64) -> Report {
        Report {
            average_concurrency: concurrency,
            average_proxied_concurrency: proxied,
            request_count: count,
            proxied_request_count: proxied_count,
        }
    }

    #[test]
    fn overlapping_requests() {
        let mut stats = RequestStats::new(0);
        stats.arrive(0, Kind::Direct);
        stats.arrive(100 * MS, Kind::Direct);
        stats.depart(600 * MS, Kind::Direct);
        stats.depart(1000 * MS, Kind::Direct);
        assert_eq!(stats.report(1000 * MS), report(1.5, 0.0, 2.0, 0.0));
    }

    #[test]
    fn a_request_across_windows_arrives_once() {
        let mut stats = RequestStats::new(0);
        stats.arrive(0, Kind::Direct);
        assert_eq!(stats.report(1000 * MS), report(1.0, 0.0, 1.0, 0.0));
        stats.depart(1500 * MS, Kind::Direct);
        assert_eq!(stats.report(2000 * MS), report(0.5, 0.0, 0.0, 0.0));
    }

    #[test]
    fn proxied_requests_count_in_both() {
        let mut stats = RequestStats::new(0);
        stats.arrive(0, Kind::Proxied);
        stats.arrive(0, Kind::Direct);
        stats.depart(500 * MS, Kind::Proxied);
        stats.depart(1000 * MS, Kind::Direct);
        assert_eq!(stats.report(1000 * MS), report(1.5, 0.5, 2.0, 1.0));
    }

    #[test]
    fn time_that_goes_back_is_ignored() {
        let mut stats = RequestStats::new(0);
        stats.arrive(500 * MS, Kind::Direct);
        stats.arrive(499 * MS, Kind::Direct);
        stats.depart(1000 * MS, Kind::Direct);
        stats.depart(999 * MS, Kind::Direct);
        assert_eq!(stats.report(1000 * MS), report(1.0, 0.0, 2.0, 0.0));
        assert_eq!(stats.report(1000 * MS), Report::default(), "no time has passed");
    }
}
