//! Fields that belong to others, as an answer tells them.

use std::collections::BTreeMap;

use super::entry::{Entry, Operation};
use super::set::{Set, Step, path_text};
use crate::status::Cause;

/// A field that another manager owns with another value.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Conflict {
    /// The manager as messages name it.
    manager: String,
    path: Vec<Step>,
}

impl Conflict {
    pub(crate) fn is_in(&self, set: &Set) -> bool {
        set.contains(&self.path)
    }
}

/// The fields of `set` that `owner` stands to lose.
pub(crate) fn of(owner: &Entry, set: &Set) -> Vec<Conflict> {
    let manager = describe(owner);
    set.paths().into_iter().map(|path| Conflict { manager: manager.clone(), path }).collect()
}

fn describe(owner: &Entry) -> String {
    let mut text = format!("{:?}", owner.id.manager);
    if !owner.id.subresource.is_empty() {
        text.push_str(&format!(" with subresource {:?}", owner.id.subresource));
    }
    if owner.id.operation == Operation::Update {
        text.push_str(&format!(" using {}", owner.api_version));
    }
    text
}

/// The message for all of them.
pub(crate) fn message(conflicts: &[Conflict]) -> String {
    if let [one] = conflicts {
        return format!(
            "Apply failed with 1 conflict: conflict with {}: {}",
            one.manager,
            path_text(&one.path)
        );
    }
    let mut by_manager: BTreeMap<&str, Vec<String>> = BTreeMap::new();
    for conflict in conflicts {
        by_manager.entry(&conflict.manager).or_default().push(path_text(&conflict.path));
    }
    let mut lines = Vec::new();
    for (manager, paths) in by_manager {
        lines.push(format!("conflicts with {manager}:"));
        lines.extend(paths.into_iter().map(|path| format!("- {path}")));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

/// One cause for each of them.
pub(crate) fn causes(conflicts: &[Conflict]) -> Vec<Cause> {
    let cause = |conflict: &Conflict| Cause {
        reason: "FieldManagerConflict",
        field: path_text(&conflict.path),
        message: format!("conflict with {}", conflict.manager),
    };
    conflicts.iter().map(cause).collect()
}
