//! `config-observability`: request logs, metrics, traces, profiling.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::ConfigError;
use super::data::Data;
use crate::golang::{GoDuration, quote};
use crate::template::Template;

/// The ConfigMap's name.
pub const NAME: &str = "config-observability";

/// The request log line unless the ConfigMap has another.
pub const DEFAULT_REQUEST_LOG_TEMPLATE: &str = ember_template::DEFAULT_REQUEST_LOG;

/// Where metrics go.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Metrics {
    /// `none`, `prometheus`, `grpc` or `http/protobuf`.
    pub protocol: String,
    /// Where to listen or send to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// Time between exports; zero is the exporter's own.
    #[serde(
        skip_serializing_if = "Duration::is_zero",
        serialize_with = "nanos",
        deserialize_with = "from_nanos"
    )]
    pub export_interval: Duration,
}

impl Default for Metrics {
    fn default() -> Self {
        Self { protocol: "none".to_owned(), endpoint: String::new(), export_interval: Duration::ZERO }
    }
}

/// Where traces go.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Tracing {
    /// `none`, `grpc`, `http/protobuf` or `stdout`.
    pub protocol: String,
    /// Where to send to.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub endpoint: String,
    /// Share of requests that are traced, in 0..=1.
    #[serde(skip_serializing_if = "is_zero")]
    pub sampling_rate: f64,
}

impl Default for Tracing {
    fn default() -> Self {
        Self { protocol: "none".to_owned(), endpoint: String::new(), sampling_rate: 0.0 }
    }
}

/// What the processes tell about themselves.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Runtime {
    /// `enabled` or `disabled`.
    pub profiling: String,
    /// Time between exports of runtime metrics.
    #[serde(
        skip_serializing_if = "Duration::is_zero",
        serialize_with = "nanos",
        deserialize_with = "from_nanos"
    )]
    pub export_interval: Duration,
}

impl Default for Runtime {
    fn default() -> Self {
        Self { profiling: "disabled".to_owned(), export_interval: Duration::from_secs(15) }
    }
}

/// Parsed `config-observability`. Its JSON form is what queue-proxy gets in its environment.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Observability {
    /// Traces.
    pub tracing: Tracing,
    /// Metrics of the system's components.
    pub metrics: Metrics,
    /// What the processes tell about themselves.
    pub runtime: Runtime,
    /// Metrics of requests, by queue-proxy.
    pub request_metrics: Metrics,
    /// Whether logs under `/var/log` are collected from the node.
    #[serde(rename = "EnableVarLogCollection", skip_serializing_if = "is_false")]
    pub enable_var_log_collection: bool,
    /// URL of a revision's logs; `${REVISION_UID}` stands for its uid.
    #[serde(rename = "LoggingURLTemplate", skip_serializing_if = "String::is_empty")]
    pub logging_url_template: String,
    /// Whether requests are logged.
    #[serde(skip_serializing_if = "is_false")]
    pub enable_request_log: bool,
    /// The line that is logged.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub request_log_template: String,
    /// Whether probes are logged too.
    #[serde(skip_serializing_if = "is_false")]
    pub enable_probe_request_log: bool,
    /// Whether answers to requests that waited for a first pod tell in a `Server-Timing` header what that took. Ours
    /// alone, key `activator-server-timing`; no concern of queue-proxy.
    #[serde(skip)]
    pub activator_server_timing: bool,
}

impl Default for Observability {
    fn default() -> Self {
        Self {
            tracing: Tracing::default(),
            metrics: Metrics::default(),
            runtime: Runtime::default(),
            request_metrics: Metrics::default(),
            enable_var_log_collection: false,
            logging_url_template: String::new(),
            enable_request_log: false,
            request_log_template: DEFAULT_REQUEST_LOG_TEMPLATE.to_owned(),
            enable_probe_request_log: false,
            activator_server_timing: false,
        }
    }
}

