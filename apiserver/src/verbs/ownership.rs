//! The account of who owns which field, as writes keep it.
//!
//! An object is accounted for when it was made over a socket, or was ever applied; what the components of this process
//! make for one another is not, and costs nothing. Their writes of an object that is accounted for are recorded like
//! everybody's, but for its status while nobody else ever wrote that.

use serde_json::{Value, json};

use super::Call;
use crate::api::Api;
use crate::managed_fields::{self, Managed, Scope, Type};
use crate::object::{self, metadata_mut};
use crate::strategy;

/// Name of the in-process client where it gives none.
const IN_PROCESS: &str = "ember";
/// Longest name of a manager that is taken from a User-Agent, in bytes.
const AGENT_LIMIT: usize = 128;

/// The type of what a call is about.
pub(super) fn ty<'a>(api: &'a Api, call: &Call<'_>) -> Type<'a> {
    Type::of(call.target.resource(), api.kinds.schema(call.target.resource))
}

/// Who makes a call: its `fieldManager`, or else the first word of its User-Agent.
pub(super) fn manager(call: &Call<'_>) -> String {
    if let Some(name) = call.field_manager {
        return name.to_owned();
    }
    let agent = call.headers.get(http::header::USER_AGENT).and_then(|v| v.to_str().ok()).unwrap_or_default();
    let name: String = agent.split('/').next().unwrap_or_default().chars().take(AGENT_LIMIT).collect();
    match name.as_str() {
        "" if call.caller.local => IN_PROCESS.into(),
        "" => "unknown".into(),
        _ => name,
    }
}

/// Runs `record` with what a call writes.
pub(super) fn with_write<T>(call: &Call<'_>, record: impl FnOnce(&managed_fields::Write<'_>) -> T) -> T {
    let resource = call.target.resource();
    let subresource = call.target.subresource.as_deref().unwrap_or_default();
    let scope = match subresource {
        "" if resource.status => Scope::WithoutStatus,
        "status" => Scope::Status,
        _ => Scope::Whole,
    };
    record(&managed_fields::Write {
        manager: &manager(call),
        api_version: &resource.api_version(),
        subresource,
        scope,
        now: &strategy::timestamp(jiff::Timestamp::now()),
    })
}

/// The owners of a stored object.
pub(super) fn stored(value: &Value) -> Managed {
    object::meta(value, "managedFields").and_then(Managed::decode).unwrap_or_default()
}

/// Takes `metadata.managedFields` out of what a caller sent.
pub(super) fn take(value: &mut Value) -> Option<Value> {
    value.get_mut("metadata").and_then(Value::as_object_mut).and_then(|m| m.remove("managedFields"))
}

/// Puts an account in its place.
pub(super) fn put(value: &mut Value, account: Option<Value>) {
    match account {
        Some(account) => metadata_mut(value).insert("managedFields".into(), account),
        None => metadata_mut(value).remove("managedFields"),
    };
}

/// The account as it is stored: none when nobody owns anything.
pub(super) fn encoded(managed: Managed) -> Option<Value> {
    Some(managed.encode()).filter(|account| account.as_array().is_some_and(|list| !list.is_empty()))
}

/// The account after a write that made `new` of `old`. `sent` is what the caller sent as `managedFields`: an account to
/// go on from, `[{}]` to forget the one there is, or nothing that counts.
pub(super) fn after_update(
    api: &Api,
    call: &Call<'_>,
    old: Option<&Value>,
    sent: Option<&Value>,
    new: &Value,
) -> Option<Value> {
    let kept = old.and_then(|old| object::meta(old, "managedFields"));
    let sent = sent.filter(|_| call.target.subresource.is_none());
    let reset = sent.is_some_and(|sent| *sent == json!([{}]));
    let sent = sent.filter(|sent| Some(*sent) != kept).and_then(Managed::decode).filter(|m| !m.is_empty());
    let made_outside = old.is_none() && !call.caller.local;
    if kept.is_none() && sent.is_none() && !made_outside {
        return None;
    }
    let status = call.target.subresource.as_deref() == Some("status");
    if call.caller.local && status && !kept.is_some_and(concerns_status) {
        return kept.cloned();
    }
    let managed = match (reset, sent) {
        (true, _) => Managed::default(),
        (false, Some(sent)) => sent,
        (false, None) => kept.and_then(Managed::decode).unwrap_or_default(),
    };
    let old = old.unwrap_or(&Value::Null);
    encoded(with_write(call, |write| managed_fields::update(old, new, ty(api, call), managed, write)))
}

/// A write that changes nothing but when its fields were last written is to change nothing at all.
pub(super) fn keep_times(new: &mut Value, old: &Value) {
    let accounts = (object::meta(new, "managedFields"), object::meta(old, "managedFields"));
    let (Some(Value::Array(after)), Some(Value::Array(before))) = accounts else { return };
    let fields = |account: &[Value]| account.iter().cloned().map(timeless).collect::<Vec<_>>();
    if after == before || fields(after) != fields(before) {
        return;
    }
    let kept = Value::Array(before.clone());
    let rest = |value: &Value| {
        let mut value = value.clone();
        take(&mut value);
        value
    };
    if rest(new) == rest(old) {
        put(new, Some(kept));
    }
}

/// An entry without its time.
fn timeless(mut entry: Value) -> Value {
    if let Some(entry) = entry.as_object_mut() {
        entry.remove("time");
    }
    entry
}

fn concerns_status(account: &Value) -> bool {
    account.as_array().into_iter().flatten().any(|entry| entry.get("subresource") == Some(&"status".into()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_time_alone_is_no_change() {
        let object = |time: &str, data: &str| json!({"metadata": {"name": "a", "managedFields": [{"manager": "m", "time": time}]}, "data": data});
        let old = object("1", "x");
        let mut new = object("2", "x");
        keep_times(&mut new, &old);
        assert_eq!(new, old);
        let mut new = object("2", "y");
        keep_times(&mut new, &old);
        assert_eq!(new, object("2", "y"));
    }
}
