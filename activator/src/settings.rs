//! What people tune while the activator runs: `config-network` and `config-observability` as one immutable snapshot.

use std::collections::BTreeMap;
use std::future::Future;
use std::sync::Arc;

use ember_api::configmaps::network::{self, Network};
use ember_api::configmaps::observability::Observability;
use ember_api::configmaps::{ConfigError, ConfigMapError};
use ember_reconcile::config::{ConfigMapData, ConfigStore};
use kube::Client;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The settings in force at one moment. A ConfigMap that is absent is its defaults.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Snapshot {
    /// `config-observability`, or the ConfigMap that stands in for it.
    pub observability: Observability,
    /// `config-network`.
    pub network: Network,
    /// Whether there is a `config-network` that can be used: the activator does not start without.
    pub has_network: bool,
}

impl Snapshot {
    /// Reads the ConfigMaps of the system namespace; `observability_name` is the name of the one on observability.
    ///
    /// # Errors
    /// The first ConfigMap that does not parse.
    pub fn parse(data: &ConfigMapData, observability_name: &str) -> Result<Self, ConfigMapError> {
        fn of<T: Default>(
            data: &ConfigMapData,
            name: &str,
            parse: impl FnOnce(&BTreeMap<String, String>) -> Result<T, ConfigError>,
        ) -> Result<T, ConfigMapError> {
            let parsed = data.get(name).map(parse).transpose();
            Ok(parsed.map_err(|error| ConfigMapError { name: name.to_owned(), error })?.unwrap_or_default())
        }
        Ok(Self {
            observability: of(data, observability_name, Observability::parse)?,
            network: of(data, network::NAME, Network::parse)?,
            has_network: data.contains_key(network::NAME),
        })
    }
}

/// Follows the ConfigMaps. An edit that does not parse is logged, and what was in force before stays. Clones share the
/// snapshot.
#[derive(Debug, Clone)]
pub struct Settings(ConfigStore<Snapshot>);

impl Settings {
    /// Everything at its default until [`Settings::run`] has read the ConfigMaps.
    #[must_use]
    pub fn new() -> Self {
        Self(ConfigStore::new(Snapshot::default()))
    }

    /// The snapshot in force; takes no lock. A request loads it once.
    #[must_use]
    pub fn load(&self) -> Arc<Snapshot> {
        self.0.load()
    }

    /// Wakes whenever another snapshot comes into force.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.0.subscribe()
    }

    /// Waits until the ConfigMaps have been read once.
    pub async fn synced(&self) {
        self.0.synced().await;
    }

    /// Follows the ConfigMaps of `namespace` until `shutdown`.
    pub(crate) fn run(
        &self,
        client: Client,
        namespace: &str,
        observability_name: &str,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let name = observability_name.to_owned();
        self.0.run(client, namespace, move |data| Snapshot::parse(data, &name), shutdown)
    }
}

impl Default for Settings {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn maps(list: &[(&str, &str, &str)]) -> ConfigMapData {
        let mut data = ConfigMapData::new();
        for (name, key, value) in list {
            data.entry((*name).to_owned()).or_default().insert((*key).to_owned(), (*value).to_owned());
        }
        data
    }

    #[test]
    fn the_observability_map_may_have_another_name() {
        let data = maps(&[
            ("config-network", "enable-mesh-pod-addressability", "true"),
            ("config-observability", "logging.enable-request-log", "true"),
            ("mine", "metrics-protocol", "prometheus"),
            ("config-of-others", "a", "b"),
        ]);
        let snapshot = Snapshot::parse(&data, "mine").unwrap();
        assert!(snapshot.has_network);
        assert!(snapshot.network.enable_mesh_pod_addressability);
        assert!(!snapshot.observability.enable_request_log);
        assert_eq!(snapshot.observability.metrics.protocol, "prometheus");
    }

    #[test]
    fn absent_maps_are_defaults_and_bad_ones_errors() {
        assert_eq!(
            Snapshot::parse(&ConfigMapData::new(), "config-observability").unwrap(),
            Snapshot::default()
        );
        let bad = maps(&[("config-network", "system-internal-tls", "perhaps")]);
        assert_eq!(Snapshot::parse(&bad, "config-observability").unwrap_err().name, "config-network");
    }
}
