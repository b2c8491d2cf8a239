//! Configuration: the desired state of the newest Revision.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::RevisionTemplateSpec;
use crate::conditions::ConditionSet;
use crate::omitempty::null_as_empty;
use crate::status::status;

/// The template of the Revisions; each change of it makes a new one.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "serving.knative.dev",
    version = "v1",
    kind = "Configuration",
    namespaced,
    status = "ConfigurationStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Configuration represents the \"floating HEAD\" of a linear history of Revisions.",
    shortname = "config",
    shortname = "cfg",
    category = "all",
    category = "knative",
    category = "serving",
    label("duck.knative.dev/podspecable", "true"),
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
pub struct ConfigurationSpec {
    /// The template of the Revisions.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub template: RevisionTemplateSpec,
}

status! {
    /// Which Revisions the template has led to.
    pub struct ConfigurationStatus {
        /// The newest Revision that became ready.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
        pub latest_ready_revision_name: String,
        /// The newest Revision.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
        pub latest_created_revision_name: String,
    }
    conditions: ConditionSet::living(&[])
}
