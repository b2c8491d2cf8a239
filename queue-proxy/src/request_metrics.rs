//! What Prometheus learns about requests to the app.

use std::sync::Arc;
use std::sync::atomic::AtomicI64;

use ember_dataplane::body::Body;
use http::Response;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use tokio::time::Instant;

const BUCKETS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];

#[derive(Debug, Clone, PartialEq, Eq, Hash, EncodeLabelSet)]
struct Labels {
    http_response_status_code: u16,
}

type Durations = Family<Labels, Histogram, fn() -> Histogram>;

/// Metrics of requests that reached the app.
#[derive(Debug)]
pub(crate) struct RequestMetrics {
    durations: Durations,
    depth: Gauge<i64, AtomicI64>,
}

impl RequestMetrics {
    /// Registers the metrics; the depth of the queue only where there is one.
    pub(crate) fn new(registry: &mut Registry, queue: bool) -> Self {
        let durations = Durations::new_with_constructor(|| Histogram::new(BUCKETS));
        let depth = Gauge::default();
        registry.register(
            "kn_serving_invocation_duration_seconds",
            "The duration of the requests to the user container",
            durations.clone(),
        );
        if queue {
            registry.register(
                "kn_serving_queue_depth",
                "Requests running and waiting at the concurrency limit",
                depth.clone(),
            );
        }
        Self { durations, depth }
    }

    /// A request is at the limit as long as the guard lives.
    pub(crate) fn enqueued(self: &Arc<Self>) -> Enqueued {
        self.depth.inc();
        Enqueued(Arc::clone(self))
    }

    /// Measures from now to the end of the response.
    pub(crate) fn started(self: &Arc<Self>) -> Invocation {
        Invocation { metrics: Arc::clone(self), started: Instant::now(), status: None }
    }
}

/// Counts in the queue's depth.
#[derive(Debug)]
#[must_use]
pub(crate) struct Enqueued(Arc<RequestMetrics>);

impl Drop for Enqueued {
    fn drop(&mut self) {
        self.0.depth.dec();
    }
}

/// One request at the app. Recorded when it ends; cut off before a response it counts as 504 to the client, and is
/// recorded as that.
#[derive(Debug)]
#[must_use]
pub(crate) struct Invocation {
    metrics: Arc<RequestMetrics>,
    started: Instant,
    status: Option<u16>,
}

impl Invocation {
    /// The head of the response is there; its body ends the measurement.
    pub(crate) fn answered(mut self, response: &mut Response<Body>) {
        self.status = Some(response.status().as_u16());
        response.body_mut().attach(self);
    }
}

impl Drop for Invocation {
    fn drop(&mut self) {
        let labels = Labels { http_response_status_code: self.status.unwrap_or(504) };
        self.metrics.durations.get_or_create(&labels).observe(self.started.elapsed().as_secs_f64());
    }
}
