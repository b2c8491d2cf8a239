//! What controllers and gateways record of ServerlessServices, Ingresses and Certificates.

use jiff::{SignedDuration, Timestamp};

use super::{
    CertificateStatus, IngressSpec, IngressStatus, LoadBalancerIngressStatus, LoadBalancerStatus,
    ServerlessServiceStatus,
};
use crate::conditions::{Condition, ConditionSeverity, ConditionStatus, READY};
use crate::status::Status;

impl ServerlessServiceStatus {
    /// The public Service leads somewhere.
    pub fn mark_endpoints_ready(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::ENDPOINTS_POPULATED);
    }

    /// The public Service leads nowhere yet; the reason says what is missing, e.g. `NoHealthyBackends`.
    pub fn mark_endpoints_not_ready(&mut self, reason: &str, now: Timestamp) {
        self.manage(now).mark_unknown(Self::ENDPOINTS_POPULATED, reason, "K8s Service is not ready");
    }

    /// A child of that kind and name belongs to somebody else.
    pub fn mark_endpoints_not_owned(&mut self, kind: &str, name: &str, now: Timestamp) {
        let message = format!("Resource {name} of type {kind} is not owned by SKS");
        self.manage(now).mark_false(Self::ENDPOINTS_POPULATED, "NotOwned", &message);
    }

    /// The public Service leads to the activator.
    pub fn mark_activator_endpoints_populated(&mut self, now: Timestamp) {
        self.set_activator_endpoints(ConditionStatus::True, now);
    }

    /// The public Service leads to the pods.
    pub fn mark_activator_endpoints_removed(&mut self, now: Timestamp) {
        self.set_activator_endpoints(ConditionStatus::False, now);
    }

    /// How long the public Service has led to the activator; zero while it does not.
    #[must_use]
    pub fn proxy_for(&self, now: Timestamp) -> SignedDuration {
        self.conditions
            .held_for(Self::ACTIVATOR_ENDPOINTS_POPULATED, ConditionStatus::True, now)
            .unwrap_or(SignedDuration::ZERO)
    }

    fn set_activator_endpoints(&mut self, status: ConditionStatus, now: Timestamp) {
        // Reason and message are the same in both states.
        self.manage(now).set(Condition {
            type_: Self::ACTIVATOR_ENDPOINTS_POPULATED.to_owned(),
            status,
            severity: ConditionSeverity::Info,
            last_transition_time: None,
            reason: Self::ACTIVATOR_ENDPOINTS_POPULATED.to_owned(),
            message: "Revision is backed by Activator".to_owned(),
        });
    }
}

impl IngressSpec {
    /// Fills in what may be left out: a split that is alone gets all of the requests.
    ///
    /// Rules without a visibility read as external already.
    pub fn set_defaults(&mut self) {
        for path in
            self.rules.iter_mut().filter_map(|rule| rule.http.as_mut()).flat_map(|http| &mut http.paths)
        {
            if let [only] = path.splits.as_mut_slice()
                && only.percent == 0
            {
                only.percent = 100;
            }
        }
    }
}

impl IngressStatus {
    /// A resource of that kind and name belongs to somebody else.
    pub fn mark_resource_not_owned(&mut self, kind: &str, name: &str, now: Timestamp) {
        let message = format!("There is an existing {kind} {name:?} that we do not own.");
        self.manage(now).mark_false(Self::NETWORK_CONFIGURED, "NotOwned", &message);
    }

    /// The gateway has been told.
    pub fn mark_network_configured(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::NETWORK_CONFIGURED);
    }

    /// The gateway acts on the Ingress, and is reached at these addresses.
    pub fn mark_load_balancer_ready(
        &mut self,
        public: Vec<LoadBalancerIngressStatus>,
        private: Vec<LoadBalancerIngressStatus>,
        now: Timestamp,
    ) {
        self.public_load_balancer = Some(LoadBalancerStatus { ingress: public });
        self.private_load_balancer = Some(LoadBalancerStatus { ingress: private });
        self.manage(now).mark_true(Self::LOAD_BALANCER_READY);
    }

    /// The gateway does not act on the Ingress yet.
    pub fn mark_load_balancer_not_ready(&mut self, now: Timestamp) {
        let message = "Waiting for load balancer to be ready";
        self.manage(now).mark_unknown(Self::LOAD_BALANCER_READY, "Uninitialized", message);
    }

    /// The gateway cannot act on the Ingress.
    pub fn mark_load_balancer_failed(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_false(Self::LOAD_BALANCER_READY, reason, message);
    }

    /// The Ingress is not ready for a reason that lies outside of its parts.
    pub fn mark_ingress_not_ready(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_unknown(READY, reason, message);
    }
}

impl CertificateStatus {
    /// The certificate is there.
    pub fn mark_ready(&mut self, now: Timestamp) {
        self.manage(now).mark_true(READY);
    }

    /// The certificate is not there yet.
    pub fn mark_not_ready(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_unknown(READY, reason, message);
    }

    /// The certificate cannot be had.
    pub fn mark_failed(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_false(READY, reason, message);
    }

    /// A resource of that kind and name belongs to somebody else.
    pub fn mark_resource_not_owned(&mut self, kind: &str, name: &str, now: Timestamp) {
        let message = format!("There is an existing {kind} {name:?} that we do not own.");
        self.manage(now).mark_false(READY, "NotOwned", &message);
    }
}
