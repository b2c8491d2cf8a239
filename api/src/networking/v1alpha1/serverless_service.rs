//! ServerlessService: the two Kubernetes Services of a Revision, and whether requests pass the activator.

use k8s_openapi::api::core::v1::ObjectReference;
use kube_derive::CustomResource;
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use crate::conditions::ConditionSet;
use crate::networking::ProtocolType;
use crate::omitempty::{is_empty, null_as_empty, string_enum};
use crate::status::status;

string_enum! {
    /// Where the public Service leads.
    ServerlessServiceOperationMode {
        /// To the pods.
        #[default]
        Serve = "Serve",
        /// To the activator.
        Proxy = "Proxy",
    }
}

/// What the Services stand in front of.
#[derive(CustomResource, Clone, Debug, Default, PartialEq, Serialize, Deserialize, JsonSchema)]
#[kube(
    group = "networking.internal.knative.dev",
    version = "v1alpha1",
    kind = "ServerlessService",
    plural = "serverlessservices",
    namespaced,
    status = "ServerlessServiceStatus",
    derive = "PartialEq",
    derive = "Default",
    doc = "ServerlessService is a proxy for the K8s service objects containing the endpoints for the revision, whether those are endpoints of the activator or revision pods.",
    shortname = "sks",
    category = "knative-internal",
    category = "networking",
    label("app.kubernetes.io/component", "networking"),
    printcolumn = r#"{"name":"Mode","type":"string","jsonPath":".spec.mode"}"#,
    printcolumn = r#"{"name":"Activators","type":"integer","jsonPath":".spec.numActivators"}"#,
    printcolumn = r#"{"name":"ServiceName","type":"string","jsonPath":".status.serviceName"}"#,
    printcolumn = r#"{"name":"PrivateServiceName","type":"string","jsonPath":".status.privateServiceName"}"#,
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
pub struct ServerlessServiceSpec {
    /// Where the public Service leads.
    #[serde(default)]
    pub mode: ServerlessServiceOperationMode,
    /// The Deployment, or whatever else selects the pods.
    #[serde(default, deserialize_with = "null_as_empty")]
    pub object_ref: ObjectReference,
    /// What the container speaks.
    #[serde(default)]
    pub protocol_type: ProtocolType,
    /// Among how many activators the Revision is spread; 0 is all of them.
    #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "is_empty")]
    pub num_activators: i32,
}

status! {
    /// The Services.
    pub struct ServerlessServiceStatus {
        /// The public Service: pods or activators.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
        pub service_name: String,
        /// The private Service: always the pods.
        #[serde(default, deserialize_with = "null_as_empty", skip_serializing_if = "String::is_empty")]
        pub private_service_name: String,
    }
    conditions: ConditionSet::living(&[ServerlessServiceStatus::ENDPOINTS_POPULATED])
}

impl ServerlessServiceStatus {
    /// Condition: the public Service leads somewhere.
    pub const ENDPOINTS_POPULATED: &'static str = "EndpointsPopulated";
    /// Condition, informative: the public Service leads to the activator.
    pub const ACTIVATOR_ENDPOINTS_POPULATED: &'static str = "ActivatorEndpointsPopulated";
}
