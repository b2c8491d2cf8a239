//! Which pods of a revision may be used: known from Endpoints, proven by a probe.
//!
//! Knative activator: revision backends. A pod that is not ready yet by Kubernetes' word is used all the same once
//! its queue-proxy says it is, unless the revision has probes that only the kubelet runs. Where a mesh stands between,
//! so that no pod can be reached by its own address, the address of the Service in front of them is used instead.

use std::collections::BTreeMap;

use ember_api::configmaps::network::MeshCompatibilityMode;
use ember_dataplane::address::Address;

/// What may be used, and on whose word.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Policy {
    /// Pods may be used before Kubernetes calls them ready.
    pub early: bool,
    /// Kubernetes' word is enough: what it calls ready is not probed.
    pub trust_ready: bool,
    /// Pods are used by their own addresses.
    pub pods: bool,
    /// The Service's address is used when pods cannot be.
    pub cluster_ip: bool,
}

impl Policy {
    /// The policy that `config-network` asks for. A mesh that passes requests through to the pod they name
    /// (`passthrough`) is one that pods can be reached behind.
    #[must_use]
    pub fn new(mode: MeshCompatibilityMode, passthrough: bool, early: bool) -> Self {
        Self {
            early,
            trust_ready: mode != MeshCompatibilityMode::Auto,
            pods: passthrough || mode != MeshCompatibilityMode::Enabled,
            cluster_ip: !passthrough && mode != MeshCompatibilityMode::Disabled,
        }
    }
}

/// What came of the probes of a pod so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Heard {
    /// None has ended.
    Nothing,
    /// They failed in a way that a mesh may be behind.
    Failures,
    /// The pod itself has answered.
    Pod,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    /// Kubernetes' word.
    ready: bool,
    /// The probe's.
    healthy: bool,
    heard: Heard,
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
    policy: Policy,
    /// Whether pods are reached by their own addresses. Once the Service's was needed it goes on being used until there
    /// are no pods.
    addressable: bool,
    /// Whether the Service's address has been proven.
    cluster_ip: bool,
}

impl PodSet {
    /// No pods.
    #[must_use]
    pub fn new(policy: Policy) -> Self {
        Self { pods: BTreeMap::new(), policy, addressable: policy.pods, cluster_ip: false }
    }

    fn wants_probe(&self, known: Known) -> bool {
        self.addressable && !known.healthy && (known.ready || self.policy.early)
    }

