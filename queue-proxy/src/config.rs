//! The sidecar's configuration: what the controller writes into the container's environment.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::time::Duration;

use ember_dataplane::port;
use ember_dataplane::server;
use ember_dataplane::timeout::Timeouts;
use ember_dataplane::tls::{InvalidSetting, Settings};
use ember_telemetry::request_log::Output;

use crate::observability::{self, Observability};
use crate::readiness::spec::{self, Probe};
use crate::resource;

/// Everything the sidecar needs to know, immutable.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// Requests that may run at a time; `None`: no limit, no queue. `CONTAINER_CONCURRENCY`.
    pub container_concurrency: Option<usize>,
    /// The data port, 8012 or 8013, where the app speaks h2c. `QUEUE_SERVING_PORT`.
    pub serving_port: u16,
    /// The data port over TLS. `QUEUE_SERVING_TLS_PORT`.
    pub serving_tls_port: u16,
    /// The app's port. `USER_PORT`.
    pub user_port: u16,
    /// `REVISION_TIMEOUT_SECONDS` (0 expires at once), `REVISION_RESPONSE_START_TIMEOUT_SECONDS` and
    /// `REVISION_IDLE_TIMEOUT_SECONDS` (0 is off).
    pub timeouts: Timeouts,
    /// All of them must succeed; empty: always ready. `SERVING_READINESS_PROBE`.
    pub readiness_probes: Vec<Probe>,
    /// `ENABLE_HTTP_FULL_DUPLEX`. Requests and responses always stream both ways.
    pub full_duplex: bool,
    /// Readiness probes may speak HTTP/2. `ENABLE_HTTP2_AUTO_DETECTION`.
    pub http2_auto_detection: bool,
    /// Log settings in zap's JSON form. `SERVING_LOGGING_CONFIG`.
    pub logging_config: String,
    /// Log level; empty: info. `SERVING_LOGGING_LEVEL`.
    pub logging_level: String,
    /// The revision's namespace. `SERVING_NAMESPACE`.
    pub namespace: String,
    /// The Service, or empty. `SERVING_SERVICE`.
    pub service: String,
    /// The Configuration, or empty. `SERVING_CONFIGURATION`.
    pub configuration: String,
    /// The Revision. `SERVING_REVISION`.
    pub revision: String,
    /// The pod, as statistics name it. `SERVING_POD`.
    pub pod: String,
    /// The pod's address. `SERVING_POD_IP`.
    pub pod_ip: String,
    /// `OBSERVABILITY_CONFIG` and the environment that overrides it.
    pub observability: Observability,
    /// What TLS clients may agree on. An error counts only where TLS is spoken. `QUEUE_PROXY_TLS_*`.
    pub tls_settings: Result<Settings, InvalidSetting>,

    /// Where `tls.crt` and `tls.key` are. With both of them there at start, requests are served by TLS, too. `None`:
    /// nowhere. Default `/var/lib/knative/certs`.
    pub certificate_directory: Option<PathBuf>,
    /// How often they are looked at again. 60 s.
    pub certificate_period: Duration,
    /// The address the servers listen on. Default: all, IPv6 and IPv4.
    pub bind: IpAddr,
    /// Where the app listens. Default 127.0.0.1.
    pub app_host: IpAddr,
    /// Limits of what clients may do, on every port. Safe by default.
    pub server: server::Options,
    /// Port of `/wait-for-drain`. 8022.
    pub admin_port: u16,
    /// Port of the statistics for the autoscaler. 9090.
    pub stat_port: u16,
    /// How often the statistics are renewed. 1 s.
    pub stat_period: Duration,
    /// After SIGTERM: how long no request may arrive before the sidecar ends. 30 s, or
    /// `QUEUE_PROXY_DRAIN_QUIET_SECONDS`, which Knative does not know.
    pub drain_quiet_period: Duration,
    /// After that: how long requests in flight may take to end. The revision's timeout, at least 60 s.
    pub drain_timeout: Duration,
    /// After the quiet period: how long upgraded streams are kept. 60 s.
    pub drain_upgraded_timeout: Duration,
    /// How long `/wait-for-drain` waits for SIGTERM before it takes it that only the app restarts. 1 s.
    pub drain_reset_after: Duration,
    /// How long a request that the app has not seen waits for an app that does not listen, because it is being
    /// started again. Zero: 502 at once, as upstream.
    pub app_absence: Duration,
    /// Where the request log goes; `None`: to the process's standard output.
    pub request_log_output: Option<Output>,
}

/// The environment does not make a configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A required variable is not set (empty would do).
    #[error("required key {0} missing value")]
    Missing(&'static str),
    /// A variable does not parse.
    #[error("envconfig.Process: assigning {name}: converting {value:?}: {reason}")]
    Invalid {
        /// The variable.
        name: &'static str,
        /// Its value.
        value: String,
        /// What is wrong.
        reason: String,
    },
}

