//! What Prometheus sees. Gauges are made when they are asked for: decisions do not pay for them.

use std::borrow::Cow;
use std::fmt::{self, Error};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ember_dataplane::io::Listener;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use prometheus_client::collector::Collector;
use prometheus_client::encoding::text::encode;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::decider::ScalingMetric;
use crate::revisions::{Figures, Revisions};
use crate::scrape_durations::ScrapeDurations;

/// Who measures, as dashboards know it: the Knative autoscaler's instrumentation.
const SCOPE: &str = "knative.dev/serving/pkg/autoscaler";
/// Connections of Prometheus served at the same time.
const CONNECTIONS: usize = 16;
/// Deadline for the head of a request.
const HEADER_TIMEOUT: Duration = Duration::from_secs(10);

struct RevisionGauges(Arc<Revisions>);

impl fmt::Debug for RevisionGauges {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("RevisionGauges").finish_non_exhaustive()
    }
}

/// Value of a gauge, if the revision has it.
type Read = fn(&Figures) -> Option<f64>;

fn load(figures: &Figures, metric: ScalingMetric, panic: bool) -> Option<f64> {
    (figures.spec.scaling_metric == metric)
        .then(|| figures.last.map_or(0.0, |d| if panic { d.load.panic } else { d.load.stable }))
}

fn target(figures: &Figures, metric: ScalingMetric) -> Option<f64> {
    (figures.spec.scaling_metric == metric).then_some(figures.spec.target_value)
}

const GAUGES: [(&str, &str, Read); 14] = [
    ("kn_revision_pods_desired", "Pods the autoscaler wants", |f| {
        Some(f.last.map_or(0.0, |d| f64::from(d.desired)))
    }),
    ("kn_revision_capacity_excess", "Excess burst capacity", |f| {
        Some(f64::from(f.status.excess_burst_capacity))
    }),
    ("kn_revision_panic_mode", "1 while the autoscaler panics", |f| Some(f64::from(u8::from(f.panicking)))),
    ("kn_revision_concurrency_stable", "Concurrency over the stable window", |f| {
        load(f, ScalingMetric::Concurrency, false)
    }),
    ("kn_revision_concurrency_panic", "Concurrency over the panic window", |f| {
        load(f, ScalingMetric::Concurrency, true)
    }),
    ("kn_revision_concurrency_target", "Concurrency wanted on each pod", |f| {
        target(f, ScalingMetric::Concurrency)
    }),
    ("kn_revision_rps_stable_per_second", "Requests over the stable window", |f| {
        load(f, ScalingMetric::Rps, false)
    }),
    ("kn_revision_rps_panic_per_second", "Requests over the panic window", |f| {
        load(f, ScalingMetric::Rps, true)
    }),
    ("kn_revision_rps_target_per_second", "Requests wanted on each pod", |f| target(f, ScalingMetric::Rps)),
    ("kn_revision_pods_requested", "Pods asked for", |f| Some(f64::from(f.requested.unwrap_or(0)))),
    ("kn_revision_pods_count", "Ready pods", |f| Some(f64::from(f.pods.ready))),
    ("kn_revision_pods_not_ready_count", "Pods that are not ready", |f| Some(f64::from(f.pods.not_ready))),
    ("kn_revision_pods_pending_count", "Pods that do not run yet", |f| Some(f64::from(f.pods.pending))),
    ("kn_revision_pods_terminating_count", "Pods that are ending", |f| Some(f64::from(f.pods.terminating))),
];

impl Collector for RevisionGauges {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), Error> {
        let figures = self.0.figures();
        for (name, help, read) in GAUGES {
            let mut samples = figures.iter().filter_map(|f| Some((f, read(f)?))).peekable();
            if samples.peek().is_none() {
                continue;
            }
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for (figures, value) in samples {
                let labels = [
                    ("kn_service_name", figures.labels.service.as_str()),
                    ("kn_configuration_name", figures.labels.configuration.as_str()),
                    ("kn_revision_name", figures.labels.revision.as_str()),
                    ("k8s_namespace_name", figures.namespace.as_str()),
                ];
                ConstGauge::new(value).encode(family.encode_family(&labels)?)?;
            }
        }
        Ok(())
    }
}

/// Everything this component measures, with the labels of its instrumentation scope.
pub(crate) fn registry(revisions: Arc<Revisions>, scrapes: ScrapeDurations) -> Registry {
    let labels = [("otel_scope_name", SCOPE), ("otel_scope_version", ""), ("otel_scope_schema_url", "")];
    let labels = labels.map(|(name, value)| (Cow::Borrowed(name), Cow::Borrowed(value)));
    let mut registry = Registry::with_labels(labels.into_iter());
    registry.register_collector(Box::new(scrapes));
    registry.register_collector(Box::new(RevisionGauges(revisions)));
    registry
}

/// Serves the registry until `stop`.
pub(crate) async fn serve(
    mut listener: Listener,
    registry: Arc<Registry>,
    stop: CancellationToken,
    tasks: TaskTracker,
) {
    let places = Arc::new(Semaphore::new(CONNECTIONS));
    loop {
        let Ok(place) = Arc::clone(&places).acquire_owned().await else { return };
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        let Ok((stream, _)) = accepted else {
            tokio::time::sleep(Duration::from_millis(10)).await;
            continue;
        };
        let (registry, stop) = (Arc::clone(&registry), stop.clone());
        tasks.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response =
                    if request.uri().path() == "/metrics" { expose(&registry) } else { not_found() };
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let mut http = http1::Builder::new();
            http.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT);
            tokio::select! {
                () = stop.cancelled() => {}
                _ = http.serve_connection(TokioIo::new(stream), service) => {}
            }
            drop(place);
        });
    }
}

fn expose(registry: &Registry) -> Response<Full<Bytes>> {
    let mut text = String::new();
    if encode(&mut text, registry).is_err() {
        return not_found();
    }
    let mut response = Response::new(Full::from(text));
    let media_type = HeaderValue::from_static("application/openmetrics-text; version=1.0.0; charset=utf-8");
    response.headers_mut().insert(header::CONTENT_TYPE, media_type);
    response
}

fn not_found() -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = StatusCode::NOT_FOUND;
    response
}
