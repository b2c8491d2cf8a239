//! Metric: what the collector gathers for one PodAutoscaler.

use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionSet;
use crate::omitempty::null_as_empty;
use crate::status::status;

/// The windows of a metric, and where it is scraped.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "autoscaling.internal.knative.dev",
    version = "v1alpha1",
    kind = "Metric",
    plural = "metrics",
    namespaced,
    status = "MetricStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Metric represents a resource to configure the metric collector with.",
    category = "knative-internal",
    category = "autoscaling",
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
pub struct MetricSpec {
    /// The stable window in nanoseconds.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub stable_window: i64,
    /// The panic window in nanoseconds.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub panic_window: i64,
    /// The Service that is scraped; empty means none is.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub scrape_target: String,
}

status! {
    /// Whether the metric is being collected.
    pub struct MetricStatus {}
    conditions: ConditionSet::living(&[])
}
