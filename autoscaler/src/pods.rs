//! The pods of each revision, counted as they change.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ember_reconcile::cache::{Change, Key};
use k8s_openapi::api::core::v1::Pod;
use kube::ResourceExt;
use parking_lot::RwLock;

use crate::time::Time;

/// The label whose value names a pod's revision.
pub(crate) const REVISION_LABEL: &str = ember_api::labels::REVISION;

/// How a pod counts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum PodState {
    /// Running and ready.
    Ready,
    /// Running, not ready.
    NotReady,
    /// Not running yet.
    Pending,
    /// Running, but to be deleted.
    Terminating,
    /// Ended, or unknown: not counted.
    Gone,
}

impl PodState {
    /// The state of a pod.
    #[must_use]
    pub fn of(pod: &Pod) -> Self {
        let status = pod.status.as_ref();
        match status.and_then(|s| s.phase.as_deref()) {
            Some("Pending") => Self::Pending,
            Some("Running") if pod.metadata.deletion_timestamp.is_some() => Self::Terminating,
            Some("Running") => {
                let conditions = status.and_then(|s| s.conditions.as_deref()).unwrap_or_default();
                match conditions.iter().find(|c| c.type_ == "Ready") {
                    Some(ready) if ready.status == "True" => Self::Ready,
                    _ => Self::NotReady,
                }
            }
            _ => Self::Gone,
        }
    }
}

/// Pods of a revision by state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct PodCounts {
    /// Running and ready.
    pub ready: i32,
    /// Everything that is there and not ready: pending and terminating pods too.
    pub not_ready: i32,
    /// Not running yet.
    pub pending: i32,
    /// Running, but to be deleted.
    pub terminating: i32,
}

/// A pod whose metrics can be read.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ReadyPod {
    /// Its address.
    pub ip: String,
    /// When it started.
    pub started: Time,
}

#[derive(Debug)]
struct Entry {
    state: PodState,
    ready: Option<ReadyPod>,
}

impl Entry {
    fn of(pod: &Pod) -> Self {
        let state = PodState::of(pod);
        let ready = (state == PodState::Ready)
            .then(|| {
                let status = pod.status.as_ref()?;
                let started = status.start_time.as_ref().map_or(0, |t| t.0.as_millisecond());
                Some(ReadyPod { ip: status.pod_ip.clone()?, started: Time::from_millis(started) })
            })
            .flatten();
        Self { state, ready }
    }
}

#[derive(Debug, Default)]
struct RevisionPods {
    counts: PodCounts,
    pods: BTreeMap<String, Entry>,
}

impl RevisionPods {
    fn recount(&mut self) {
        let mut counts = PodCounts::default();
        for entry in self.pods.values() {
            match entry.state {
                PodState::Ready => counts.ready += 1,
                PodState::NotReady => counts.not_ready += 1,
                PodState::Pending => {
                    counts.pending += 1;
                    counts.not_ready += 1;
                }
                PodState::Terminating => {
                    counts.terminating += 1;
                    counts.not_ready += 1;
                }
                PodState::Gone => {}
            }
        }
        self.counts = counts;
    }
}

/// Pods by revision. Clones share the index.
#[derive(Debug, Clone, Default)]
pub struct PodIndex(Arc<RwLock<HashMap<Key, RevisionPods>>>);

impl PodIndex {
    /// Takes over what the watch saw; returns the revision if the number of its ready pods changed or its last pod
    /// went: nothing else about pods concerns its scale.
    pub fn observe(&self, change: &Change<Pod>) -> Option<Key> {
        let pod = change.object();
        let key = Key::new(pod.namespace().unwrap_or_default(), pod.labels().get(REVISION_LABEL)?);
        let mut index = self.0.write();
        let before = index.get(&key).map(|revision| revision.counts).unwrap_or_default();
        match change {
            Change::Applied { new, .. } => {
                let revision = index.entry(key.clone()).or_default();
                revision.pods.insert(new.name_any(), Entry::of(new));
                revision.recount();
            }
            Change::Deleted(last) => {
                if let Some(revision) = index.get_mut(&key) {
                    revision.pods.remove(&last.name_any());
                    revision.recount();
                    if revision.pods.is_empty() {
                        index.remove(&key);
                    }
                }
            }
        }
        let after = index.get(&key).map(|revision| revision.counts).unwrap_or_default();
        let emptied = after == PodCounts::default() && before != after;
        (before.ready != after.ready || emptied).then_some(key)
    }

    /// The counts of a revision.
    #[must_use]
    pub fn counts(&self, revision: &Key) -> PodCounts {
        self.0.read().get(revision).map(|r| r.counts).unwrap_or_default()
    }

    /// The pods of a revision whose metrics can be read, by name.
    #[must_use]
    pub fn ready(&self, revision: &Key) -> Vec<ReadyPod> {
        let index = self.0.read();
        let Some(revision) = index.get(revision) else { return Vec::new() };
        revision.pods.values().filter_map(|p| p.ready.clone()).collect()
    }

    /// Whether a revision has pods whose metrics can be read.
    #[must_use]
    pub fn has_ready(&self, revision: &Key) -> bool {
        self.counts(revision).ready > 0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(name: &str, phase: &str, ready: bool, deleting: bool) -> Arc<Pod> {
        let mut pod = json!({
            "metadata": {"name": name, "namespace": "ns", "labels": {REVISION_LABEL: "rev"}},
            "status": {
                "phase": phase, "podIP": "10.0.0.1", "startTime": "2000-01-01T00:00:10Z",
                "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}],
            },
        });
        if deleting {
            pod["metadata"]["deletionTimestamp"] = "2000-01-01T00:01:00Z".into();
        }
        Arc::new(serde_json::from_value(pod).unwrap())
    }

    #[test]
    fn pods_count_by_state_and_only_ready_ones_are_scraped() {
        let index = PodIndex::default();
        let key = Key::new("ns", "rev");
        let apply = |new| index.observe(&Change::Applied { old: None, new });
        assert_eq!(apply(pod("ready", "Running", true, false)), Some(key.clone()));
        assert_eq!(apply(pod("ready", "Running", true, false)), None, "no other than before");
        for unready in [
            pod("starting", "Running", false, false),
            pod("pending", "Pending", false, false),
            pod("leaving", "Running", true, true),
            pod("failed", "Failed", false, false),
        ] {
            assert_eq!(apply(unready), None, "of no account for the scale");
        }
        assert_eq!(index.counts(&key), PodCounts { ready: 1, not_ready: 3, pending: 1, terminating: 1 });
        assert_eq!(
            index.ready(&key),
            [ReadyPod { ip: "10.0.0.1".into(), started: Time::from_millis(946_684_810_000) }]
        );

        assert_eq!(apply(pod("ready", "Running", true, true)), Some(key.clone()));
        assert!(!index.has_ready(&key));
        let delete = |name| index.observe(&Change::Deleted(pod(name, "Running", true, false)));
        for name in ["ready", "starting", "leaving"] {
            assert_eq!(delete(name), None);
        }
        assert_eq!(delete("pending"), Some(key.clone()), "the last one that counts");
        assert_eq!(delete("failed"), None);
        assert_eq!(index.counts(&key), PodCounts::default());
        assert!(index.0.read().is_empty());
    }
}
