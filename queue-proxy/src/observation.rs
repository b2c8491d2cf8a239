//! A request as telemetry sees it: what is measured of it, and its spans.
//!
//! One [`Observation`] follows a request through its stages. It is owned by what owns the request, first the
//! handler's future and then the response's body, and says what it has seen when that ends.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use ember_dataplane::address::Address;
use ember_dataplane::body::Body;
use ember_dataplane::error::ProxyError;
use ember_dataplane::header::X_FORWARDED_FOR;
use ember_dataplane::metrics::http::{Observed, Outcome, host_and_port, method, version};
use ember_dataplane::probe;
use ember_dataplane::protocol::Protocol;
use ember_dataplane::proxy::Outbound;
use ember_dataplane::server::Conn;
use ember_telemetry::meters::Meters;
use ember_telemetry::otlp::{Attribute, ExportError, FLUSH};
use ember_telemetry::traces::{Kind, Span, Tracer};
use http::{HeaderMap, HeaderName, HeaderValue, Method, Request, Response, StatusCode, header};
use http_body::Body as _;
use tokio::time::Instant;

use crate::observability::{MetricsProtocol, Observability};
use crate::request_metrics::{Enqueued, RequestMetrics};
use crate::route_tag::{self, RouteTag};

/// What counts as the answer to a client that left before there was one.
const CLIENT_GONE: u16 = 499;

/// Observes requests, as far as the cluster asks for it.
#[derive(Clone)]
pub(crate) struct Observer {
    metrics: Option<Arc<RequestMetrics>>,
    tracer: Option<Tracer>,
    /// The app, as its requests name it.
    app: HeaderValue,
    app_version: &'static str,
}

impl Observer {
    /// Starts the exporters. What cannot be exported is said once, and requests are served without it.
    pub(crate) fn start(settings: &Observability, app: &Address, protocol: Protocol, queue: bool) -> Self {
        if settings.profiling {
            tracing::warn!("runtime-profiling: this program has no profiles; port 8008 stays closed");
        }
        let said = |what: &str, error: &ExportError| tracing::warn!(%error, "{what} are not exported");
        let tracer = settings.traces().and_then(|settings| {
            Tracer::start(&settings).inspect_err(|error| said("tracing-protocol: traces", error)).ok()
        });
        let pushed = settings.meters().and_then(|settings| {
            Meters::start(&settings)
                .inspect_err(|error| said("request-metrics-protocol: metrics", error))
                .ok()
        });
        let metrics = match (settings.request_metrics, pushed) {
            (MetricsProtocol::Prometheus, _) => {
                Some(RequestMetrics::exposed(queue, settings.resource.clone()))
            }
            (_, Some(meters)) => Some(RequestMetrics::pushed(queue, meters)),
            (_, None) => None,
        };
        Self {
            metrics: metrics.map(Arc::new),
            tracer,
            app: HeaderValue::from_str(&app.to_string()).unwrap_or(HeaderValue::from_static("")),
            app_version: match protocol {
                Protocol::Http1 => "1.1",
                Protocol::H2c => "2.0",
            },
        }
    }

    /// The metrics, where they are to be exposed.
    pub(crate) fn metrics(&self) -> Option<&Arc<RequestMetrics>> {
        self.metrics.as_ref()
    }

    /// Exports what is left: both together have 10 s.
    pub(crate) fn finish(&self) -> impl Future<Output = ()> + use<> {
        let (metrics, tracer) = (self.metrics.clone(), self.tracer.clone());
        async move {
            let until = Instant::now() + FLUSH;
            let rest = || until.saturating_duration_since(Instant::now());
            if let Some(metrics) = metrics {
                metrics.finish(rest()).await;
            }
            if let Some(tracer) = tracer {
                tracer.finish(rest()).await;
            }
        }
    }

    /// A request at the concurrency limit.
    pub(crate) fn enqueued(&self) -> Option<Enqueued> {
        self.metrics.as_ref().map(RequestMetrics::enqueued)
    }

