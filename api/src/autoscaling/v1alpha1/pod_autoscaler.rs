//! PodAutoscaler: the scale of one Revision.

use k8s_openapi::api::core::v1::ObjectReference;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionSet;
use crate::networking::ProtocolType;
use crate::omitempty::{is_empty, null_as_empty, string_enum};
use crate::status::status;

string_enum! {
    /// Whether any Route leads to the Revision.
    Reachability {
        /// Not known (the empty string).
        #[default]
        Unknown = "",
        /// A Route leads to it.
        Reachable = "Reachable",
        /// No Route leads to it; it may be scaled to zero whatever its bounds say.
        Unreachable = "Unreachable",
    }
}

/// What is scaled, and how its requests are counted.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "autoscaling.internal.knative.dev",
    version = "v1alpha1",
    kind = "PodAutoscaler",
    plural = "podautoscalers",
    namespaced,
    status = "PodAutoscalerStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "PodAutoscaler is a Knative abstraction that encapsulates the interface by which Knative components instantiate autoscalers.",
    shortname = "kpa",
    shortname = "pa",
    category = "knative-internal",
    category = "autoscaling",
    printcolumn = r#"{"name":"DesiredScale","type":"integer","jsonPath":".status.desiredScale"}"#,
    printcolumn = r#"{"name":"ActualScale","type":"integer","jsonPath":".status.actualScale"}"#,
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
pub struct PodAutoscalerSpec {
    /// How many requests a pod may work on at once; 0 is no limit.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "is_empty")]
    pub container_concurrency: i64,
    /// The Deployment, or whatever else has a scale.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub scale_target_ref: ObjectReference,
    /// Whether any Route leads to the Revision.
    #[serde(default, skip_serializing_if = "is_empty")]
    pub reachability: Reachability,
    /// What the container speaks.
    #[serde(default)]
    pub protocol_type: ProtocolType,
}

status! {
    /// What the autoscaler has decided and sees.
    pub struct PodAutoscalerStatus {
        /// The public Service of the Revision.
        #[serde(default, deserialize_with = "null_as_empty")]
        pub service_name: String,
        /// The private Service, where metrics are scraped.
        #[serde(default, deserialize_with = "null_as_empty")]
        pub metrics_service_name: String,
        /// How many pods there should be; negative or unset while not known.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub desired_scale: Option<i32>,
        /// How many pods are ready.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub actual_scale: Option<i32>,
    }
    conditions: ConditionSet::living(&[
        PodAutoscalerStatus::ACTIVE,
        PodAutoscalerStatus::SCALE_TARGET_INITIALIZED,
        PodAutoscalerStatus::SKS_READY,
    ])
}

impl PodAutoscalerStatus {
    /// Condition: the target is scaled to handle traffic.
    pub const ACTIVE: &'static str = "Active";
    /// Condition: the initial scale was reached once; never taken back.
    pub const SCALE_TARGET_INITIALIZED: &'static str = "ScaleTargetInitialized";
    /// Condition: the ServerlessService is ready.
    pub const SKS_READY: &'static str = "SKSReady";
}
