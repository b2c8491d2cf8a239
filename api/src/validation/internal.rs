//! Rules for the kinds controllers write. They are checked as JSON: a typed object no longer has the values that
//! are wrong.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Deserialize;
use serde_json::Value;

use super::fieldmask::{disallowed, is_empty, is_unset};
use super::metadata::{annotations, scalable};
use super::template::container_concurrency;
use super::{Change, DecodeError, annotations as rules, decode};
use crate::autoscaling::v1alpha1::{Metric, PodAutoscaler};
use crate::configmaps::Configs;
use crate::field_error::FieldError;
use crate::networking::v1alpha1::{Certificate, Ingress, ServerlessService};
use crate::syntax;

fn text<'a>(object: &'a Value, field: &str) -> &'a str {
    object[field].as_str().unwrap_or_default()
}

fn items<'a>(object: &'a Value, field: &str) -> &'a [Value] {
    object[field].as_array().map_or(&[], Vec::as_slice)
}

fn required(object: &Value, fields: &[&str]) -> FieldError {
    fields
        .iter()
        .filter(|field| is_unset(field, &object[**field]))
        .map(|field| FieldError::missing(&[field]))
        .collect()
}

pub(super) fn pod_autoscaler(change: Change<'_>, configs: &Configs) -> Result<FieldError, DecodeError> {
    let autoscaler: PodAutoscaler = decode(change.object)?;
    let spec = &change.object["spec"];
    let of_spec = if is_empty(spec) {
        FieldError::missing(&[""])
    } else {
        let concurrency = container_concurrency(autoscaler.spec.container_concurrency, configs);
        reference(&spec["scaleTargetRef"])
            .via_field("scaleTargetRef")
            .also(concurrency.via_field("containerConcurrency"))
            .also(protocol(text(spec, "protocolType")).via_field("protocolType"))
    };
    let metadata = scalable(&autoscaler.metadata, configs).via_field("metadata");
    Ok(metadata.also(of_spec.via_field("spec")))
}

pub(super) fn metric(change: Change<'_>, configs: &Configs) -> Result<FieldError, DecodeError> {
    let metric: Metric = decode(change.object)?;
    let mut errors = scalable(&metric.metadata, configs).via_field("metadata");
    if is_empty(&change.object["spec"]) {
        errors.add(FieldError::missing(&["spec"]));
    }
    Ok(errors)
}

pub(super) fn serverless_service(change: Change<'_>) -> Result<FieldError, DecodeError> {
    let service: ServerlessService = decode(change.object)?;
    let spec = &change.object["spec"];
    let annotated = rules::networking(annotations(&service.metadata)).via_field("annotations");
    let of_spec = if is_empty(spec) {
        FieldError::missing(&[""])
    } else {
        let mode = match text(spec, "mode") {
            "Proxy" | "Serve" => FieldError::none(),
            "" => FieldError::missing(&["mode"]),
            other => FieldError::invalid_value(other, "mode"),
        };
        let activators = match service.spec.num_activators {
            count if count < 0 => FieldError::invalid_value(count, "numActivators"),
            _ => FieldError::none(),
        };
        mode.also(activators)
            .also(reference(&spec["objectRef"]).via_field("objectRef"))
            .also(protocol(text(spec, "protocolType")).via_field("protocolType"))
    };
    Ok(annotated.also(of_spec.via_field("spec")))
}

fn protocol(protocol: &str) -> FieldError {
    match protocol {
        "http1" | "h2c" => FieldError::none(),
        "" => FieldError::missing(&[""]),
        other => FieldError::invalid_value(other, ""),
    }
}

/// A reference to an object of the same namespace.
fn reference(reference: &Value) -> FieldError {
    let typed = core::ObjectReference::deserialize(reference).unwrap_or_default();
    let mut errors = disallowed(&typed, &["apiVersion", "kind", "name"]);
    type Check = fn(&str) -> Vec<String>;
    let fields: [(&str, Check); 3] = [
        ("apiVersion", syntax::qualified_name),
        ("kind", syntax::c_identifier),
        ("name", syntax::dns1123_label),
    ];
    for (field, check) in fields {
        let value = text(reference, field);
        let problems = check(value);
        if value.is_empty() {
            errors.add(FieldError::missing(&[field]));
        } else if !problems.is_empty() {
            errors.add(FieldError::invalid_value(problems.join(", "), field));
        }
    }
    errors
}

