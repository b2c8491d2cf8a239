//! What an Ingress's status says of the gateway.

use ember_api::networking::v1alpha1::{
    Ingress, IngressStatus, LoadBalancerIngressStatus, LoadBalancerStatus,
};
use ember_api::status::{Conditioned, Status};
use jiff::Timestamp;

/// How far the gateway is with an Ingress.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Outcome {
    /// Every request that arrives from now on is routed by it.
    Serving,
    /// It cannot be served as it stands.
    Invalid(String),
    /// Another Ingress serves this host already.
    Conflict(String),
}

/// The Ingress with the status it should have, if that is another than it has.
#[must_use]
pub fn plan(ingress: &Ingress, outcome: &Outcome, service_host: &str, now: Timestamp) -> Option<Ingress> {
    let mut next = ingress.clone();
    let generation = ingress.generation();
    let read = ingress.status.clone().unwrap_or_default();
    let status = next.status_mut_or_default();
    status.begin_reconcile(generation, now);
    match outcome {
        Outcome::Serving => {
            let mut conditions = status.manage(now);
            conditions.mark_true(IngressStatus::NETWORK_CONFIGURED);
            conditions.mark_true(IngressStatus::LOAD_BALANCER_READY);
            let entry = LoadBalancerIngressStatus {
                domain_internal: service_host.to_owned(),
                ..LoadBalancerIngressStatus::default()
            };
            let balancer = LoadBalancerStatus { ingress: vec![entry] };
            status.public_load_balancer = Some(balancer.clone());
            status.private_load_balancer = Some(balancer);
        }
        Outcome::Invalid(why) => {
            status.manage(now).mark_false(IngressStatus::NETWORK_CONFIGURED, "InvalidIngress", why);
        }
        Outcome::Conflict(host) => {
            let why = format!("host {host:?} is already served by another Ingress");
            let mut conditions = status.manage(now);
            conditions.mark_true(IngressStatus::NETWORK_CONFIGURED);
            conditions.mark_false(IngressStatus::LOAD_BALANCER_READY, "DomainConflict", &why);
        }
    }
    status.end_reconcile(&read, generation, now);
    let status = next.status.as_ref()?;
    let differs = ingress.status.as_ref().is_none_or(|present| !present.same_state(status));
    differs.then_some(next)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ingress() -> Ingress {
        let mut ingress = Ingress::default();
        ingress.metadata.generation = Some(3);
        ingress
    }

    #[test]
    fn serving_is_ready_and_then_nothing_more_is_written() {
        let now = Timestamp::UNIX_EPOCH;
        let written = plan(&ingress(), &Outcome::Serving, "gw", now).unwrap();
        assert!(written.is_ready());
        let status = written.status.as_ref().unwrap();
        assert_eq!(status.private_load_balancer.as_ref().unwrap().ingress[0].domain_internal, "gw");
        assert_eq!(plan(&written, &Outcome::Serving, "gw", now), None);
    }

    #[test]
    fn a_conflict_fails_the_load_balancer() {
        let written = plan(&ingress(), &Outcome::Conflict("h".into()), "gw", Timestamp::UNIX_EPOCH).unwrap();
        assert!(written.is_failed());
        assert_eq!(written.ready_condition().unwrap().reason, "DomainConflict");
    }
}
