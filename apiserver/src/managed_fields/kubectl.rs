//! From client-side to server-side apply: what `kubectl apply` remembered in its annotation counts as its own.

use serde_json::Value;

use super::apply::{Write, apply};
use super::compare::{Comparison, field_set};
use super::conflict::Conflict;
use super::entry::Managed;
use super::set::Set;
use super::types::Type;

/// The manager for which the annotation counts.
pub(crate) const KUBECTL: &str = "kubectl";
/// The object as it was applied last.
const ANNOTATION: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// All annotations of an object together, in bytes; beyond that the annotation is given up.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

fn annotation(value: &Value) -> Option<&str> {
    value.get("metadata")?.get("annotations")?.get(ANNOTATION)?.as_str().filter(|text| !text.is_empty())
}

/// As [`apply`]. Fields that the stored object has as `kubectl apply` left them are no conflict, and the annotation
/// follows what is applied.
///
/// # Errors
/// The other fields of others that would change, unless `force`.
pub(crate) fn apply_as_kubectl(
    live: &Value,
    config: &Value,
    ty: Type<'_>,
    managed: Managed,
    write: &Write<'_>,
    force: bool,
) -> Result<(Value, Managed), Vec<Conflict>> {
    let (mut new, managed) = match apply(live, config, ty, managed.clone(), write, force) {
        Err(conflicts) => {
            let Some(own) = annotation(live).and_then(|text| left_by_kubectl(text, live, ty)) else {
                return Err(conflicts);
            };
            let foreign: Vec<Conflict> = conflicts.into_iter().filter(|c| !c.is_in(&own)).collect();
            if !foreign.is_empty() {
                return Err(foreign);
            }
            apply(live, config, ty, managed, write, true)?
        }
        Ok(applied) => applied,
    };
    if annotation(&new).is_some() {
        remember(&mut new, config);
    }
    Ok((new, managed))
}

/// The fields of the last client-side apply that are still as it left them.
fn left_by_kubectl(text: &str, live: &Value, ty: Type<'_>) -> Option<Set> {
    let last: Value = serde_json::from_str(text).ok().filter(Value::is_object)?;
    let mut own = field_set(&last, ty);
    let differences = Comparison::of(&last, live, ty);
    own.subtract(&differences.written());
    own.subtract(&differences.removed);
    Some(own)
}

fn remember(new: &mut Value, config: &Value) {
    let mut last = config.clone();
    if let Some(annotations) = last.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(ANNOTATION);
    }
    let Some(annotations) = new.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) else {
        return;
    };
    annotations.insert(ANNOTATION.into(), format!("{last}\n").into());
    let size: usize = annotations.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size > ANNOTATIONS_LIMIT {
        annotations.remove(ANNOTATION);
    }
}
