//! `OBSERVABILITY_CONFIG`: the part of the cluster's observability settings that concerns the sidecar.

use std::net::IpAddr;

use ember_dataplane::port;
use serde::Deserialize;
use serde_json::Value;

/// Where metrics about requests go.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum MetricsProtocol {
    /// Nowhere.
    #[default]
    None,
    /// Exposed for Prometheus.
    Prometheus,
    /// Pushed by OTLP over gRPC.
    Grpc,
    /// Pushed by OTLP over HTTP.
    HttpProtobuf,
}

/// The sidecar's share of the settings. Durations in the JSON are integers of nanoseconds.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Observability {
    /// Protocol of request metrics.
    pub request_metrics: MetricsProtocol,
    /// Where Prometheus finds them, if not on all addresses.
    pub prometheus_host: Option<IpAddr>,
    /// The port there. 9091.
    pub prometheus_port: Option<u16>,
    /// Whether each request is logged.
    pub enable_request_log: bool,
    /// Whether probes are logged too.
    pub enable_probe_request_log: bool,
    /// Go template of a line of that log, if not Knative's own; empty: no log.
    pub request_log_template: Option<String>,
}

impl Observability {
    /// The port Prometheus finds request metrics on.
    #[must_use]
    pub fn port(&self) -> u16 {
        self.prometheus_port.unwrap_or(port::USER_METRICS)
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    tracing: Section,
    requestmetrics: Section,
    enablerequestlog: bool,
    enableproberequestlog: bool,
    requestlogtemplate: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Section {
    protocol: String,
    endpoint: String,
}

/// Reads the JSON over the defaults; keys match whatever their case, unknown ones are ignored. `host` and `port` are
/// the environment's overrides.
pub(crate) fn parse(json: &str, host: Option<&str>, port: Option<&str>) -> Result<Observability, String> {
    let document: Document = if json.is_empty() {
        Document::default()
    } else {
        let value: Value = serde_json::from_str(json).map_err(|error| error.to_string())?;
        serde_json::from_value(lower_keys(value)).map_err(|error| error.to_string())?
    };
    let request_metrics = match document.requestmetrics.protocol.as_str() {
        "" | "none" => MetricsProtocol::None,
        "prometheus" => MetricsProtocol::Prometheus,
        "grpc" => MetricsProtocol::Grpc,
        "http/protobuf" => MetricsProtocol::HttpProtobuf,
        unknown => return Err(format!("unsupported metrics exporter {unknown:?}")),
    };
    if !matches!(document.tracing.protocol.as_str(), "" | "none" | "grpc" | "http/protobuf" | "stdout") {
        return Err(format!("unsupported tracing exporter {:?}", document.tracing.protocol));
    }
    let mut settings = Observability {
        request_metrics,
        enable_request_log: document.enablerequestlog,
        enable_probe_request_log: document.enableproberequestlog,
        request_log_template: document.requestlogtemplate,
        ..Observability::default()
    };
    if request_metrics == MetricsProtocol::Prometheus {
        let endpoint = &document.requestmetrics.endpoint;
        let (endpoint_host, endpoint_port) = match endpoint.rsplit_once(':') {
            Some((host, port)) => (host.trim_matches(['[', ']']), port),
            None => ("", endpoint.as_str()),
        };
        let host = host.unwrap_or(endpoint_host);
        if !host.is_empty() {
            settings.prometheus_host =
                Some(host.parse().map_err(|_| format!("prometheus host {host:?}: not an IP address"))?);
        }
        let port = port.unwrap_or(endpoint_port);
        if !port.is_empty() {
            settings.prometheus_port = Some(
                port.parse()
                    .ok()
                    .filter(|port| *port >= 1024)
                    .ok_or_else(|| format!("prometheus port {port:?}: must be between 1024 and 65535"))?,
            );
        }
    }
    Ok(settings)
}

/// Keys without case. What follows an object of user data would be lowered too, but there is none.
fn lower_keys(value: Value) -> Value {
    match value {
        Value::Object(map) => {
            map.into_iter().map(|(key, value)| (key.to_ascii_lowercase(), lower_keys(value))).collect()
        }
        other => other,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn absent_keys_keep_their_defaults() {
        let minimal = r#"{"tracing":{},"metrics":{},"runtime":{},"requestMetrics":{}}"#;
        assert_eq!(parse(minimal, None, None), Ok(Observability::default()));
        assert_eq!(parse("", None, None), Ok(Observability::default()));
    }

    #[test]
    fn keys_match_whatever_their_case_and_unknown_ones_are_ignored() {
        let json = r#"{"RequestMetrics":{"PROTOCOL":"prometheus","exportInterval":5000000000},"x":1,"EnableRequestLog":true}"#;
        let settings = parse(json, None, None).unwrap();
        assert_eq!(settings.request_metrics, MetricsProtocol::Prometheus);
        assert!(settings.enable_request_log);
        assert_eq!(settings.port(), 9091);
    }

    #[test]
    fn prometheus_endpoint_and_overrides() {
        let json = r#"{"requestMetrics":{"protocol":"prometheus","endpoint":"127.0.0.1:9999"}}"#;
        let settings = parse(json, None, None).unwrap();
        assert_eq!(settings.prometheus_host, Some([127, 0, 0, 1].into()));
        assert_eq!(settings.port(), 9999);
        assert_eq!(parse(json, Some("::1"), Some("2000")).unwrap().port(), 2000);
        assert!(parse(json, None, Some("80")).is_err());
    }

    #[test]
    fn unknown_protocols_are_errors() {
        assert!(parse(r#"{"requestMetrics":{"protocol":"statsd"}}"#, None, None).is_err());
        assert!(parse(r#"{"tracing":{"protocol":"zipkin"}}"#, None, None).is_err());
        assert!(parse(r#"{"metrics":{"protocol":"statsd"}}"#, None, None).is_ok(), "not the sidecar's");
        assert!(parse("[", None, None).is_err());
    }
}
