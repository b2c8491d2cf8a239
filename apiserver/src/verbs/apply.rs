//! Server-side apply: a caller states the fields it wants, and the server works out the rest.

use std::sync::Arc;

use serde_json::{Map, Value, json};

use super::check::{check_identity, check_name, check_namespace, check_version, known_fields, shape};
use super::create::admit;
use super::{Call, ownership};
use crate::api::Api;
use crate::decode::{self, Encoding};
use crate::managed_fields::{self, Managed, SERVER_FIELDS};
use crate::metadata;
use crate::object::{self, Object, metadata_mut};
use crate::status::ApiError;

/// The fields that a caller wants.
pub(super) struct Config {
    value: Value,
    /// An object with the version and the uid that the stored one must have, where the caller said so.
    precondition: Value,
}

impl Config {
    /// Reads the body of an apply.
    ///
    /// # Errors
    /// 400 when it is not an object of the kind and name that the path says, or cannot be merged.
    pub(super) fn parse(api: &Api, call: &Call<'_>, warnings: &mut Vec<String>) -> Result<Self, ApiError> {
        let target = call.target;
        let (mut value, duplicates) = parse(call.body)?;
        if !value.is_object() {
            return Err(ApiError::bad_request(
                "error decoding YAML: the applied configuration is not an object",
            ));
        }
        if let Some(fault) = metadata::type_fault(&value) {
            return Err(ApiError::bad_request(format!("error decoding YAML: {fault}")));
        }
        let account = object::meta(&value, "managedFields").and_then(Value::as_array);
        if account.is_some_and(|list| !list.is_empty()) {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        for field in ["kind", "apiVersion"] {
            if value.get(field).and_then(Value::as_str).unwrap_or_default().is_empty() {
                let shown = if field == "kind" { "Kind" } else { field };
                let text = format!("Object '{shown}' is missing in the request's body");
                return Err(ApiError::bad_request(text));
            }
        }
        drop_nulls(&mut value);
        let scale = target.subresource.as_deref() == Some("scale");
        if scale {
            check_scale(&value)?;
        } else {
            check_identity(target, &value)?;
        }
        check_name(target, &value)?;
        let mut unknown = Vec::new();
        if !scale {
            known_fields(api, target.resource, &mut value, &mut unknown)?;
        }
        decode::report(call.validation, "", &duplicates, &unknown, warnings)?;

        let precondition = json!({ "metadata": {
            "resourceVersion": object::text(&value, "resourceVersion"), "uid": object::text(&value, "uid") } });
        let metadata = metadata_mut(&mut value);
        for field in SERVER_FIELDS {
            metadata.remove(field);
        }
        if let Some(name) = &target.name {
            metadata.insert("name".into(), name.as_str().into());
        }
        if let Some(namespace) = &target.namespace {
            metadata.insert("namespace".into(), namespace.as_str().into());
        }
        narrow(call, &mut value);
        if let Some(fault) = ownership::ty(api, call).fault(&value) {
            let resource = target.resource();
            return Err(ApiError::bad_request(format!(
                "failed to create typed patch object ({}/{}; {}, Kind={}): {fault}",
                target.namespace.as_deref().unwrap_or_default(),
                target.name.as_deref().unwrap_or_default(),
                resource.api_version(),
                resource.kind
            )));
        }
        Ok(Self { value, precondition })
    }

    /// The object and its account after this is applied to what is stored, `old` as a tree.
    ///
    /// # Errors
    /// 409 when a precondition does not hold, or fields of others would change and `force` is not given.
    pub(super) fn over(
        &self,
        api: &Api,
        call: &Call<'_>,
        stored: &Object,
        old: &Value,
    ) -> Result<(Value, Option<Value>), ApiError> {
        let name = call.target.name.as_deref().unwrap_or_default();
        check_version(call.target.resource(), name, stored, &self.precondition, true)?;
        let (mut new, managed) = self.merged(api, call, old, ownership::stored(old))?;
        // It is put back when the rest of the object is known.
        ownership::take(&mut new);
        Ok((new, ownership::encoded(managed)))
    }

    fn merged(
        &self,
        api: &Api,
        call: &Call<'_>,
        live: &Value,
        managed: Managed,
    ) -> Result<(Value, Managed), ApiError> {
        let kubectl =
            call.field_manager == Some(managed_fields::KUBECTL) && call.target.subresource.is_none();
        let apply = if kubectl { managed_fields::apply_as_kubectl } else { managed_fields::apply };
        let force = call.force.unwrap_or_default();
        ownership::with_write(call, |write| {
            apply(live, &self.value, ownership::ty(api, call), managed, write, force)
        })
        .map_err(|conflicts| {
            ApiError::apply_conflict(
                &managed_fields::message(&conflicts),
                &managed_fields::causes(&conflicts),
            )
        })
    }

    /// Makes the object that is not there; `None` when there is one by now.
    ///
    /// # Errors
    /// 404 for a subresource, 409 when the caller expected an object, and those of a creation.
    pub(super) async fn create(
        &self,
        api: &Arc<Api>,
        call: &Call<'_>,
        warnings: &mut Vec<String>,
    ) -> Result<Option<Arc<Object>>, ApiError> {
        let (target, resource) = (call.target, call.target.resource());
        let name = target.name.as_deref().unwrap_or_default();
        if target.subresource.is_some() {
            return Err(ApiError::not_found(resource, name));
        }
        let uid = object::text(&self.precondition, "uid");
        if !uid.is_empty() {
            let detail = format!(
                "uid mismatch: the provided object specified uid {uid}, and no existing object was found"
            );
            return Err(ApiError::conflict(resource, name, &detail));
        }
        if !object::text(&self.precondition, "resourceVersion").is_empty() {
            return Err(ApiError::modified(resource, name));
        }
        check_namespace(api, target, name)?;
        let (mut value, managed) = self.merged(api, call, &Value::Null, Managed::default())?;
        // What is not known was told when the body was read.
        shape(api, target.resource, &mut value, call.caller, &mut Vec::new())?;
        admit(api, call, value, ownership::encoded(managed), warnings).await
    }
}

fn parse(body: &[u8]) -> Result<(Value, Vec<String>), ApiError> {
    // Clients send JSON for the most part, which is read several times as fast.
    match body.trim_ascii_start().first() {
        Some(b'{') => decode::parse(body, Encoding::Json).or_else(|_| decode::parse(body, Encoding::Yaml)),
        _ => decode::parse(body, Encoding::Yaml),
    }
}

/// A null states nothing.
fn drop_nulls(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, value| !value.is_null());
            map.values_mut().for_each(drop_nulls);
        }
        Value::Array(list) => list.iter_mut().for_each(drop_nulls),
        _ => {}
    }
}

