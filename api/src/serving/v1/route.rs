//! Route: hosts, and the Revisions their traffic goes to.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionSet;
use crate::omitempty::null_as_empty;
use crate::status::status;

/// How traffic is shared among Revisions.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "serving.knative.dev",
    version = "v1",
    kind = "Route",
    namespaced,
    status = "RouteStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Route is responsible for configuring ingress over a collection of Revisions.",
    shortname = "rt",
    category = "all",
    category = "knative",
    category = "serving",
    label("duck.knative.dev/addressable", "true"),
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
pub struct RouteSpec {
    /// The targets and their shares.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

/// One target of a traffic split.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct TrafficTarget {
    /// A name under which the target has a host of its own.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub tag: String,
    /// The Revision; in a status always set.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub revision_name: String,
    /// The Configuration whose latest ready Revision is meant; never set in a status.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub configuration_name: String,
    /// Whether the latest ready Revision is meant, whichever it is.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub latest_revision: Option<bool>,
    /// The share of the traffic in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub percent: Option<i64>,
    /// Where the tag is reached; in a status only.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
}

/// Where an object can be reached.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Addressable {
    /// The address's name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// The URL.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The certificate authorities of the address in PEM.
    #[serde(default, rename = "CACerts", skip_serializing_if = "Option::is_none")]
    pub ca_certs: Option<String>,
    /// The OpenID Connect audience.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub audience: Option<String>,
}

impl Addressable {
    /// An address that is a URL alone.
    #[must_use]
    pub fn from_url(url: impl Into<String>) -> Self {
        Self { url: Some(url.into()), ..Self::default() }
    }
}

status! {
    /// How traffic is shared now, and where the Route is reached.
    pub struct RouteStatus {
        /// The URL of the default target.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub url: Option<String>,
        /// Where the Route is reached from inside the cluster.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub address: Option<Addressable>,
        /// The targets, each by Revision.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
        pub traffic: Vec<TrafficTarget>,
    }
    conditions: ConditionSet::living(&[
        RouteStatus::ALL_TRAFFIC_ASSIGNED,
        RouteStatus::INGRESS_READY,
        RouteStatus::CERTIFICATE_PROVISIONED,
    ])
}

impl RouteStatus {
    /// Condition: every target was found and is ready.
    pub const ALL_TRAFFIC_ASSIGNED: &'static str = "AllTrafficAssigned";
    /// Condition: the Ingress is ready.
    pub const INGRESS_READY: &'static str = "IngressReady";
    /// Condition: certificates are there, or not needed.
    pub const CERTIFICATE_PROVISIONED: &'static str = "CertificateProvisioned";
}
