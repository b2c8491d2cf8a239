//! The `config-*` ConfigMaps as typed values: defaults, parsing, and the texts of their errors.

pub mod autoscaler;
pub mod certmanager;
mod data;
pub mod defaults;
pub mod deployment;
pub mod domain;
pub mod example;
pub mod features;
pub mod gc;
pub mod leader_election;
pub mod logging;
pub mod network;
pub mod observability;

use std::collections::BTreeMap;

use crate::field_error::FieldError;
use crate::golang::ParseError;
use crate::template::TemplateError;

/// Why a ConfigMap does not parse; prints what Knative's webhook answers.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ConfigError(pub(crate) String);

impl From<ParseError> for ConfigError {
    fn from(error: ParseError) -> Self {
        Self(error.to_string())
    }
}

impl From<TemplateError> for ConfigError {
    fn from(error: TemplateError) -> Self {
        Self(error.to_string())
    }
}

impl From<FieldError> for ConfigError {
    fn from(error: FieldError) -> Self {
        Self(error.to_string())
    }
}

/// Which ConfigMap does not parse, and why.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{name}: {error}")]
pub struct ConfigMapError {
    /// The ConfigMap.
    pub name: String,
    /// What is wrong with it.
    pub error: ConfigError,
}

/// One snapshot of every ConfigMap that serving reads.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Configs {
    /// `config-autoscaler`.
    pub autoscaler: autoscaler::Autoscaler,
    /// `config-certmanager`.
    pub certmanager: certmanager::CertManager,
    /// `config-defaults`.
    pub defaults: defaults::Defaults,
    /// `config-deployment`.
    pub deployment: deployment::Deployment,
    /// `config-domain`.
    pub domain: domain::Domain,
    /// `config-features`.
    pub features: features::Features,
    /// `config-gc`.
    pub gc: gc::Gc,
    /// `config-leader-election`.
    pub leader_election: leader_election::LeaderElection,
    /// `config-logging`.
    pub logging: logging::Logging,
    /// `config-network`.
    pub network: network::Network,
    /// `config-observability`.
    pub observability: observability::Observability,
}

impl Configs {
    /// Parses the data of every ConfigMap by name, in a cluster whose domain is `cluster.local`. Absent ones
    /// are their defaults; names that serving does not read are ignored.
    ///
    /// # Errors
    /// The first ConfigMap that does not parse.
    pub fn parse(maps: &BTreeMap<String, BTreeMap<String, String>>) -> Result<Self, ConfigMapError> {
        Self::parse_in(maps, domain::DEFAULT_CLUSTER_DOMAIN)
    }

    /// As [`parse`](Self::parse), in a cluster with another domain.
    ///
    /// # Errors
    /// The first ConfigMap that does not parse.
    pub fn parse_in(
        maps: &BTreeMap<String, BTreeMap<String, String>>,
        cluster_domain: &str,
    ) -> Result<Self, ConfigMapError> {
        let mut configs = Self { domain: domain::Domain::empty_in(cluster_domain), ..Self::default() };
        for (name, data) in maps {
            configs.set(name, data).map_err(|error| ConfigMapError { name: name.clone(), error })?;
        }
        Ok(configs)
    }

    /// Replaces one ConfigMap's part of the snapshot; a part that does not parse leaves the snapshot as it
    /// was. Returns whether serving reads a ConfigMap of that name.
    ///
    /// # Errors
    /// The data does not parse.
    pub fn set(&mut self, name: &str, data: &BTreeMap<String, String>) -> Result<bool, ConfigError> {
        match name {
            autoscaler::NAME => self.autoscaler = autoscaler::Autoscaler::parse(data)?,
            certmanager::NAME => self.certmanager = certmanager::CertManager::parse(data)?,
            defaults::NAME => self.defaults = defaults::Defaults::parse(data)?,
            deployment::NAME => self.deployment = deployment::Deployment::parse(data)?,
            domain::NAME => self.domain = domain::Domain::parse_in(data, &self.domain.cluster_domain)?,
            features::NAME => self.features = features::Features::parse(data)?,
            gc::NAME => self.gc = gc::Gc::parse(data)?,
            leader_election::NAME => self.leader_election = leader_election::LeaderElection::parse(data)?,
            logging::NAME => self.logging = logging::Logging::parse(data)?,
            network::NAME => self.network = network::Network::parse(data)?,
            observability::NAME => self.observability = observability::Observability::parse(data)?,
            _ => return Ok(false),
        }
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
