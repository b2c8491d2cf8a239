//! A collector: takes what is pushed by OTLP, over HTTP or gRPC, and keeps it.

use std::net::SocketAddr;
use std::sync::Arc;

use bytes::Bytes;
use ember_dataplane::body::Body;
use ember_dataplane::drain::Drain;
use ember_dataplane::io::Listener;
use ember_dataplane::server::{self, Conn, Options};
use ember_dataplane::worker::Workers;
use http::{HeaderMap, HeaderValue, Request, Response};
use http_body_util::StreamBody;
use hyper::body::Frame;
use parking_lot::Mutex;
use prost::{Message, Oneof};
use tokio::net::TcpListener;

#[derive(Clone, PartialEq, Message)]
pub(crate) struct TraceRequest {
    #[prost(message, repeated, tag = "1")]
    resource_spans: Vec<ResourceSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceSpans {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_spans: Vec<ScopeSpans>,
}

#[derive(Clone, PartialEq, Message)]
struct Resource {
    #[prost(message, repeated, tag = "1")]
    attributes: Vec<KeyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct KeyValue {
    #[prost(string, tag = "1")]
    key: String,
    #[prost(message, optional, tag = "2")]
    value: Option<AnyValue>,
}

#[derive(Clone, PartialEq, Message)]
struct AnyValue {
    #[prost(oneof = "Any", tags = "1, 3")]
    value: Option<Any>,
}

#[derive(Clone, PartialEq, Oneof)]
enum Any {
    #[prost(string, tag = "1")]
    Text(String),
    #[prost(int64, tag = "3")]
    Number(i64),
}

#[derive(Clone, PartialEq, Message)]
struct Scope {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "2")]
    version: String,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeSpans {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    spans: Vec<Span>,
}

#[derive(Clone, PartialEq, Message)]
struct Span {
    #[prost(bytes = "vec", tag = "1")]
    trace_id: Vec<u8>,
    #[prost(bytes = "vec", tag = "2")]
    span_id: Vec<u8>,
    #[prost(string, tag = "3")]
    trace_state: String,
    #[prost(bytes = "vec", tag = "4")]
    parent_span_id: Vec<u8>,
    #[prost(string, tag = "5")]
    name: String,
    #[prost(int32, tag = "6")]
    kind: i32,
    #[prost(fixed64, tag = "7")]
    start: u64,
    #[prost(fixed64, tag = "8")]
    end: u64,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
    #[prost(message, optional, tag = "15")]
    status: Option<Status>,
}

#[derive(Clone, PartialEq, Message)]
struct Status {
    #[prost(string, tag = "2")]
    message: String,
    #[prost(int32, tag = "3")]
    code: i32,
}

#[derive(Clone, PartialEq, Message)]
struct MetricsRequest {
    #[prost(message, repeated, tag = "1")]
    resource_metrics: Vec<ResourceMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct ResourceMetrics {
    #[prost(message, optional, tag = "1")]
    resource: Option<Resource>,
    #[prost(message, repeated, tag = "2")]
    scope_metrics: Vec<ScopeMetrics>,
}

#[derive(Clone, PartialEq, Message)]
struct ScopeMetrics {
    #[prost(message, optional, tag = "1")]
    scope: Option<Scope>,
    #[prost(message, repeated, tag = "2")]
    metrics: Vec<Metric>,
}

#[derive(Clone, PartialEq, Message)]
struct Metric {
    #[prost(string, tag = "1")]
    name: String,
    #[prost(string, tag = "3")]
    unit: String,
    #[prost(message, optional, tag = "5")]
    gauge: Option<Gauge>,
    #[prost(message, optional, tag = "9")]
    histogram: Option<Histogram>,
}

#[derive(Clone, PartialEq, Message)]
struct Gauge {
    #[prost(message, repeated, tag = "1")]
    points: Vec<NumberPoint>,
}

#[derive(Clone, PartialEq, Message)]
struct NumberPoint {
    #[prost(sfixed64, tag = "6")]
    number: i64,
}

#[derive(Clone, PartialEq, Message)]
struct Histogram {
    #[prost(message, repeated, tag = "1")]
    points: Vec<HistogramPoint>,
    #[prost(int32, tag = "2")]
    temporality: i32,
}

#[derive(Clone, PartialEq, Message)]
struct HistogramPoint {
    #[prost(fixed64, tag = "4")]
    count: u64,
    #[prost(double, optional, tag = "5")]
    sum: Option<f64>,
    #[prost(double, repeated, tag = "7")]
    bounds: Vec<f64>,
    #[prost(message, repeated, tag = "9")]
    attributes: Vec<KeyValue>,
}

/// `name=value` of all, in order.
fn written(attributes: &[KeyValue]) -> Vec<String> {
    let one = |attribute: &KeyValue| {
        let value = match attribute.value.as_ref().and_then(|value| value.value.as_ref()) {
            Some(Any::Text(text)) => text.clone(),
            Some(Any::Number(number)) => number.to_string(),
            None => String::new(),
        };
        format!("{}={value}", attribute.key)
    };
    let mut all: Vec<String> = attributes.iter().map(one).collect();
    all.sort();
    all
}

/// A span as it arrived.
#[derive(Debug, Clone)]
pub(crate) struct Seen {
    pub(crate) scope: String,
    pub(crate) name: String,
    pub(crate) trace: String,
    pub(crate) id: String,
    pub(crate) parent: String,
    pub(crate) state: String,
    /// 1 internal, 2 server, 3 client.
    pub(crate) kind: i32,
    /// 2 is an error.
    pub(crate) status: i32,
    pub(crate) message: String,
    pub(crate) attributes: Vec<String>,
    pub(crate) resource: Vec<String>,
    pub(crate) lasted: bool,
}

impl Seen {
    pub(crate) fn has(&self, attribute: &str) -> bool {
        self.attributes.iter().any(|found| found == attribute)
    }
}

/// A point of a histogram, or of a gauge, as it arrived.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Point {
    pub(crate) scope: String,
    pub(crate) unit: String,
    pub(crate) cumulative: bool,
    /// Of a gauge: the number.
    pub(crate) count: i64,
    pub(crate) sum: f64,
    pub(crate) bounds: Vec<f64>,
    pub(crate) attributes: Vec<String>,
}

/// Path and message.
type Received = (String, Vec<u8>);

#[derive(Debug, Clone, Default)]
pub(crate) struct Collector {
    received: Arc<Mutex<Vec<Received>>>,
}

impl Collector {
    /// Listens, and says where.
    pub(crate) async fn start() -> (Self, SocketAddr) {
        let collector = Self::default();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        let keep = collector.clone();
        let handler = move |request: Request<Body>, _: Arc<Conn>| {
            let keep = keep.clone();
            async move { keep.take(request).await }
        };
        let handler = Arc::new(handler);
        tokio::spawn(async move {
            let drain = Drain::new();
            let (workers, options) = (Workers::current(), Options::default());
            server::serve(Listener::Tcp(listener), &workers, &options, &drain, |_| Arc::clone(&handler))
                .await;
        });
        (collector, addr)
    }