    /// A request that has arrived. Probes, of any kind, are not the app's: of them only their way to it is measured.
    pub(crate) fn begin(&self, request: &mut Request<Body>, conn: &Conn) -> Observation {
        if self.metrics.is_none() && self.tracer.is_none() {
            return Observation(None);
        }
        let probe = probe::is_probe(request.headers());
        let tag = if probe { RouteTag::Absent } else { RouteTag::of(request.headers()) };
        let spans = match &self.tracer {
            Some(tracer) if !probe => server_span(tracer, request, conn, &tag),
            _ => None,
        };
        if probe && self.metrics.is_none() {
            return Observation(None);
        }
        let observed = Observed {
            method: method(request.method()),
            version: version(request.version()),
            tls: conn.is_tls(),
            host: request.headers().get(header::HOST).cloned(),
            outcome: Outcome::Other,
            extra: tag,
        };
        let received = (!request.body().is_end_stream()).then(|| request.body_mut().count());
        // Boxed: where nothing is asked for, a request's futures are not to carry its size.
        Observation(Some(Box::new(Active {
            metrics: self.metrics.clone(),
            probe,
            observed,
            started: Instant::now(),
            invoked: None,
            responded: false,
            status: None,
            received,
            sent: None,
            spans,
        })))
    }
}

/// Follows one request. Nothing, where nothing is asked for.
#[must_use]
pub(crate) struct Observation(Option<Box<Active>>);

struct Active {
    metrics: Option<Arc<RequestMetrics>>,
    probe: bool,
    observed: Observed<RouteTag>,
    started: Instant,
    /// When it went to the app, and how that is measured.
    invoked: Option<(Instant, Observed<RouteTag>)>,
    /// Whether the app, or the lack of one, has answered.
    responded: bool,
    /// What the client was answered.
    status: Option<u16>,
    received: Option<Arc<AtomicU64>>,
    sent: Option<Arc<AtomicU64>>,
    spans: Option<Box<Spans>>,
}

/// They end in this order.
struct Spans {
    client: Option<Span>,
    wait: Option<Span>,
    proxy: Option<Span>,
    server: Span,
}

impl Spans {
    fn innermost(&self) -> &Span {
        self.wait.as_ref().or(self.proxy.as_ref()).unwrap_or(&self.server)
    }
}

impl Observation {
    fn spans(&mut self) -> Option<&mut Spans> {
        self.0.as_mut()?.spans.as_deref_mut()
    }

    /// It is on its way through the sidecar.
    pub(crate) fn proxying(&mut self) {
        if let Some(spans) = self.spans() {
            spans.proxy = Some(spans.server.child(Kind::Internal, "kn.queueproxy.proxy"));
        }
    }

    /// It waits for its turn.
    pub(crate) fn waiting(&mut self) {
        if let Some(spans) = self.spans() {
            spans.wait = Some(spans.innermost().child(Kind::Internal, "kn.queueproxy.wait"));
        }
    }

    /// It goes to the app.
    pub(crate) fn invoking(&mut self, observer: &Observer, outbound: &mut Outbound) {
        let Some(active) = &mut self.0 else { return };
        let observed = Observed {
            version: observer.app_version,
            tls: false,
            host: Some(observer.app.clone()),
            ..active.observed.clone()
        };
        active.invoked = Some((Instant::now(), observed));
        if let Some(spans) = &mut active.spans {
            let mut span = spans.innermost().child(Kind::Client, format!("HTTP {}", outbound.method()));
            if span.is_recorded() {
                span.extend(client_attributes(outbound, observer));
            }
            span.inject(outbound.headers_mut());
            spans.client = Some(span);
            // Its turn has come.
            if let Some(wait) = &mut spans.wait {
                wait.end();
            }
        }
    }

    /// The app has answered, or there is no answer.
    pub(crate) fn invoked(&mut self, answer: Result<StatusCode, &ProxyError>) {
        let Some(active) = &mut self.0 else { return };
        match answer {
            Ok(status) => active.responded(Outcome::Status(status.as_u16()), ""),
            Err(error) => active.responded(Outcome::Error(error.kind()), &error.to_string()),
        }
    }

    /// The client is answered; the end of the body is the end of the request.
    pub(crate) fn answered(mut self, response: &mut Response<Body>) {
        let Some(active) = &mut self.0 else { return };
        active.status = Some(response.status().as_u16());
        let body = response.body_mut();
        // What is upgraded has no body, but bytes.
        if !body.is_end_stream() || active.status == Some(StatusCode::SWITCHING_PROTOCOLS.as_u16()) {
            active.sent = Some(body.count());
        }
        body.attach(self);
    }
}

