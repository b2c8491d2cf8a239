//! Who has to look again when an object changes that it merely refers to.

use std::collections::{BTreeSet, HashMap, HashSet};
use std::sync::Arc;

use ember_reconcile::cache::Key;
use parking_lot::Mutex;

/// A kind and key that somebody refers to.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Reference {
    pub(crate) kind: &'static str,
    pub(crate) key: Key,
}

impl Reference {
    pub(crate) fn new(kind: &'static str, namespace: &str, name: &str) -> Self {
        Self { kind, key: Key::new(namespace, name) }
    }
}

#[derive(Debug, Default)]
struct Edges {
    followers: HashMap<Reference, HashSet<Key>>,
    references: HashMap<Key, BTreeSet<Reference>>,
}

/// Remembers which objects refer to which others. Clones share the memory.
#[derive(Clone, Debug, Default)]
pub(crate) struct Tracker(Arc<Mutex<Edges>>);

impl Tracker {
    /// Replaces what `follower` refers to.
    pub(crate) fn track(&self, follower: &Key, references: BTreeSet<Reference>) {
        let mut edges = self.0.lock();
        let before = edges.references.remove(follower).unwrap_or_default();
        for gone in before.difference(&references) {
            if let Some(followers) = edges.followers.get_mut(gone) {
                followers.remove(follower);
                if followers.is_empty() {
                    edges.followers.remove(gone);
                }
            }
        }
        for new in references.difference(&before) {
            edges.followers.entry(new.clone()).or_default().insert(follower.clone());
        }
        if !references.is_empty() {
            edges.references.insert(follower.clone(), references);
        }
    }

    /// Who refers to an object.
    pub(crate) fn followers(&self, reference: &Reference) -> Vec<Key> {
        self.0.lock().followers.get(reference).map(|keys| keys.iter().cloned().collect()).unwrap_or_default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forgets_what_is_no_longer_referred_to() {
        let tracker = Tracker::default();
        let (route, old, new) = (
            Key::new("ns", "r"),
            Reference::new("Revision", "ns", "old"),
            Reference::new("Revision", "ns", "new"),
        );
        tracker.track(&route, BTreeSet::from([old.clone()]));
        assert_eq!(tracker.followers(&old), vec![route.clone()]);
        tracker.track(&route, BTreeSet::from([new.clone()]));
        assert_eq!(tracker.followers(&old), []);
        assert_eq!(tracker.followers(&new), vec![route.clone()]);
        tracker.track(&route, BTreeSet::new());
        assert_eq!(tracker.followers(&new), []);
    }
}
