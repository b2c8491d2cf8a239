//! What is measured about requests, and where the measurements go: exposed for Prometheus, or pushed by OTLP.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::time::Duration;

use ember_dataplane::metrics::Expose;
use ember_dataplane::metrics::family::{Definition, Families, LabelSet, OTHER, Scope};
use ember_dataplane::metrics::histogram::{Unit, nanoseconds};
use ember_dataplane::metrics::http::{self, HttpLabels, Observed, Recorder};
use ember_dataplane::metrics::text::{self, Kind, Label, Labels, Text};
use ember_telemetry::meters::{Gauge, Histogram, Instrument, Meters};
use ember_telemetry::otlp::{Attribute, Value};

use crate::observability::SCOPE;
use crate::route_tag::RouteTag;

/// The sidecar's own instrumentation.
const OWN: Scope = Scope { name: SCOPE, version: "" };

/// Requests at the app, whatever they are.
const INVOCATIONS: &[Definition] = &[Definition {
    name: "kn.serving.invocation.duration",
    exposed: "kn_serving_invocation_duration_seconds",
    help: "The duration of task execution",
    unit: Unit::Seconds,
}];

const DEPTH: &str = "kn.serving.queue.depth";
const DEPTH_EXPOSED: &str = "kn_serving_queue_depth";
const DEPTH_HELP: &str =
    "The current number of items in the serving and waiting queue, or not reported if unlimited concurrency.";

/// How a request at the app ended. `None`: one of too many statuses.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Status(Option<u16>);

impl LabelSet for Status {
    fn labels(&self) -> Vec<Label<'_>> {
        vec![("http.response.status_code", self.0.map_or_else(|| OTHER.into(), Into::into))]
    }

    fn collapsed(&self) -> Self {
        Self(None)
    }
}

/// Metrics of requests.
#[derive(Debug)]
pub(crate) struct RequestMetrics {
    sink: Sink,
    depth: AtomicI64,
}

#[derive(Debug)]
enum Sink {
    Exposed(Box<Exposed>),
    Pushed(Box<Pushed>),
}

#[derive(Debug)]
struct Exposed {
    server: Arc<Families<HttpLabels<RouteTag>>>,
    client: Arc<Families<HttpLabels<RouteTag>>>,
    server_recorder: Recorder<RouteTag>,
    client_recorder: Recorder<RouteTag>,
    invocations: Families<Status>,
    /// Whether there is a queue whose depth is of interest.
    queue: bool,
    resource: Vec<(String, String)>,
}

#[derive(Debug)]
struct Pushed {
    meters: Meters,
    server: Vec<Histogram>,
    client: Vec<Histogram>,
    invocations: Vec<Histogram>,
    depth: Option<Gauge>,
}

impl RequestMetrics {
    /// Metrics to expose; the depth of the queue only where there is one.
    pub(crate) fn exposed(queue: bool, resource: Vec<(String, String)>) -> Self {
        let server = Arc::new(Families::new(http::SCOPE, http::SERVER));
        let client = Arc::new(Families::new(http::SCOPE, http::CLIENT));
        let sink = Sink::Exposed(Box::new(Exposed {
            server_recorder: Recorder::new(Arc::clone(&server)),
            client_recorder: Recorder::new(Arc::clone(&client)),
            server,
            client,
            invocations: Families::new(OWN, INVOCATIONS),
            queue,
            resource,
        }));
        Self { sink, depth: AtomicI64::new(0) }
    }

    /// Metrics to push.
    pub(crate) fn pushed(queue: bool, meters: Meters) -> Self {
        let all = |scope: Scope, definitions: &[Definition]| {
            let one = |definition: &Definition| {
                let instrument = Instrument {
                    scope: scope.name,
                    version: scope.version,
                    name: definition.name,
                    unit: definition.unit.name(),
                    description: definition.help,
                };
                meters.histogram(instrument, definition.unit.bounds())
            };
            definitions.iter().map(one).collect()
        };
        let depth = Instrument {
            scope: OWN.name,
            version: OWN.version,
            name: DEPTH,
            unit: "{request}",
            description: DEPTH_HELP,
        };
        let sink = Sink::Pushed(Box::new(Pushed {
            server: all(http::SCOPE, http::SERVER),
            client: all(http::SCOPE, http::CLIENT),
            invocations: all(OWN, INVOCATIONS),
            depth: queue.then(|| meters.gauge(depth)),
            meters,
        }));
        Self { sink, depth: AtomicI64::new(0) }
    }

    /// A request is at the limit as long as the guard lives.
    pub(crate) fn enqueued(self: &Arc<Self>) -> Enqueued {
        self.change_depth(1);
        Enqueued(Arc::clone(self))
    }

    fn change_depth(&self, by: i64) {
        let depth = self.depth.fetch_add(by, Ordering::Relaxed) + by;
        if let Sink::Pushed(pushed) = &self.sink
            && let Some(gauge) = &pushed.depth
        {
            gauge.set(depth);
        }
    }