impl Active {
    /// There is a head of a response from the app, or there will be none.
    fn responded(&mut self, outcome: Outcome, text: &str) {
        let Some((since, observed)) = &mut self.invoked else { return };
        self.responded = true;
        observed.outcome = outcome;
        if let Some(metrics) = &self.metrics {
            metrics.sent(observed, since.elapsed(), counted(self.received.as_ref()));
        }
        let Some(span) = self.spans.as_deref_mut().and_then(|spans| spans.client.as_mut()) else { return };
        match outcome {
            Outcome::Status(status) => {
                span.set("http.response.status_code", status);
                if status >= 400 {
                    span.set("error.type", status.to_string());
                    span.fail("");
                }
            }
            Outcome::Error(kind) => {
                span.set("error.type", kind);
                span.fail(text.to_owned());
            }
            Outcome::Other => {}
        }
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        let status = self.status.unwrap_or(CLIENT_GONE);
        if self.invoked.is_some() && !self.responded {
            let late = status == StatusCode::GATEWAY_TIMEOUT.as_u16();
            let kind = if late { "timeout" } else { "canceled" };
            self.responded(Outcome::Error(kind), kind);
        }
        let (received, sent) = (counted(self.received.as_ref()), counted(self.sent.as_ref()));
        let now = Instant::now();
        if let (Some(metrics), false) = (&self.metrics, self.probe) {
            self.observed.outcome = Outcome::Status(status);
            metrics.served(&self.observed, now.duration_since(self.started), received, sent);
            if let Some((since, _)) = &self.invoked {
                metrics.invoked(status, now.duration_since(*since));
            }
        }
        if let Some(spans) = &mut self.spans {
            let span = &mut spans.server;
            span.set("http.response.status_code", status);
            if received > 0 {
                span.set("http.request.body.size", received);
            }
            if sent > 0 {
                span.set("http.response.body.size", sent);
            }
            if status >= 500 {
                span.fail("");
            }
        }
    }
}

fn counted(bytes: Option<&Arc<AtomicU64>>) -> u64 {
    bytes.map_or(0, |bytes| bytes.load(Ordering::Relaxed))
}

fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Option<&'a str> {
    headers.get(name).and_then(|value| value.to_str().ok()).filter(|value| !value.is_empty())
}

fn server_span(tracer: &Tracer, request: &Request<Body>, conn: &Conn, tag: &RouteTag) -> Option<Box<Spans>> {
    let known = method(request.method());
    let name = if known == "_OTHER" { "HTTP" } else { known };
    let mut span = tracer.server(name, request.headers())?;
    if span.is_recorded() {
        span.extend(server_attributes(request, known, conn));
        if let Some(tag) = tag.value() {
            span.set(route_tag::NAME, tag);
        }
    }
    Some(Box::new(Spans { client: None, wait: None, proxy: None, server: span }))
}

fn server_attributes(request: &Request<Body>, known: &'static str, conn: &Conn) -> Vec<Attribute> {
    let headers = request.headers();
    let (scheme, usual) = if conn.is_tls() { ("https", 443) } else { ("http", 80) };
    let (address, port) = host_and_port(text(headers, &header::HOST).unwrap_or_default(), usual);
    let peer = conn.peer().ip().to_canonical().to_string();
    let forwarded = text(headers, &X_FORWARDED_FOR).and_then(|list| list.split(',').next());
    let client = forwarded.filter(|first| !first.is_empty()).unwrap_or(&peer).to_owned();
    let mut attributes: Vec<Attribute> = vec![
        ("server.address", address.into()),
        ("url.scheme", scheme.into()),
        ("network.peer.address", peer.into()),
        ("network.peer.port", conn.peer().port().into()),
        ("client.address", client.into()),
        ("url.path", request.uri().path().into()),
        ("network.protocol.version", version(request.version()).into()),
    ];
    attributes.extend(port.map(|port| ("server.port", port.into())));
    attributes.extend(text(headers, &header::USER_AGENT).map(|agent| ("user_agent.original", agent.into())));
    attributes.extend(method_attributes(request.method(), known));
    attributes
}

fn client_attributes(outbound: &Outbound, observer: &Observer) -> Vec<Attribute> {
    let app = observer.app.to_str().unwrap_or_default();
    let (address, port) = host_and_port(app, 80);
    let target = outbound.uri().path_and_query().map_or("/", |target| target.as_str());
    let mut attributes: Vec<Attribute> = vec![
        ("server.address", address.into()),
        ("url.full", format!("http://{app}{target}").into()),
        ("network.protocol.version", observer.app_version.into()),
    ];
    attributes.extend(port.map(|port| ("server.port", port.into())));
    attributes.extend(method_attributes(outbound.method(), method(outbound.method())));
    attributes
}

fn method_attributes(original: &Method, known: &'static str) -> Vec<Attribute> {
    let mut attributes = vec![("http.request.method", known.into())];
    if original.as_str() != known {
        attributes.push(("http.request.method_original", original.as_str().into()));
    }
    attributes
}
