//! Ingress: what a gateway has to do with a host's requests.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Deserializer, Serialize};

use crate::conditions::ConditionSet;
use crate::omitempty::{is_empty, null_as_empty, string_enum};
use crate::status::status;

string_enum! {
    /// What happens to plain HTTP requests for externally visible hosts.
    HttpOption {
        /// They are served.
        #[default]
        Enabled = "Enabled",
        /// They are redirected to HTTPS.
        Redirected = "Redirected",
    }
}

string_enum! {
    /// Which gateway exposes a rule.
    IngressVisibility {
        /// The one the outside reaches.
        #[default]
        ExternalIP = "ExternalIP",
        /// The one that is reached from within the cluster only.
        ClusterLocal = "ClusterLocal",
    }
}

/// The rules of an Ingress.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "Ingress",
    plural = "ingresses",
    namespaced,
    status = "IngressStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Ingress is a collection of rules that allow inbound connections to reach the endpoints defined by a backend.",
    shortname = "kingress",
    shortname = "king",
    category = "knative-internal",
    category = "networking",
    label("app.kubernetes.io/component", "networking"),
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
pub struct IngressSpec {
    /// What happens to plain HTTP requests; unset is the same as enabled.
    #[serde(default, deserialize_with = "empty_as_none", skip_serializing_if = "Option::is_none")]
    pub http_option: Option<HttpOption>,
    /// Certificates by host.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub tls: Vec<IngressTls>,
    /// What to do, by host.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub rules: Vec<IngressRule>,
}

/// The wire has an empty string for "unset".
fn empty_as_none<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Option<HttpOption>, D::Error> {
    let text = Option::<String>::deserialize(deserializer)?;
    Ok(text.filter(|text| !text.is_empty()).map(|text| HttpOption::from(text.as_str())))
}

/// A certificate for some hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressTls {
    /// The hosts.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// The Secret with `tls.crt` and `tls.key`.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub secret_name: String,
    /// The Secret's namespace.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub secret_namespace: String,
}

/// What to do with requests for some hosts.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressRule {
    /// Exact host names without ports; none means every host.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub hosts: Vec<String>,
    /// Which gateway exposes the rule.
    #[serde(default)]
    pub visibility: IngressVisibility,
    /// The paths.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<HttpIngressRuleValue>,
}

impl IngressRule {
    /// The rule's paths in order.
    #[must_use]
    pub fn paths(&self) -> &[HttpIngressPath] {
        self.http.as_ref().map_or(&[], |http| http.paths.as_slice())
    }
}

/// The paths of a rule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpIngressRuleValue {
    /// The paths; longer prefixes, then more headers, go first.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub paths: Vec<HttpIngressPath>,
}

/// Requests by path prefix and headers, and the backends that share them.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HttpIngressPath {
    /// A literal prefix that begins with `/`; empty matches everything.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub path: String,
    /// What `Host` becomes on the way to the backend; empty leaves it.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub rewrite_host: String,
    /// Headers that all have to match.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub headers: BTreeMap<String, HeaderMatch>,
    /// The backends and their shares.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub splits: Vec<IngressBackendSplit>,
    /// Request headers that are set before a split is chosen.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub append_headers: BTreeMap<String, String>,
}

/// How a header is matched.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct HeaderMatch {
    /// The value it has to have.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub exact: String,
}

/// A backend and its share.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct IngressBackendSplit {
    /// The namespace of the Kubernetes Service.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub service_namespace: String,
    /// The Kubernetes Service.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub service_name: String,
    /// The number or the name of the Service's port.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub service_port: IntOrString,
    /// The share of the requests in percent.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "is_empty")]
    pub percent: i32,
    /// Request headers that are set when this split is chosen.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "BTreeMap::is_empty")]
    pub append_headers: BTreeMap<String, String>,
}

status! {
    /// Where the Ingress is reached.
    pub struct IngressStatus {
        /// The gateway the outside reaches.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub public_load_balancer: Option<LoadBalancerStatus>,
        /// The gateway that is reached from within the cluster.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub private_load_balancer: Option<LoadBalancerStatus>,
    }
    conditions: ConditionSet::living(&[IngressStatus::NETWORK_CONFIGURED, IngressStatus::LOAD_BALANCER_READY])
}

impl IngressStatus {
    /// Condition: the gateway has been told.
    pub const NETWORK_CONFIGURED: &'static str = "NetworkConfigured";
    /// Condition: the gateway acts on it.
    pub const LOAD_BALANCER_READY: &'static str = "LoadBalancerReady";
}

/// The addresses of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerStatus {
    /// The entry points; Serving supports exactly one.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub ingress: Vec<LoadBalancerIngressStatus>,
}

/// One entry point of a gateway.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct LoadBalancerIngressStatus {
    /// Its IP.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub ip: String,
    /// Its DNS name.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// Its DNS name within the cluster.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub domain_internal: String,
    /// Whether it is reached through a service mesh only.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "is_empty")]
    pub mesh_only: bool,
}
