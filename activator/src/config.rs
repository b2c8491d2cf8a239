//! What the activator is told at start.

use std::collections::BTreeMap;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use ember_api::configmaps::{logging, observability};
use ember_api::golang;
use ember_dataplane::metrics::prometheus::Tls;
use ember_dataplane::port;
use ember_dataplane::server;
use ember_dataplane::tls::{InvalidSetting, Settings};
use ember_reconcile::cluster;
use ember_telemetry::request_log::Output;

const METRICS_PORT: u16 = 9090;
/// The autoscaler is given up when it says nothing for as many [`Config::ping_interval`]s.
pub(crate) const SILENT_PINGS: u32 = 3;
const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";

/// Configuration of the activator. Times default to Knative's.
#[derive(Debug, Clone)]
pub struct Config {
    /// Address the servers listen on. 0.0.0.0.
    pub bind: IpAddr,
    /// Ports that carry requests. 8012 and 8013.
    pub ports: Vec<u16>,
    /// Limits of what clients may do. Safe by default.
    pub server: server::Options,
    /// Port that carries requests by TLS where `system-internal-tls` asks for it; `None`: whatever is asked for, there
    /// is no TLS. 8112.
    pub tls_port: Option<u16>,
    /// What TLS clients may agree on. An error counts only where TLS is spoken. `ACTIVATOR_TLS_*`.
    pub tls_settings: Result<Settings, InvalidSetting>,
    /// Own name in reports.
    pub pod_name: String,
    /// Own address as the public endpoints of revisions show it.
    pub pod_ip: String,
    /// Namespace of the ConfigMaps. `knative-serving`.
    pub system_namespace: String,
    /// Name of the ConfigMap on observability. `config-observability`.
    pub observability_name: String,
    /// Name of the ConfigMap on logging. `config-logging`.
    pub logging_name: String,
    /// Where Prometheus scrapes if `config-observability` asks for it and says no other place. 0.0.0.0:9090.
    pub metrics: SocketAddr,
    /// Host of that place, whatever `config-observability` says.
    pub metrics_host: Option<IpAddr>,
    /// Port of that place, whatever `config-observability` says.
    pub metrics_port: Option<u16>,
    /// TLS on that port, if it is spoken; the files are read whenever the port opens. `METRICS_PROMETHEUS_TLS_*`.
    pub metrics_tls: Option<Tls>,
    /// Idle HTTP/1.1 connections to pods kept in all. 1000.
    pub max_idle_connections: usize,
    /// Idle HTTP/1.1 connections kept to one pod. 100.
    pub max_idle_connections_per_pod: usize,
    /// Oldest Kubernetes that is talked to, as `v1.34.0`.
    pub kubernetes_min_version: String,
    /// The autoscaler's host and port.
    pub autoscaler: (String, u16),
    /// Last labels of in-cluster host names. `cluster.local`.
    pub cluster_domain: String,
    /// How many requests of one revision may wait for a pod. 10 000.
    pub queue_depth: usize,
    /// How often concurrency is reported. 1 s.
    pub report_interval: Duration,
    /// How long one probe of a pod may take; the sidecar holds it until it knows. 10 s.
    pub probe_timeout: Duration,
    /// Pause after the first failed probe; doubles up to [`Config::probe_longest_pause`]. 0.5 ms.
    pub probe_first_pause: Duration,
    /// Longest pause between probes. 200 ms.
    pub probe_longest_pause: Duration,
    /// How long connecting to a pod may take before another is tried. 1 s.
    pub connect_timeout: Duration,
    /// First pause between attempts at the autoscaler; grows by 1.3 each time, up to [`Config::longest_reconnect`].
    /// 100 ms.
    pub first_reconnect: Duration,
    /// Longest pause between attempts at the autoscaler. 5 s.
    pub longest_reconnect: Duration,
    /// How often the autoscaler is pinged; it is given up when three pings go unanswered. 3.33 s.
    pub ping_interval: Duration,
    /// How long new requests are still taken after shutdown begins. 45 s.
    pub drain_settle: Duration,
    /// How long requests under way may take to end after that. 60 s.
    pub drain_timeout: Duration,
    /// Where the request log goes; `None`: to the process's standard output.
    pub request_log_output: Option<Output>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            bind: IpAddr::from([0, 0, 0, 0]),
            ports: vec![port::HTTP1, port::HTTP2],
            server: server::Options::default(),
            tls_port: Some(port::HTTPS),
            tls_settings: Ok(Settings::default()),
            pod_name: "activator".to_owned(),
            pod_ip: String::new(),
            system_namespace: ember_reconcile::SYSTEM_NAMESPACE.to_owned(),
            observability_name: observability::NAME.to_owned(),
            logging_name: logging::NAME.to_owned(),
            metrics: SocketAddr::from(([0, 0, 0, 0], METRICS_PORT)),
            metrics_host: None,
            metrics_port: None,
            metrics_tls: None,
            max_idle_connections: 1000,
            max_idle_connections_per_pod: 100,
            kubernetes_min_version: "v1.34.0".to_owned(),
            autoscaler: ("autoscaler.knative-serving.svc.cluster.local".to_owned(), 8080),
            cluster_domain: DEFAULT_CLUSTER_DOMAIN.to_owned(),
            queue_depth: 10_000,
            report_interval: Duration::from_secs(1),
            probe_timeout: Duration::from_secs(10),
            probe_first_pause: Duration::from_micros(500),
            probe_longest_pause: Duration::from_millis(200),
            connect_timeout: Duration::from_secs(1),
            first_reconnect: Duration::from_millis(100),
            longest_reconnect: Duration::from_secs(5),
            ping_interval: Duration::from_millis(3333),
            drain_settle: Duration::from_secs(45),
            drain_timeout: Duration::from_secs(60),
            request_log_output: None,
        }
    }
}