    async fn take(&self, request: Request<Body>) -> Response<Body> {
        let (parts, body) = request.into_parts();
        let message = body.collect(1 << 20).await.unwrap().to_vec();
        let grpc = parts.headers["content-type"] == "application/grpc";
        // Of a gRPC message the first bytes say that it is not compressed, and how long it is.
        let message = if grpc { message[5..].to_vec() } else { message };
        self.received.lock().push((parts.uri.path().to_owned(), message));
        if !grpc {
            let mut response = Response::new(Body::empty());
            response.headers_mut().insert("content-type", HeaderValue::from_static("application/x-protobuf"));
            return response;
        }
        let trailers =
            HeaderMap::from_iter([("grpc-status".parse().unwrap(), HeaderValue::from_static("0"))]);
        let frames = [Frame::data(Bytes::from_static(&[0; 5])), Frame::trailers(trailers)];
        let frames = frames.map(Ok::<_, std::convert::Infallible>);
        let mut response = Response::new(Body::stream(StreamBody::new(futures::stream::iter(frames))));
        response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
        response
    }

    /// Messages and the paths they came to.
    fn messages(&self, what: &str) -> Vec<Vec<u8>> {
        let received = self.received.lock();
        received.iter().filter(|(path, _)| path.contains(what)).map(|(_, message)| message.clone()).collect()
    }

    /// Where something was sent to.
    pub(crate) fn paths(&self) -> Vec<String> {
        self.received.lock().iter().map(|(path, _)| path.clone()).collect()
    }

    pub(crate) fn spans(&self) -> Vec<Seen> {
        let mut all = Vec::new();
        for message in self.messages("race") {
            for group in TraceRequest::decode(&*message).unwrap().resource_spans {
                let resource = written(&group.resource.unwrap_or_default().attributes);
                for scoped in group.scope_spans {
                    let scope = scoped.scope.unwrap_or_default().name;
                    all.extend(scoped.spans.into_iter().map(|span| Seen {
                        scope: scope.clone(),
                        name: span.name,
                        trace: hex(&span.trace_id),
                        id: hex(&span.span_id),
                        parent: hex(&span.parent_span_id),
                        state: span.trace_state,
                        kind: span.kind,
                        status: span.status.as_ref().map_or(0, |status| status.code),
                        message: span.status.map_or_else(String::new, |status| status.message),
                        attributes: written(&span.attributes),
                        resource: resource.clone(),
                        lasted: span.end >= span.start && span.start > 0,
                    }));
                }
            }
        }
        all
    }

    /// The last points of a metric.
    pub(crate) fn points(&self, name: &str) -> Vec<Point> {
        let mut last = Vec::new();
        for message in self.messages("etrics") {
            let metrics = MetricsRequest::decode(&*message).unwrap();
            for scoped in metrics.resource_metrics.into_iter().flat_map(|group| group.scope_metrics) {
                let scope = scoped.scope.unwrap_or_default().name;
                for metric in scoped.metrics.into_iter().filter(|metric| metric.name == name) {
                    last.clear();
                    let point = |cumulative| Point {
                        scope: scope.clone(),
                        unit: metric.unit.clone(),
                        cumulative,
                        count: 0,
                        sum: 0.0,
                        bounds: Vec::new(),
                        attributes: Vec::new(),
                    };
                    let histogram = metric.histogram.clone().unwrap_or_default();
                    last.extend(histogram.points.into_iter().map(|found| Point {
                        count: i64::try_from(found.count).unwrap(),
                        sum: found.sum.unwrap_or_default(),
                        bounds: found.bounds,
                        attributes: written(&found.attributes),
                        ..point(histogram.temporality == 2)
                    }));
                    let numbers = metric.gauge.clone().unwrap_or_default().points;
                    last.extend(
                        numbers.into_iter().map(|found| Point { count: found.number, ..point(false) }),
                    );
                }
            }
        }
        last
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
