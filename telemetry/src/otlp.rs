//! Where telemetry is exported to: what the configuration and OpenTelemetry's environment variables say together.

#[cfg(feature = "otlp")]
mod client;
#[cfg(feature = "otlp")]
pub(crate) mod exporter;

use std::collections::BTreeMap;
use std::time::Duration;

/// How long the last export may take when a component ends. 10 s.
pub const FLUSH: Duration = Duration::from_secs(10);

/// How telemetry is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Protocol {
    /// OTLP over gRPC.
    Grpc,
    /// OTLP over HTTP.
    HttpProtobuf,
    /// One JSON object a line on standard output; traces only.
    Stdout,
}

/// What is exported.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Signal {
    /// Spans.
    Traces,
    /// Metrics.
    Metrics,
}

impl Signal {
    fn path(self) -> &'static str {
        match self {
            Self::Traces => "/v1/traces",
            Self::Metrics => "/v1/metrics",
        }
    }

    fn variable(self) -> &'static str {
        match self {
            Self::Traces => "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT",
            Self::Metrics => "OTEL_EXPORTER_OTLP_METRICS_ENDPOINT",
        }
    }
}

/// OpenTelemetry's environment variables (`OTEL_…`); empty ones count as not set.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Environment(BTreeMap<String, String>);

impl FromIterator<(String, String)> for Environment {
    fn from_iter<I: IntoIterator<Item = (String, String)>>(variables: I) -> Self {
        let ours = |(name, value): &(String, String)| name.starts_with("OTEL_") && !value.is_empty();
        Self(variables.into_iter().filter(ours).collect())
    }
}

impl Environment {
    /// A variable.
    #[must_use]
    pub fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    /// `OTEL_RESOURCE_ATTRIBUTES`: `key=value` pairs between commas, values percent-encoded.
    #[must_use]
    pub fn resource_attributes(&self) -> Vec<(String, String)> {
        let pairs = self.get("OTEL_RESOURCE_ATTRIBUTES").unwrap_or_default();
        let pair = |pair: &str| {
            let (key, value) = pair.split_once('=')?;
            Some((key.trim().to_owned(), decode(value.trim()))).filter(|(key, _)| !key.is_empty())
        };
        pairs.split(',').filter_map(pair).collect()
    }

    /// Where a signal goes. The variables win over what is `configured`; the endpoint of a text without a scheme
    /// (`otel:4317`) is reached by TLS; a URL without a path gets the signal's over HTTP.
    #[must_use]
    pub fn endpoint(&self, signal: Signal, protocol: Protocol, configured: &str) -> String {
        let http = protocol == Protocol::HttpProtobuf;
        if let Some(own) = self.get(signal.variable()) {
            return self.with_scheme(own);
        }
        if let Some(base) = self.get("OTEL_EXPORTER_OTLP_ENDPOINT") {
            let base = self.with_scheme(base);
            return if http { format!("{}{}", base.trim_end_matches('/'), signal.path()) } else { base };
        }
        let url = match (configured, http) {
            ("", true) => "http://localhost:4318".to_owned(),
            ("", false) => "http://localhost:4317".to_owned(),
            (configured, _) if configured.contains("://") => configured.to_owned(),
            (configured, _) => format!("https://{configured}"),
        };
        let authority = url.find("://").map_or(0, |at| at + 3);
        let no_path = url.get(authority..).is_some_and(|rest| {
            let path = rest.find('/').map_or("", |at| &rest[at..]);
            path.is_empty() || path == "/"
        });
        if http && no_path { format!("{}{}", url.trim_end_matches('/'), signal.path()) } else { url }
    }

    fn with_scheme(&self, endpoint: &str) -> String {
        let insecure =
            self.get("OTEL_EXPORTER_OTLP_INSECURE").is_some_and(|yes| yes.eq_ignore_ascii_case("true"));
        if endpoint.contains("://") {
            endpoint.to_owned()
        } else if insecure {
            format!("http://{endpoint}")
        } else {
            format!("https://{endpoint}")
        }
    }

    /// How often metrics are pushed: `OTEL_METRIC_EXPORT_INTERVAL` in milliseconds, else what is configured, else
    /// every 60 s.
    #[must_use]
    pub fn interval(&self, configured: Duration) -> Duration {
        let default = Duration::from_secs(60);
        if let Some(millis) = self.get("OTEL_METRIC_EXPORT_INTERVAL") {
            let millis = millis.parse().ok().filter(|millis| *millis > 0);
            return millis.map_or(default, Duration::from_millis);
        }
        if configured.is_zero() { default } else { configured }
    }
}

