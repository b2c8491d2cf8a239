//! The start configuration of the container, from its environment.

use std::collections::BTreeMap;
use std::net::{AddrParseError, IpAddr, Ipv4Addr, SocketAddr};

use ember_api::configmaps::observability::Observability;
use ember_api::configmaps::{logging, observability};
use ember_reconcile::cluster;

use crate::config::{Config, HpaClass, Replica};

const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";
const METRICS_PORT: u16 = 9090;

/// What the container is told.
#[derive(Debug, Clone)]
pub struct Environment {
    /// For [`crate::run`].
    pub config: Config,
    /// Name of the ConfigMap on logging. `CONFIG_LOGGING_NAME`, `config-logging`.
    pub logging_name: String,
    /// Name of the ConfigMap on observability. `CONFIG_OBSERVABILITY_NAME`, `config-observability`.
    pub observability_name: String,
    /// Oldest Kubernetes that is talked to. `KUBERNETES_MIN_VERSION`, `v1.34.0`.
    pub kubernetes_min_version: String,
    /// Where Prometheus scrapes, whatever ConfigMaps say. `METRICS_PROMETHEUS_HOST`.
    pub metrics_host: Option<IpAddr>,
    /// The port of that place. `METRICS_PROMETHEUS_PORT`.
    pub metrics_port: Option<u16>,
}

