//! How a Route's status follows its targets, its certificates and its Ingress.

use jiff::Timestamp;

use super::RouteStatus;
use crate::networking::v1alpha1::{Certificate, IngressStatus};
use crate::status::{Conditioned, Status};

const REVISION_MISSING: &str = "RevisionMissing";

impl RouteStatus {
    /// Message of a certificate that is not needed, for external domains.
    pub const EXTERNAL_DOMAIN_TLS_NOT_ENABLED: &'static str = "external-domain-tls is not enabled";
    /// Message of a certificate that is not needed, within the cluster.
    pub const TLS_NOT_ENABLED_FOR_CLUSTER_LOCAL: &'static str = "TLS is not enabled for cluster-local";

    /// A placeholder Service of that name belongs to somebody else.
    pub fn mark_service_not_owned(&mut self, name: &str, now: Timestamp) {
        let message = format!("There is an existing placeholder Service {name:?} that we do not own.");
        self.manage(now).mark_false(Self::INGRESS_READY, "NotOwned", &message);
    }

    /// Placeholder Endpoints of that name belong to somebody else.
    pub fn mark_endpoint_not_owned(&mut self, name: &str, now: Timestamp) {
        let message = format!("There is an existing placeholder Endpoint {name:?} that we do not own.");
        self.manage(now).mark_false(Self::INGRESS_READY, "NotOwned", &message);
    }

    /// The Ingress has not yet seen its present generation.
    pub fn mark_ingress_not_configured(&mut self, now: Timestamp) {
        let message = "Ingress has not yet been reconciled.";
        self.manage(now).mark_unknown(Self::INGRESS_READY, "IngressNotConfigured", message);
    }

    /// Traffic is moving to new Revisions step by step.
    pub fn mark_ingress_rollout_in_progress(&mut self, now: Timestamp) {
        let message = "A gradual rollout of the latest revision(s) is in progress.";
        self.manage(now).mark_unknown(Self::INGRESS_READY, "RolloutInProgress", message);
    }

    /// Takes over the Ingress's readiness.
    pub fn propagate_ingress_status(&mut self, ingress: &IngressStatus, now: Timestamp) {
        match ingress.top_level_condition() {
            None => self.mark_ingress_not_configured(now),
            Some(ready) => self.manage(now).mirror(Self::INGRESS_READY, ready),
        }
    }

    /// Every target was found and is ready.
    pub fn mark_traffic_assigned(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::ALL_TRAFFIC_ASSIGNED);
    }

    /// The targets could not be worked out.
    pub fn mark_unknown_traffic_error(&mut self, message: &str, now: Timestamp) {
        self.manage(now).mark_unknown(Self::ALL_TRAFFIC_ASSIGNED, "Unknown", message);
    }

    /// The configuration gives no valid domain.
    pub fn mark_error_config(&mut self, message: &str, now: Timestamp) {
        self.manage(now).mark_false(Self::ALL_TRAFFIC_ASSIGNED, "ErrorConfig", message);
    }

    /// A Configuration among the targets has no ready Revision yet.
    pub fn mark_configuration_not_ready(&mut self, name: &str, now: Timestamp) {
        let message = format!("Configuration {name:?} is waiting for a Revision to become ready.");
        self.manage(now).mark_unknown(Self::ALL_TRAFFIC_ASSIGNED, REVISION_MISSING, &message);
    }

    /// A Configuration among the targets has no ready Revision and has failed.
    pub fn mark_configuration_failed(&mut self, name: &str, now: Timestamp) {
        let message = format!("Configuration {name:?} does not have any ready Revision.");
        self.manage(now).mark_false(Self::ALL_TRAFFIC_ASSIGNED, REVISION_MISSING, &message);
    }

    /// A Revision among the targets is not ready yet.
    pub fn mark_revision_not_ready(&mut self, name: &str, now: Timestamp) {
        let message = format!("Revision {name:?} is not yet ready.");
        self.manage(now).mark_unknown(Self::ALL_TRAFFIC_ASSIGNED, REVISION_MISSING, &message);
    }

    /// A Revision among the targets has failed.
    pub fn mark_revision_failed(&mut self, name: &str, now: Timestamp) {
        let message = format!("Revision {name:?} failed to become ready.");
        self.manage(now).mark_false(Self::ALL_TRAFFIC_ASSIGNED, REVISION_MISSING, &message);
    }

    /// A target does not exist; `kind` is `Configuration` or `Revision`.
    pub fn mark_missing_traffic_target(&mut self, kind: &str, name: &str, now: Timestamp) {
        let message = format!("{kind} {name:?} referenced in traffic not found.");
        self.manage(now).mark_false(Self::ALL_TRAFFIC_ASSIGNED, &format!("{kind}Missing"), &message);
    }

    /// A Revision among the targets is not one of the Service's own; `owner` is the Service it belongs to, if any.
    pub fn mark_revision_not_owned(
        &mut self,
        name: &str,
        owner: Option<&str>,
        service: &str,
        now: Timestamp,
    ) {
        let message = match owner.filter(|owner| !owner.is_empty()) {
            None => format!("Revision {name:?} does not belong to Service {service:?}."),
            Some(owner) => {
                format!("Revision {name:?} belongs to Service {owner:?}, not Service {service:?}.")
            }
        };
        self.manage(now).mark_false(Self::ALL_TRAFFIC_ASSIGNED, "RevisionNotOwned", &message);
    }

    /// The certificates are there.
    pub fn mark_certificate_ready(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::CERTIFICATE_PROVISIONED);
    }

    /// No certificate is wanted; the message says why.
    pub fn mark_tls_not_enabled(&mut self, message: &str, now: Timestamp) {
        self.manage(now).mark_true_with_reason(Self::CERTIFICATE_PROVISIONED, "TLSNotEnabled", message);
    }

    /// The certificate is not ready, and plain HTTP serves until it is.
    pub fn mark_http_downgrade(&mut self, name: &str, now: Timestamp) {
        let message = format!("Certificate {name} is not ready downgrade HTTP.");
        self.manage(now).mark_true_with_reason(Self::CERTIFICATE_PROVISIONED, "HTTPDowngrade", &message);
    }

    /// The certificate is not ready yet.
    pub fn mark_certificate_not_ready(&mut self, certificate: &Certificate, now: Timestamp) {
        let (name, reason) = name_and_reason(certificate);
        let message = format!("Certificate {name} is not ready: {reason}");
        self.manage(now).mark_unknown(Self::CERTIFICATE_PROVISIONED, "CertificateNotReady", &message);
    }

    /// The certificate cannot be had.
    pub fn mark_certificate_provision_failed(&mut self, certificate: &Certificate, now: Timestamp) {
        let (name, reason) = name_and_reason(certificate);
        let message = format!("Certificate {name} fails to be provisioned: {reason}");
        self.manage(now).mark_false(Self::CERTIFICATE_PROVISIONED, "CertificateProvisionFailed", &message);
    }

    /// A Certificate of that name belongs to somebody else.
    pub fn mark_certificate_not_owned(&mut self, name: &str, now: Timestamp) {
        let message = format!("There is an existing certificate {name} that we don't own.");
        self.manage(now).mark_false(Self::CERTIFICATE_PROVISIONED, "CertificateNotOwned", &message);
    }
}

fn name_and_reason(certificate: &Certificate) -> (&str, &str) {
    let name = certificate.metadata.name.as_deref().unwrap_or_default();
    (name, certificate.ready_condition().map_or("", |ready| ready.reason.as_str()))
}
