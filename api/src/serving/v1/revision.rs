//! Revision: an immutable snapshot of code and configuration.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionSet;
use crate::omitempty::null_as_empty;
use crate::status::status;

/// Metadata and spec of the Revisions to be made.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct RevisionTemplateSpec {
    /// Name, labels and annotations of the Revision.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub metadata: ObjectMeta,
    /// What the Revision runs.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub spec: RevisionSpec,
}

/// A pod, and how requests are let into it.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "serving.knative.dev",
    version = "v1",
    kind = "Revision",
    namespaced,
    status = "RevisionStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Revision is an immutable snapshot of code and configuration.",
    shortname = "rev",
    category = "all",
    category = "knative",
    category = "serving",
    printcolumn = r#"{"name":"Config Name","type":"string","jsonPath":".metadata.labels['serving\\.knative\\.dev/configuration']"}"#,
    printcolumn = r#"{"name":"Generation","type":"string","jsonPath":".metadata.labels['serving\\.knative\\.dev/configurationGeneration']"}"#,
    printcolumn = r#"{"name":"Ready","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].status"}"#,
    printcolumn = r#"{"name":"Reason","type":"string","jsonPath":".status.conditions[?(@.type=='Ready')].reason"}"#,
    printcolumn = r#"{"name":"Actual Replicas","type":"integer","jsonPath":".status.actualReplicas"}"#,
    printcolumn = r#"{"name":"Desired Replicas","type":"integer","jsonPath":".status.desiredReplicas"}"#,
    crates(
        kube_core = "kube_core",
        k8s_openapi = "k8s_openapi",
        schemars = "schemars",
        serde = "serde",
        serde_json = "serde_json"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct RevisionSpec {
    /// The pod; its fields stand beside the ones below.
    #[serde(flatten)]
    pub pod_spec: core::PodSpec,
    /// How many requests a pod may work on at once; 0 is no limit, unset is the configured default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub container_concurrency: Option<i64>,
    /// Seconds a request may take in all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<i64>,
    /// Seconds until the first byte of the response.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub response_start_timeout_seconds: Option<i64>,
    /// Seconds a request may go without a byte in either direction; 0 is no limit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub idle_timeout_seconds: Option<i64>,
}

status! {
    /// What became of the Revision.
    pub struct RevisionStatus {
        /// Where its logs are.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
        pub log_url: String,
        /// The image digests of its containers.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
        pub container_statuses: Vec<ContainerStatus>,
        /// The image digests of its init containers.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
        pub init_container_statuses: Vec<ContainerStatus>,
        /// How many pods are ready.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub actual_replicas: Option<i32>,
        /// How many pods there should be.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub desired_replicas: Option<i32>,
    }
    conditions: ConditionSet::living(&[RevisionStatus::RESOURCES_AVAILABLE, RevisionStatus::CONTAINER_HEALTHY])
}

impl RevisionStatus {
    /// Condition: the Deployment and its kin are there.
    pub const RESOURCES_AVAILABLE: &'static str = "ResourcesAvailable";
    /// Condition: the container starts and stays up.
    pub const CONTAINER_HEALTHY: &'static str = "ContainerHealthy";
    /// Condition, informative: the Revision is scaled to handle traffic.
    pub const ACTIVE: &'static str = "Active";
}

/// A container and the digest its image resolved to.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "camelCase")]
pub struct ContainerStatus {
    /// The container's name.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub name: String,
    /// The image by digest; empty where tags are not resolved.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub image_digest: String,
}
