//! The metrics of HTTP servers and clients, as OpenTelemetry's conventions name them.

use std::collections::HashMap;
use std::hash::{Hash, Hasher};
use std::sync::Arc;

use ::http::{HeaderValue, Method, Version};
use parking_lot::Mutex;

use super::family::{Definition, Families, LabelSet, OTHER, Scope, Series};
use super::histogram::Unit;
use super::text::Label;

/// The scope dashboards know these metrics by.
pub const SCOPE: Scope =
    Scope { name: "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp", version: "0.69.0" };

/// Of a server; recorded as duration, size of the request's body, size of the response's body.
pub const SERVER: &[Definition] = &[
    Definition {
        name: "http.server.request.duration",
        exposed: "http_server_request_duration_seconds",
        help: "Duration of HTTP server requests.",
        unit: Unit::Seconds,
    },
    Definition {
        name: "http.server.request.body.size",
        exposed: "http_server_request_body_size_bytes",
        help: "Size of HTTP server request bodies.",
        unit: Unit::Bytes,
    },
    Definition {
        name: "http.server.response.body.size",
        exposed: "http_server_response_body_size_bytes",
        help: "Size of HTTP server response bodies.",
        unit: Unit::Bytes,
    },
];

/// Of a client; recorded as duration up to the head of the response, size of the request's body up to then.
pub const CLIENT: &[Definition] = &[
    Definition {
        name: "http.client.request.duration",
        exposed: "http_client_request_duration_seconds",
        help: "Duration of HTTP client requests.",
        unit: Unit::Seconds,
    },
    Definition {
        name: "http.client.request.body.size",
        exposed: "http_client_request_body_size_bytes",
        help: "Size of HTTP client request bodies.",
        unit: Unit::Bytes,
    },
];

/// Longer ones are nobody's Host.
const LONGEST_HOST: usize = 255;
/// Label sets a worker finds without asking the others.
const MOST_KNOWN: usize = 1024;

/// The method as metrics have it: any case, `_OTHER` for what is not known.
#[must_use]
pub fn method(method: &Method) -> &'static str {
    match *method {
        Method::GET => "GET",
        Method::POST => "POST",
        Method::PUT => "PUT",
        Method::DELETE => "DELETE",
        Method::HEAD => "HEAD",
        Method::OPTIONS => "OPTIONS",
        Method::PATCH => "PATCH",
        Method::CONNECT => "CONNECT",
        Method::TRACE => "TRACE",
        _ => ["GET", "POST", "PUT", "DELETE", "HEAD", "OPTIONS", "PATCH", "CONNECT", "TRACE"]
            .into_iter()
            .find(|known| method.as_str().eq_ignore_ascii_case(known))
            .unwrap_or("_OTHER"),
    }
}

/// The version as metrics have it.
#[must_use]
pub fn version(version: Version) -> &'static str {
    match version {
        Version::HTTP_09 => "0.9",
        Version::HTTP_10 => "1.0",
        Version::HTTP_2 => "2.0",
        Version::HTTP_3 => "3.0",
        _ => "1.1",
    }
}

/// How an exchange ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Outcome {
    /// With an answer.
    Status(u16),
    /// Without one, and why.
    Error(&'static str),
    /// One of too many.
    Other,
}

/// What a component says about its requests beyond what is HTTP's.
pub trait Extra: Clone + Eq + Hash + Send + Sync + 'static {
    /// Adds the labels.
    fn add_to<'a>(&'a self, labels: &mut Vec<Label<'a>>);

    /// What stands for it when there are too many.
    #[must_use]
    fn other(&self) -> Self;

    /// A copy that shares no memory with the request it comes from.
    #[must_use]
    fn detached(&self) -> Self;
}

impl Extra for () {
    fn add_to<'a>(&'a self, _: &mut Vec<Label<'a>>) {}

    fn other(&self) -> Self {}

    fn detached(&self) -> Self {}
}