pub(super) fn ingress(change: Change<'_>) -> Result<FieldError, DecodeError> {
    let ingress: Ingress = decode(change.object)?;
    let spec = &change.object["spec"];
    if is_empty(spec) {
        return Ok(FieldError::missing(&["spec"]));
    }
    let mut errors = required(spec, &["rules"]);
    for (index, rule) in items(spec, "rules").iter().enumerate() {
        errors.add(self::rule(rule, &ingress.metadata).via_field_index("rules", index));
    }
    for (index, tls) in items(spec, "tls").iter().enumerate() {
        let of_tls = if is_empty(tls) {
            FieldError::missing(&[""])
        } else {
            required(tls, &["secretName", "secretNamespace"])
        };
        errors.add(of_tls.via_field_index("tls", index));
    }
    let option = text(spec, "httpOption");
    if !["", "Enabled", "Redirected"].contains(&option) {
        errors.add(FieldError::invalid_value(option, "httpOption"));
    }
    Ok(errors.via_field("spec"))
}

fn rule(rule: &Value, meta: &ObjectMeta) -> FieldError {
    if is_empty(rule) {
        return FieldError::missing(&[""]);
    }
    if rule["http"].is_null() {
        return FieldError::missing(&["http"]);
    }
    let paths = items(&rule["http"], "paths");
    if paths.is_empty() {
        return FieldError::missing(&["http.paths"]);
    }
    let each =
        paths.iter().enumerate().map(|(index, path)| self::path(path, meta).via_field_index("paths", index));
    each.collect::<FieldError>().via_field("http")
}

fn path(path: &Value, meta: &ObjectMeta) -> FieldError {
    if is_empty(path) {
        return FieldError::missing(&[""]);
    }
    let splits = items(path, "splits");
    if splits.is_empty() {
        return FieldError::missing(&["splits"]);
    }
    let mut total = 0;
    for (index, split) in splits.iter().enumerate() {
        let errors = self::split(split, meta);
        if !errors.is_empty() {
            return errors.via_field_index("splits", index);
        }
        total += split["percent"].as_i64().unwrap_or_default();
    }
    // A single split may leave its share out.
    if total != 100 && (splits.len() != 1 || total != 0) {
        let message = format!("traffic split percentage must total to 100, but was {total}");
        return FieldError::generic(message, &["splits"]);
    }
    FieldError::none()
}

fn split(split: &Value, meta: &ObjectMeta) -> FieldError {
    if is_empty(split) {
        return FieldError::missing(&[""]);
    }
    let mut errors = FieldError::none();
    let percent = split["percent"].as_i64().unwrap_or_default();
    if !(0..=100).contains(&percent) {
        errors.add(FieldError::invalid_value(percent, "percent"));
    }
    let backend = ["serviceNamespace", "serviceName", "servicePort"];
    if backend.iter().all(|field| is_unset(field, &split[*field])) {
        return errors.also(FieldError::missing(&[""]));
    }
    let namespace = text(split, "serviceNamespace");
    if !namespace.is_empty() && namespace != meta.namespace.as_deref().unwrap_or_default() {
        let message = "service namespace must match ingress namespace";
        errors.add(FieldError::generic(message, &["serviceNamespace"]));
    }
    errors.also(required(split, &backend))
}

pub(super) fn certificate(change: Change<'_>) -> Result<FieldError, DecodeError> {
    let certificate: Certificate = decode(change.object)?;
    let spec = &certificate.spec;
    let mut errors = FieldError::none();
    if spec.dns_names.is_empty() {
        errors.add(FieldError::missing(&["dnsNames"]));
    }
    for (index, name) in spec.dns_names.iter().enumerate().filter(|(_, name)| name.is_empty()) {
        errors.add(FieldError::invalid_array_value(name, "dnsNames", index));
    }
    if spec.secret_name.is_empty() {
        errors.add(FieldError::missing(&["secretName"]));
    }
    let is_under = |name: &String| {
        name.strip_suffix(spec.domain.as_str()).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
    };
    if !spec.domain.is_empty() && !spec.dns_names.is_empty() && !spec.dns_names.iter().any(is_under) {
        let path = "domain must be a suffix of, or match exactly, at least one entry in dnsNames";
        errors.add(FieldError::invalid_value("domain", path));
    }
    Ok(errors.via_field("spec"))
}
