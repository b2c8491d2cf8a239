//! Certificate: a request for a TLS certificate, answered by a certificate provider.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionSet;
use crate::omitempty::null_as_empty;
use crate::status::status;

/// The names a certificate is wanted for, and where it shall be put.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "Certificate",
    plural = "certificates",
    namespaced,
    status = "CertificateStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Certificate is responsible for provisioning a SSL certificate for the given hosts.",
    shortname = "kcert",
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
pub struct CertificateSpec {
    /// The DNS names.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub dns_names: Vec<String>,
    /// The common domain of the names.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub domain: String,
    /// The Secret the certificate is put into.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub secret_name: String,
}

status! {
    /// How far the certificate has come.
    pub struct CertificateStatus {
        /// When the certificate ends.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub not_after: Option<Time>,
        /// The challenges the gateway has to let through.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
        pub http01_challenges: Vec<Http01Challenge>,
    }
    conditions: ConditionSet::living(&[])
}

/// An HTTP-01 challenge and who answers it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct Http01Challenge {
    /// The URL that is asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub url: Option<String>,
    /// The solver's Service.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub service_name: String,
    /// The solver's namespace.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub service_namespace: String,
    /// The solver's port.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub service_port: IntOrString,
}
