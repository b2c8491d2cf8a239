//! The revisions by key, and all of them in a row.

use std::collections::HashMap;
use std::sync::Arc;

use ember_reconcile::cache::Key;
use parking_lot::RwLock;

use super::revision::Revision;

/// All revisions at one moment.
pub(super) type Snapshot = Arc<[Arc<Revision>]>;

#[derive(Default)]
struct Entries {
    by_key: HashMap<Key, Arc<Revision>>,
    /// Made when it is asked for, kept until a revision comes or goes.
    snapshot: Option<Snapshot>,
}

/// The table.
#[derive(Default)]
pub(super) struct Table(RwLock<Entries>);

impl Table {
    pub(super) fn get(&self, key: &Key) -> Option<Arc<Revision>> {
        self.0.read().by_key.get(key).cloned()
    }

    pub(super) fn get_or_create(&self, key: &Key) -> Arc<Revision> {
        if let Some(revision) = self.get(key) {
            return revision;
        }
        let mut entries = self.0.write();
        let Entries { by_key, snapshot } = &mut *entries;
        Arc::clone(by_key.entry(key.clone()).or_insert_with(|| {
            *snapshot = None;
            Arc::new(Revision::new(key.clone()))
        }))
    }

    /// All revisions. Where none came or went since the last call nothing is copied.
    pub(super) fn all(&self) -> Snapshot {
        if let Some(snapshot) = &self.0.read().snapshot {
            return Arc::clone(snapshot);
        }
        let mut entries = self.0.write();
        let Entries { by_key, snapshot } = &mut *entries;
        Arc::clone(snapshot.get_or_insert_with(|| by_key.values().cloned().collect()))
    }

    /// Takes a revision out if `is_unused`, which nobody can come between, says so.
    pub(super) fn remove_if(&self, key: &Key, is_unused: impl FnOnce(&Revision) -> bool) {
        let mut entries = self.0.write();
        if entries.by_key.get(key).is_some_and(|revision| is_unused(revision)) {
            entries.by_key.remove(key);
            entries.snapshot = None;
        }
    }

    /// Takes out all but those to keep.
    pub(super) fn retain(&self, keep: impl Fn(&Key) -> bool) {
        if self.0.read().by_key.keys().all(&keep) {
            return;
        }
        let mut entries = self.0.write();
        entries.by_key.retain(|key, _| keep(key));
        entries.snapshot = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_are_copied_only_when_one_came_or_went() {
        let (table, [one, other]) = (Table::default(), ["one", "other"].map(|name| Key::new("ns", name)));
        let names = |snapshot: &Snapshot| {
            let mut names: Vec<_> = snapshot.iter().map(|revision| revision.key.name.clone()).collect();
            names.sort_unstable();
            names
        };
        assert_eq!(names(&table.all()), [""; 0]);
        table.get_or_create(&one);
        table.get_or_create(&other);
        let both = table.all();
        assert_eq!(names(&both), ["one", "other"]);
        // What changes nothing: the same snapshot.
        table.get_or_create(&one);
        table.retain(|_| true);
        table.remove_if(&one, |_| false);
        assert!(Arc::ptr_eq(&both, &table.all()));
        table.remove_if(&one, |_| true);
        assert_eq!(names(&table.all()), ["other"]);
        table.get_or_create(&one);
        table.retain(|key| *key == one);
        assert_eq!((names(&table.all()), names(&both).len()), (vec!["one".to_owned()], 2));
    }
}