/// The environment does not make a configuration.
#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub enum EnvironmentError {
    /// A required variable is missing.
    #[error("{0} environment variable not set")]
    NotSet(&'static str),
    /// A required variable has no value.
    #[error("{0} environment variable is empty")]
    Empty(&'static str),
    /// An address does not parse.
    #[error("{0} environment variable: {1:?}: {2}")]
    Address(&'static str, String, AddrParseError),
    /// A port does not parse.
    #[error("{0} environment variable: {1:?} must be a port between 1024 and 65535")]
    Port(&'static str, String),
}

impl Environment {
    /// Reads the environment; `resolv_conf` is the content of that file, which may tell the cluster's domain.
    ///
    /// # Errors
    /// A required variable that is missing or empty, or a value that does not parse.
    pub fn read(
        variables: impl IntoIterator<Item = (String, String)>,
        resolv_conf: &str,
    ) -> Result<Self, EnvironmentError> {
        let variables: BTreeMap<String, String> = variables.into_iter().collect();
        let given = |name: &str| variables.get(name).filter(|value| !value.is_empty()).cloned();
        let required = |name: &'static str| match variables.get(name) {
            None => Err(EnvironmentError::NotSet(name)),
            Some(value) if value.is_empty() => Err(EnvironmentError::Empty(name)),
            Some(value) => Ok(value.clone()),
        };
        let address = |name: &'static str, value: String| {
            value.parse::<IpAddr>().map_err(|error| EnvironmentError::Address(name, value, error))
        };
        let pod_ip = address("POD_IP", required("POD_IP")?)?;
        let pod_name = required("POD_NAME")?;
        let text = |name: &str, default: &str| given(name).unwrap_or_else(|| default.to_owned());
        let own = Config::default();
        let config = Config {
            replica: Some(Replica { pod_name, pod_ip }),
            hpa_class: HpaClass::Managed,
            system_namespace: required("SYSTEM_NAMESPACE")?,
            cluster_domain: given("CLUSTER_DOMAIN")
                .or_else(|| cluster::domain(resolv_conf).map(str::to_owned))
                .unwrap_or_else(|| DEFAULT_CLUSTER_DOMAIN.to_owned()),
            leader_election_name: text("CONFIG_LEADERELECTION_NAME", &own.leader_election_name),
            ..own
        };
        let host = given("METRICS_PROMETHEUS_HOST").map(|host| address("METRICS_PROMETHEUS_HOST", host));
        let port = given("METRICS_PROMETHEUS_PORT").map(|port| match port.parse::<u16>() {
            Ok(port) if port >= 1024 => Ok(port),
            _ => Err(EnvironmentError::Port("METRICS_PROMETHEUS_PORT", port)),
        });
        Ok(Self {
            config,
            logging_name: text("CONFIG_LOGGING_NAME", logging::NAME),
            observability_name: text("CONFIG_OBSERVABILITY_NAME", observability::NAME),
            kubernetes_min_version: text("KUBERNETES_MIN_VERSION", "v1.34.0"),
            metrics_host: host.transpose()?,
            metrics_port: port.transpose()?,
        })
    }

    /// Where Prometheus is served, if that is what is asked for: at the endpoint of the ConfigMap, a port or an address
    /// with one; a host or port of the environment goes first. What is no endpoint counts as none.
    #[must_use]
    pub fn metrics_addr(&self, observability: &Observability) -> Option<SocketAddr> {
        if observability.metrics.protocol != "prometheus" {
            return None;
        }
        let endpoint = observability.metrics.endpoint.as_str();
        let any = IpAddr::V4(Ipv4Addr::UNSPECIFIED);
        let asked = endpoint.parse::<SocketAddr>().ok().or_else(|| {
            Some(SocketAddr::new(any, endpoint.strip_prefix(':').unwrap_or(endpoint).parse().ok()?))
        });
        let asked = asked.unwrap_or(SocketAddr::new(any, METRICS_PORT));
        let (host, port) =
            (self.metrics_host.unwrap_or(asked.ip()), self.metrics_port.unwrap_or(asked.port()));
        Some(SocketAddr::new(host, port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const REQUIRED: [(&str, &str); 3] =
        [("POD_IP", "10.0.0.7"), ("POD_NAME", "autoscaler-0"), ("SYSTEM_NAMESPACE", "system")];

    fn read(variables: &[(&str, &str)], resolv_conf: &str) -> Result<Environment, EnvironmentError> {
        let owned = variables.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned()));
        Environment::read(owned, resolv_conf)
    }

    #[test]
    fn identity_and_names_come_from_the_environment() {
        let mut variables = REQUIRED.to_vec();
        let read_defaults = read(&variables, "search system.svc.corp.test svc.corp.test.").unwrap();
        let config = &read_defaults.config;
        let replica = Replica { pod_name: "autoscaler-0".into(), pod_ip: "10.0.0.7".parse().unwrap() };
        assert_eq!(config.replica.as_ref(), Some(&replica));
        assert_eq!(
            (config.system_namespace.as_str(), config.cluster_domain.as_str()),
            ("system", "corp.test")
        );
        assert_eq!(config.leader_election_name, "config-leader-election");
        assert_eq!(config.stats_addr.port(), 8080);
        assert_eq!((read_defaults.metrics_host, read_defaults.metrics_port), (None, None));

        variables.extend([
            ("CONFIG_LEADERELECTION_NAME", "e"),
            ("CONFIG_LOGGING_NAME", "l"),
            ("CONFIG_OBSERVABILITY_NAME", "o"),
            ("CLUSTER_DOMAIN", "here"),
            ("KUBERNETES_MIN_VERSION", "v1.30.0"),
            ("METRICS_PROMETHEUS_HOST", "::1"),
            ("METRICS_PROMETHEUS_PORT", "9999"),
        ]);
        let given = read(&variables, "").unwrap();
        assert_eq!((given.logging_name.as_str(), given.observability_name.as_str()), ("l", "o"));
        assert_eq!(
            (given.config.leader_election_name.as_str(), given.config.cluster_domain.as_str()),
            ("e", "here")
        );
        assert_eq!(given.kubernetes_min_version, "v1.30.0");
        assert_eq!((given.metrics_host, given.metrics_port), (Some("::1".parse().unwrap()), Some(9999)));
    }

    #[test]
    fn prometheus_is_served_only_where_that_is_asked_for() {
        let observability = |data: &[(&str, &str)]| {
            let data = data.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect();
            Observability::parse(&data).unwrap()
        };
        let prometheus = ("metrics-protocol", "prometheus");
        let environment = read(&REQUIRED, "").unwrap();
        let addr =
            |data: &[(&str, &str)]| environment.metrics_addr(&observability(data)).map(|a| a.to_string());
        assert_eq!(addr(&[]), None);
        assert_eq!(addr(&[prometheus]).as_deref(), Some("0.0.0.0:9090"));
        assert_eq!(addr(&[prometheus, ("metrics-endpoint", ":9191")]).as_deref(), Some("0.0.0.0:9191"));
        let moved = [REQUIRED.as_slice(), &[("METRICS_PROMETHEUS_PORT", "9999")]].concat();
        let moved = read(&moved, "").unwrap().metrics_addr(&observability(&[prometheus]));
        assert_eq!(moved.map(|addr| addr.port()), Some(9999));
    }

    #[test]
    fn what_is_missing_is_named_and_the_address_first() {
        let error = |variables: &[(&str, &str)]| read(variables, "").unwrap_err().to_string();
        assert_eq!(error(&[]), "POD_IP environment variable not set");
        assert_eq!(error(&[("POD_IP", "")]), "POD_IP environment variable is empty");
        assert_eq!(error(&REQUIRED[..1]), "POD_NAME environment variable not set");
        assert_eq!(error(&[REQUIRED[0], ("POD_NAME", "")]), "POD_NAME environment variable is empty");
        assert_eq!(error(&REQUIRED[..2]), "SYSTEM_NAMESPACE environment variable not set");
        assert!(error(&[("POD_IP", "here")]).starts_with("POD_IP environment variable: \"here\": "));
        let port = [REQUIRED.as_slice(), &[("METRICS_PROMETHEUS_PORT", "80")]].concat();
        assert_eq!(
            error(&port),
            "METRICS_PROMETHEUS_PORT environment variable: \"80\" must be a port between 1024 and 65535"
        );
    }
}
