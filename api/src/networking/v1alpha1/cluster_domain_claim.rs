//! ClusterDomainClaim: which namespace may map a domain.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::omitempty::null_as_empty;

/// The owner of the domain that the claim is named after.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "ClusterDomainClaim",
    plural = "clusterdomainclaims",
    derive = "PartialEq",
    derive = "Default",
    doc = "ClusterDomainClaim is a cluster-wide reservation for a particular domain name.",
    shortname = "cdc",
    category = "knative-internal",
    category = "networking",
    label("app.kubernetes.io/component", "networking"),
    crates(
        kube_core = "kube_core",
        k8s_openapi = "k8s_openapi",
        schemars = "schemars",
        serde = "serde",
        serde_json = "serde_json"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ClusterDomainClaimSpec {
    /// The namespace that may map the domain.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub namespace: String,
}