/// One exchange, as cheap to have as to clone.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Observed<X> {
    /// See [`method`].
    pub method: &'static str,
    /// See [`version`].
    pub version: &'static str,
    /// Whether TLS was spoken.
    pub tls: bool,
    /// Host, with or without a port.
    pub host: Option<HeaderValue>,
    /// How it ended.
    pub outcome: Outcome,
    /// The component's labels.
    pub extra: X,
}

impl<X: Hash> Hash for Observed<X> {
    /// By what differs most: it is computed for every request.
    fn hash<H: Hasher>(&self, state: &mut H) {
        if let Some(host) = &self.host {
            state.write(host.as_bytes());
        }
        if let Outcome::Status(status) = self.outcome {
            state.write_u16(status);
        }
        self.extra.hash(state);
    }
}

impl<X: Extra> Observed<X> {
    fn detached(&self) -> Self {
        Self {
            host: self.host.as_ref().and_then(|host| HeaderValue::from_bytes(host.as_bytes()).ok()),
            extra: self.extra.detached(),
            ..self.clone()
        }
    }

    /// The labels: two Hosts that mean the same have the same.
    #[must_use]
    pub fn labels(&self) -> HttpLabels<X> {
        let host = self.host.as_ref().map_or(&b""[..], HeaderValue::as_bytes);
        let (address, port) = if host.len() > LONGEST_HOST {
            (OTHER.into(), None)
        } else {
            let host = String::from_utf8_lossy(host);
            let (address, port) = host_and_port(&host, if self.tls { 443 } else { 80 });
            (address.into(), port)
        };
        HttpLabels {
            method: self.method,
            version: self.version,
            scheme: if self.tls { "https" } else { "http" },
            address,
            port,
            outcome: self.outcome,
            extra: self.extra.detached(),
        }
    }
}

/// Address and port of a Host; both are missing in what is none, and the port where it is the `usual` one.
#[must_use]
pub fn host_and_port(host: &str, usual: u16) -> (&str, Option<u16>) {
    let (address, port) = split(host);
    let port = port.and_then(|port| port.parse().ok());
    (address, port.filter(|port| *port != 0 && *port != usual))
}

fn split(host: &str) -> (&str, Option<&str>) {
    if let Some(rest) = host.strip_prefix('[') {
        let Some((address, rest)) = rest.rsplit_once(']') else { return ("", None) };
        return match rest.strip_prefix(':') {
            Some(port) => (address, Some(port)),
            None if rest.is_empty() => (address, None),
            None => ("", None),
        };
    }
    match host.rsplit_once(':') {
        None => (host, None),
        Some((address, _)) if address.contains(':') => ("", None),
        Some((address, port)) => (address, Some(port)),
    }
}

/// The labels of HTTP's metrics.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct HttpLabels<X> {
    method: &'static str,
    version: &'static str,
    scheme: &'static str,
    address: Box<str>,
    port: Option<u16>,
    outcome: Outcome,
    extra: X,
}

impl<X> HttpLabels<X> {
    /// What the component adds.
    #[must_use]
    pub fn extra(&self) -> &X {
        &self.extra
    }
}

impl<X: Extra> LabelSet for HttpLabels<X> {
    fn labels(&self) -> Vec<Label<'_>> {
        let mut labels = vec![
            ("http.request.method", self.method.into()),
            ("network.protocol.name", "http".into()),
            ("network.protocol.version", self.version.into()),
            ("url.scheme", self.scheme.into()),
            ("server.address", (&*self.address).into()),
        ];
        if let Some(port) = self.port {
            labels.push(("server.port", port.into()));
        }
        labels.push(match self.outcome {
            Outcome::Status(status) => ("http.response.status_code", status.into()),
            Outcome::Error(kind) => ("error.type", kind.into()),
            Outcome::Other => ("http.response.status_code", OTHER.into()),
        });
        self.extra.add_to(&mut labels);
        labels
    }

    /// First the names clients choose go, then all the rest.
    fn collapsed(&self) -> Self {
        let named = Self { address: OTHER.into(), port: None, extra: self.extra.other(), ..self.clone() };
        if named != *self {
            return named;
        }
        Self { method: OTHER, version: OTHER, scheme: OTHER, outcome: Outcome::Other, ..named }
    }
}