    /// A request that was received and answered.
    pub(crate) fn served(&self, observed: &Observed<RouteTag>, time: Duration, received: u64, sent: u64) {
        let values = [nanoseconds(time), received, sent];
        match &self.sink {
            Sink::Exposed(exposed) => exposed.server_recorder.record(observed, &values),
            Sink::Pushed(pushed) => push(&pushed.server, http::SERVER, &observed.labels(), &values),
        }
    }

    /// A request that was sent to the app: up to the head of its response.
    pub(crate) fn sent(&self, observed: &Observed<RouteTag>, time: Duration, sent: u64) {
        let values = [nanoseconds(time), sent];
        match &self.sink {
            Sink::Exposed(exposed) => exposed.client_recorder.record(observed, &values),
            Sink::Pushed(pushed) => push(&pushed.client, http::CLIENT, &observed.labels(), &values),
        }
    }

    /// A request at the app, up to its end.
    pub(crate) fn invoked(&self, status: u16, time: Duration) {
        let (status, values) = (Status(Some(status)), [nanoseconds(time)]);
        match &self.sink {
            Sink::Exposed(exposed) => exposed.invocations.series(&status).record(&values),
            Sink::Pushed(pushed) => push(&pushed.invocations, INVOCATIONS, &status, &values),
        }
    }

    /// Pushes what is left, and no longer than `within`.
    pub(crate) async fn finish(&self, within: Duration) {
        if let Sink::Pushed(pushed) = &self.sink {
            pushed.meters.finish(within).await;
        }
    }
}

fn push(histograms: &[Histogram], definitions: &[Definition], labels: &impl LabelSet, values: &[u64]) {
    let attribute = |(name, value): Label<'_>| -> Attribute {
        match value {
            text::Value::Text(text) => (name, Value::Text(text.into_owned())),
            text::Value::Number(number) => (name, Value::Number(number)),
        }
    };
    let attributes: Vec<Attribute> = labels.labels().into_iter().map(attribute).collect();
    for ((histogram, definition), value) in histograms.iter().zip(definitions).zip(values) {
        let value = match definition.unit {
            Unit::Seconds => Duration::from_nanos(*value).as_secs_f64(),
            Unit::Bytes => *value as f64,
        };
        histogram.record(value, attributes.iter().cloned());
    }
}

impl Expose for RequestMetrics {
    fn expose(&self, text: &mut Text) {
        let Sink::Exposed(exposed) = &self.sink else { return };
        exposed.client.expose(text);
        exposed.server.expose(text);
        exposed.invocations.expose(text);
        if exposed.queue {
            text.family(DEPTH_EXPOSED, DEPTH_HELP, Kind::Gauge);
            let depth = self.depth.load(Ordering::Relaxed);
            text.sample(DEPTH_EXPOSED, &Labels::new(&OWN.labels()), depth);
        }
        let resource: Vec<(&str, text::Value<'_>)> =
            exposed.resource.iter().map(|(name, value)| (name.as_str(), value.as_str().into())).collect();
        text.family("target_info", "Target metadata", Kind::Gauge);
        text.sample("target_info", &Labels::new(&resource), 1);
    }
}

/// Counts in the queue's depth.
#[derive(Debug)]
#[must_use]
pub(crate) struct Enqueued(Arc<RequestMetrics>);

impl Drop for Enqueued {
    fn drop(&mut self) {
        self.0.change_depth(-1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn text(metrics: &RequestMetrics) -> String {
        let mut text = Text::default();
        metrics.expose(&mut text);
        text.into_string()
    }

    #[test]
    fn the_depth_goes_back_and_is_there_only_with_a_queue() {
        let metrics = Arc::new(RequestMetrics::exposed(true, Vec::new()));
        let depth = |metrics: &RequestMetrics| {
            let text = text(metrics);
            text.lines().find(|line| line.starts_with("kn_serving_queue_depth{")).map(str::to_owned)
        };
        let (one, two) = (metrics.enqueued(), metrics.enqueued());
        assert!(depth(&metrics).unwrap().ends_with(" 2"));
        drop((one, two));
        let labels = r#"otel_scope_name="knative.dev/serving/pkg/queue",otel_scope_schema_url="",otel_scope_version="""#;
        assert_eq!(depth(&metrics).unwrap(), format!("kn_serving_queue_depth{{{labels}}} 0"));
        assert_eq!(depth(&RequestMetrics::exposed(false, Vec::new())), None);
    }

    #[test]
    fn the_resource_is_only_in_target_info() {
        let resource = vec![("k8s.pod.name".to_owned(), "p".to_owned())];
        let metrics = RequestMetrics::exposed(false, resource);
        metrics.invoked(200, Duration::from_millis(7));
        let text = text(&metrics);
        assert!(text.contains("# TYPE target_info gauge\ntarget_info{k8s_pod_name=\"p\"} 1\n"), "{text}");
        assert_eq!(text.matches("k8s_pod_name").count(), 1, "{text}");
        assert!(text.contains("# TYPE kn_serving_invocation_duration_seconds histogram"), "{text}");
    }
}
