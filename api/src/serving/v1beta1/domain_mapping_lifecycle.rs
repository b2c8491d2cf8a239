//! How a DomainMapping's status follows its claim, target, certificate and Ingress.

use jiff::Timestamp;

use super::DomainMappingStatus;
use crate::networking::v1alpha1::IngressStatus;
use crate::status::Status;

impl DomainMappingStatus {
    /// The domain belongs to this namespace.
    pub fn mark_domain_claimed(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::DOMAIN_CLAIMED);
    }

    /// The domain belongs to another namespace.
    pub fn mark_domain_claim_not_owned(&mut self, now: Timestamp) {
        let message = "The domain name is already in use by another DomainMapping";
        self.manage(now).mark_false(Self::DOMAIN_CLAIMED, "DomainAlreadyClaimed", message);
    }

    /// The domain could not be claimed.
    pub fn mark_domain_claim_failed(&mut self, message: &str, now: Timestamp) {
        self.manage(now).mark_false(Self::DOMAIN_CLAIMED, "DomainClaimFailed", message);
    }

    /// The target has an address.
    pub fn mark_reference_resolved(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::REFERENCE_RESOLVED);
    }

    /// The target has no address; the message says why.
    pub fn mark_reference_not_resolved(&mut self, message: &str, now: Timestamp) {
        self.manage(now).mark_false(Self::REFERENCE_RESOLVED, "ResolveFailed", message);
    }

    /// The Ingress has not yet seen its present generation.
    pub fn mark_ingress_not_configured(&mut self, now: Timestamp) {
        let message = "Ingress has not yet been reconciled.";
        self.manage(now).mark_unknown(Self::INGRESS_READY, "IngressNotConfigured", message);
    }

    /// Takes over the Ingress's readiness.
    pub fn propagate_ingress_status(&mut self, ingress: &IngressStatus, now: Timestamp) {
        match ingress.top_level_condition() {
            None => self.mark_ingress_not_configured(now),
            Some(ready) => self.manage(now).mirror(Self::INGRESS_READY, ready),
        }
    }

    /// The certificate is there.
    pub fn mark_certificate_ready(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::CERTIFICATE_PROVISIONED);
    }

    /// No certificate is wanted; the message says why.
    pub fn mark_tls_not_enabled(&mut self, message: &str, now: Timestamp) {
        self.manage(now).mark_true_with_reason(Self::CERTIFICATE_PROVISIONED, "TLSNotEnabled", message);
    }

    /// The user brings the certificate.
    pub fn mark_certificate_externally_provided(&mut self, now: Timestamp) {
        let message = "TLS certificate was provided externally";
        self.manage(now).mark_true_with_reason(
            Self::CERTIFICATE_PROVISIONED,
            "CertificateExternallyProvided",
            message,
        );
    }

    /// The certificate is not ready, and plain HTTP serves until it is.
    pub fn mark_http_downgrade(&mut self, name: &str, now: Timestamp) {
        let message = format!("Certificate {name} is not ready downgrade HTTP.");
        self.manage(now).mark_true_with_reason(Self::CERTIFICATE_PROVISIONED, "HTTPDowngrade", &message);
    }

    /// The certificate is not ready yet.
    pub fn mark_certificate_not_ready(&mut self, name: &str, now: Timestamp) {
        let message = format!("Certificate {name} is not ready.");
        self.manage(now).mark_unknown(Self::CERTIFICATE_PROVISIONED, "CertificateNotReady", &message);
    }

    /// The certificate cannot be had.
    pub fn mark_certificate_provision_failed(&mut self, name: &str, now: Timestamp) {
        let message = format!("Certificate {name} failed to be provisioned.");
        self.manage(now).mark_false(Self::CERTIFICATE_PROVISIONED, "CertificateProvisionFailed", &message);
    }

    /// A Certificate of that name belongs to somebody else.
    pub fn mark_certificate_not_owned(&mut self, name: &str, now: Timestamp) {
        let message = format!("There is an existing certificate {name} that we don't own.");
        self.manage(now).mark_false(Self::CERTIFICATE_PROVISIONED, "CertificateNotOwned", &message);
    }
}
