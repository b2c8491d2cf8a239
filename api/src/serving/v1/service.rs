//! Service: a Configuration and a Route under one name.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::{Addressable, RevisionTemplateSpec, TrafficTarget};
use crate::conditions::ConditionSet;
use crate::omitempty::{is_empty, null_as_empty};
use crate::status::status;

/// What should run, and how traffic is shared among its Revisions.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "serving.knative.dev",
    version = "v1",
    kind = "Service",
    namespaced,
    status = "ServiceStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Service acts as a top-level container that manages a Route and Configuration which implement a network service.",
    shortname = "kservice",
    shortname = "ksvc",
    category = "all",
    category = "knative",
    category = "serving",
    label("duck.knative.dev/addressable", "true"),
    label("duck.knative.dev/podspecable", "true"),
    printcolumn = r#"{"name":"URL","type":"string","jsonPath":".status.url"}"#,
    printcolumn = r#"{"name":"LatestCreated","type":"string","jsonPath":".status.latestCreatedRevisionName"}"#,
    printcolumn = r#"{"name":"LatestReady","type":"string","jsonPath":".status.latestReadyRevisionName"}"#,
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
pub struct ServiceSpec {
    /// The template of the Revisions.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub template: RevisionTemplateSpec,
    /// How traffic is shared; empty means all of it to the latest ready Revision.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub traffic: Vec<TrafficTarget>,
}

status! {
    /// What runs, and where it can be reached.
    pub struct ServiceStatus {
        /// The newest Revision that became ready.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
        pub latest_ready_revision_name: String,
        /// The newest Revision.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
        pub latest_created_revision_name: String,
        /// The URL of the default target.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub url: Option<String>,
        /// Where the Service is reached from inside the cluster.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub address: Option<Addressable>,
        /// How traffic is shared now.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "is_empty")]
        pub traffic: Vec<TrafficTarget>,
    }
    conditions: ConditionSet::living(&[ServiceStatus::CONFIGURATIONS_READY, ServiceStatus::ROUTES_READY])
}

impl ServiceStatus {
    /// Condition: the Configuration is ready.
    pub const CONFIGURATIONS_READY: &'static str = "ConfigurationsReady";
    /// Condition: the Route is ready.
    pub const ROUTES_READY: &'static str = "RoutesReady";
}
