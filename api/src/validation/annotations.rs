//! Rules for annotations that are not about scaling.

use std::collections::BTreeMap;

use crate::annotations::{self as keys, Keys, lookup};
use crate::field_error::{FieldError, Level};
use crate::golang::{format_float, parse_duration, parse_float};
use crate::{networking, quantity};

type Annotations = BTreeMap<String, String>;

/// How long a new revision takes to get all the traffic.
pub(super) fn rollout_duration(annotations: &Annotations) -> FieldError {
    seconds(annotations, keys::ROLLOUT_DURATION, "rollout-duration")
}

/// How long a rollout may go without progress.
pub(super) fn progress_deadline(annotations: &Annotations) -> FieldError {
    seconds(annotations, keys::PROGRESS_DEADLINE, "progress-deadline")
}

fn seconds(annotations: &Annotations, key: Keys, name: &str) -> FieldError {
    let Some((key, raw)) = lookup(annotations, key).filter(|(_, raw)| !raw.is_empty()) else {
        return FieldError::none();
    };
    match parse_duration(raw) {
        Err(_) => FieldError::invalid_value(raw, key),
        Ok(duration) if !duration.is_whole_seconds() => {
            FieldError::generic(format!("{name}={raw} is not at second precision"), &[key])
        }
        Ok(duration) if duration.0 < 0 => {
            FieldError::generic(format!("{name}={raw} must be positive"), &[key])
        }
        Ok(_) => FieldError::none(),
    }
}

/// Only annotations that Knative knows may be under its networking domain.
pub(super) fn networking(annotations: &Annotations) -> FieldError {
    let known = [
        keys::INGRESS_CLASS,
        keys::CERTIFICATE_CLASS,
        keys::DISABLE_EXTERNAL_DOMAIN_TLS,
        keys::HTTP_PROTOCOL,
    ]
    .concat();
    annotations
        .keys()
        .filter(|key| key.starts_with(networking::GROUP) && !known.contains(&key.as_str()))
        .map(|key| FieldError::invalid_key_name(key, ""))
        .collect()
}

/// The resources of queue-proxy.
pub(super) fn queue_sidecar(annotations: &Annotations) -> FieldError {
    let mut errors = FieldError::none();
    if let Some((key, raw)) = lookup(annotations, keys::QUEUE_SIDECAR_RESOURCE_PERCENTAGE) {
        // It names no path; that is how it is read upstream too.
        errors.add(
            FieldError::generic(
                "Queue proxy resource percentage annotation is deprecated. Please use the available annotations \
                 to explicitly set resource values per service",
                &[],
            )
            .at_level(Level::Warning),
        );
        match parse_float(raw) {
            Err(_) => errors.add(FieldError::invalid_value(raw, "").via_key(key)),
            Ok(value) if !(0.1..=100.0).contains(&value) && !value.is_nan() => {
                errors.add(FieldError::out_of_bounds(format_float(value), 0.1, 100, "").via_key(key));
            }
            Ok(_) => {}
        }
    }
    for key in [
        keys::QUEUE_SIDECAR_CPU_REQUEST,
        keys::QUEUE_SIDECAR_CPU_LIMIT,
        keys::QUEUE_SIDECAR_MEMORY_REQUEST,
        keys::QUEUE_SIDECAR_MEMORY_LIMIT,
        keys::QUEUE_SIDECAR_EPHEMERAL_STORAGE_REQUEST,
        keys::QUEUE_SIDECAR_EPHEMERAL_STORAGE_LIMIT,
    ] {
        if let Some(raw) = annotations.get(key).filter(|raw| quantity::value(raw).is_err()) {
            errors.add(FieldError::invalid_value(raw, "").via_key(key));
        }
    }
    errors
}