impl ConfigError {
    fn invalid(name: &'static str, value: &str, reason: &impl ToString) -> Self {
        Self::Invalid { name, value: value.to_owned(), reason: reason.to_string() }
    }
}

/// The variables of a container.
struct Env(BTreeMap<String, String>);

impl Env {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str)
    }

    fn text(&self, name: &str) -> String {
        self.get(name).unwrap_or_default().to_owned()
    }

    fn required(&self, name: &'static str) -> Result<&str, ConfigError> {
        self.get(name).ok_or(ConfigError::Missing(name))
    }

    fn required_text(&self, name: &'static str) -> Result<String, ConfigError> {
        self.required(name).map(str::to_owned)
    }

    fn required_int(&self, name: &'static str) -> Result<i64, ConfigError> {
        let value = self.required(name)?;
        parse_int(value).map_err(|reason| ConfigError::invalid(name, value, &reason))
    }

    fn int(&self, name: &'static str) -> Result<i64, ConfigError> {
        match self.get(name) {
            None => Ok(0),
            Some(value) => parse_int(value).map_err(|reason| ConfigError::invalid(name, value, &reason)),
        }
    }

    fn seconds(&self, name: &'static str, default: u64) -> Result<Duration, ConfigError> {
        let seconds = match self.get(name) {
            None => default,
            Some(_) => u64::try_from(self.int(name)?).unwrap_or(0),
        };
        Ok(Duration::from_secs(seconds))
    }

    fn boolean(&self, name: &'static str) -> Result<bool, ConfigError> {
        match self.get(name) {
            None => Ok(false),
            Some("1" | "t" | "T" | "TRUE" | "true" | "True") => Ok(true),
            Some("0" | "f" | "F" | "FALSE" | "false" | "False") => Ok(false),
            Some(value) => Err(ConfigError::invalid(name, value, &"invalid syntax")),
        }
    }

    fn port(&self, name: &'static str) -> Result<u16, ConfigError> {
        let value = self.required(name)?;
        value.parse().map_err(|error| ConfigError::invalid(name, value, &error))
    }
}

/// An integer as Go writes them: decimal, or with a base prefix.
fn parse_int(text: &str) -> Result<i64, String> {
    let (negative, digits) = match text.strip_prefix('-') {
        Some(digits) => (true, digits),
        None => (false, text.strip_prefix('+').unwrap_or(text)),
    };
    let lower = digits.to_ascii_lowercase();
    let (radix, digits) = if let Some(rest) = lower.strip_prefix("0x") {
        (16, rest)
    } else if let Some(rest) = lower.strip_prefix("0b") {
        (2, rest)
    } else if let Some(rest) = lower.strip_prefix("0o") {
        (8, rest)
    } else if lower.len() > 1 && lower.starts_with('0') {
        (8, &lower[1..])
    } else {
        (10, lower.as_str())
    };
    if !digits.starts_with(|first: char| first.is_ascii_alphanumeric()) {
        return Err("invalid syntax".to_owned());
    }
    let number = i64::from_str_radix(digits, radix).map_err(|error| error.to_string())?;
    Ok(if negative { -number } else { number })
}

/// Seconds; none at all if negative, and no more than can be added to the time of day.
fn seconds(seconds: i64) -> Duration {
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).min(u32::MAX.into()))
}

/// Seconds that switch a timer on, if there are any.
fn positive_seconds(given: i64) -> Option<Duration> {
    Some(seconds(given)).filter(|after| !after.is_zero())
}

