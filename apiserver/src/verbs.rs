//! The verbs: read the stored object, decide (see [`crate::strategy`]), write, and start over when raced.

use std::sync::Arc;

use bytes::Bytes;
use http::{HeaderMap, header};
use serde_json::{Value, json};

use crate::admission::{Denied, Operation, Review};
use crate::api::{Api, Caller};
use crate::decode::{self, FieldValidation};
use crate::journal::StorageError;
use crate::object::{self, Key, Object};
use crate::patch::Patch;
use crate::request::{Query, Target};
use crate::resource::{Durability, EVENTS, NAMESPACES, RESOURCES, Resource};
use crate::selector::Selector;
use crate::status::{ApiError, Cause};
use crate::store::{Found, Write, Written};
use crate::strategy::{self, Birth, DeleteOptions, Deletion};
use crate::{metadata, structure, typed};

/// A write that keeps being overtaken is given up after so many attempts.
const ATTEMPTS: usize = 100;
/// Generated names are tried again when they are taken.
const NAME_ATTEMPTS: usize = 8;
/// Events are a window on the recent past: so many are kept, and when there are more, so many are dropped.
const EVENTS_KEPT: usize = 4096;
const EVENTS_DROPPED: usize = 512;
/// No vowels and no digits that look like letters, as Kubernetes generates names.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// A generated name leaves this much for its prefix.
const PREFIX_LIMIT: usize = 58;

/// A call on a resource.
pub(crate) struct Call<'a> {
    pub target: &'a Target,
    pub headers: &'a HeaderMap,
    pub body: &'a Bytes,
    pub caller: &'a Caller,
    pub dry_run: bool,
    pub validation: FieldValidation,
}

/// Makes a namespace if there is none, as a cluster's API server does at its start.
pub(crate) fn seed_namespace(api: &Api, name: &str) {
    let birth =
        Birth { uid: uuid::Uuid::new_v4().to_string(), now: strategy::timestamp(jiff::Timestamp::now()) };
    let mut value = json!({ "metadata": { "name": name } });
    strategy::prepare_create(&RESOURCES[NAMESPACES], &mut value, &birth);
    // Nobody waits for it, so it is logged behind; an existing one stays as it is.
    let _ = api.store.write(NAMESPACES, (String::new(), name.to_owned()), None, Write::Put(value), false);
}

/// What became of a deleted object.
pub(crate) enum Deleted {
    Gone(Arc<Object>),
    Marked(Arc<Object>),
}

fn storage(error: &StorageError) -> ApiError {
    match error {
        StorageError::Full(_) => ApiError::insufficient_storage(error),
        StorageError::Failed(_) => ApiError::internal(error),
    }
}

impl From<Denied> for ApiError {
    fn from(denied: Denied) -> Self {
        Self::bad_request(denied.to_string())
    }
}

fn key(target: &Target) -> Key {
    let name = target.name.clone().unwrap_or_default();
    (target.namespace.clone().unwrap_or_default(), name)
}

/// The stored object.
///
/// # Errors
/// 404.
pub(crate) fn get(api: &Api, target: &Target) -> Result<Arc<Object>, ApiError> {
    let key = key(target);
    api.store.get(target.resource, &key).ok_or_else(|| ApiError::not_found(target.resource(), &key.1))
}

/// Brings a body into the shape of its kind: unknown fields out, defaults in.
fn shape(
    api: &Api,
    index: usize,
    value: &mut Value,
    caller: &Caller,
    unknown: &mut Vec<String>,
) -> Result<(), ApiError> {
    let resource = &RESOURCES[index];
    let misfit = |error: &str| {
        ApiError::bad_request(format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: {error}",
            kind = resource.kind,
            version = resource.version
        ))
    };
    if !value.is_object() {
        return Err(misfit("json: cannot unmarshal into an object"));
    }
    if let Some(fault) = metadata::type_fault(value) {
        return Err(misfit(&fault));
    }
    if let Some(schema) = api.kinds.schema(index) {
        structure::prune(schema, value, unknown);
        structure::default(schema, value);
    } else if !(caller.local && resource.durability == Durability::Memory) {
        typed::check(resource, value, unknown).map_err(|e| misfit(&e))?;
    }
    Ok(())
}

