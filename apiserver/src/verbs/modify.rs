//! Objects that are changed.

use std::sync::Arc;

use http::header;
use serde_json::Value;

use super::apply::Config;
use super::check::{check_identity, check_name, check_valid, check_version, review, shape};
use super::{ATTEMPTS, Call, key, ownership, settle, storage};
use crate::admission::Operation;
use crate::api::Api;
use crate::object::{self, Object};
use crate::patch::{self, Patch};
use crate::status::{ApiError, Cause};
use crate::store::{Found, Write, Written};
use crate::{decode, metadata, strategy};

/// Where the new state of a modified object comes from.
enum Source {
    Body { value: Value, duplicates: Vec<String> },
    Patch(Patch),
    Apply(Config),
}

/// The object after a PUT or PATCH.
pub(crate) struct Modified {
    pub object: Arc<Object>,
    /// It was not there before: an apply made it.
    pub created: bool,
}

/// PUT and PATCH of the main resource and its subresources.
pub(crate) async fn modify(
    api: &Arc<Api>,
    call: &Call<'_>,
    patch: bool,
    warnings: &mut Vec<String>,
) -> Result<Modified, ApiError> {
    let (target, resource) = (call.target, call.target.resource());
    let source = source(api, call, patch, warnings)?;
    let changed = |object| Ok(Modified { object, created: false });
    let key = key(target);
    for _ in 0..ATTEMPTS {
        let old = match api.store.find(target.resource, &key) {
            Found::Object(old) => old,
            Found::Absent => {
                let Source::Apply(config) = &source else {
                    return Err(ApiError::not_found(resource, &key.1));
                };
                match config.create(api, call, warnings).await? {
                    Some(object) => return Ok(Modified { object, created: true }),
                    None => continue,
                }
            }
            Found::Busy(wait) => {
                let _ = wait.await;
                continue;
            }
        };
        let (before, mut fresh) = (old.value(), Vec::new());
        let mut new = next_state(api, call, &source, (&old, &before), &mut fresh)?;
        ownership::keep_times(&mut new, &before);
        let unchanged = new == before;
        if unchanged || call.dry_run {
            warnings.append(&mut fresh);
            return changed(if unchanged { old } else { Object::new(new, old.version()) });
        }
        let write = if strategy::is_released(&new) { Write::Remove(new) } else { Write::Put(new) };
        // Status is what controllers saw; scale is what the autoscaler wants. Neither is declared intent.
        let durable = !matches!(target.subresource.as_deref(), Some("status" | "scale"));
        let written = api.store.write(target.resource, &key, Some(old.version()), write, durable);
        match written.map_err(|e| storage(&e))? {
            Written::Raced => {}
            written => {
                warnings.append(&mut fresh);
                return changed(settle(written).await?);
            }
        }
    }
    Err(ApiError::modified(resource, &key.1))
}

fn source(api: &Api, call: &Call<'_>, patch: bool, warnings: &mut Vec<String>) -> Result<Source, ApiError> {
    if !patch {
        let (value, duplicates) = decode::parse(call.body, decode::encoding(call.headers)?)?;
        return Ok(Source::Body { value, duplicates });
    }
    let content_type =
        call.headers.get(header::CONTENT_TYPE).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let apply = patch::is_apply(content_type);
    check_options(call, apply)?;
    if apply {
        Config::parse(api, call, warnings).map(Source::Apply)
    } else {
        Patch::parse(call.target.resource(), content_type, call.body).map(Source::Patch)
    }
}

/// An apply says who applies, and nothing else is forced.
fn check_options(call: &Call<'_>, apply: bool) -> Result<(), ApiError> {
    let cause = match (apply, call.field_manager, call.force) {
        (true, None, _) => Cause::required("fieldManager", "is required for apply patch"),
        (false, _, Some(_)) => Cause {
            reason: "FieldValueForbidden",
            field: "force".into(),
            message: "Forbidden: may not be specified for non-apply patch".into(),
        },
        _ => return Ok(()),
    };
    Err(ApiError::invalid_options("PatchOptions", &[cause]))
}