    /// Takes over what the Endpoints say now.
    pub fn update(&mut self, ready: &[Address], not_ready: &[Address]) -> Probes {
        let mut probes = Probes::default();
        let mut next = BTreeMap::new();
        let listed = ready.iter().map(|a| (a, true)).chain(not_ready.iter().map(|a| (a, false)));
        for (address, is_ready) in listed {
            let before = self.pods.get(address).copied();
            let mut known = before.unwrap_or(Known { ready: false, healthy: false, heard: Heard::Nothing });
            if known.ready && !is_ready {
                // Was ready and is no longer: it has to prove itself again.
                known.healthy = false;
            } else if is_ready && !known.ready && self.addressable && self.policy.trust_ready {
                known.healthy = true;
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
        if self.pods.is_empty() {
            self.addressable = self.policy.pods;
            self.cluster_ip = false;
        }
        probes
    }

    /// A probe succeeded. Returns whether that makes a pod usable.
    pub fn proven(&mut self, address: &Address) -> bool {
        match self.pods.get_mut(address) {
            Some(known) if self.addressable && !known.healthy => {
                known.healthy = true;
                known.heard = Heard::Pod;
                true
            }
            _ => false,
        }
    }

    /// A probe failed; `not_mesh`: the answer shows that it came from the pod itself.
    pub fn failed(&mut self, address: &Address, not_mesh: bool) {
        if let Some(known) = self.pods.get_mut(address)
            && known.heard != Heard::Pod
        {
            known.heard = if not_mesh { Heard::Pod } else { Heard::Failures };
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

    /// Whether the Service's address is to be probed: it leads to ready pods only, and is the last resort.
    #[must_use]
    pub fn wants_cluster_ip(&self) -> bool {
        if !self.policy.cluster_ip || self.cluster_ip || !self.pods.values().any(|known| known.ready) {
            return false;
        }
        let unreachable = || {
            let mut pods = self.pods.values();
            pods.all(|known| {
                !known.healthy
                    && known.heard != Heard::Pod
                    && (!known.ready || known.heard == Heard::Failures)
            })
        };
        !self.addressable || unreachable()
    }

    /// The Service's address has been proven: from now on it is used, and no pod. Returns the pods that need no probe
    /// any more.
    pub fn cluster_ip_proven(&mut self) -> Vec<Address> {
        let probed = self.pods.iter().filter(|(_, known)| self.wants_probe(**known));
        let stop = probed.map(|(address, _)| address.clone()).collect();
        self.addressable = false;
        self.cluster_ip = true;
        for known in self.pods.values_mut() {
            known.healthy = false;
        }
        stop
    }

    /// A request could not be delivered to the Service's address: it has to prove itself again.
    pub fn cluster_ip_doubted(&mut self) {
        self.cluster_ip = false;
    }

    /// Whether the Service's address is what is to be used.
    #[must_use]
    pub fn uses_cluster_ip(&self) -> bool {
        self.cluster_ip
    }

    /// How many pods Kubernetes calls ready.
    #[must_use]
    pub fn ready(&self) -> usize {
        self.pods.values().filter(|known| known.ready).count()
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
    use MeshCompatibilityMode::{Auto, Disabled, Enabled};

    fn a(n: u16) -> Address {
        Address::new("10.0.0.1", n)
    }

    fn set(early: bool) -> PodSet {
        PodSet::new(Policy::new(Auto, false, early))
    }

    #[test]
    fn a_pod_is_usable_from_its_first_successful_probe() {
        let mut set = set(true);
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
        let mut set = set(false);
        assert_eq!(set.update(&[], &[a(1)]), Probes::default());
        assert_eq!(set.update(&[a(1)], &[]), Probes { start: vec![a(1)], stop: vec![] });
    }

    #[test]
    fn a_doubted_pod_is_probed_again() {
        let mut set = set(true);
        set.update(&[a(1), a(2)], &[]);
        set.proven(&a(1));
        assert!(set.doubted(&a(1)));
        assert!(!set.doubted(&a(1)));
        assert!(set.usable().is_empty());
        assert!(set.proven(&a(1)));
        assert!(!set.proven(&a(9)));
    }

    #[test]
    fn what_each_mode_uses() {
        let of = |mode, passthrough| {
            let policy = Policy::new(mode, passthrough, true);
            (policy.trust_ready, policy.pods, policy.cluster_ip)
        };
        assert_eq!(of(Auto, false), (false, true, true));
        assert_eq!(of(Enabled, false), (true, false, true));
        assert_eq!(of(Disabled, false), (true, true, false));
        assert_eq!(of(Auto, true), (false, true, false));
        assert_eq!(of(Enabled, true), (true, true, false));
        assert_eq!(of(Disabled, true), (true, true, false));
    }

    #[test]
    fn ready_pods_are_trusted_where_the_mode_says_so() {
        let mut set = PodSet::new(Policy::new(Disabled, false, true));
        assert_eq!(set.update(&[a(1)], &[a(2)]), Probes { start: vec![a(2)], stop: vec![] });
        assert_eq!(set.usable(), [a(1)]);
        assert_eq!(set.update(&[a(1), a(2)], &[]), Probes { start: vec![], stop: vec![a(2)] });
        assert_eq!(set.usable(), [a(1), a(2)]);
        // What a request has found is not undone by what was known before.
        assert!(set.doubted(&a(1)));
        assert_eq!(set.update(&[a(1), a(2)], &[]), Probes::default());
        assert_eq!(set.usable(), [a(2)]);
        assert_eq!(set.update(&[a(2)], &[a(1)]), Probes::default());
        assert_eq!(set.update(&[a(1), a(2)], &[]), Probes { start: vec![], stop: vec![a(1)] });
        assert!(!set.wants_cluster_ip());
    }

    #[test]
    fn the_service_is_used_when_no_pod_can_be_reached() {
        let mut set = set(true);
        set.update(&[], &[a(1), a(2)]);
        set.failed(&a(1), false);
        set.failed(&a(2), false);
        assert!(!set.wants_cluster_ip(), "it leads to ready pods only");
        set.update(&[a(1), a(3)], &[a(2)]);
        assert!(!set.wants_cluster_ip(), "one has not been tried");
        set.failed(&a(3), false);
        assert!(set.wants_cluster_ip());
        assert_eq!(set.cluster_ip_proven(), [a(1), a(2), a(3)]);
        assert!(set.uses_cluster_ip() && !set.wants_cluster_ip());
        assert_eq!(set.ready(), 2);

        // It stays so, whatever pods come, until there are none.
        assert_eq!(set.update(&[a(4)], &[a(5)]), Probes::default());
        assert!(!set.proven(&a(4)));
        assert!(set.uses_cluster_ip() && set.usable().is_empty());
        set.cluster_ip_doubted();
        assert!(set.wants_cluster_ip());
        assert_eq!(set.cluster_ip_proven(), []);
        assert_eq!(set.update(&[], &[]), Probes::default());
        assert!(!set.uses_cluster_ip());
        assert_eq!(set.update(&[a(6)], &[]), Probes { start: vec![a(6)], stop: vec![] });
    }

    #[test]
    fn a_pod_that_has_answered_shows_that_there_is_no_mesh() {
        let mut set = set(true);
        set.update(&[a(1), a(2)], &[]);
        set.failed(&a(1), false);
        set.failed(&a(2), true);
        set.failed(&a(2), false);
        assert!(!set.wants_cluster_ip());
        set.proven(&a(1));
        set.doubted(&a(1));
        set.failed(&a(1), false);
        set.update(&[a(1)], &[]);
        assert!(!set.wants_cluster_ip());
    }

    #[test]
    fn in_a_mesh_only_the_service_is_used() {
        let mut set = PodSet::new(Policy::new(Enabled, false, true));
        assert_eq!(set.update(&[], &[a(1)]), Probes::default());
        assert!(!set.wants_cluster_ip());
        assert_eq!(set.update(&[a(1)], &[]), Probes::default());
        assert!(set.usable().is_empty() && set.wants_cluster_ip());
        assert_eq!(set.cluster_ip_proven(), []);
        set.update(&[], &[]);
        set.update(&[a(2)], &[]);
        assert!(set.usable().is_empty() && set.wants_cluster_ip());
    }
}