fn check_scale(value: &Value) -> Result<(), ApiError> {
    let is = |field: &str, wanted: &str| value.get(field).and_then(Value::as_str) == Some(wanted);
    if is("apiVersion", "autoscaling/v1") && is("kind", "Scale") {
        Ok(())
    } else {
        Err(ApiError::bad_request("Scale in version \"v1\" cannot be handled as a Scale"))
    }
}

/// Leaves of an applied object what the resource or subresource that it is applied to has.
fn narrow(call: &Call<'_>, value: &mut Value) {
    let Some(map) = value.as_object_mut() else { return };
    let part = match call.target.subresource.as_deref() {
        None => {
            if call.target.resource().status {
                map.remove("status");
            }
            return;
        }
        Some("status") => map.remove("status").map(|status| ("status", status)),
        Some("scale") => {
            let replicas = map.get("spec").and_then(|spec| spec.get("replicas")).cloned();
            replicas.map(|replicas| ("spec", json!({ "replicas": replicas })))
        }
        Some(_) => {
            let finalizers = map.get("spec").and_then(|spec| spec.get("finalizers")).cloned();
            finalizers.map(|finalizers| ("spec", json!({ "finalizers": finalizers })))
        }
    };
    let identity = Map::from_iter([
        ("name".to_owned(), call.target.name.as_deref().into()),
        ("namespace".to_owned(), call.target.namespace.as_deref().into()),
    ]);
    *map = Map::from_iter([("metadata".to_owned(), Value::Object(identity))]);
    if let Some((field, value)) = part {
        map.insert(field.to_owned(), value);
    }
    drop_nulls(value);
}