/// The body must be of the kind, namespace and name that the path says.
fn check_identity(target: &Target, value: &Value) -> Result<(), ApiError> {
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

fn check_name(target: &Target, value: &Value) -> Result<(), ApiError> {
    let name = object::text(value, "name");
    match target.name.as_deref() {
        Some(wanted) if !name.is_empty() && name != wanted => Err(ApiError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({wanted})"
        ))),
        _ => Ok(()),
    }
}

/// What the schema and the metadata rules say of the final object.
fn check_valid(api: &Api, index: usize, value: &Value, old: Option<&Value>) -> Result<(), ApiError> {
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

fn check_namespace(api: &Api, target: &Target, name: &str) -> Result<(), ApiError> {
    let Some(namespace) = &target.namespace else { return Ok(()) };
    let Some(found) = api.store.get(NAMESPACES, &(String::new(), namespace.clone())) else {
        return Err(ApiError::not_found(&RESOURCES[NAMESPACES], namespace));
    };
    if object::is_terminating(found.value()) {
        let detail =
            format!("unable to create new content in namespace {namespace} because it is being terminated");
        let cause = json!({ "reason": "NamespaceTerminating", "field": "metadata.namespace",
                            "message": format!("namespace {namespace} is being terminated") });
        return Err(ApiError::forbidden(target.resource(), name, &detail, Some(cause)));
    }
    Ok(())
}

fn review<'a>(
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

/// POST of a new object.
pub(crate) async fn create(
    api: &Arc<Api>,
    call: &Call<'_>,
    warnings: &mut Vec<String>,
) -> Result<Arc<Object>, ApiError> {
    let (target, resource) = (call.target, call.target.resource());
    if resource.namespaced && target.namespace.is_none() {
        return Err(ApiError::bad_request("an empty namespace may not be set during creation"));
    }
    let (mut value, duplicates) = decode::parse(call.body, decode::encoding(call.headers)?)?;
    let mut unknown = Vec::new();
    shape(api, target.resource, &mut value, call.caller, &mut unknown)?;
    check_identity(target, &value)?;
    let context = format!(
        "{kind} in version {version:?} cannot be handled as a {kind}: ",
        kind = resource.kind,
        version = resource.version
    );
    decode::report(call.validation, &context, &duplicates, &unknown, warnings)?;
    if !object::text(&value, "resourceVersion").is_empty() {
        return Err(ApiError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    if let Some(namespace) = &target.namespace {
        object::metadata_mut(&mut value).insert("namespace".into(), namespace.as_str().into());
    }
    check_namespace(api, target, object::text(&value, "name"))?;

    let review = review(call, resource, Operation::Create, None);
    api.configure_admission();
    api.admission.default(&review, &mut value)?;
    let birth =
        Birth { uid: uuid::Uuid::new_v4().to_string(), now: strategy::timestamp(jiff::Timestamp::now()) };
    let prefix = match (object::text(&value, "name"), object::text(&value, "generateName")) {
        ("", prefix) if !prefix.is_empty() => Some(prefix.chars().take(PREFIX_LIMIT).collect::<String>()),
        _ => None,
    };
    for attempt in 1.. {
        let mut value = value.clone();
        if let Some(prefix) = &prefix {
            let name = format!("{prefix}{}", suffix());
            object::metadata_mut(&mut value).insert("name".into(), name.into());
        }
        strategy::prepare_create(resource, &mut value, &birth);
        check_valid(api, target.resource, &value, None)?;
        let more = api.admission.validate(&review, &value)?;
        if attempt == 1 {
            warnings.extend(more);
        }
        let name = object::text(&value, "name").to_owned();
        let key = (target.namespace.clone().unwrap_or_default(), name.clone());
        match insert(api, call, key, value).await? {
            Some(object) => {
                if target.resource == EVENTS {
                    drop_old_events(api);
                }
                return Ok(object);
            }
            None if prefix.is_some() && attempt < NAME_ATTEMPTS => {}
            None => return Err(ApiError::already_exists(resource, &name)),
        }
    }
    unreachable!("the loop ends in a return")
}

/// Writes a new object; `None` when the name is taken.
async fn insert(api: &Api, call: &Call<'_>, key: Key, value: Value) -> Result<Option<Arc<Object>>, ApiError> {
    let index = call.target.resource;
    loop {
        match api.store.find(index, &key) {
            Found::Object(_) => return Ok(None),
            // What is on its way may yet fail; its outcome decides.
            Found::Busy(wait) => {
                let _ = wait.await;
            }
            Found::Absent if call.dry_run => return Ok(Some(Object::new(value, 0))),
            Found::Absent => {
                let write = Write::Put(value.clone());
                match api.store.write(index, key.clone(), None, write, true).map_err(|e| storage(&e))? {
                    Written::Raced => {}
                    written => return settle(written).await.map(Some),
                }
            }
        }
    }
}

/// Waits for the acknowledgement.
async fn settle(written: Written) -> Result<Arc<Object>, ApiError> {
    match written {
        Written::Done(object) => Ok(object),
        Written::Later(object, wait) => match wait.await {
            Ok(Ok(())) => Ok(object),
            Ok(Err(error)) => Err(storage(&error)),
            Err(_) => Err(ApiError::unavailable("the server is shutting down")),
        },
        Written::Raced => unreachable!("raced writes are tried again by their callers"),
    }
}

fn suffix() -> String {
    (0..5).map(|_| char::from(NAME_ALPHABET[fastrand::usize(..NAME_ALPHABET.len())])).collect()
}

fn drop_old_events(api: &Api) {
    let mut events = api.store.list(EVENTS, None).objects;
    if events.len() <= EVENTS_KEPT {
        return;
    }
    events.sort_by_key(|e| e.version());
    for event in &events[..EVENTS_DROPPED] {
        let value = event.value();
        let key = (object::text(value, "namespace").to_owned(), object::text(value, "name").to_owned());
        // An event that changed meanwhile is not old.
        let _ = api.store.write(EVENTS, key, Some(event.version()), Write::Remove(value.clone()), false);
    }
}

/// Where the new state of a modified object comes from.
enum Source {
    Body { value: Value, duplicates: Vec<String> },
    Patch(Patch),
}

/// PUT and PATCH of the main resource and its subresources.
pub(crate) async fn modify(
    api: &Arc<Api>,
    call: &Call<'_>,
    patch: bool,
    warnings: &mut Vec<String>,
) -> Result<Arc<Object>, ApiError> {
    let (target, resource) = (call.target, call.target.resource());
    let source = if patch {
        let content_type =
            call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
        Source::Patch(Patch::parse(resource, content_type, call.body)?)
    } else {
        let (value, duplicates) = decode::parse(call.body, decode::encoding(call.headers)?)?;
        Source::Body { value, duplicates }
    };
    let key = key(target);
    for _ in 0..ATTEMPTS {
        let old = match api.store.find(target.resource, &key) {
            Found::Object(old) => old,
            Found::Absent => return Err(ApiError::not_found(resource, &key.1)),
            Found::Busy(wait) => {
                let _ = wait.await;
                continue;
            }
        };
        let mut fresh = Vec::new();
        let new = next_state(api, call, &source, &old, &mut fresh)?;
        let unchanged = new == *old.value();
        if unchanged || call.dry_run {
            warnings.append(&mut fresh);
            return Ok(if unchanged { old } else { Object::new(new, old.version()) });
        }
        let write = if strategy::is_released(&new) { Write::Remove(new) } else { Write::Put(new) };
        // Status is what controllers saw; scale is what the autoscaler wants. Neither is declared intent.
        let durable = !matches!(target.subresource.as_deref(), Some("status" | "scale"));
        let written = api.store.write(target.resource, key.clone(), Some(old.version()), write, durable);
        match written.map_err(|e| storage(&e))? {
            Written::Raced => {}
            written => {
                warnings.append(&mut fresh);
                return settle(written).await;
            }
        }
    }
    Err(ApiError::modified(resource, &key.1))
}

fn next_state(
    api: &Api,
    call: &Call<'_>,
    source: &Source,
    old: &Arc<Object>,
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let (target, resource) = (call.target, call.target.resource());
    let name = target.name.as_deref().unwrap_or_default();
    let scale = target.subresource.as_deref() == Some("scale");
    let no_duplicates = Vec::new();
    let (mut new, duplicates) = match source {
        Source::Body { value, duplicates } => (value.clone(), duplicates),
        Source::Patch(patch) if scale => (patch.apply(&strategy::scale_of(old.value()))?, &no_duplicates),
        Source::Patch(patch) => (patch.apply(old.value())?, &no_duplicates),
    };
    if scale {
        if !new.is_object() || metadata::type_fault(&new).is_some() {
            return Err(ApiError::bad_request("Scale in version \"v1\" cannot be handled as a Scale"));
        }
        check_name(target, &new)?;
        check_version(resource, name, old, &new, true)?;
        return strategy::prepare_scale(resource, old.value(), &new);
    }

    let mut unknown = Vec::new();
    shape(api, target.resource, &mut new, call.caller, &mut unknown)?;
    check_identity(target, &new)?;
    check_name(target, &new)?;
    let context = match source {
        Source::Patch(_) => String::new(),
        Source::Body { .. } => format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: ",
            kind = resource.kind,
            version = resource.version
        ),
    };
    decode::report(call.validation, &context, duplicates, &unknown, warnings)?;
    let is_patch = matches!(source, Source::Patch(_));
    check_version(resource, name, old, &new, resource.unconditional_update || is_patch)?;

    match target.subresource.as_deref() {
        Some("status") => {
            let value = strategy::prepare_status_update(old.value(), &new);
            if value != *old.value() {
                check_valid(api, target.resource, &value, Some(old.value()))?;
            }
            Ok(value)
        }
        Some("finalize") => Ok(strategy::prepare_finalize(old.value(), &new)),
        _ => {
            let review = review(call, resource, Operation::Update, Some(old.value()));
            api.configure_admission();
            if let Some(namespace) = &target.namespace {
                object::metadata_mut(&mut new).insert("namespace".into(), namespace.as_str().into());
            }
            api.admission.default(&review, &mut new)?;
            strategy::prepare_update(resource, old.value(), &mut new);
            check_valid(api, target.resource, &new, Some(old.value()))?;
            warnings.extend(api.admission.validate(&review, &new)?);
            Ok(new)
        }
    }
}

/// Optimistic concurrency: the caller's version, if it gives one, must be the stored one.
fn check_version(
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

/// The options of a deletion, from the body and the query.
///
/// # Errors
/// 400 when they cannot be read.
pub(crate) fn delete_options(call: &Call<'_>, query: &Query) -> Result<DeleteOptions, ApiError> {
    let mut options = DeleteOptions {
        grace: query.number("gracePeriodSeconds")?,
        propagation: query.get("propagationPolicy").map(str::to_owned),
        dry_run: call.dry_run,
        ..DeleteOptions::default()
    };
    if query.flag("orphanDependents") {
        options.propagation = Some("Orphan".into());
    }
    if !call.body.is_empty() {
        let (body, _) = decode::parse(call.body, decode::encoding(call.headers)?)?;
        let text = |path: &str| body.pointer(path).and_then(Value::as_str).map(str::to_owned);
        options.grace = body.get("gracePeriodSeconds").and_then(Value::as_i64).or(options.grace);
        options.propagation = text("/propagationPolicy").or(options.propagation);
        if body.get("orphanDependents").and_then(Value::as_bool) == Some(true) {
            options.propagation = Some("Orphan".into());
        }
        options.uid = text("/preconditions/uid");
        options.version = text("/preconditions/resourceVersion");
        let dry = body.get("dryRun").and_then(Value::as_array).is_some_and(|list| !list.is_empty());
        options.dry_run |= dry;
    }
    match options.propagation.as_deref() {
        None | Some("Background" | "Foreground" | "Orphan") => Ok(options),
        Some(other) => Err(ApiError::bad_request(format!(
            "propagationPolicy: Unsupported value: {other:?}: supported values: \"Background\", \"Foreground\", \
             \"Orphan\""
        ))),
    }
}

/// DELETE of one object.
pub(crate) async fn delete(api: &Api, call: &Call<'_>, options: &DeleteOptions) -> Result<Deleted, ApiError> {
    let target = call.target;
    remove(api, target.resource, &key(target), options).await
}

async fn remove(api: &Api, index: usize, key: &Key, options: &DeleteOptions) -> Result<Deleted, ApiError> {
    let resource = &RESOURCES[index];
    for _ in 0..ATTEMPTS {
        let old = match api.store.find(index, key) {
            Found::Object(old) => old,
            Found::Absent => return Err(ApiError::not_found(resource, &key.1)),
            Found::Busy(wait) => {
                let _ = wait.await;
                continue;
            }
        };
        let (write, gone) = match strategy::delete(resource, old.value(), options, jiff::Timestamp::now())? {
            Deletion::Nothing => return Ok(Deleted::Marked(old)),
            Deletion::Remove(_) if options.dry_run => return Ok(Deleted::Gone(old)),
            Deletion::Mark(value) if options.dry_run => {
                return Ok(Deleted::Marked(Object::new(value, old.version())));
            }
            Deletion::Remove(value) => (Write::Remove(value), true),
            Deletion::Mark(value) => (Write::Put(value), false),
        };
        let written = api.store.write(index, key.clone(), Some(old.version()), write, true);
        match written.map_err(|e| storage(&e))? {
            Written::Raced => {}
            written => {
                let object = settle(written).await?;
                return Ok(if gone { Deleted::Gone(object) } else { Deleted::Marked(object) });
            }
        }
    }
    Err(ApiError::modified(resource, &key.1))
}

/// DELETE of everything that is selected; returns what was.
pub(crate) async fn delete_collection(
    api: &Api,
    call: &Call<'_>,
    selector: &Selector,
    options: &DeleteOptions,
) -> Result<Vec<Arc<Object>>, ApiError> {
    let target = call.target;
    if target.resource == NAMESPACES {
        return Err(ApiError::method_not_allowed());
    }
    let objects = api.store.list(target.resource, target.namespace.as_deref()).objects;
    let selected: Vec<_> =
        objects.into_iter().filter(|o| selector.is_empty() || selector.matches(o.value())).collect();
    // Together, so that the deletions share commits.
    let removals = selected.iter().map(|object| {
        let value = object.value();
        let key = (object::text(value, "namespace").to_owned(), object::text(value, "name").to_owned());
        async move {
            match remove(api, target.resource, &key, options).await {
                Ok(Deleted::Gone(object) | Deleted::Marked(object)) => Ok(Some(object)),
                Err(error) if error.code() == http::StatusCode::NOT_FOUND => Ok(None),
                Err(error) => Err(error),
            }
        }
    });
    let results: Vec<_> = futures::future::try_join_all(removals).await?;
    Ok(results.into_iter().flatten().collect())
}
