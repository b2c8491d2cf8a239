//! Rules for the kinds users write.

use super::metadata::{annotations, creator_and_modifier, owner_label, user_facing};
use super::template::{name_change, revision_spec, template};
use super::{Change, DecodeError, annotations as rules, decode, metadata, traffic};
use crate::configmaps::Configs;
use crate::defaulting::differences;
use crate::field_error::FieldError;
use crate::golang::quote;
use crate::serving::v1::{Configuration, Revision, Route, Service};
use crate::serving::v1beta1::DomainMapping;
use crate::{labels, syntax};

pub(super) fn service(change: Change<'_>, configs: &Configs) -> Result<FieldError, DecodeError> {
    let service: Service = decode(change.object)?;
    let (meta, spec) = (&service.metadata, &service.spec);
    let mut errors = FieldError::none();
    if !change.is_status() {
        let rollout = rules::rollout_duration(annotations(meta)).via_field("annotations");
        errors.add(user_facing(meta).also(rollout).via_field("metadata"));
        errors.add(template(&spec.template, meta, configs).via_field("spec.template"));
        errors.add(traffic::list(&spec.traffic, traffic::Owner::Service).via_field("spec.traffic"));
    }
    if let Some(old) = change.original::<Service>()? {
        let user = creator_and_modifier((&old.metadata, &old.spec), (meta, spec));
        errors.add(user.via_field("metadata.annotations"));
        errors.add(name_change(&old.spec.template, &spec.template).via_field("spec.template"));
    }
    Ok(errors)
}

pub(super) fn configuration(change: Change<'_>, configs: &Configs) -> Result<FieldError, DecodeError> {
    let configuration: Configuration = decode(change.object)?;
    let (meta, spec) = (&configuration.metadata, &configuration.spec);
    let old = change.original::<Configuration>()?;
    let before = old.as_ref().map(|old| &old.metadata);
    let mut errors = FieldError::none();
    if !change.is_status() {
        let owner = owner_label(before, meta, labels::SERVICE, "Service");
        errors.add(user_facing(meta).also(owner).via_field("metadata"));
        errors.add(template(&spec.template, meta, configs).via_field("spec.template"));
    }
    if let Some(old) = &old {
        if meta.owner_references.is_none() {
            let user = creator_and_modifier((&old.metadata, &old.spec), (meta, spec));
            errors.add(user.via_field("metadata.annotations"));
        }
        errors.add(name_change(&old.spec.template, &spec.template).via_field("spec.template"));
    }
    Ok(errors)
}

pub(super) fn revision(change: Change<'_>, configs: &Configs) -> Result<FieldError, DecodeError> {
    let revision: Revision = decode(change.object)?;
    let meta = &revision.metadata;
    let old = change.original::<Revision>()?;
    let before = old.as_ref().map(|old| &old.metadata);
    let mut errors = metadata::scalable(meta, configs)
        .also(owner_label(before, meta, labels::CONFIGURATION, "Configuration"))
        .via_field("metadata");
    match &old {
        None => errors.add(revision_spec(&revision.spec, configs).via_field("spec")),
        Some(old) => {
            let differences = differences(&old.spec, &revision.spec);
            if !differences.is_empty() {
                // Nothing else matters then.
                errors = FieldError::generic("Immutable fields changed (-old +new)", &["spec"])
                    .with_details(differences);
            }
        }
    }
    Ok(errors)
}

pub(super) fn route(change: Change<'_>, _: &Configs) -> Result<FieldError, DecodeError> {
    let route: Route = decode(change.object)?;
    let (meta, spec) = (&route.metadata, &route.spec);
    let old = change.original::<Route>()?;
    let before = old.as_ref().map(|old| &old.metadata);
    let rollout = rules::rollout_duration(annotations(meta)).via_field("annotations");
    let mut errors = user_facing(meta)
        .also(owner_label(before, meta, labels::SERVICE, "Service"))
        .also(rollout)
        .via_field("metadata")
        .also(traffic::list(&spec.traffic, traffic::Owner::Route).via_field("spec.traffic"));
    if let Some(old) = old.as_ref().filter(|_| meta.owner_references.is_none()) {
        let user = creator_and_modifier((&old.metadata, &old.spec), (meta, spec));
        errors.add(user.via_field("metadata.annotations"));
    }
    Ok(errors)
}

pub(super) fn domain_mapping(change: Change<'_>, configs: &Configs) -> Result<FieldError, DecodeError> {
    let mapping: DomainMapping = decode(change.object)?;
    let (meta, reference) = (&mapping.metadata, &mapping.spec.reference);
    let mut errors = FieldError::none();
    if meta.generate_name.as_ref().is_some_and(|prefix| !prefix.is_empty()) {
        errors.add(FieldError::disallowed(&["generateName"]));
    }
    let name = meta.name.as_deref().unwrap_or_default();
    if let Some(problem) = syntax::fully_qualified_domain_name("name", name) {
        errors.add(FieldError::generic(format!("invalid name {}: {problem}", quote(name)), &["name"]));
    }
    let cluster_domain = &configs.domain.cluster_domain;
    if name.strip_suffix(cluster_domain.as_str()).is_some_and(|rest| rest.ends_with('.')) {
        let message = format!(
            "invalid name {}: must not be a subdomain of cluster local domain {}",
            quote(name),
            quote(cluster_domain)
        );
        errors.add(FieldError::generic(message, &["name"]));
    }
    if let Some(old) = change.original::<DomainMapping>()? {
        let user = creator_and_modifier((&old.metadata, &old.spec), (meta, &mapping.spec));
        errors.add(user.via_field("annotations"));
    }
    let mut errors = errors.via_field("metadata");
    let mut of_reference = FieldError::none();
    for (field, value) in
        [("name", &reference.name), ("apiVersion", &reference.api_version), ("kind", &reference.kind)]
    {
        if value.is_empty() {
            of_reference.add(FieldError::missing(&[field]));
        }
    }
    if !reference.group.is_empty() {
        of_reference.add(FieldError::disallowed(&["group"]));
    }
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    if ![namespace, ""].contains(&reference.namespace.as_str()) && !namespace.is_empty() {
        let details = format!(
            "parent namespace: {} does not match ref: {}",
            quote(namespace),
            quote(&reference.namespace)
        );
        of_reference.add(FieldError::generic("mismatched namespaces", &["namespace"]).with_details(details));
    }
    errors.add(of_reference.via_field("spec.ref"));
    Ok(errors)
}
