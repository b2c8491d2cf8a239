//! Field ownership: who set which field, conflicts between appliers, and server-side apply. Pure.
//!
//! The rules are those of Kubernetes' structured merge: a writer owns what it changes, an applier what it applies;
//! whoever applies another value to a field of somebody else is refused, unless forced; what an applier no longer
//! applies goes, unless somebody else owns it.

mod apply;
mod compare;
mod conflict;
mod entry;
mod fields_v1;
mod kubectl;
mod merge;
#[cfg(test)]
mod properties;
mod set;
mod types;

pub(crate) use apply::{SERVER_FIELDS, Scope, Write, apply, update};
pub(crate) use conflict::{causes, message};
pub(crate) use entry::Managed;
pub(crate) use kubectl::{KUBECTL, apply_as_kubectl};
pub(crate) use types::Type;
