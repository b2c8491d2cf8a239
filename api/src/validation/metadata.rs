//! Rules for the metadata of all kinds.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use serde::Serialize;

use crate::annotations::{CREATOR, LAST_MODIFIER};
use crate::autoscaling;
use crate::configmaps::Configs;
use crate::defaulting::same;
use crate::field_error::FieldError;
use crate::syntax;

static EMPTY: BTreeMap<String, String> = BTreeMap::new();

pub(super) fn annotations(meta: &ObjectMeta) -> &BTreeMap<String, String> {
    meta.annotations.as_ref().unwrap_or(&EMPTY)
}

pub(super) fn labels(meta: &ObjectMeta) -> &BTreeMap<String, String> {
    meta.labels.as_ref().unwrap_or(&EMPTY)
}

/// Problems the way lists print.
pub(super) fn listed(problems: &[String]) -> String {
    format!("[{}]", problems.join(" "))
}

/// The name, and that scaling is not annotated where it has no effect.
pub(super) fn user_facing(meta: &ObjectMeta) -> FieldError {
    let misplaced = annotations(meta).keys().filter(|key| key.starts_with(autoscaling::GROUP));
    let errors = misplaced.map(|key| {
        FieldError::invalid_key_name(key, "").with_details(
            r#"autoscaling annotations must be put under "spec.template.metadata.annotations" to work"#,
        )
    });
    name(meta).also(errors.collect::<FieldError>().via_field("annotations"))
}

/// The name, and the annotations about scaling.
pub(super) fn scalable(meta: &ObjectMeta, configs: &Configs) -> FieldError {
    let scaling = autoscaling::annotations::validate(annotations(meta), &configs.autoscaler);
    name(meta).also(scaling.via_field("annotations"))
}

fn name(meta: &ObjectMeta) -> FieldError {
    let name = meta.name.as_deref().unwrap_or_default();
    let prefix = meta.generate_name.as_deref().unwrap_or_default();
    let problems = syntax::dns1035_label_prefix(prefix);
    if !prefix.is_empty() && !problems.is_empty() {
        let message = format!("not a DNS 1035 label prefix: {}", listed(&problems));
        return FieldError::generic(message, &["generateName"]);
    }
    let problems = syntax::dns1035_label(name);
    if !name.is_empty() && !problems.is_empty() {
        return FieldError::generic(format!("not a DNS 1035 label: {}", listed(&problems)), &["name"]);
    }
    if name.is_empty() && prefix.is_empty() {
        return FieldError::generic("name or generateName is required", &["name"]);
    }
    FieldError::none()
}

/// An object that says by label whose child it is needs that owner, unless it says so already: an owner that is deleted
/// without its dependents leaves them their labels.
pub(super) fn owner_label(
    old: Option<&ObjectMeta>,
    meta: &ObjectMeta,
    label: &str,
    kind: &str,
) -> FieldError {
    let Some(name) = labels(meta).get(label) else { return FieldError::none() };
    if old.is_some_and(|old| labels(old).get(label) == Some(name)) {
        return FieldError::none();
    }
    let is_owner = |owner: &OwnerReference| owner.kind == kind && owner.name == *name;
    if meta.owner_references.iter().flatten().any(is_owner) {
        return FieldError::none();
    }
    FieldError::missing(&[label]).via_field("labels")
}

/// Nobody but the webhook says who made and changed an object.
pub(super) fn creator_and_modifier(
    old: (&ObjectMeta, &impl Serialize),
    new: (&ObjectMeta, &impl Serialize),
) -> FieldError {
    let of = |meta, key: &str| annotations(meta).get(key).map(String::as_str).unwrap_or_default();
    let mut errors = FieldError::none();
    if of(old.0, CREATOR) != of(new.0, CREATOR) {
        errors.add(FieldError::generic("annotation value is immutable", &[CREATOR]));
    }
    let modifier = of(new.0, LAST_MODIFIER);
    if of(old.0, LAST_MODIFIER) != modifier && same(old.1, new.1) {
        errors.add(FieldError::invalid_value(modifier, LAST_MODIFIER));
    }
    errors
}
