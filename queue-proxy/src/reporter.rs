//! The statistics the autoscaler scrapes.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use bytes::Bytes;
use ember_dataplane::body::Body;
use ember_dataplane::error::http_error;
use ember_dataplane::server::{Conn, Handler};
use ember_dataplane::stat::{CONTENT_TYPE, Stat};
use ember_dataplane::stats::{Kind, Report, RequestStats};
use http::header::{self, HeaderValue};
use http::{Request, Response, StatusCode};
use parking_lot::Mutex;
use tokio::time::{Instant, MissedTickBehavior};

/// Counts requests, and renews once a period what the autoscaler reads.
#[derive(Debug)]
pub(crate) struct Reporter {
    pod: String,
    period: Duration,
    started: Instant,
    stats: Mutex<RequestStats>,
    current: ArcSwap<Bytes>,
}

/// A request that counts as concurrency as long as this lives.
#[derive(Debug)]
#[must_use]
pub(crate) struct Counted {
    reporter: Arc<Reporter>,
    kind: Kind,
}

impl Drop for Counted {
    fn drop(&mut self) {
        let mut stats = self.reporter.stats.lock();
        stats.depart(self.reporter.now(), self.kind);
    }
}

impl Reporter {
    pub(crate) fn new(pod: String, period: Duration) -> Self {
        let initial = Stat { pod_name: pod.clone(), ..Stat::default() };
        Self {
            pod,
            period,
            started: Instant::now(),
            stats: Mutex::new(RequestStats::new(0)),
            current: ArcSwap::from_pointee(initial.to_bytes()),
        }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.started.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    /// Counts a request in.
    pub(crate) fn count(self: &Arc<Self>, kind: Kind) -> Counted {
        // The clock is read under the lock: events enter in the order of their times.
        let mut stats = self.stats.lock();
        stats.arrive(self.now(), kind);
        drop(stats);
        Counted { reporter: Arc::clone(self), kind }
    }

    /// Renews the statistics every period, for ever.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut ticks = tokio::time::interval_at(Instant::now() + self.period, self.period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            let report = {
                let mut stats = self.stats.lock();
                stats.report(self.now())
            };
            let stat = stat(&self.pod, report, self.period, self.started.elapsed());
            self.current.store(Arc::new(stat.to_bytes()));
        }
    }
}

fn stat(pod: &str, report: Report, period: Duration, uptime: Duration) -> Stat {
    Stat {
        pod_name: pod.to_owned(),
        average_concurrent_requests: report.average_concurrency,
        average_proxied_concurrent_requests: report.average_proxied_concurrency,
        request_count: report.request_count / period.as_secs_f64(),
        proxied_request_count: report.proxied_request_count / period.as_secs_f64(),
        process_uptime: uptime.as_secs_f64(),
        timestamp: 0,
    }
}

/// Serves the statistics on `/metrics`: always protobuf, whatever is accepted.
pub(crate) struct StatEndpoint(pub(crate) Arc<Reporter>);

impl Handler for StatEndpoint {
    async fn handle(&self, request: Request<Body>, _: &Arc<Conn>) -> Response<Body> {
        if request.uri().path() != "/metrics" {
            return http_error(StatusCode::NOT_FOUND, "404 page not found");
        }
        let mut response = Response::new(Body::full(Bytes::clone(&self.0.current.load())));
        response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(CONTENT_TYPE));
        response
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counts_are_by_the_second() {
        let report = Report { average_concurrency: 1.5, request_count: 6.0, ..Report::default() };
        let stat = stat("p", report, Duration::from_millis(500), Duration::from_secs(3));
        assert_eq!((stat.average_concurrent_requests, stat.request_count), (1.5, 12.0));
        assert_eq!((stat.process_uptime, stat.timestamp), (3.0, 0));
    }
}
