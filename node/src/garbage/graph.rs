//! Who owns whom, and what follows when an owner or a namespace goes.

use std::collections::{BTreeMap, BTreeSet};

/// Set by the API server for `propagationPolicy: Foreground`.
pub const FOREGROUND: &str = "foregroundDeletion";
/// Set by the API server for `propagationPolicy: Orphan`.
pub const ORPHAN: &str = "orphan";

/// The UID of an object.
pub type Uid = String;

/// What the collector knows of an object.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Object {
    /// Index of its resource.
    pub resource: usize,
    /// Empty for cluster-wide objects.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its owner references.
    pub owners: Vec<Owner>,
    /// Whether it has a deletion timestamp.
    pub is_deleting: bool,
    /// What keeps it from going.
    pub finalizers: Vec<String>,
    /// Whether it is a Namespace.
    pub is_namespace: bool,
}

/// An owner reference.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Owner {
    /// Of the owner.
    pub uid: Uid,
    /// Of the owner.
    pub api_version: String,
    /// Of the owner.
    pub kind: String,
    /// Of the owner.
    pub name: String,
    /// Whether the owner's foreground deletion waits for this object.
    pub blocks: bool,
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Action {
    /// Delete the object if its owners are really gone: none of them is known, but watches of different kinds are
    /// not in step.
    Collect(Uid),
    /// Delete the object.
    Delete(Uid),
    /// Remove the owner reference (second) from the object (first).
    Disown(Uid, Uid),
    /// Remove the references to owners that are really gone from the object, which has another.
    Forget(Uid),
    /// Remove a finalizer of the collector's.
    Unblock(Uid, &'static str),
    /// Delete what is in this Namespace if it is really gone.
    Empty(String),
    /// Tell in the status of this deleted Namespace what it waits for.
    ReportNamespace(String),
    /// Nothing is left in this deleted Namespace.
    FinishNamespace(String),
}

/// The objects of all kinds.
#[derive(Debug, Default)]
pub struct Graph {
    objects: BTreeMap<Uid, Object>,
    dependents: BTreeMap<Uid, BTreeSet<Uid>>,
    namespaces: BTreeMap<String, BTreeSet<Uid>>,
}

impl Graph {
    /// The object with this UID.
    #[must_use]
    pub fn get(&self, uid: &str) -> Option<&Object> {
        self.objects.get(uid)
    }

    /// The objects of a resource.
    #[must_use]
    pub fn of_resource(&self, resource: usize) -> Vec<Uid> {
        self.objects.iter().filter(|(_, o)| o.resource == resource).map(|(uid, _)| uid.clone()).collect()
    }

    /// Takes note of an object as it is now; what follows from that, for its former owners too.
    pub fn put(&mut self, uid: &str, object: Object) -> Vec<Action> {
        let of = |object: &Object| -> BTreeSet<(Uid, bool)> {
            object.owners.iter().map(|owner| (owner.uid.clone(), owner.blocks)).collect()
        };
        let now = of(&object);
        let before = self.objects.get(uid).map(of).unwrap_or_default();
        self.unlink(uid);
        for owner in &object.owners {
            self.dependents.entry(owner.uid.clone()).or_default().insert(uid.to_owned());
        }
        if !object.namespace.is_empty() {
            self.namespaces.entry(object.namespace.clone()).or_default().insert(uid.to_owned());
        }
        self.objects.insert(uid.to_owned(), object);
        // An owner that is being deleted may have waited for this very reference to change.
        let owners: BTreeSet<&Uid> = before.symmetric_difference(&now).map(|(owner, _)| owner).collect();
        let mut actions = self.review(uid);
        for owner in owners {
            if self.objects.get(owner).is_some_and(|owner| owner.is_deleting) {
                actions.extend(
                    self.review(owner).into_iter().filter(|a| !actions.contains(a)).collect::<Vec<_>>(),
                );
            }
        }
        actions
    }

    /// Takes note that an object is gone; what follows from that.
    pub fn remove(&mut self, uid: &str) -> Vec<Action> {
        self.unlink(uid);
        let Some(object) = self.objects.remove(uid) else { return Vec::new() };
        let mut actions: BTreeSet<Action> = self.dependents_of(uid).flat_map(|d| self.review(d)).collect();
        actions.extend(object.owners.iter().flat_map(|owner| self.review(&owner.uid)));
        if object.is_namespace {
            actions.extend(
                self.namespaces.contains_key(&object.name).then(|| Action::Empty(object.name.clone())),
            );
        } else {
            actions.extend(self.review_namespace(&object.namespace));
        }
        actions.into_iter().collect()
    }

    /// What follows from an object as it is.
    #[must_use]
    pub fn review(&self, uid: &str) -> Vec<Action> {
        let Some(object) = self.objects.get(uid) else { return Vec::new() };
        let mut actions = Vec::new();
        if object.is_deleting {
            let has = |finalizer: &str| object.finalizers.iter().any(|f| f == finalizer);
            if has(ORPHAN) {
                let dependents: Vec<_> = self.dependents_of(uid).collect();
                if dependents.is_empty() {
                    actions.push(Action::Unblock(uid.to_owned(), ORPHAN));
                }
                actions.extend(dependents.into_iter().map(|d| Action::Disown(d.clone(), uid.to_owned())));
            } else if has(FOREGROUND) {
                if !self.dependents_of(uid).any(|d| self.blocks(d, uid)) {
                    actions.push(Action::Unblock(uid.to_owned(), FOREGROUND));
                }
                let going = |d: &&Uid| !self.objects.get(*d).is_none_or(|o| o.is_deleting);
                actions.extend(self.dependents_of(uid).filter(going).map(|d| {
                    // Another owner keeps it.
                    if self.is_kept(d, uid) {
                        Action::Disown(d.clone(), uid.to_owned())
                    } else {
                        Action::Delete(d.clone())
                    }
                }));
            }
            if object.is_namespace {
                actions.extend(self.review_namespace(&object.name));
            } else if self.is_ending(&object.namespace) {
                actions.push(Action::ReportNamespace(object.namespace.clone()));
            }
        } else {
            let known = object.owners.iter().filter(|o| self.objects.contains_key(&o.uid)).count();
            match object.owners.len() {
                all if all == known => {}
                _ if known == 0 => actions.push(Action::Collect(uid.to_owned())),
                _ => actions.push(Action::Forget(uid.to_owned())),
            }
        }
        actions
    }

    /// What follows from everything, after the first lists.
    #[must_use]
    pub fn review_all(&self) -> Vec<Action> {
        let mut actions: BTreeSet<Action> = self.objects.keys().flat_map(|uid| self.review(uid)).collect();
        let known: BTreeSet<&String> =
            self.objects.values().filter(|o| o.is_namespace).map(|o| &o.name).collect();
        let lost = self.namespaces.keys().filter(|n| !known.contains(n));
        actions.extend(lost.cloned().map(Action::Empty));
        actions.into_iter().collect()
    }

    fn dependents_of(&self, uid: &str) -> impl Iterator<Item = &Uid> {
        self.dependents.get(uid).into_iter().flatten()
    }

    /// Whether an object has an owner besides this one that does not wait for it to go.
    fn is_kept(&self, dependent: &str, owner: &str) -> bool {
        let stays = |uid: &Uid| {
            let waits = |o: &Object| o.is_deleting && o.finalizers.iter().any(|f| f == FOREGROUND);
            self.objects.get(uid).is_some_and(|o| !waits(o))
        };
        self.objects.get(dependent).is_some_and(|o| o.owners.iter().any(|r| r.uid != owner && stays(&r.uid)))
    }

    fn blocks(&self, dependent: &str, owner: &str) -> bool {
        self.objects.get(dependent).is_some_and(|o| o.owners.iter().any(|r| r.uid == owner && r.blocks))
    }

    /// The objects in a Namespace.
    #[must_use]
    pub fn contents(&self, namespace: &str) -> Vec<Uid> {
        self.namespaces.get(namespace).into_iter().flatten().cloned().collect()
    }

    /// Whether this Namespace is being deleted.
    fn is_ending(&self, name: &str) -> bool {
        self.objects.values().any(|o| o.is_namespace && o.name == name && o.is_deleting)
    }

    fn review_namespace(&self, name: &str) -> Vec<Action> {
        if !self.is_ending(name) {
            return Vec::new();
        }
        let contents = self.contents(name);
        if contents.is_empty() {
            return vec![Action::FinishNamespace(name.to_owned())];
        }
        let stays = |uid: &Uid| self.objects.get(uid).is_some_and(|o| !o.is_deleting);
        let (staying, going): (Vec<Uid>, Vec<Uid>) = contents.into_iter().partition(stays);
        let report = (!going.is_empty()).then(|| Action::ReportNamespace(name.to_owned()));
        staying.into_iter().map(Action::Delete).chain(report).collect()
    }

    fn unlink(&mut self, uid: &str) {
        let Some(object) = self.objects.get(uid) else { return };
        for owner in &object.owners {
            if let Some(dependents) = self.dependents.get_mut(&owner.uid) {
                dependents.remove(uid);
                if dependents.is_empty() {
                    self.dependents.remove(&owner.uid);
                }
            }
        }
        if let Some(contents) = self.namespaces.get_mut(&object.namespace) {
            contents.remove(uid);
            if contents.is_empty() {
                self.namespaces.remove(&object.namespace);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn object(owners: &[&str]) -> Object {
        let owner = |uid: &&str| Owner { uid: (*uid).to_owned(), blocks: true, ..Owner::default() };
        Object { namespace: "ns".into(), owners: owners.iter().map(owner).collect(), ..Object::default() }
    }

    fn deleting(mut object: Object, finalizer: &str) -> Object {
        object.is_deleting = true;
        object.finalizers = vec![finalizer.to_owned()];
        object
    }

    fn graph(edges: &[(&str, &[&str])]) -> Graph {
        let mut graph = Graph::default();
        graph.put("n", Object { name: "ns".into(), is_namespace: true, ..Object::default() });
        for (uid, owners) in edges {
            graph.put(uid, object(owners));
        }
        graph
    }

    fn uid(text: &str) -> Uid {
        text.to_owned()
    }

    #[test]
    fn dependents_follow_their_last_owner() {
        let mut graph = graph(&[("a", &[]), ("b", &[]), ("c", &["a"]), ("d", &["a", "b"])]);
        assert_eq!(graph.review_all(), []);
        assert_eq!(graph.remove("a"), [Action::Collect(uid("c")), Action::Forget(uid("d"))]);
        assert_eq!(graph.remove("b"), [Action::Collect(uid("d"))]);
        assert_eq!(graph.review_all(), [Action::Collect(uid("c")), Action::Collect(uid("d"))]);
    }

    #[test]
    fn a_dependent_that_comes_after_its_owner_has_gone() {
        let graph = graph(&[("c", &["gone"])]);
        assert_eq!(graph.review("c"), [Action::Collect(uid("c"))]);
    }

    #[test]
    fn foreground_waits_for_dependents() {
        let mut graph = graph(&[("a", &[]), ("c", &["a"]), ("d", &["c"])]);
        graph.put("a", deleting(object(&[]), FOREGROUND));
        assert_eq!(graph.review("a"), [Action::Delete(uid("c"))]);
        graph.put("c", deleting(object(&["a"]), FOREGROUND));
        assert_eq!(graph.review("a"), []);
        assert_eq!(graph.review("c"), [Action::Delete(uid("d"))]);
        assert_eq!(graph.remove("d"), [Action::Unblock(uid("c"), FOREGROUND)]);
        assert_eq!(graph.remove("c"), [Action::Unblock(uid("a"), FOREGROUND)]);
    }

    #[test]
    fn another_owner_keeps_a_dependent() {
        let mut graph = graph(&[("a", &[]), ("b", &[]), ("d", &["a", "b"])]);
        assert_eq!(graph.put("a", deleting(object(&[]), FOREGROUND)), [Action::Disown(uid("d"), uid("a"))]);
        assert_eq!(graph.put("d", object(&["b"])), [Action::Unblock(uid("a"), FOREGROUND)]);
    }

    #[test]
    fn orphans_are_disowned() {
        let mut graph = graph(&[("a", &[]), ("c", &["a"])]);
        graph.put("a", deleting(object(&[]), ORPHAN));
        assert_eq!(graph.review("a"), [Action::Disown(uid("c"), uid("a"))]);
        // The change of the last dependent frees its former owner.
        assert_eq!(graph.put("c", object(&[])), [Action::Unblock(uid("a"), ORPHAN)]);
        assert_eq!(graph.put("c", object(&[])), []);
        // One that comes late is let go too.
        assert_eq!(graph.put("d", object(&["a"])), [Action::Disown(uid("d"), uid("a"))]);
    }

    #[test]
    fn a_dependent_that_no_longer_blocks_frees_its_owner() {
        let mut graph = graph(&[("a", &[]), ("c", &["a"])]);
        graph.put("c", deleting(object(&["a"]), "x.io/hold"));
        assert_eq!(graph.put("a", deleting(object(&[]), FOREGROUND)), []);
        let mut freed = deleting(object(&["a"]), "x.io/hold");
        freed.owners[0].blocks = false;
        assert_eq!(graph.put("c", freed), [Action::Unblock(uid("a"), FOREGROUND)]);
    }

    #[test]
    fn a_namespace_is_emptied_then_finished() {
        let mut graph = graph(&[("a", &[]), ("b", &[])]);
        assert_eq!(graph.review_all(), []);
        let namespace =
            Object { name: "ns".into(), is_namespace: true, is_deleting: true, ..Object::default() };
        graph.put("n", namespace);
        assert_eq!(graph.review("n"), [Action::Delete(uid("a")), Action::Delete(uid("b"))]);
        assert_eq!(graph.remove("a"), [Action::Delete(uid("b"))]);
        let mut held = graph.get("b").unwrap().clone();
        held.is_deleting = true;
        graph.put("b", held);
        assert_eq!(graph.review("n"), [Action::ReportNamespace("ns".into())]);
        assert_eq!(graph.remove("b"), [Action::FinishNamespace("ns".into())]);
    }

    #[test]
    fn what_is_left_of_a_namespace_that_is_gone_goes_too() {
        let mut graph = graph(&[("a", &[])]);
        assert_eq!(graph.remove("n"), [Action::Empty("ns".into())]);
        assert_eq!(graph.review_all(), [Action::Empty("ns".into())]);
        assert_eq!(graph.contents("ns"), ["a"]);
    }
}
