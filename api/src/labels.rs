//! Label keys, and the values that have a meaning.

/// ksvc name; on Configuration, Route, Revision and the Revision's children.
pub const SERVICE: &str = "serving.knative.dev/service";
/// ksvc UID; like [`SERVICE`], but not on Routes.
pub const SERVICE_UID: &str = "serving.knative.dev/serviceUID";
/// Configuration name; on Revisions and their children.
pub const CONFIGURATION: &str = "serving.knative.dev/configuration";
/// Configuration UID; on Revisions and their children.
pub const CONFIGURATION_UID: &str = "serving.knative.dev/configurationUID";
/// Generation of the Configuration, decimal; on Revisions and their children.
pub const CONFIGURATION_GENERATION: &str = "serving.knative.dev/configurationGeneration";
/// Revision name; on the Revision's children.
pub const REVISION: &str = "serving.knative.dev/revision";
/// Revision UID; on the Revision's children, and the one key of the Deployment's selector.
pub const REVISION_UID: &str = "serving.knative.dev/revisionUID";
/// Revision name, unless the Revision has the label already.
pub const APP: &str = "app";
/// Whether a Route leads to the Revision.
pub const ROUTING_STATE: &str = "serving.knative.dev/routingState";
/// Route name; on placeholder Services and Endpoints, Ingresses, Certificates.
pub const ROUTE: &str = "serving.knative.dev/route";
/// Route namespace; on Ingresses.
pub const ROUTE_NAMESPACE: &str = "serving.knative.dev/routeNamespace";
/// Hash of the desired Deployment; on the Deployment only.
pub const DEPLOYMENT_HASH: &str = "serving.knative.dev/deployment-hash";
/// DomainMapping UID on its Ingress; its name on its Certificate.
pub const DOMAIN_MAPPING_UID: &str = "serving.knative.dev/domainMappingUID";
/// DomainMapping namespace; on its Ingress.
pub const DOMAIN_MAPPING_NAMESPACE: &str = "serving.knative.dev/domainMappingNamespace";
/// Whether a host is reached from within the cluster only; set by users on ksvc, Route or placeholder Service.
pub const VISIBILITY: &str = "networking.knative.dev/visibility";
/// The value of [`VISIBILITY`] that hides a host from the outside.
pub const VISIBILITY_CLUSTER_LOCAL: &str = "cluster-local";
/// What a Certificate is for.
pub const CERTIFICATE_TYPE: &str = "networking.knative.dev/certificate-type";
/// Value of [`CERTIFICATE_TYPE`]: hosts the outside reaches.
pub const CERTIFICATE_EXTERNAL_DOMAIN: &str = "external-domain";
/// Value of [`CERTIFICATE_TYPE`]: hosts within the cluster.
pub const CERTIFICATE_CLUSTER_LOCAL_DOMAIN: &str = "cluster-local-domain";
/// Value of [`CERTIFICATE_TYPE`]: traffic within the system.
pub const CERTIFICATE_SYSTEM_INTERNAL: &str = "system-internal";
/// Base domain of a namespace's wildcard Certificate.
pub const WILDCARD_DOMAIN: &str = "networking.knative.dev/wildcardDomain";
/// ServerlessService name; on its Services and Endpoints.
pub const SERVERLESS_SERVICE: &str = "networking.internal.knative.dev/serverlessservice";
/// Which of a ServerlessService's Services it is.
pub const SERVICE_TYPE: &str = "networking.internal.knative.dev/serviceType";
/// Value of [`SERVICE_TYPE`]: leads to the pods.
pub const SERVICE_TYPE_PRIVATE: &str = "Private";
/// Value of [`SERVICE_TYPE`]: leads to pods or activators.
pub const SERVICE_TYPE_PUBLIC: &str = "Public";
/// Certificate UID; on the Secret it leads to.
pub const CERTIFICATE_UID: &str = "networking.internal.knative.dev/certificate-uid";
/// Adler-32 of the DNS name, decimal; on cert-manager's solver Service.
pub const ACME_HTTP_DOMAIN: &str = "acme.cert-manager.io/http-domain";

/// Whether a Route leads to a Revision: the values of [`ROUTING_STATE`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum RoutingState {
    /// Made, but not yet looked at.
    Pending,
    /// A Route leads to it.
    Active,
    /// No Route leads to it.
    Reserve,
}

impl RoutingState {
    /// The label's value.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Pending => "pending",
            Self::Active => "active",
            Self::Reserve => "reserve",
        }
    }

    /// Reads the label's value; anything else is not a state.
    #[must_use]
    pub fn parse(value: &str) -> Option<Self> {
        match value {
            "pending" => Some(Self::Pending),
            "active" => Some(Self::Active),
            "reserve" => Some(Self::Reserve),
            _ => None,
        }
    }
}