impl Observability {
    /// Parses the ConfigMap's data.
    ///
    /// # Errors
    /// A value that does not parse, or settings that contradict one another.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let data = Data(data);
        let mut config = Self {
            tracing: tracing(&data)?,
            metrics: metrics(&data, "")?,
            runtime: runtime(&data)?,
            request_metrics: metrics(&data, "request-")?,
            ..Self::default()
        };
        data.bool("logging.enable-var-log-collection", &mut config.enable_var_log_collection)?;
        data.string("logging.revision-url-template", &mut config.logging_url_template);
        data.string("logging.request-log-template", &mut config.request_log_template);
        data.bool("logging.enable-request-log", &mut config.enable_request_log)?;
        data.bool("logging.enable-probe-request-log", &mut config.enable_probe_request_log)?;
        data.bool("activator-server-timing", &mut config.activator_server_timing)?;
        if config.enable_request_log && config.request_log_template.is_empty() {
            return Err(ConfigError(
                r#""logging.enable-request-log" was set to true, but no "logging.request-log-template" was specified"#
                    .to_owned(),
            ));
        }
        Template::parse("requestLog", &config.request_log_template)?;
        Ok(config)
    }
}

fn metrics(data: &Data<'_>, prefix: &str) -> Result<Metrics, ConfigError> {
    let mut config = Metrics::default();
    data.string(&format!("{prefix}metrics-protocol"), &mut config.protocol);
    data.string(&format!("{prefix}metrics-endpoint"), &mut config.endpoint);
    let interval = interval(data, &format!("{prefix}metrics-export-interval"), Duration::ZERO)?;
    let protocol = quote(&config.protocol);
    match config.protocol.as_str() {
        "grpc" | "http/protobuf" if config.endpoint.is_empty() => {
            return Err(ConfigError(format!("endpoint should be set when protocol is {protocol}")));
        }
        "none" if !config.endpoint.is_empty() => {
            return Err(ConfigError(format!("endpoint should not be set when protocol is {protocol}")));
        }
        "grpc" | "http/protobuf" | "none" | "prometheus" => {}
        _ => return Err(ConfigError(format!("unsupported protocol {protocol}"))),
    }
    config.export_interval = positive(interval)?;
    Ok(config)
}

fn runtime(data: &Data<'_>) -> Result<Runtime, ConfigError> {
    let mut config = Runtime::default();
    data.string("runtime-profiling", &mut config.profiling);
    let interval = interval(data, "runtime-export-interval", config.export_interval)?;
    if !["enabled", "disabled"].contains(&config.profiling.as_str()) {
        return Err(ConfigError(format!("unsupported profile setting {}", quote(&config.profiling))));
    }
    config.export_interval = positive(interval)?;
    Ok(config)
}

fn tracing(data: &Data<'_>) -> Result<Tracing, ConfigError> {
    let mut config = Tracing::default();
    data.string("tracing-protocol", &mut config.protocol);
    data.string("tracing-endpoint", &mut config.endpoint);
    data.float("tracing-sampling-rate", &mut config.sampling_rate)?;
    let protocol = quote(&config.protocol);
    match config.protocol.as_str() {
        "grpc" | "http/protobuf" if config.endpoint.is_empty() => {
            return Err(ConfigError(format!("endpoint should be set for protocol {protocol}")));
        }
        "none" | "stdout" if !config.endpoint.is_empty() => {
            return Err(ConfigError("endpoint should not be set when protocol is 'none'".to_owned()));
        }
        "grpc" | "http/protobuf" | "none" | "stdout" => {}
        _ => return Err(ConfigError(format!("unsupported protocol {protocol}"))),
    }
    let rate = config.sampling_rate;
    if rate < 0.0 {
        return Err(ConfigError(format!("sampling rate {rate:.6} should be greater or equal to zero")));
    }
    if rate > 1.0 {
        return Err(ConfigError(format!("sampling rate {rate:.6} should be less than or equal to one")));
    }
    Ok(config)
}

fn interval(data: &Data<'_>, key: &str, default: Duration) -> Result<GoDuration, ConfigError> {
    let mut interval = GoDuration::from(default);
    data.duration(key, &mut interval)?;
    Ok(interval)
}

fn positive(interval: GoDuration) -> Result<Duration, ConfigError> {
    if interval.0 < 0 {
        return Err(ConfigError(format!("export interval \"{interval}\" should be greater than zero")));
    }
    Ok(interval.to_std())
}

fn nanos<S: Serializer>(duration: &Duration, serializer: S) -> Result<S::Ok, S::Error> {
    serializer.serialize_i64(GoDuration::from(*duration).0)
}

fn from_nanos<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Duration, D::Error> {
    Ok(GoDuration(i64::deserialize(deserializer)?).to_std())
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_zero(value: &f64) -> bool {
    *value == 0.0
}

#[expect(clippy::trivially_copy_pass_by_ref, reason = "the signature serde asks for")]
fn is_false(value: &bool) -> bool {
    !*value
}
