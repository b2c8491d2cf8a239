//! What is checked of an object on its way in, besides what admission says.

use serde_json::{Value, json};

use super::Call;
use crate::admission::{Operation, Review};
use crate::api::{Api, Caller};
use crate::object::{self, Object};
use crate::request::Target;
use crate::resource::{Durability, NAMESPACES, RESOURCES, Resource};
use crate::status::{ApiError, Cause};
use crate::{metadata, strategy, structure, typed};

/// How deep an object may be nested. What is stored has to be read again, by a parser that goes 127 levels deep, with
/// its account of who owns what, which is a few levels deeper than what it is about.
const DEEPEST: usize = 100;

/// Brings a body into the shape of its kind: unknown fields out, defaults in.
pub(super) fn shape(
    api: &Api,
    index: usize,
    value: &mut Value,
    caller: &Caller,
    unknown: &mut Vec<String>,
) -> Result<(), ApiError> {
    let resource = &RESOURCES[index];
    if !value.is_object() {
        return Err(misfit(resource, "json: cannot unmarshal into an object"));
    }
    if is_deeper(value, DEEPEST) {
        return Err(misfit(resource, &format!("json: exceeded max depth of {DEEPEST}")));
    }
    if let Some(fault) = metadata::type_fault(value) {
        return Err(misfit(resource, &fault));
    }
    let own = caller.local && resource.durability == Durability::Memory;
    if api.kinds.schema(index).is_some() || !own {
        known_fields(api, index, value, unknown)?;
    }
    if let Some(schema) = api.kinds.schema(index) {
        structure::default(schema, value);
    }
    Ok(())
}

fn is_deeper(value: &Value, levels: usize) -> bool {
    match (value, levels.checked_sub(1)) {
        (Value::Object(map), Some(levels)) => map.values().any(|value| is_deeper(value, levels)),
        (Value::Array(list), Some(levels)) => list.iter().any(|value| is_deeper(value, levels)),
        (Value::Object(_) | Value::Array(_), None) => true,
        _ => false,
    }
}

fn misfit(resource: &Resource, error: &str) -> ApiError {
    ApiError::bad_request(format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: {error}",
        kind = resource.kind,
        version = resource.version
    ))
}

/// Takes out the fields that a kind does not have, and collects their paths.
pub(super) fn known_fields(
    api: &Api,
    index: usize,
    value: &mut Value,
    unknown: &mut Vec<String>,
) -> Result<(), ApiError> {
    let resource = &RESOURCES[index];
    match api.kinds.schema(index) {
        Some(schema) => {
            structure::prune(schema, value, unknown);
            Ok(())
        }
        None => typed::check(resource, value, unknown).map_err(|e| misfit(resource, &e)),
    }
}

/// The body must be of the kind, namespace and name that the path says.
pub(super) fn check_identity(target: &Target, value: &Value) -> Result<(), ApiError> {
    let resource = target.resource();
    let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default();
    let (api_version, kind) = (text("apiVersion"), text("kind"));
    if resource.custom && (kind.is_empty() || api_version.is_empty()) {
        let missing = if kind.is_empty() { "Kind" } else { "apiVersion" };
        return Err(ApiError::bad_request(format!("Object '{missing}' is missing in the request's body")));
    }
    if !api_version.is_empty() && api_version != resource.api_version() {
        return Err(ApiError::bad_request(format!(
            "the API version in the data ({api_version}) does not match the expected API version ({})",
            resource.api_version()
        )));
    }
    if !kind.is_empty() && kind != resource.kind {
        return Err(ApiError::bad_request(format!(
            "{kind} in version {:?} cannot be handled as a {}: the kind of the object does not match",
            resource.version, resource.kind
        )));
    }
    let namespace = object::text(value, "namespace");
    if !namespace.is_empty() && target.namespace.as_deref().is_some_and(|n| n != namespace) {
        return Err(ApiError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

pub(super) fn check_name(target: &Target, value: &Value) -> Result<(), ApiError> {
    let name = object::text(value, "name");
    match target.name.as_deref() {
        Some(wanted) if !name.is_empty() && name != wanted => Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({wanted})"
        ))),
        _ => Ok(()),
    }
}

/// What the schema and the metadata rules say of the final object.
pub(super) fn check_valid(
    api: &Api,
    index: usize,
    value: &Value,
    old: Option<&Value>,
) -> Result<(), ApiError> {
    let resource = &RESOURCES[index];
    let mut causes = strategy::validate(resource, value, old);
    if let Some(schema) = api.kinds.schema(index) {
        causes.extend(structure::validate(schema, value));
    }
    if causes.is_empty() {
        Ok(())
    } else {
        Err(ApiError::invalid(resource, object::text(value, "name"), &causes))
    }
}

pub(super) fn check_namespace(api: &Api, target: &Target, name: &str) -> Result<(), ApiError> {
    let Some(namespace) = &target.namespace else { return Ok(()) };
    let Some(found) = api.store.get(NAMESPACES, &(String::new(), namespace.clone())) else {
        return Err(ApiError::not_found(&RESOURCES[NAMESPACES], namespace));
    };
    if object::is_terminating(&found.value()) {
        let detail =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let cause = json!({ "reason": "NamespaceTerminating", "field": "metadata.namespace",
                            "message": format!("namespace {namespace} is being terminated") });
        return Err(ApiError::forbidden(target.resource(), name, &detail, Some(cause)));
    }
    Ok(())
}

pub(super) fn review<'a>(
    call: &'a Call<'_>,
    resource: &'static Resource,
    operation: Operation,
    old: Option<&'a Value>,
) -> Review<'a> {
    Review {
        group: resource.group,
        version: resource.version,
        kind: resource.kind,
        operation,
        namespace: call.target.namespace.as_deref().unwrap_or_default(),
        old,
        user: &call.caller.user,
        dry_run: call.dry_run,
    }
}

/// Optimistic concurrency: the caller's version, if it gives one, must be the stored one.
pub(super) fn check_version(
    resource: &Resource,
    name: &str,
    old: &Object,
    new: &Value,
    optional: bool,
) -> Result<(), ApiError> {
    let version = object::text(new, "resourceVersion");
    if version.is_empty() {
        if !optional {
            let cause = Cause {
                reason: "FieldValueInvalid",
                field: "metadata.resourceVersion".into(),
                message: "Invalid value: 0: must be specified for an update".into(),
            };
            return Err(ApiError::invalid(resource, name, &[cause]));
        }
    } else if version.parse() != Ok(old.version()) {
        return Err(ApiError::modified(resource, name));
    }
    let uid = object::text(new, "uid");
    if !uid.is_empty() && uid != old.uid() {
        let text =
            format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", old.uid());
        return Err(ApiError::conflict(resource, name, &text));
    }
    Ok(())
}
