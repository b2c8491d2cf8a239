//! `OBSERVABILITY_CONFIG`: the part of the cluster's observability settings that concerns the sidecar.

use std::time::Duration;

use ember_dataplane::port;
use ember_telemetry::otlp::{Destination, Environment, Protocol};
use ember_telemetry::{meters, traces};
use serde::Deserialize;
use serde_json::Value;

use ember_dataplane::metrics::prometheus::Prometheus;

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

/// The instrumentation of the sidecar's own spans and metrics, under the name dashboards know it by.
pub(crate) const SCOPE: &str = "knative.dev/serving/pkg/queue";

/// The sidecar's share of the settings. Durations in the JSON are integers of nanoseconds.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Observability {
    /// Protocol of request metrics.
    pub request_metrics: MetricsProtocol,
    /// Where they are pushed to.
    pub metrics_endpoint: String,
    /// How often; zero: OpenTelemetry's default, 60 s.
    pub metrics_interval: Duration,
    /// Where Prometheus finds them.
    pub prometheus: Prometheus,
    /// How spans are exported, if they are.
    pub tracing: Option<Protocol>,
    /// Where spans go.
    pub tracing_endpoint: String,
    /// The share of traces that are recorded. 0.
    pub sampling_rate: f64,
    /// OpenTelemetry's own variables.
    pub environment: Environment,
    /// Who this is, for those who read telemetry.
    pub resource: Vec<(String, String)>,
    /// Whether profiles are asked for. There are none.
    pub profiling: bool,
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
        self.prometheus.port.unwrap_or(port::USER_METRICS)
    }

    /// Where spans go, if anywhere.
    pub(crate) fn traces(&self) -> Option<traces::Settings> {
        Some(traces::Settings {
            destination: self.destination(self.tracing?, &self.tracing_endpoint),
            sampling_rate: self.sampling_rate,
            scope: SCOPE,
        })
    }

    /// Where metrics are pushed to, if they are pushed.
    pub(crate) fn meters(&self) -> Option<meters::Settings> {
        let protocol = match self.request_metrics {
            MetricsProtocol::None | MetricsProtocol::Prometheus => return None,
            MetricsProtocol::Grpc => Protocol::Grpc,
            MetricsProtocol::HttpProtobuf => Protocol::HttpProtobuf,
        };
        let destination = self.destination(protocol, &self.metrics_endpoint);
        Some(meters::Settings { destination, interval: self.metrics_interval })
    }

    fn destination(&self, protocol: Protocol, endpoint: &str) -> Destination {
        Destination {
            protocol,
            endpoint: endpoint.to_owned(),
            environment: self.environment.clone(),
            resource: self.resource.clone(),
        }
    }
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Document {
    tracing: Section,
    requestmetrics: Section,
    runtime: Runtime,
    enablerequestlog: bool,
    enableproberequestlog: bool,
    requestlogtemplate: Option<String>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Section {
    protocol: String,
    endpoint: String,
    /// Nanoseconds.
    exportinterval: i64,
    samplingrate: f64,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct Runtime {
    profiling: String,
}

/// Reads the JSON over the defaults; keys match whatever their case, unknown ones are ignored. `variable` is the
/// environment that overrides it.
pub(crate) fn parse<'a>(
    json: &str,
    variable: impl Fn(&str) -> Option<&'a str>,
) -> Result<Observability, String> {
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
    let tracing = match document.tracing.protocol.as_str() {
        "" | "none" => None,
        "grpc" => Some(Protocol::Grpc),
        "http/protobuf" => Some(Protocol::HttpProtobuf),
        "stdout" => Some(Protocol::Stdout),
        unknown => return Err(format!("unsupported tracing exporter {unknown:?}")),
    };
    let mut settings = Observability {
        request_metrics,
        metrics_endpoint: document.requestmetrics.endpoint.clone(),
        metrics_interval: Duration::from_nanos(
            u64::try_from(document.requestmetrics.exportinterval).unwrap_or(0),
        ),
        tracing,
        tracing_endpoint: document.tracing.endpoint,
        sampling_rate: document.tracing.samplingrate,
        profiling: document.runtime.profiling == "enabled",
        enable_request_log: document.enablerequestlog,
        enable_probe_request_log: document.enableproberequestlog,
        request_log_template: document.requestlogtemplate,
        ..Observability::default()
    };
    if request_metrics == MetricsProtocol::Prometheus {
        settings.prometheus = Prometheus::parse(&document.requestmetrics.endpoint, variable)?;
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
    use proptest::prelude::*;

    use super::*;

    fn parse(json: &str, host: Option<&str>, port: Option<&str>) -> Result<Observability, String> {
        super::parse(json, |name| match name {
            "METRICS_PROMETHEUS_HOST" => host,
            "METRICS_PROMETHEUS_PORT" => port,
            _ => None,
        })
    }

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
        assert_eq!(settings.prometheus.host, Some([127, 0, 0, 1].into()));
        assert_eq!(settings.port(), 9999);
        assert_eq!(parse(json, Some("::1"), Some("2000")).unwrap().port(), 2000);
        assert!(parse(json, None, Some("80")).is_err());
        for (port, valid) in
            [("1023", false), ("1024", true), ("65535", true), ("65536", false), ("x", false)]
        {
            assert_eq!(parse(json, None, Some(port)).is_ok(), valid, "{port}");
        }
        assert!(parse("", None, Some("80")).is_ok(), "nobody listens there");
    }

    #[test]
    fn exporters_and_their_settings() {
        let json = r#"{"requestMetrics":{"protocol":"grpc","endpoint":"otel:4317","exportInterval":5000000000},
            "tracing":{"protocol":"http/protobuf","endpoint":"http://otel:4318","samplingRate":0.25},
            "runtime":{"profiling":"enabled","exportInterval":1}}"#;
        let settings = parse(json, None, None).unwrap();
        assert!(settings.profiling);
        let meters = settings.meters().unwrap();
        assert_eq!((meters.destination.protocol, meters.interval), (Protocol::Grpc, Duration::from_secs(5)));
        assert_eq!(meters.destination.endpoint, "otel:4317");
        let traces = settings.traces().unwrap();
        assert_eq!(traces.destination.protocol, Protocol::HttpProtobuf);
        assert_eq!((traces.destination.endpoint.as_str(), traces.sampling_rate), ("http://otel:4318", 0.25));
        let nothing = parse("", None, None).unwrap();
        assert_eq!((nothing.meters(), nothing.traces()), (None, None));
        let prometheus = parse(r#"{"requestMetrics":{"protocol":"prometheus"}}"#, None, None).unwrap();
        assert_eq!(prometheus.meters(), None);
    }

    #[test]
    fn unknown_protocols_are_errors() {
        assert!(parse(r#"{"requestMetrics":{"protocol":"statsd"}}"#, None, None).is_err());
        assert!(parse(r#"{"tracing":{"protocol":"zipkin"}}"#, None, None).is_err());
        assert!(parse(r#"{"metrics":{"protocol":"statsd"}}"#, None, None).is_ok(), "not the sidecar's");
        assert!(parse("[", None, None).is_err());
    }

    proptest! {
        #[test]
        fn an_endpoint_is_an_address_and_a_port_or_an_error(
            endpoint in prop_oneof![".{0,20}", r"[0-9a-f.:\[\]]{0,20}(:[0-9]{0,6})?", "[0-9]{1,6}"],
            host in prop::option::of(prop_oneof![".{0,12}", "[0-9.:]{0,12}"]),
            port in prop::option::of("-?[0-9]{0,6}"),
        ) {
            let json =
                serde_json::json!({"requestMetrics": {"protocol": "prometheus", "endpoint": endpoint}}).to_string();
            if let Ok(settings) = parse(&json, host.as_deref(), port.as_deref()) {
                prop_assert_eq!(settings.request_metrics, MetricsProtocol::Prometheus);
                prop_assert!(settings.port() >= 1024);
                if let Some(host) = host {
                    prop_assert_eq!(settings.prometheus.host.is_none(), host.is_empty());
                }
            }
        }

        #[test]
        fn any_text_is_settings_or_an_error(json in prop_oneof![
            ".*",
            r#"\{("(requestMetrics|REQUESTMETRICS|tracing|enableRequestLog|x)":(\{("(protocol|endpoint)":"[a-z/]{0,9}")?\}|true|1|null),?){0,4}\}"#,
        ]) {
            let _ = parse(&json, None, None);
        }
    }

    #[test]
    fn depth_has_a_limit() {
        assert!(parse(&"[".repeat(100_000), None, None).is_err());
        assert!(parse(&r#"{"a":"#.repeat(100_000), None, None).is_err());
    }
}
