//! Objects that are made.

use std::sync::Arc;

use serde_json::Value;

use super::check::{check_identity, check_namespace, check_valid, review, shape};
use super::{Call, ownership, settle, storage};
use crate::admission::Operation;
use crate::api::Api;
use crate::decode;
use crate::object::{self, Key, Object};
use crate::resource::EVENTS;
use crate::status::ApiError;
use crate::store::{Found, Write, Written};
use crate::strategy::{self, Birth};

/// Generated names are tried again when they are taken.
const NAME_ATTEMPTS: usize = 8;
/// Events are a window on the recent past: so many are kept, and when there are more, so many are dropped.
const EVENTS_KEPT: usize = 4096;
const EVENTS_DROPPED: usize = 512;
/// No vowels and no digits that look like letters, as Kubernetes generates names.
const NAME_ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
/// A generated name leaves this much for its prefix.
const PREFIX_LIMIT: usize = 58;

/// POST of a new object.
pub(crate) async fn create(
    api: &Arc<Api>,
    call: &Call<'_>,
    warnings: &mut Vec<String>,
) -> Result<Arc<Object>, ApiError> {
    let (target, resource) = (call.target, call.target.resource());
    let (mut value, duplicates) = decode::parse(call.body, decode::encoding(call.headers)?)?;
    let sent = ownership::take(&mut value);
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
    let account = ownership::after_update(api, call, None, sent.as_ref(), &value);
    let name = object::text(&value, "name").to_owned();
    let made = admit(api, call, value, account, warnings).await?;
    made.ok_or_else(|| ApiError::already_exists(resource, &name))
}

/// What is left to do for a new object, from defaulting on; `account` is who owns its fields. `None` when its name is
/// taken.
pub(super) async fn admit(
    api: &Arc<Api>,
    call: &Call<'_>,
    mut value: Value,
    account: Option<Value>,
    warnings: &mut Vec<String>,
) -> Result<Option<Arc<Object>>, ApiError> {
    let (target, resource) = (call.target, call.target.resource());
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
        ownership::put(&mut value, account.clone());
        check_valid(api, target.resource, &value, None)?;
        let more = api.admission.validate(&review, &value)?;
        if attempt == 1 {
            warnings.extend(more);
        }
        let name = object::text(&value, "name").to_owned();
        let key = (target.namespace.clone().unwrap_or_default(), name);
        match insert(api, call, key, value).await? {
            Some(object) => {
                if target.resource == EVENTS {
                    drop_old_events(api);
                }
                return Ok(Some(object));
            }
            None if prefix.is_some() && attempt < NAME_ATTEMPTS => {}
            None => return Ok(None),
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
                match api.store.write(index, &key, None, write, true).map_err(|e| storage(&e))? {
                    Written::Raced => {}
                    written => return settle(written).await.map(Some),
                }
            }
        }
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
        let last = Write::Remove(event.value());
        // An event that changed meanwhile is not old.
        let _ = api.store.write(EVENTS, event.key(), Some(event.version()), last, false);
    }
}