/// The environment does not make a configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum ConfigError {
    /// A required variable is not set, or empty.
    #[error("required key {0} missing value")]
    Missing(&'static str),
    /// The variables on TLS of the metrics port do not fit together.
    #[error("{0}")]
    MetricsTls(String),
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

/// The variables of the container. An empty one counts as unset.
struct Env(BTreeMap<String, String>);

impl Env {
    fn get(&self, name: &str) -> Option<&str> {
        self.0.get(name).map(String::as_str).filter(|value| !value.is_empty())
    }

    fn required(&self, name: &'static str) -> Result<String, ConfigError> {
        self.get(name).map(str::to_owned).ok_or(ConfigError::Missing(name))
    }

    fn text(&self, name: &str, default: String) -> String {
        self.get(name).map_or(default, str::to_owned)
    }

    fn parsed<T, E: ToString>(
        &self,
        name: &'static str,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<Option<T>, ConfigError> {
        let Some(value) = self.get(name) else { return Ok(None) };
        parse(value).map(Some).map_err(|error| ConfigError::Invalid {
            name,
            value: value.to_owned(),
            reason: error.to_string(),
        })
    }

    fn duration(&self, name: &'static str, default: Duration) -> Result<Duration, ConfigError> {
        let parse = |value: &str| match golang::parse_duration(value) {
            Ok(duration) if duration.0 > 0 => Ok(duration.to_std()),
            Ok(_) => Err("must be greater than zero".to_owned()),
            Err(error) => Err(error.to_string()),
        };
        Ok(self.parsed(name, parse)?.unwrap_or(default))
    }
}

impl Config {
    /// Reads the container's environment; the rest is defaults. `resolv_conf` is the content of `/etc/resolv.conf`,
    /// which tells the cluster's domain where `CLUSTER_DOMAIN` does not. Variables it does not know are ignored.
    ///
    /// # Errors
    /// The first variable that is missing or does not parse.
    pub fn from_env(
        env: impl IntoIterator<Item = (String, String)>,
        resolv_conf: &str,
    ) -> Result<Self, ConfigError> {
        let env = Env(env.into_iter().collect());
        let own = Self::default();
        let system_namespace = env.required("SYSTEM_NAMESPACE")?;
        let cluster_domain = match env.get("CLUSTER_DOMAIN") {
            Some(domain) => domain.to_owned(),
            None => cluster::domain(resolv_conf).unwrap_or(DEFAULT_CLUSTER_DOMAIN).to_owned(),
        };
        // A negative number of connections is none, as in Go.
        let count = |name, default| {
            let parsed = env.parsed(name, golang::parse_int)?;
            Ok(parsed.map_or(default, |count| usize::try_from(count).unwrap_or(0)))
        };
        let port = |value: &str| match value.parse::<u16>() {
            Ok(port) if port >= 1024 => Ok(port),
            _ => Err("must be a port between 1024 and 65535"),
        };
        Ok(Self {
            pod_name: env.required("POD_NAME")?,
            pod_ip: env.required("POD_IP")?,
            autoscaler: (format!("autoscaler.{system_namespace}.svc.{cluster_domain}"), port::AUTOSCALER),
            system_namespace,
            cluster_domain,
            logging_name: env.text("CONFIG_LOGGING_NAME", own.logging_name),
            observability_name: env.text("CONFIG_OBSERVABILITY_NAME", own.observability_name),
            max_idle_connections: count("MAX_IDLE_PROXY_CONNS", own.max_idle_connections)?,
            max_idle_connections_per_pod: count(
                "MAX_IDLE_PROXY_CONNS_PER_HOST",
                own.max_idle_connections_per_pod,
            )?,
            probe_timeout: env.duration("PROBE_TIMEOUT", own.probe_timeout)?,
            probe_longest_pause: env.duration("PROBE_FREQUENCY", own.probe_longest_pause)?,
            kubernetes_min_version: env.text("KUBERNETES_MIN_VERSION", own.kubernetes_min_version),
            metrics_host: env.parsed("METRICS_PROMETHEUS_HOST", str::parse)?,
            metrics_port: env.parsed("METRICS_PROMETHEUS_PORT", port)?,
            metrics_tls: Tls::parse(|name| env.get(name)).map_err(ConfigError::MetricsTls)?,
            bind: own.bind,
            ports: own.ports,
            server: own.server,
            tls_port: own.tls_port,
            tls_settings: Settings::from_env("ACTIVATOR_", |name| env.get(name)),
            metrics: own.metrics,
            queue_depth: own.queue_depth,
            report_interval: own.report_interval,
            probe_first_pause: own.probe_first_pause,
            connect_timeout: own.connect_timeout,
            first_reconnect: own.first_reconnect,
            longest_reconnect: own.longest_reconnect,
            ping_interval: own.ping_interval,
            drain_settle: own.drain_settle,
            drain_timeout: own.drain_timeout,
            request_log_output: own.request_log_output,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: [(&str, &str); 3] =
        [("POD_NAME", "activator-0"), ("POD_IP", "10.0.0.7"), ("SYSTEM_NAMESPACE", "system")];
    const RESOLV_CONF: &str = "nameserver 10.96.0.10\nsearch system.svc.corp.test svc.corp.test corp.test\n";

    fn read(more: &[(&str, &str)], resolv_conf: &str) -> Result<Config, ConfigError> {
        let variables = REQUIRED.iter().chain(more);
        Config::from_env(variables.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())), resolv_conf)
    }

    #[test]
    fn defaults_of_the_contract() {
        let config = read(&[], "").unwrap();
        assert_eq!((config.pod_name.as_str(), config.pod_ip.as_str()), ("activator-0", "10.0.0.7"));
        assert_eq!(config.autoscaler, ("autoscaler.system.svc.cluster.local".to_owned(), 8080));
        assert_eq!((config.max_idle_connections, config.max_idle_connections_per_pod), (1000, 100));
        assert_eq!(config.probe_longest_pause, Duration::from_millis(200));
        assert_eq!(config.report_interval, Duration::from_secs(1));
        assert_eq!(config.drain_settle, Duration::from_secs(45));
        assert!(config.ping_interval <= Duration::from_millis(3400));
        assert!(config.ping_interval * SILENT_PINGS <= Duration::from_secs(10));
        assert_eq!(config.logging_name, "config-logging");
        assert_eq!(config.observability_name, "config-observability");
        assert_eq!(config.ports, [8012, 8013]);
        assert_eq!(config.metrics.port(), 9090);
        assert_eq!(config.kubernetes_min_version, "v1.34.0");
    }

    #[test]
    fn every_variable() {
        let config = read(
            &[
                ("MAX_IDLE_PROXY_CONNS", "7"),
                ("MAX_IDLE_PROXY_CONNS_PER_HOST", "3"),
                ("PROBE_TIMEOUT", "1m30s"),
                ("PROBE_FREQUENCY", "50ms"),
                ("CONFIG_LOGGING_NAME", "l"),
                ("CONFIG_OBSERVABILITY_NAME", "o"),
                ("CLUSTER_DOMAIN", "here"),
                ("KUBERNETES_MIN_VERSION", "v1.30.0"),
                ("METRICS_PROMETHEUS_HOST", "::1"),
                ("METRICS_PROMETHEUS_PORT", "9999"),
                ("GOGC", "500"),
            ],
            RESOLV_CONF,
        )
        .unwrap();
        assert_eq!((config.max_idle_connections, config.max_idle_connections_per_pod), (7, 3));
        assert_eq!(config.probe_timeout, Duration::from_secs(90));
        assert_eq!(config.probe_longest_pause, Duration::from_millis(50));
        assert_eq!((config.logging_name.as_str(), config.observability_name.as_str()), ("l", "o"));
        assert_eq!(config.cluster_domain, "here");
        assert_eq!(config.autoscaler.0, "autoscaler.system.svc.here");
        assert_eq!(config.kubernetes_min_version, "v1.30.0");
        assert_eq!(config.metrics_host, Some("::1".parse().unwrap()));
        assert_eq!(config.metrics_port, Some(9999));
    }

    #[test]
    fn tls_settings_are_kept_even_if_they_are_wrong() {
        assert!(read(&[("ACTIVATOR_TLS_MIN_VERSION", "1.2")], "").unwrap().tls_settings.is_ok());
        let error = read(&[("ACTIVATOR_TLS_MAX_VERSION", "2")], "").unwrap().tls_settings.unwrap_err();
        assert_eq!(error.to_string(), "invalid ACTIVATOR_TLS_MAX_VERSION \"2\": must be 1.2 or 1.3");
    }

    #[test]
    fn the_cluster_domain_is_the_resolvers() {
        assert_eq!(read(&[], RESOLV_CONF).unwrap().cluster_domain, "corp.test");
        assert_eq!(read(&[], "search svc.\nsearch svc.a.b. svc.c\n").unwrap().cluster_domain, "a.b");
        assert_eq!(read(&[], "# search svc.no\nnameserver x\n").unwrap().cluster_domain, "cluster.local");
    }

    #[test]
    fn errors_name_the_variable() {
        let error = read(&[("METRICS_PROMETHEUS_TLS_CERT", "/c")], "").unwrap_err().to_string();
        assert_eq!(error, "METRICS_PROMETHEUS_TLS_CERT: needs METRICS_PROMETHEUS_TLS_KEY");
        for (missing, _) in REQUIRED {
            for variables in [None, Some((missing.to_owned(), String::new()))] {
                let others = REQUIRED.iter().filter(|(name, _)| *name != missing);
                let env = others.map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).chain(variables);
                assert_eq!(Config::from_env(env, "").unwrap_err(), ConfigError::Missing(missing));
            }
        }
        for (name, value) in [
            ("PROBE_TIMEOUT", "300"),
            ("PROBE_TIMEOUT", "0s"),
            ("PROBE_FREQUENCY", "-1s"),
            ("MAX_IDLE_PROXY_CONNS", "many"),
            ("METRICS_PROMETHEUS_PORT", "80"),
            ("METRICS_PROMETHEUS_HOST", "everywhere"),
        ] {
            let error = read(&[(name, value)], "").unwrap_err().to_string();
            assert!(error.contains(name) && error.contains(value), "{error}");
        }
    }
}
