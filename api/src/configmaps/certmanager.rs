//! `config-certmanager`: who issues which certificates.

use std::collections::BTreeMap;

use serde_json::Value;

use super::ConfigError;
use super::data::{self, Data};

/// The ConfigMap's name.
pub const NAME: &str = "config-certmanager";

/// A reference to an issuer of cert-manager.
#[derive(Clone, Debug, PartialEq, Eq, serde::Serialize)]
pub struct IssuerRef {
    /// The issuer's name.
    pub name: String,
    /// `Issuer`, `ClusterIssuer`, or a kind of another group.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub kind: String,
    /// The group of the kind; empty is cert-manager's own.
    #[serde(skip_serializing_if = "String::is_empty")]
    pub group: String,
}

impl Default for IssuerRef {
    fn default() -> Self {
        Self {
            name: "knative-selfsigned-issuer".to_owned(),
            kind: "ClusterIssuer".to_owned(),
            group: String::new(),
        }
    }
}

/// Parsed `config-certmanager`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct CertManager {
    /// Issuer for external domains.
    pub issuer_ref: IssuerRef,
    /// Issuer for cluster-local domains.
    pub cluster_local_issuer_ref: IssuerRef,
    /// Issuer for traffic between the system's components.
    pub system_internal_issuer_ref: IssuerRef,
}

impl CertManager {
    /// Parses the ConfigMap's data.
    ///
    /// # Errors
    /// A value is not an issuer reference in YAML.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let data = Data(data);
        let mut config = Self::default();
        for (key, target) in [
            ("issuerRef", &mut config.issuer_ref),
            ("clusterLocalIssuerRef", &mut config.cluster_local_issuer_ref),
            ("systemInternalIssuerRef", &mut config.system_internal_issuer_ref),
        ] {
            let Some(raw) = data.get(key) else { continue };
            match data::yaml(raw)? {
                Value::Null => {}
                Value::Object(fields) => {
                    // Fields that are not given keep their default.
                    for (field, target) in
                        [("name", &mut target.name), ("kind", &mut target.kind), ("group", &mut target.group)]
                    {
                        let given = fields.get(field).unwrap_or(&Value::Null);
                        match data::text(given) {
                            Some(text) => *target = text,
                            None if given.is_null() => {}
                            None => {
                                let path = format!("IssuerReference.{field}");
                                return Err(data::unmarshal_error(given, &path, "string"));
                            }
                        }
                    }
                }
                other => return Err(data::unmarshal_error(&other, "", "v1.IssuerReference")),
            }
        }
        Ok(config)
    }
}
