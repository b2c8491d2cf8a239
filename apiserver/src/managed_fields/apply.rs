//! The two ways of writing: updates take what they change, applies state what they want.

use serde_json::{Map, Value};

use super::compare::{Comparison, field_set};
use super::conflict::{self, Conflict};
use super::entry::{Entry, Id, Managed, Operation};
use super::merge::{merge, prune};
use super::set::{Set, Step};
use super::types::Type;

/// Who owns what was there before the first apply of an object that nobody kept account of.
const BEFORE_FIRST_APPLY: &str = "before-first-apply";

/// What a write can change.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Scope {
    /// Everything.
    Whole,
    /// Everything but the status, which has a subresource of its own.
    WithoutStatus,
    Status,
}

impl Scope {
    fn narrow(self, set: &mut Set) {
        match self {
            Self::Whole => {}
            Self::WithoutStatus => set.remove_field("status"),
            Self::Status => set.keep_field("status"),
        }
    }
}

/// Who writes, and when.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Write<'a> {
    pub manager: &'a str,
    pub api_version: &'a str,
    /// Empty for the main resource.
    pub subresource: &'a str,
    pub scope: Scope,
    /// RFC 3339, whole seconds.
    pub now: &'a str,
}

impl Write<'_> {
    fn id(&self, operation: Operation) -> Id {
        Id { manager: self.manager.to_owned(), operation, subresource: self.subresource.to_owned() }
    }

    fn entry(&self, operation: Operation, fields: Set) -> Entry {
        Entry {
            id: self.id(operation),
            api_version: self.api_version.to_owned(),
            time: Some(self.now.to_owned()),
            fields,
        }
    }
}

/// What of an object's metadata is the server's to say, and nobody's who applies it.
pub(crate) const SERVER_FIELDS: [&str; 8] = [
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "generation",
    "managedFields",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// What the server itself decides of every object belongs to nobody, nor does the object as a whole.
fn strip(set: &mut Set) {
    let mut server = Set::default();
    server.member = true;
    for field in ["apiVersion", "kind", "metadata"] {
        server.insert(&[Step::field(field)]);
    }
    for field in ["name", "namespace"].into_iter().chain(SERVER_FIELDS) {
        server.insert(&[Step::field("metadata"), Step::field(field)]);
    }
    set.subtract(&server);
}

/// The owners after a write that made `new` of `live` (null for an object that is made).
pub(crate) fn update(
    live: &Value,
    new: &Value,
    ty: Type<'_>,
    mut managed: Managed,
    write: &Write<'_>,
) -> Managed {
    let nothing = Value::Object(Map::new());
    let live = if live.is_object() { live } else { &nothing };
    let mut comparison = Comparison::of(live, new, ty);
    for set in [&mut comparison.added, &mut comparison.modified, &mut comparison.removed] {
        write.scope.narrow(set);
    }
    let mut taken = comparison.written();
    for entry in &mut managed.0 {
        entry.fields.subtract(&taken);
        entry.fields.subtract(&comparison.removed);
    }
    strip(&mut taken);
    if !taken.is_empty() {
        let id = write.id(Operation::Update);
        match managed.find_mut(&id) {
            Some(entry) => {
                entry.fields.union(&taken);
                write.api_version.clone_into(&mut entry.api_version);
                entry.time = Some(write.now.to_owned());
            }
            None => managed.0.push(write.entry(Operation::Update, taken)),
        }
    }
    managed.0.retain(|entry| !entry.fields.is_empty());
    managed
}

/// The object and its owners after `config` is applied to `live` (null for an object that is made).
///
/// # Errors
/// The fields of others that would change, unless `force`.
pub(crate) fn apply(
    live: &Value,
    config: &Value,
    ty: Type<'_>,
    mut managed: Managed,
    write: &Write<'_>,
    force: bool,
) -> Result<(Value, Managed), Vec<Conflict>> {
    let nothing = Value::Object(Map::new());
    if managed.is_empty() && live.is_object() {
        let before = Write { manager: BEFORE_FIRST_APPLY, subresource: "", scope: Scope::Whole, ..*write };
        managed = update(&nothing, live, ty, managed, &before);
    }
    let live = if live.is_object() { live } else { &nothing };
    let id = write.id(Operation::Apply);
    let mut applied = field_set(config, ty);
    write.scope.narrow(&mut applied);

    let mut new = live.clone();
    merge(&mut new, config, ty);
    if let Some(last) = managed.find(&id) {
        let mut owned = field_set(config, ty);
        for entry in managed.0.iter().filter(|entry| entry.id != id) {
            owned.union(&entry.fields);
        }
        prune(&mut new, &last.fields, &owned, ty);
    }

    let mut comparison = Comparison::of(live, &new, ty);
    for set in [&mut comparison.added, &mut comparison.modified, &mut comparison.removed] {
        write.scope.narrow(set);
    }
    let written = comparison.written();
    let mut conflicts = Vec::new();
    for entry in managed.0.iter_mut().filter(|entry| entry.id != id) {
        let lost = entry.fields.intersection(&written);
        if !force {
            conflicts.extend(conflict::of(entry, &lost));
        }
        entry.fields.subtract(&lost);
        entry.fields.subtract(&comparison.removed);
    }
    if !conflicts.is_empty() {
        return Err(conflicts);
    }

    strip(&mut applied);
    let changed = new != *live;
    match managed.find_mut(&id) {
        Some(entry) if !changed && entry.fields == applied && entry.api_version == write.api_version => {}
        Some(entry) => *entry = write.entry(Operation::Apply, applied),
        None => managed.0.push(write.entry(Operation::Apply, applied)),
    }
    managed.0.retain(|entry| !entry.fields.is_empty());
    Ok((new, managed))
}