/// Records exchanges for one worker: what it has seen before it finds without asking the others.
#[derive(Debug)]
pub struct Recorder<X> {
    families: Arc<Families<HttpLabels<X>>>,
    known: Mutex<HashMap<Observed<X>, Arc<Series>>>,
}

impl<X: Extra> Recorder<X> {
    /// Records into `families`, which the recorders of all workers share.
    #[must_use]
    pub fn new(families: Arc<Families<HttpLabels<X>>>) -> Self {
        Self { families, known: Mutex::default() }
    }

    /// Forgets what is no longer of interest.
    pub fn retain(&self, keep: impl Fn(&X) -> bool) {
        self.known.lock().retain(|observed, _| keep(&observed.extra));
    }

    /// Records an exchange: one value for each family.
    pub fn record(&self, observed: &Observed<X>, values: &[u64]) {
        let mut known = self.known.lock();
        if let Some(series) = known.get(observed) {
            series.record(values);
            return;
        }
        let series = self.families.series(&observed.labels());
        series.record(values);
        if known.len() < MOST_KNOWN {
            known.insert(observed.detached(), series);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::text::Text;
    use super::*;

    fn observed(host: &'static str) -> Observed<()> {
        Observed {
            method: "GET",
            version: "1.1",
            tls: false,
            host: Some(HeaderValue::from_static(host)),
            outcome: Outcome::Status(200),
            extra: (),
        }
    }

    #[test]
    fn methods_and_versions() {
        assert_eq!(method(&Method::PATCH), "PATCH");
        assert_eq!(method(&Method::from_bytes(b"get").unwrap()), "GET");
        assert_eq!(method(&Method::from_bytes(b"BREW").unwrap()), "_OTHER");
        assert_eq!([Version::HTTP_10, Version::HTTP_11, Version::HTTP_2].map(version), ["1.0", "1.1", "2.0"]);
    }

    #[test]
    fn hosts_are_split() {
        let cases: [(&str, &str, Option<u16>); 9] = [
            ("a.example", "a.example", None),
            ("a.example:8080", "a.example", Some(8080)),
            ("a.example:x", "a.example", None),
            ("[::1]", "::1", None),
            ("[::1]:90", "::1", Some(90)),
            ("[::1", "", None),
            ("::1", "", None),
            (":90", "", Some(90)),
            ("", "", None),
        ];
        for (host, address, port) in cases {
            assert_eq!(host_and_port(host, 80), (address, port), "{host}");
        }
        assert_eq!(observed("a:80").labels(), observed("a").labels(), "the port that is usual");
        let tls = Observed { tls: true, ..observed("a:443") };
        assert_eq!((tls.labels().port, tls.labels().scheme), (None, "https"));
    }

    #[test]
    fn hosts_that_mean_the_same_are_one_series_and_too_many_are_one() {
        let families = Arc::new(Families::new(SCOPE, SERVER));
        let recorder = Recorder::new(Arc::clone(&families));
        for host in ["a", "a:80", "a"] {
            recorder.record(&observed(host), &[1, 2, 3]);
        }
        for number in 0..5000 {
            let host = HeaderValue::from_str(&format!("host-{number}")).unwrap();
            recorder.record(&Observed { host: Some(host), ..observed("") }, &[1, 2, 3]);
        }
        assert!(recorder.known.lock().len() <= MOST_KNOWN);
        let mut text = Text::default();
        families.expose(&mut text);
        let text = text.into_string();
        let counts: Vec<&str> = text.lines().filter(|line| line.contains("duration_seconds_count")).collect();
        assert!(counts.len() <= 257, "{}", counts.len());
        let of = |address: &str| {
            let found = counts.iter().find(|line| line.contains(&format!("server_address=\"{address}\"")));
            found.and_then(|line| line.rsplit(' ').next()).map(str::to_owned)
        };
        assert_eq!(of("a").as_deref(), Some("3"));
        assert_eq!(of(OTHER).as_deref(), Some("4745"), "the rest of 5000");
        assert!(text.contains("http_server_response_body_size_bytes_sum"));
    }
}
