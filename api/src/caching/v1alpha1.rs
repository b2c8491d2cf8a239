//! `caching.internal.knative.dev/v1alpha1`: Image.

use k8s_openapi::api::core::v1::LocalObjectReference;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionSet;
use crate::omitempty::null_as_empty;
use crate::status::{conditioned, status};

/// An image that is worth having near.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "caching.internal.knative.dev",
    version = "v1alpha1",
    kind = "Image",
    plural = "images",
    namespaced,
    status = "ImageStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "Image is a Knative abstraction that encapsulates the interface by which Knative components express a desire to have a particular image cached.",
    category = "knative-internal",
    category = "caching",
    printcolumn = r#"{"name":"Image","type":"string","jsonPath":".spec.image"}"#,
    crates(
        kube_core = "kube_core",
        k8s_openapi = "k8s_openapi",
        schemars = "schemars",
        serde = "serde",
        serde_json = "serde_json"
    )
)]
#[serde(rename_all = "camelCase")]
pub struct ImageSpec {
    /// The image.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub image: String,
    /// The account it is pulled as.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
    pub service_account_name: String,
    /// The Secrets it is pulled with.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "Vec::is_empty")]
    pub image_pull_secrets: Vec<LocalObjectReference>,
}

status! {
    /// Whether the image is cached.
    pub struct ImageStatus {}
    conditions: ConditionSet::living(&[])
}

conditioned! { Image => ImageStatus }
