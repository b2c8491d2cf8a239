//! Which pods of a revision may be used: known from Endpoints, proven by a probe.
//!
//! Knative activator: revision backends. A pod that is not ready yet by Kubernetes' word is used all the same once
//! its queue-proxy says it is, unless the revision has probes that only the kubelet runs.

use std::collections::BTreeMap;

use ember_dataplane::address::Address;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    /// Kubernetes' word.
    ready: bool,
    /// The probe's.
    healthy: bool,
}

/// What to do about probes after a change.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Probes {
    /// Pods to probe from now on, until one succeeds.
    pub start: Vec<Address>,
    /// Pods that need no probe any more.
    pub stop: Vec<Address>,
}

/// The pods of one revision.
#[derive(Debug)]
pub struct PodSet {
    pods: BTreeMap<Address, Known>,
    /// Whether a pod may be used before Kubernetes calls it ready.
    early: bool,
}

impl PodSet {
    /// No pods. `early`: whether a pod may be used before Kubernetes calls it ready.
    #[must_use]
    pub fn new(early: bool) -> Self {
        Self { pods: BTreeMap::new(), early }
    }

    fn wants_probe(&self, known: Known) -> bool {
        !known.healthy && (known.ready || self.early)
    }

    /// Takes over what the Endpoints say now.
    pub fn update(&mut self, ready: &[Address], not_ready: &[Address]) -> Probes {
        let mut probes = Probes::default();
        let mut next = BTreeMap::new();
        let listed = ready.iter().map(|a| (a, true)).chain(not_ready.iter().map(|a| (a, false)));
        for (address, is_ready) in listed {
            let before = self.pods.get(address).copied();
            let mut known = before.unwrap_or(Known { ready: is_ready, healthy: false });
            // Was ready and is no longer: it has to prove itself again.
            if known.ready && !is_ready {
                known.healthy = false;
            }
            known.ready = is_ready;
            let (was, is) = (before.is_some_and(|b| self.wants_probe(b)), self.wants_probe(known));
            if is && !was {
                probes.start.push(address.clone());
            } else if was && !is {
                probes.stop.push(address.clone());
            }
            next.insert(address.clone(), known);
        }
        for (address, known) in &self.pods {
            if !next.contains_key(address) && self.wants_probe(*known) {
                probes.stop.push(address.clone());
            }
        }
        self.pods = next;
        probes
    }

    /// A probe succeeded. Returns whether that makes a pod usable.
    pub fn proven(&mut self, address: &Address) -> bool {
        match self.pods.get_mut(address) {
            Some(known) if !known.healthy => {
                known.healthy = true;
                true
            }
            _ => false,
        }
    }

    /// A request could not be delivered. Returns whether the pod has to be probed again.
    pub fn doubted(&mut self, address: &Address) -> bool {
        match self.pods.get_mut(address) {
            Some(known) if known.healthy => {
                known.healthy = false;
                let known = *known;
                self.wants_probe(known)
            }
            _ => false,
        }
    }

    /// Whether there are no pods.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.pods.is_empty()
    }

    /// The pods that may be used, in order.
    #[must_use]
    pub fn usable(&self) -> Vec<Address> {
        self.pods.iter().filter(|(_, known)| known.healthy).map(|(address, _)| address.clone()).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn a(n: u16) -> Address {
        Address::new("10.0.0.1", n)
    }

    #[test]
    fn a_pod_is_usable_from_its_first_successful_probe() {
        let mut set = PodSet::new(true);
        assert_eq!(set.update(&[], &[a(1)]), Probes { start: vec![a(1)], stop: vec![] });
        assert!(set.usable().is_empty());
        assert!(set.proven(&a(1)));
        assert!(!set.proven(&a(1)));
        assert_eq!(set.usable(), [a(1)]);
        assert_eq!(set.update(&[a(1)], &[]), Probes::default());
        assert_eq!(set.usable(), [a(1)]);
        assert_eq!(set.update(&[], &[a(1)]), Probes { start: vec![a(1)], stop: vec![] });
        assert!(set.usable().is_empty());
        assert_eq!(set.update(&[], &[]), Probes { start: vec![], stop: vec![a(1)] });
    }

    #[test]
    fn with_probes_of_the_kubelet_readiness_comes_first() {
        let mut set = PodSet::new(false);
        assert_eq!(set.update(&[], &[a(1)]), Probes::default());
        assert_eq!(set.update(&[a(1)], &[]), Probes { start: vec![a(1)], stop: vec![] });
    }

    #[test]
    fn a_doubted_pod_is_probed_again() {
        let mut set = PodSet::new(true);
        set.update(&[a(1), a(2)], &[]);
        set.proven(&a(1));
        assert!(set.doubted(&a(1)));
        assert!(!set.doubted(&a(1)));
        assert!(set.usable().is_empty());
        assert!(set.proven(&a(1)));
        assert!(!set.proven(&a(9)));
    }
}
