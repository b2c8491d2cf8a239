//! Rules for the template of revisions.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use super::metadata::{annotations, listed};
use super::{annotations as rules, pod};
use crate::autoscaling;
use crate::configmaps::Configs;
use crate::defaulting::differences;
use crate::field_error::FieldError;
use crate::golang::quote;
use crate::serving::v1::{RevisionSpec, RevisionTemplateSpec};
use crate::syntax;

/// Checks a template in an object with the metadata `parent`.
pub(super) fn template(
    template: &RevisionTemplateSpec,
    parent: &ObjectMeta,
    configs: &Configs,
) -> FieldError {
    let annotations = annotations(&template.metadata);
    let annotated = autoscaling::annotations::validate(annotations, &configs.autoscaler)
        .also(rules::networking(annotations))
        .also(rules::queue_sidecar(annotations))
        .also(rules::progress_deadline(annotations));
    revision_spec(&template.spec, configs)
        .via_field("spec")
        .also(annotated.via_field("metadata.annotations"))
        .also(name(&template.metadata, parent))
}

/// Checks a revision's spec.
pub(super) fn revision_spec(spec: &RevisionSpec, configs: &Configs) -> FieldError {
    let mut errors = pod::spec(&spec.pod_spec, &configs.features);
    let max = configs.defaults.max_revision_timeout_seconds;
    if let Some(timeout) = spec.timeout_seconds.filter(|t| *t != 0 && !(0..=max).contains(t)) {
        errors.add(FieldError::out_of_bounds(timeout, 0, max, "timeoutSeconds"));
    }
    if let Some(concurrency) = spec.container_concurrency {
        errors.add(container_concurrency(concurrency, configs).via_field("containerConcurrency"));
    }
    errors
}

/// Checks how many requests a container gets at once.
pub(super) fn container_concurrency(concurrency: i64, configs: &Configs) -> FieldError {
    let low = i64::from(!configs.defaults.allow_container_concurrency_zero);
    let high = configs.defaults.container_concurrency_max_limit;
    if (low..=high).contains(&concurrency) {
        FieldError::none()
    } else {
        FieldError::out_of_bounds(concurrency, low, high, "")
    }
}

/// A revision that is given a name gets its parent's in front.
fn name(meta: &ObjectMeta, parent: &ObjectMeta) -> FieldError {
    let name = meta.name.as_deref().unwrap_or_default();
    let prefix = meta.generate_name.as_deref().unwrap_or_default();
    let problems = syntax::dns1035_label_prefix(prefix);
    if !prefix.is_empty() && !problems.is_empty() {
        let value = format!("not a DNS 1035 label prefix: {}", listed(&problems));
        return FieldError::invalid_value(value, "metadata.generateName");
    }
    if name.is_empty() {
        return FieldError::none();
    }
    let problems = syntax::dns1035_label(name);
    if !problems.is_empty() {
        let value = format!("not a DNS 1035 label: {}", listed(&problems));
        return FieldError::invalid_value(value, "metadata.name");
    }
    let parent_name = parent.name.as_deref().unwrap_or_default();
    if parent_name.is_empty() && parent.generate_name.as_ref().is_some_and(|p| !p.is_empty()) {
        return FieldError::disallowed(&["metadata.name"]);
    }
    let prefix = format!("{parent_name}-");
    if name.starts_with(&prefix) {
        return FieldError::none();
    }
    let value = format!("{} must have prefix {}", quote(name), quote(&prefix));
    FieldError::invalid_value(value, "metadata.name")
}

/// A template that is changed needs another name, if it has one.
pub(super) fn name_change(old: &RevisionTemplateSpec, new: &RevisionTemplateSpec) -> FieldError {
    let name = |template: &RevisionTemplateSpec| template.metadata.name.clone().unwrap_or_default();
    if name(new).is_empty() || name(new) != name(old) {
        return FieldError::none();
    }
    let differences = differences(old, new);
    if differences.is_empty() {
        return FieldError::none();
    }
    FieldError::generic("Saw the following changes without a name change (-old +new)", &["metadata.name"])
        .with_details(differences)
}
