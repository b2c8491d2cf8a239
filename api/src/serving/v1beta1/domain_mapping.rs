//! DomainMapping: a host of the user's own for an addressable object.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionSet;
use crate::omitempty::null_as_empty;
use crate::serving::v1::Addressable;
use crate::status::status;

/// The object a domain (the mapping's name) leads to.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "serving.knative.dev",
    version = "v1beta1",
    kind = "DomainMapping",
    plural = "domainmappings",
    namespaced,
    status = "DomainMappingStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "DomainMapping is a mapping from a custom hostname to an Addressable.",
    shortname = "dm",
    category = "all",
    category = "knative",
    category = "serving",
    printcolumn = r#"{"name":"URL","type":"string","jsonPath":".status.url"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#,
    crates(
        kube_core = "kube_core",
        k8s_openapi = "k8s_openapi",
        schemars = "schemars",
        serde = "serde",
        serde_json = "serde_json"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct DomainMappingSpec {
    /// What the domain leads to.
    #[serde(default, deserialize_with = "null_as_empty", rename = "ref")]
    pub reference: KReference,
    /// The certificate the user provides.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tls: Option<SecretTls>,
}

/// A reference to an object that can be addressed.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct KReference {
    /// The object's kind.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub kind: String,
    /// The object's namespace; empty means the referrer's.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub namespace: String,
    /// The object's name.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub name: String,
    /// The object's API version.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub api_version: String,
    /// The object's API group, in place of the version.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub group: String,
    /// Which of the object's addresses is meant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub address: Option<String>,
}

/// A TLS Secret in the mapping's namespace.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct SecretTls {
    /// The Secret's name.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub secret_name: String,
}

status! {
    /// Where the mapping is reached.
    pub struct DomainMappingStatus {
        /// The URL of the domain.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub url: Option<String>,
        /// The address of the domain.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub address: Option<Addressable>,
    }
    conditions: ConditionSet::living(&[
        DomainMappingStatus::DOMAIN_CLAIMED,
        DomainMappingStatus::REFERENCE_RESOLVED,
        DomainMappingStatus::INGRESS_READY,
        DomainMappingStatus::CERTIFICATE_PROVISIONED,
    ])
}

impl DomainMappingStatus {
    /// Condition: the domain belongs to this namespace.
    pub const DOMAIN_CLAIMED: &'static str = "DomainClaimed";
    /// Condition: the target has an address.
    pub const REFERENCE_RESOLVED: &'static str = "ReferenceResolved";
    /// Condition: the Ingress is ready.
    pub const INGRESS_READY: &'static str = "IngressReady";
    /// Condition: certificates are there, or not needed.
    pub const CERTIFICATE_PROVISIONED: &'static str = "CertificateProvisioned";
}
