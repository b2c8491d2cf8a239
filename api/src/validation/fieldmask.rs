//! Which fields of a Kubernetes object users may set.

use k8s_openapi::api::core::v1 as core;
use serde::Serialize;
use serde_json::Value;

use crate::field_error::FieldError;

/// Fields that Kubernetes tells "unset" from "set to nothing"; the others are unset when they are empty.
const OPTIONAL: [&str; 24] = [
    "activeDeadlineSeconds",
    "allowPrivilegeEscalation",
    "automountServiceAccountToken",
    "enableServiceLinks",
    "fsGroup",
    "fsGroupChangePolicy",
    "hostUsers",
    "hostnameOverride",
    "mountPropagation",
    "preemptionPolicy",
    "priority",
    "privileged",
    "procMount",
    "readOnlyRootFilesystem",
    "recursiveReadOnly",
    "runAsGroup",
    "runAsNonRoot",
    "runAsUser",
    "runtimeClassName",
    "seLinuxChangePolicy",
    "setHostnameAsFQDN",
    "shareProcessNamespace",
    "supplementalGroupsPolicy",
    "terminationGracePeriodSeconds",
];

/// The fields of `object` that are set without being allowed.
pub(super) fn disallowed(object: &impl Serialize, allowed: &[&str]) -> FieldError {
    // What cannot be written as JSON has no fields to speak of; core/v1 types always can.
    let value = serde_json::to_value(object).unwrap_or_default();
    let fields: Vec<&str> = value
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(key, value)| !allowed.contains(&key.as_str()) && is_set(key, value))
        .map(|(key, _)| key.as_str())
        .collect();
    if fields.is_empty() { FieldError::none() } else { FieldError::disallowed(&fields) }
}

fn is_set(key: &str, value: &Value) -> bool {
    match value {
        Value::Null => false,
        Value::Bool(false) => OPTIONAL.contains(&key),
        Value::Number(number) => number.as_i64() != Some(0) || OPTIONAL.contains(&key),
        Value::String(text) => !text.is_empty() || OPTIONAL.contains(&key),
        _ => true,
    }
}

/// Whether a container says nothing at all.
pub(super) fn is_blank(container: &core::Container) -> bool {
    let value = serde_json::to_value(container).unwrap_or_default();
    value.as_object().into_iter().flatten().all(|(key, value)| match value {
        Value::Object(_) => key == "resources" && is_empty(value),
        value => is_empty(value),
    })
}

/// Whether a field of an object is unset: some that hold nothing are set all the same.
pub(super) fn is_unset(field: &str, value: &Value) -> bool {
    match (field, value) {
        ("http", value) => value.is_null(),
        ("headers" | "appendHeaders", Value::Object(entries)) => entries.is_empty(),
        ("servicePort", Value::String(_)) => false,
        (_, value) => is_empty(value),
    }
}

/// Whether nothing at all is set, however deep.
pub(super) fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Bool(true) => false,
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(fields) => fields.iter().all(|(field, value)| is_unset(field, value)),
    }
}