fn next_state(
    api: &Api,
    call: &Call<'_>,
    source: &Source,
    (stored, old): (&Object, &Value),
    warnings: &mut Vec<String>,
) -> Result<Value, ApiError> {
    let (target, resource) = (call.target, call.target.resource());
    let name = target.name.as_deref().unwrap_or_default();
    let scale = target.subresource.as_deref() == Some("scale");
    let no_duplicates = Vec::new();
    let (mut new, duplicates, applied) = match source {
        Source::Body { value, duplicates } => (value.clone(), duplicates, None),
        Source::Patch(patch) if scale => {
            (patch.apply(resource, &strategy::scale_of(old))?, &no_duplicates, None)
        }
        Source::Patch(patch) => (patch.apply(resource, old)?, &no_duplicates, None),
        Source::Apply(config) => {
            let (new, account) = config.over(api, call, stored, old)?;
            (new, &no_duplicates, Some(account))
        }
    };
    let account = |sent: Option<&Value>, new: &Value| match &applied {
        Some(account) => account.clone(),
        None => ownership::after_update(api, call, Some(old), sent, new),
    };
    if scale {
        if applied.is_some() {
            new = strategy::scale_of(&new);
        }
        if !new.is_object() || metadata::type_fault(&new).is_some() {
            return Err(ApiError::bad_request("Scale in version \"v1\" cannot be handled as a Scale"));
        }
        check_name(target, &new)?;
        check_version(resource, name, stored, &new, true)?;
        let mut value = strategy::prepare_scale(resource, old, &new)?;
        let account = account(None, &value);
        ownership::put(&mut value, account);
        return Ok(value);
    }

    let sent = ownership::take(&mut new);
    let mut unknown = Vec::new();
    shape(api, target.resource, &mut new, call.caller, &mut unknown)?;
    check_identity(target, &new)?;
    check_name(target, &new)?;
    let context = match source {
        Source::Body { .. } => format!(
            "{kind} in version {version:?} cannot be handled as a {kind}: ",
            kind = resource.kind,
            version = resource.version
        ),
        Source::Patch(_) | Source::Apply(_) => String::new(),
    };
    decode::report(call.validation, &context, duplicates, &unknown, warnings)?;
    let unconditional = resource.unconditional_update || !matches!(source, Source::Body { .. });
    check_version(resource, name, stored, &new, unconditional)?;

    match target.subresource.as_deref() {
        Some("status") => {
            let mut value = strategy::prepare_status_update(old, &new);
            let account = account(None, &value);
            ownership::put(&mut value, account);
            if value != *old {
                check_valid(api, target.resource, &value, Some(old))?;
            }
            Ok(value)
        }
        Some("finalize") => {
            // Who sends something else by mistake is not to set a namespace free.
            if object::text(&new, "name").is_empty() {
                return Err(ApiError::bad_request(
                    "metadata.name: the name of the namespace must be provided",
                ));
            }
            let mut value = strategy::prepare_finalize(old, &new);
            let account = account(None, &value);
            ownership::put(&mut value, account);
            Ok(value)
        }
        _ => {
            let review = review(call, resource, Operation::Update, Some(old));
            api.configure_admission();
            if let Some(namespace) = &target.namespace {
                object::metadata_mut(&mut new).insert("namespace".into(), namespace.as_str().into());
            }
            // What admission fills in belongs to nobody.
            let account = account(sent.as_ref(), &new);
            api.admission.default(&review, &mut new)?;
            strategy::prepare_update(resource, old, &mut new);
            ownership::put(&mut new, account);
            check_valid(api, target.resource, &new, Some(old))?;
            warnings.extend(api.admission.validate(&review, &new)?);
            Ok(new)
        }
    }
}
