//! ConfigMaps and Secrets: values under keys that are to be file names.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value};

use super::same;
use crate::object;
use crate::status::Cause;

/// All values of an object together, in bytes.
const SIZE_LIMIT: usize = 1 << 20;
/// Longest key, in bytes.
const KEY_LIMIT: usize = 253;
const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  or \
    'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";
/// The name of the account that a token is for.
const ACCOUNT: &str = "kubernetes.io/service-account.name";

pub(super) fn config_map(value: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = frozen(value, old, &["data", "binaryData"]);
    let mut size = 0;
    for key in entries(value, "data").into_iter().flatten() {
        causes.extend(key_faults("data", key.0));
        if entries(value, "binaryData").is_some_and(|binary| binary.contains_key(key.0)) {
            let field = format!("data[{}]", key.0);
            causes.push(Cause::invalid(
                field,
                &key.0.as_str().into(),
                "duplicate of key present in binaryData",
            ));
        }
        size += key.1.as_str().map_or(0, str::len);
    }
    for (key, encoded) in entries(value, "binaryData").into_iter().flatten() {
        causes.extend(key_faults("binaryData", key));
        size += decoded_length(encoded);
    }
    if size > SIZE_LIMIT {
        causes.push(Cause::too_long("[]", SIZE_LIMIT));
    }
    causes
}

pub(super) fn secret(value: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    if let Some(old) = old
        && !same(old.get("type"), value.get("type"))
    {
        causes.push(Cause::invalid("type", value.get("type").unwrap_or(&Value::Null), "field is immutable"));
    }
    causes.extend(frozen(value, old, &["data"]));
    let mut size = 0;
    for (key, encoded) in entries(value, "data").into_iter().flatten() {
        causes.extend(key_faults("data", key));
        size += decoded_length(encoded);
    }
    if size > SIZE_LIMIT {
        causes.push(Cause::too_long("data", SIZE_LIMIT));
    }
    causes.extend(typed(value));
    causes
}

/// What a Secret of a type that Kubernetes knows has to hold.
fn typed(value: &Value) -> Vec<Cause> {
    let get = |key: &str| entries(value, "data").and_then(|data| data.get(key));
    let required = |fields: &[String]| fields.iter().map(|field| Cause::required(field, "")).collect();
    let absent = |keys: &[&str]| {
        let absent = keys.iter().filter(|key| get(key).is_none()).map(|key| format!("data[{key}]"));
        required(&absent.collect::<Vec<_>>())
    };
    let document = |key: &str| match get(key).and_then(Value::as_str).map(|text| BASE64.decode(text)) {
        None => absent(&[key]),
        // What is no Base64 does not come so far.
        Some(bytes) => match serde_json::from_slice::<serde::de::IgnoredAny>(&bytes.unwrap_or_default()) {
            Ok(_) => Vec::new(),
            Err(error) => {
                let field = format!("data[{key}]");
                vec![Cause::invalid(field, &"<secret contents redacted>".into(), error)]
            }
        },
    };
    match value.get("type").and_then(Value::as_str).unwrap_or_default() {
        "kubernetes.io/tls" => absent(&["tls.crt", "tls.key"]),
        "kubernetes.io/dockercfg" => document(".dockercfg"),
        "kubernetes.io/dockerconfigjson" => document(".dockerconfigjson"),
        // The odd paths of these two are Kubernetes' own.
        "kubernetes.io/basic-auth" if get("username").is_none() && get("password").is_none() => {
            required(&["data[%s][username]".to_owned(), "data[%s][password]".to_owned()])
        }
        "kubernetes.io/ssh-auth" if get("ssh-privatekey").is_none_or(|key| key == "") => {
            required(&["data[%s][ssh-privatekey]".to_owned()])
        }
        "kubernetes.io/service-account-token" => {
            let annotations = object::meta(value, "annotations");
            let account = annotations.and_then(|map| map.get(ACCOUNT)).and_then(Value::as_str);
            if account.unwrap_or_default().is_empty() {
                required(&[format!("metadata.annotations[{ACCOUNT}]")])
            } else {
                Vec::new()
            }
        }
        _ => Vec::new(),
    }
}

/// What is changed of an object that was declared immutable; `fields` hold its contents.
fn frozen(value: &Value, old: Option<&Value>, fields: &[&str]) -> Vec<Cause> {
    let immutable = |value: &Value| value.get("immutable") == Some(&Value::Bool(true));
    let Some(old) = old.filter(|old| immutable(old)) else { return Vec::new() };
    let thawed = (!immutable(value)).then_some("immutable");
    let changed = fields.iter().copied().filter(|field| !same(old.get(field), value.get(field)));
    let forbidden = |field: &str| Cause::forbidden(field, "field is immutable when `immutable` is set");
    thawed.into_iter().chain(changed).map(forbidden).collect()
}

fn entries<'a>(value: &'a Value, field: &str) -> Option<&'a Map<String, Value>> {
    value.get(field).and_then(Value::as_object)
}

/// How much a Base64 text of standard form stands for, in bytes.
fn decoded_length(encoded: &Value) -> usize {
    let text = encoded.as_str().unwrap_or_default().trim_end_matches('=');
    text.len() * 3 / 4
}

fn key_faults(field: &str, key: &str) -> Vec<Cause> {
    let mut faults = Vec::new();
    if key.len() > KEY_LIMIT {
        faults.push(format!("must be no more than {KEY_LIMIT} characters"));
    }
    let allowed = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.');
    if key.is_empty() || !key.bytes().all(allowed) {
        faults.push(KEY.to_owned());
    }
    match key {
        "." | ".." => faults.push(format!("must not be '{key}'")),
        _ if key.starts_with("..") => faults.push("must not start with '..'".to_owned()),
        _ => {}
    }
    let field = format!("{field}[{key}]");
    faults.into_iter().map(|fault| Cause::invalid(field.clone(), &key.into(), fault)).collect()
}
