//! `networking.internal.knative.dev/v1alpha1`: ServerlessService, Ingress, Certificate, ClusterDomainClaim.

mod certificate;
mod cluster_domain_claim;
mod ingress;
mod lifecycle;
mod serverless_service;

pub use certificate::{Certificate, CertificateSpec, CertificateStatus, Http01Challenge};
pub use cluster_domain_claim::{ClusterDomainClaim, ClusterDomainClaimSpec};
pub use ingress::{
    HeaderMatch, HttpIngressPath, HttpIngressRuleValue, HttpOption, Ingress, IngressBackendSplit,
    IngressRule, IngressSpec, IngressStatus, IngressTls, IngressVisibility, LoadBalancerIngressStatus,
    LoadBalancerStatus,
};
pub use serverless_service::{
    ServerlessService, ServerlessServiceOperationMode, ServerlessServiceSpec, ServerlessServiceStatus,
};

crate::status::conditioned! {
    Ingress => IngressStatus,
    Certificate => CertificateStatus,
    ServerlessService => ServerlessServiceStatus,
}