/// `%20` and the like; what is not encoded well stays.
fn decode(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, after)) = rest.split_first() {
        let encoded = (*first == b'%').then(|| after.get(..2)).flatten();
        let decoded =
            encoded.and_then(|digits| u8::from_str_radix(std::str::from_utf8(digits).ok()?, 16).ok());
        match decoded {
            Some(byte) => {
                bytes.push(byte);
                rest = &after[2..];
            }
            None => {
                bytes.push(*first);
                rest = after;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Where and as what a signal is exported.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Destination {
    /// How.
    pub protocol: Protocol,
    /// The configured endpoint, or empty.
    pub endpoint: String,
    /// Overrides it, and says more.
    pub environment: Environment,
    /// Who exports.
    pub resource: Vec<(String, String)>,
}

/// Telemetry cannot be exported.
#[derive(Debug, thiserror::Error)]
pub enum ExportError {
    /// This build has no exporters.
    #[error("this build has no exporters for traces and pushed metrics (cargo feature otlp)")]
    Unsupported,
    /// The destination is none.
    #[error("exporting to {endpoint}: {reason}")]
    Destination {
        /// Where.
        endpoint: String,
        /// Why not.
        reason: String,
    },
}

/// A value of an attribute.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// Text.
    Text(String),
    /// A number.
    Number(i64),
}

impl From<&str> for Value {
    fn from(text: &str) -> Self {
        Self::Text(text.to_owned())
    }
}

impl From<String> for Value {
    fn from(text: String) -> Self {
        Self::Text(text)
    }
}

impl From<u16> for Value {
    fn from(number: u16) -> Self {
        Self::Number(number.into())
    }
}

impl From<u64> for Value {
    fn from(number: u64) -> Self {
        Self::Number(i64::try_from(number).unwrap_or(i64::MAX))
    }
}

/// An attribute of a span or a measurement.
pub type Attribute = (&'static str, Value);

#[cfg(test)]
mod tests {
    use super::*;

    fn environment(variables: &[(&str, &str)]) -> Environment {
        variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn configured_endpoints() {
        let none = environment(&[]);
        let grpc = |text| none.endpoint(Signal::Traces, Protocol::Grpc, text);
        let http = |text| none.endpoint(Signal::Metrics, Protocol::HttpProtobuf, text);
        assert_eq!(grpc("otel:4317"), "https://otel:4317");
        assert_eq!(grpc("http://otel:4317"), "http://otel:4317");
        assert_eq!(grpc(""), "http://localhost:4317");
        assert_eq!(http("otel:4318"), "https://otel:4318/v1/metrics");
        assert_eq!(http("http://otel:4318/"), "http://otel:4318/v1/metrics");
        assert_eq!(http("http://otel:4318/push/here"), "http://otel:4318/push/here");
        assert_eq!(http(""), "http://localhost:4318/v1/metrics");
    }

    #[test]
    fn variables_win_over_the_configuration() {
        let base = ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://base:1/x/");
        let env = environment(&[base]);
        assert_eq!(
            env.endpoint(Signal::Traces, Protocol::HttpProtobuf, "http://o:2"),
            "http://base:1/x/v1/traces"
        );
        assert_eq!(env.endpoint(Signal::Traces, Protocol::Grpc, "http://o:2"), "http://base:1/x/");
        let env = environment(&[base, ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "http://own:3/t")]);
        assert_eq!(env.endpoint(Signal::Traces, Protocol::HttpProtobuf, "http://o:2"), "http://own:3/t");
        let env = environment(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "otel:4317"),
            ("OTEL_EXPORTER_OTLP_INSECURE", "true"),
        ]);
        assert_eq!(env.endpoint(Signal::Traces, Protocol::Grpc, ""), "http://otel:4317");
        let empty = environment(&[("OTEL_EXPORTER_OTLP_ENDPOINT", ""), ("PATH", "/bin")]);
        assert_eq!(empty, Environment::default());
    }

    #[test]
    fn intervals() {
        let seconds = Duration::from_secs;
        let none = environment(&[]);
        assert_eq!(none.interval(seconds(5)), seconds(5));
        assert_eq!(none.interval(Duration::ZERO), seconds(60));
        let env = environment(&[("OTEL_METRIC_EXPORT_INTERVAL", "2000")]);
        assert_eq!(env.interval(seconds(5)), seconds(2));
        let env = environment(&[("OTEL_METRIC_EXPORT_INTERVAL", "x")]);
        assert_eq!(env.interval(seconds(5)), seconds(60));
    }

    #[test]
    fn resource_attributes_are_decoded() {
        let env = environment(&[("OTEL_RESOURCE_ATTRIBUTES", "team=a%20b%2, x = 1,=y,broken")]);
        let attributes = env.resource_attributes();
        assert_eq!(attributes, [("team".into(), "a b%2".into()), ("x".into(), "1".into())]);
    }
}
