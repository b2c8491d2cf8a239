//! What the containers of controller and gateway are told by their environment; the names are Knative's.

use std::collections::BTreeMap;

use anyhow::{Context, anyhow};
use ember_api::configmaps::observability::Observability;
use ember_api::configmaps::{leader_election, logging, observability};
use ember_dataplane::metrics::prometheus::Prometheus;
use ember_reconcile::cluster;

/// The environment of a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Environment {
    variables: BTreeMap<String, String>,
    /// Namespace of the system's own objects. `SYSTEM_NAMESPACE`, required.
    pub(crate) system_namespace: String,
    /// Suffix of the names of Services. `CLUSTER_DOMAIN`, or what the resolver's search list tells, or `cluster.local`.
    pub(crate) cluster_domain: String,
    /// What this replica calls itself. `POD_NAME`, or else the host's name with something that no other process has.
    pub(crate) identity: String,
    /// ConfigMap on logging. `CONFIG_LOGGING_NAME`, `config-logging`.
    pub(crate) logging_name: String,
    /// ConfigMap on observability. `CONFIG_OBSERVABILITY_NAME`, `config-observability`.
    pub(crate) observability_name: String,
    /// ConfigMap on leader election. `CONFIG_LEADERELECTION_NAME`, `config-leader-election`.
    pub(crate) leader_election_name: String,
    /// Oldest Kubernetes that is talked to. `KUBERNETES_MIN_VERSION`, `v1.34.0`.
    pub(crate) kubernetes_min_version: String,
}

impl Environment {
    /// Reads the environment. `resolv_conf` is the content of that file, `host` the host's name.
    ///
    /// # Errors
    /// When `SYSTEM_NAMESPACE` is missing.
    pub(crate) fn read(
        variables: impl IntoIterator<Item = (String, String)>,
        resolv_conf: &str,
        host: &str,
    ) -> anyhow::Result<Self> {
        let variables: BTreeMap<String, String> =
            variables.into_iter().filter(|(_, value)| !value.is_empty()).collect();
        let text = |name: &str, default: &str| variables.get(name).map_or(default, String::as_str).to_owned();
        let system_namespace = variables.get("SYSTEM_NAMESPACE").cloned().context(
            "SYSTEM_NAMESPACE environment variable not set: the namespace of the ConfigMaps, usually knative-serving",
        )?;
        let identity = variables.get("POD_NAME").cloned();
        Ok(Self {
            system_namespace,
            cluster_domain: text("CLUSTER_DOMAIN", cluster::domain(resolv_conf).unwrap_or("cluster.local")),
            identity: identity.unwrap_or_else(|| format!("{host}_{}", uuid::Uuid::new_v4())),
            logging_name: text("CONFIG_LOGGING_NAME", logging::NAME),
            observability_name: text("CONFIG_OBSERVABILITY_NAME", observability::NAME),
            leader_election_name: text("CONFIG_LEADERELECTION_NAME", leader_election::NAME),
            kubernetes_min_version: text(
                "KUBERNETES_MIN_VERSION",
                ember_telemetry::build::KUBERNETES_VERSION,
            ),
            variables,
        })
    }

    /// That of this process.
    ///
    /// # Errors
    /// As [`Environment::read`].
    pub(crate) fn of_process() -> anyhow::Result<Self> {
        let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
        let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
        Self::read(std::env::vars(), &resolv_conf, host.trim())
    }

    /// Where Prometheus scrapes, if that is asked for.
    ///
    /// # Errors
    /// What is wrong with the ConfigMap's data or with `METRICS_PROMETHEUS_*`.
    pub(crate) fn prometheus(&self, data: &BTreeMap<String, String>) -> anyhow::Result<Option<Prometheus>> {
        let metrics = Observability::parse(data)?.metrics;
        if metrics.protocol != "prometheus" {
            return Ok(None);
        }
        let variable = |name: &str| self.variables.get(name).map(String::as_str);
        Prometheus::parse(&metrics.endpoint, variable).map(Some).map_err(|why| anyhow!(why))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(variables: &[(&str, &str)]) -> anyhow::Result<Environment> {
        let owned = variables.iter().map(|(name, value)| ((*name).to_owned(), (*value).to_owned()));
        Environment::read(owned, "search x svc.corp.test", "host")
    }

    #[test]
    fn names_come_from_the_environment_and_have_defaults() {
        let error = read(&[("POD_NAME", "a")]).unwrap_err().to_string();
        assert!(error.starts_with("SYSTEM_NAMESPACE environment variable not set"), "{error}");
        let system = ("SYSTEM_NAMESPACE", "system");
        let own = read(&[system, ("POD_NAME", "")]).unwrap();
        assert!(own.identity.starts_with("host_") && own.identity.len() > 20, "{}", own.identity);
        assert_eq!((own.cluster_domain.as_str(), own.logging_name.as_str()), ("corp.test", "config-logging"));
        let given = read(&[system, ("POD_NAME", "a"), ("CLUSTER_DOMAIN", "here")]).unwrap();
        assert_eq!((given.identity.as_str(), given.cluster_domain.as_str()), ("a", "here"));
    }

    #[test]
    fn prometheus_is_served_only_where_that_is_asked_for() {
        let environment = read(&[("SYSTEM_NAMESPACE", "s"), ("METRICS_PROMETHEUS_PORT", "9999")]).unwrap();
        assert_eq!(environment.prometheus(&BTreeMap::new()).unwrap(), None);
        let asked = BTreeMap::from([("metrics-protocol".to_owned(), "prometheus".to_owned())]);
        assert_eq!(environment.prometheus(&asked).unwrap().unwrap().port, Some(9999));
    }
}