impl Config {
    /// Reads the container's environment. Variables it does not know are for extensions and ignored.
    ///
    /// # Errors
    /// The first variable that is missing or does not parse.
    pub fn from_env(env: impl IntoIterator<Item = (String, String)>) -> Result<Self, ConfigError> {
        let env = Env(env.into_iter().collect());
        let total = seconds(env.required_int("REVISION_TIMEOUT_SECONDS")?);
        let probes = env.text("SERVING_READINESS_PROBE");
        let several = env.boolean("ENABLE_MULTI_CONTAINER_PROBES")?;
        let readiness_probes = spec::decode(&probes, several)
            .map_err(|error| ConfigError::invalid("SERVING_READINESS_PROBE", &probes, &error))?;
        let json = env.text("OBSERVABILITY_CONFIG");
        let mut observability = observability::parse(&json, |name| env.get(name))
            .map_err(|error| ConfigError::invalid("OBSERVABILITY_CONFIG", &json, &error))?;
        observability.environment = env.0.clone().into_iter().collect();
        observability.resource = resource::attributes(|name| env.get(name), &observability.environment);
        Ok(Self {
            container_concurrency: usize::try_from(env.required_int("CONTAINER_CONCURRENCY")?)
                .ok()
                .filter(|limit| *limit > 0),
            serving_port: env.port("QUEUE_SERVING_PORT")?,
            serving_tls_port: env.port("QUEUE_SERVING_TLS_PORT")?,
            user_port: env.port("USER_PORT")?,
            timeouts: Timeouts {
                total: Some(total),
                response_start: positive_seconds(env.int("REVISION_RESPONSE_START_TIMEOUT_SECONDS")?),
                idle: positive_seconds(env.int("REVISION_IDLE_TIMEOUT_SECONDS")?),
            },
            readiness_probes,
            full_duplex: env.boolean("ENABLE_HTTP_FULL_DUPLEX")?,
            http2_auto_detection: env.boolean("ENABLE_HTTP2_AUTO_DETECTION")?,
            logging_config: env.required_text("SERVING_LOGGING_CONFIG")?,
            logging_level: env.required_text("SERVING_LOGGING_LEVEL")?,
            namespace: env.required_text("SERVING_NAMESPACE")?,
            service: env.text("SERVING_SERVICE"),
            configuration: env.required_text("SERVING_CONFIGURATION")?,
            revision: env.required_text("SERVING_REVISION")?,
            pod: env.required_text("SERVING_POD")?,
            pod_ip: env.required_text("SERVING_POD_IP")?,
            observability,
            tls_settings: Settings::from_env("QUEUE_PROXY_", |name| env.get(name)),
            certificate_directory: Some(PathBuf::from("/var/lib/knative/certs")),
            certificate_period: Duration::from_secs(60),
            bind: Ipv6Addr::UNSPECIFIED.into(),
            app_host: Ipv4Addr::LOCALHOST.into(),
            server: server::Options::default(),
            admin_port: port::ADMIN,
            stat_port: port::AUTOSCALING_METRICS,
            stat_period: Duration::from_secs(1),
            drain_quiet_period: env.seconds("QUEUE_PROXY_DRAIN_QUIET_SECONDS", 30)?,
            drain_timeout: total.max(Duration::from_secs(60)),
            drain_upgraded_timeout: Duration::from_secs(60),
            drain_reset_after: Duration::from_secs(1),
            app_absence: Duration::ZERO,
            request_log_output: None,
        })
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const REQUIRED: [&str; 12] = [
        "CONTAINER_CONCURRENCY",
        "QUEUE_SERVING_PORT",
        "QUEUE_SERVING_TLS_PORT",
        "USER_PORT",
        "REVISION_TIMEOUT_SECONDS",
        "SERVING_LOGGING_CONFIG",
        "SERVING_LOGGING_LEVEL",
        "SERVING_NAMESPACE",
        "SERVING_CONFIGURATION",
        "SERVING_REVISION",
        "SERVING_POD",
        "SERVING_POD_IP",
    ];

    fn minimal() -> BTreeMap<String, String> {
        let value = |name: &str| match name {
            "CONTAINER_CONCURRENCY" => "0",
            "QUEUE_SERVING_PORT" => "8012",
            "QUEUE_SERVING_TLS_PORT" => "8112",
            "USER_PORT" => "8080",
            "REVISION_TIMEOUT_SECONDS" => "300",
            _ => "",
        };
        REQUIRED.iter().map(|name| ((*name).to_owned(), value(name).to_owned())).collect()
    }

    fn with(name: &str, value: &str) -> Result<Config, ConfigError> {
        let mut env = minimal();
        env.insert(name.to_owned(), value.to_owned());
        Config::from_env(env)
    }

    #[test]
    fn required_variables_must_be_set_and_may_be_empty() {
        assert!(Config::from_env(minimal()).is_ok());
        for name in REQUIRED {
            let mut env = minimal();
            env.remove(name);
            assert_eq!(Config::from_env(env), Err(ConfigError::Missing(name)));
        }
    }

    #[test]
    fn integers_are_gos() {
        for (text, number) in
            [("0x2", 2), ("0b11", 3), ("0o17", 15), ("017", 15), ("-3", -3), ("+4", 4), ("0", 0)]
        {
            assert_eq!(parse_int(text), Ok(number), "{text}");
        }
        for text in ["", "x", "0x", "--1", "0x-1", "1.5"] {
            assert!(parse_int(text).is_err(), "{text}");
        }
        assert!(matches!(
            with("CONTAINER_CONCURRENCY", ""),
            Err(ConfigError::Invalid { name: "CONTAINER_CONCURRENCY", .. })
        ));
    }

    #[test]
    fn concurrency_below_one_is_no_limit() {
        for (text, limit) in [("0", None), ("-1", None), ("1", Some(1)), ("0x10", Some(16))] {
            assert_eq!(with("CONTAINER_CONCURRENCY", text).unwrap().container_concurrency, limit);
        }
    }

    #[test]
    fn timeouts() {
        let config = with("REVISION_IDLE_TIMEOUT_SECONDS", "7").unwrap();
        assert_eq!(config.timeouts.idle, Some(Duration::from_secs(7)));
        assert_eq!(config.timeouts.response_start, None);
        assert_eq!(config.timeouts.total, Some(Duration::from_secs(300)));
        assert_eq!(config.drain_timeout, Duration::from_secs(300));
        assert_eq!(config.drain_quiet_period, Duration::from_secs(30));
        for (text, seconds) in [("0", 0), ("-1", 0), ("7", 7)] {
            let config = with("QUEUE_PROXY_DRAIN_QUIET_SECONDS", text).unwrap();
            assert_eq!(config.drain_quiet_period, Duration::from_secs(seconds));
        }
        let at_once = with("REVISION_TIMEOUT_SECONDS", "-1").unwrap();
        assert_eq!(at_once.timeouts.total, Some(Duration::ZERO));
        assert_eq!(at_once.drain_timeout, Duration::from_secs(60));
    }

    #[test]
    fn all_that_the_controller_writes_is_accepted() {
        let mut env = minimal();
        for (name, value) in [
            (
                "SERVING_READINESS_PROBE",
                r#"{"tcpSocket":{"port":8080,"host":"127.0.0.1"},"successThreshold":1}"#,
            ),
            ("ENABLE_HTTP_FULL_DUPLEX", "false"),
            ("ENABLE_HTTP2_AUTO_DETECTION", "false"),
            ("ENABLE_MULTI_CONTAINER_PROBES", "false"),
            ("OBSERVABILITY_CONFIG", r#"{"tracing":{},"metrics":{},"runtime":{},"requestMetrics":{}}"#),
            ("QUEUE_PROXY_TLS_MIN_VERSION", ""),
            ("SYSTEM_NAMESPACE", "knative-serving"),
            ("HOST_IP", "10.0.0.1"),
            ("ROOT_CA", ""),
            ("SOMETHING_NEW", "x"),
        ] {
            env.insert(name.to_owned(), value.to_owned());
        }
        assert_eq!(Config::from_env(env).unwrap().readiness_probes.len(), 1);
    }

    #[test]
    fn tls_settings_are_kept_even_if_they_are_wrong() {
        assert!(with("QUEUE_PROXY_TLS_MIN_VERSION", "1.2").unwrap().tls_settings.is_ok());
        let error = with("QUEUE_PROXY_TLS_MIN_VERSION", "1.1").unwrap().tls_settings.unwrap_err();
        assert_eq!(error.to_string(), "invalid QUEUE_PROXY_TLS_MIN_VERSION \"1.1\": must be 1.2 or 1.3");
    }

    #[test]
    fn what_does_not_parse_is_named() {
        for name in [
            "QUEUE_SERVING_PORT",
            "USER_PORT",
            "REVISION_RESPONSE_START_TIMEOUT_SECONDS",
            "ENABLE_HTTP_FULL_DUPLEX",
            "SERVING_READINESS_PROBE",
            "OBSERVABILITY_CONFIG",
        ] {
            let error = with(name, "{]").unwrap_err();
            assert!(error.to_string().contains(name), "{error}");
        }
    }

    proptest! {
        #[test]
        fn integers_are_read_as_they_are_written(number in any::<i64>()) {
            let size = number.unsigned_abs();
            let sign = if number < 0 { "-" } else { "" };
            if number > i64::MIN {
                for text in [
                    format!("{sign}{size}"),
                    format!("{sign}0x{size:x}"),
                    format!("{sign}0X{size:X}"),
                    format!("{sign}0o{size:o}"),
                    format!("{sign}0{size:o}"),
                    format!("{sign}0b{size:b}"),
                ] {
                    prop_assert_eq!(parse_int(&text), Ok(number), "{}", text);
                }
            }
        }

        #[test]
        fn any_text_is_an_integer_or_an_error(text in prop_oneof![".*", "[+-]{0,2}0?[xXoObB]?[0-9a-fA-F_]{0,20}"]) {
            if let Ok(number) = parse_int(&text) {
                prop_assert!(text.is_ascii());
                prop_assert_eq!(number < 0, text.starts_with('-') && number != 0);
            }
        }

        #[test]
        fn any_number_of_seconds_is_a_time(given in any::<i64>()) {
            for name in ["REVISION_TIMEOUT_SECONDS", "REVISION_IDLE_TIMEOUT_SECONDS"] {
                let config = with(name, &given.to_string()).unwrap();
                prop_assert!(config.timeouts.start().next(None).is_some());
                let _ = tokio::time::Instant::now() + config.drain_timeout;
            }
        }
    }
}
