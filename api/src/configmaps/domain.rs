//! `config-domain`: the domains that Routes live under, by label.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ConfigError;
use super::data;

/// The ConfigMap's name.
pub const NAME: &str = "config-domain";

/// The domain of clusters that do not say otherwise.
pub const DEFAULT_CLUSTER_DOMAIN: &str = "cluster.local";

/// Which Routes a domain is for, and how certificates for it are made.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct DomainConfig {
    /// Labels a Route needs; none matches every Route.
    pub selector: BTreeMap<String, String>,
    /// `wildcard`, or what the ConfigMap says; empty if nothing.
    pub kind: String,
}

/// Parsed `config-domain`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domain {
    /// By domain; at least one matches every Route.
    pub domains: BTreeMap<String, DomainConfig>,
    /// The domain of the cluster's own names.
    pub cluster_domain: String,
}

impl Default for Domain {
    fn default() -> Self {
        Self::empty_in(DEFAULT_CLUSTER_DOMAIN)
    }
}

impl Domain {
    /// What an empty ConfigMap means in a cluster: every Route lives under the cluster's own domain.
    #[must_use]
    pub fn empty_in(cluster_domain: &str) -> Self {
        let mut config = Self { domains: BTreeMap::new(), cluster_domain: cluster_domain.to_owned() };
        config.ensure_default();
        config
    }

    /// Parses the ConfigMap's data in a cluster whose domain is `cluster.local`.
    ///
    /// # Errors
    /// A domain's value is not a selector in YAML.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        Self::parse_in(data, DEFAULT_CLUSTER_DOMAIN)
    }

    /// Parses the ConfigMap's data.
    ///
    /// # Errors
    /// A domain's value is not a selector in YAML.
    pub fn parse_in(data: &BTreeMap<String, String>, cluster_domain: &str) -> Result<Self, ConfigError> {
        const KIND: &str = "domainInternalConfig";
        let mut config = Self { domains: BTreeMap::new(), cluster_domain: cluster_domain.to_owned() };
        for (domain, raw) in data.iter().filter(|(key, _)| *key != super::example::KEY) {
            let mut entry = DomainConfig::default();
            match data::yaml(raw)? {
                Value::Null => {}
                Value::Object(fields) => {
                    entry.selector = data::string_map(fields.get("selector"), "selector", KIND)?;
                    let kind = fields.get("type").unwrap_or(&Value::Null);
                    match data::text(kind) {
                        Some(kind) => entry.kind = kind,
                        None if kind.is_null() => {}
                        None => return Err(data::unmarshal_error(kind, &format!("{KIND}.type"), "string")),
                    }
                }
                other => return Err(data::unmarshal_error(&other, "", &format!("config.{KIND}"))),
            }
            if entry.selector.is_empty() {
                "wildcard".clone_into(&mut entry.kind);
            }
            config.domains.insert(domain.clone(), entry);
        }
        config.ensure_default();
        Ok(config)
    }

    fn ensure_default(&mut self) {
        if !self.domains.values().any(|d| d.selector.is_empty()) {
            let entry = DomainConfig { selector: BTreeMap::new(), kind: "wildcard".to_owned() };
            self.domains.insert(self.cluster_local(), entry);
        }
    }

    /// The domain of names that exist inside the cluster only.
    #[must_use]
    pub fn cluster_local(&self) -> String {
        format!("svc.{}", self.cluster_domain)
    }

    /// The domain for a Route with these labels: the cluster's own if its visibility says so; else the most
    /// specific that matches, then the first by name.
    #[must_use]
    pub fn for_labels(&self, labels: &BTreeMap<String, String>) -> String {
        if labels.get("networking.knative.dev/visibility").is_some_and(|v| v == "cluster-local") {
            return self.cluster_local();
        }
        let matching =
            self.domains.iter().filter(|(_, d)| d.selector.iter().all(|(k, v)| labels.get(k) == Some(v)));
        // Of equals the last would win, so they are visited backwards.
        matching.rev().max_by_key(|(_, d)| d.selector.len()).map(|(name, _)| name.clone()).unwrap_or_default()
    }
}
