//! Structural schemas of the custom kinds: pruning, defaulting and validation of values against them.

use std::collections::HashMap;
use std::sync::LazyLock;

use parking_lot::RwLock;
use regex::Regex;
use serde_json::{Map, Value};

use crate::status::Cause;

/// The patterns of the schemas, compiled on first use; `None` for one that is not a regular expression here.
static PATTERNS: LazyLock<RwLock<HashMap<String, Option<Regex>>>> = LazyLock::new(RwLock::default);

fn matches(pattern: &str, text: &str) -> bool {
    if let Some(known) = PATTERNS.read().get(pattern) {
        return known.as_ref().is_none_or(|p| p.is_match(text));
    }
    let compiled = Regex::new(pattern).ok();
    let result = compiled.as_ref().is_none_or(|p| p.is_match(text));
    PATTERNS.write().insert(pattern.to_owned(), compiled);
    result
}

/// Removes what the schema does not know and collects the paths of it.
pub(crate) fn prune(schema: &Value, value: &mut Value, unknown: &mut Vec<String>) {
    prune_at(schema, value, "", true, unknown);
}

fn open(schema: &Value) -> bool {
    schema.get("x-kubernetes-preserve-unknown-fields").and_then(Value::as_bool).unwrap_or(false)
}

fn join(path: &str, field: &str) -> String {
    if path.is_empty() { field.to_owned() } else { format!("{path}.{field}") }
}

fn prune_at(schema: &Value, value: &mut Value, path: &str, root: bool, unknown: &mut Vec<String>) {
    match value {
        Value::Object(map) => {
            let properties = schema.get("properties").and_then(Value::as_object);
            let additional = schema.get("additionalProperties");
            let keep = open(schema) || additional.and_then(Value::as_bool).unwrap_or(false);
            map.retain(|field, value| {
                // The root's own fields belong to every object, whatever its schema says of them.
                if root && matches!(field.as_str(), "apiVersion" | "kind" | "metadata") {
                    if field == "metadata" {
                        prune_metadata(value, unknown);
                    }
                    return true;
                }
                let inner = properties.and_then(|p| p.get(field)).or(additional.filter(|a| a.is_object()));
                match inner {
                    Some(inner) => {
                        prune_at(inner, value, &join(path, field), false, unknown);
                        true
                    }
                    None => {
                        if !keep {
                            unknown.push(join(path, field));
                        }
                        keep
                    }
                }
            });
        }
        Value::Array(list) => {
            if let Some(items) = schema.get("items") {
                for (index, item) in list.iter_mut().enumerate() {
                    prune_at(items, item, &format!("{path}[{index}]"), false, unknown);
                }
            }
        }
        _ => {}
    }
}

const METADATA_FIELDS: [&str; 15] = [
    "annotations",
    "creationTimestamp",
    "deletionGracePeriodSeconds",
    "deletionTimestamp",
    "finalizers",
    "generateName",
    "generation",
    "labels",
    "managedFields",
    "name",
    "namespace",
    "ownerReferences",
    "resourceVersion",
    "selfLink",
    "uid",
];

/// Removes unknown fields of ObjectMeta.
fn prune_metadata(value: &mut Value, unknown: &mut Vec<String>) {
    if let Value::Object(map) = value {
        map.retain(|field, _| {
            let known = METADATA_FIELDS.contains(&field.as_str());
            if !known {
                unknown.push(format!("metadata.{field}"));
            }
            known
        });
    }
}

/// Fills in the schema's defaults, and drops nulls where a default or nothing is meant.
pub(crate) fn default(schema: &Value, value: &mut Value) {
    match value {
        Value::Object(map) => {
            if let Some(properties) = schema.get("properties").and_then(Value::as_object) {
                for (field, inner) in properties {
                    let nullable = inner.get("nullable").and_then(Value::as_bool).unwrap_or(false);
                    if let Some(default) = inner.get("default") {
                        let absent = map.get(field).is_none_or(|v| v.is_null() && !nullable);
                        if absent {
                            map.insert(field.clone(), default.clone());
                        }
                    }
                    if let Some(value) = map.get_mut(field) {
                        self::default(inner, value);
                    }
                }
            }
            if let Some(additional) = schema.get("additionalProperties").filter(|a| a.is_object()) {
                let known = schema.get("properties").and_then(Value::as_object);
                for (field, value) in map.iter_mut() {
                    if !known.is_some_and(|k| k.contains_key(field)) {
                        self::default(additional, value);
                    }
                }
            }
        }
        Value::Array(list) => {
            if let Some(items) = schema.get("items") {
                for item in list {
                    self::default(items, item);
                }
            }
        }
        _ => {}
    }
}

/// Every violation of the schema.
pub(crate) fn validate(schema: &Value, value: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    validate_at(schema, value, "", true, &mut causes);
    causes
}

fn type_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(n) if n.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn validate_at(schema: &Value, value: &Value, path: &str, root: bool, causes: &mut Vec<Cause>) {
    let flag = |name: &str| schema.get(name).and_then(Value::as_bool).unwrap_or(false);
    if value.is_null() && flag("nullable") {
        return;
    }
    if flag("x-kubernetes-int-or-string") {
        if !(value.is_string() || value.is_i64() || value.is_u64()) {
            causes.push(Cause::of_type(path, type_name(value), "integer,string"));
        }
    } else if let Some(wanted) = schema.get("type").and_then(Value::as_str) {
        let got = type_name(value);
        let whole = || value.as_f64().is_some_and(|f| f.fract() == 0.0);
        let ok =
            wanted == got || (wanted == "number" && got == "integer") || (wanted == "integer" && whole());
        if !ok {
            causes.push(Cause::of_type(path, got, wanted));
            return;
        }
    }
    if let Some(allowed) = schema.get("enum").and_then(Value::as_array)
        && !allowed.contains(value)
    {
        causes.push(Cause::unsupported(path, value, allowed));
    }
    match value {
        Value::Object(map) => validate_object(schema, map, path, root, causes),
        Value::Array(list) => {
            let number = |name: &str| schema.get(name).and_then(Value::as_u64);
            if let Some(least) = number("minItems").filter(|least| (list.len() as u64) < *least) {
                let detail = format!("{path} in body should have at least {least} items");
                causes.push(Cause::invalid(path, &list.len().into(), detail));
            }
            if let Some(most) = number("maxItems").filter(|most| (list.len() as u64) > *most) {
                causes.push(Cause {
                    reason: "FieldValueTooMany",
                    field: path.to_owned(),
                    message: format!("Too many: {}: must have at most {most} items", list.len()),
                });
            }
            if let Some(items) = schema.get("items") {
                for (index, item) in list.iter().enumerate() {
                    validate_at(items, item, &format!("{path}[{index}]"), false, causes);
                }
            }
            unique_keys(schema, list, path, causes);
        }
        Value::Number(number) => {
            let number = number.as_f64().unwrap_or_default();
            let bound = |name: &str| schema.get(name).and_then(Value::as_f64);
            if let Some(least) = bound("minimum").filter(|least| number < *least) {
                let detail = format!("{path} in body should be greater than or equal to {least}");
                causes.push(Cause::invalid(path, value, detail));
            }
            if let Some(most) = bound("maximum").filter(|most| number > *most) {
                let detail = format!("{path} in body should be less than or equal to {most}");
                causes.push(Cause::invalid(path, value, detail));
            }
        }
        Value::String(text) => {
            let number = |name: &str| schema.get(name).and_then(Value::as_u64);
            let length = text.chars().count() as u64;
            if let Some(least) = number("minLength").filter(|least| length < *least) {
                let detail = format!("{path} in body should be at least {least} chars long");
                causes.push(Cause::invalid(path, value, detail));
            }
            let pattern = schema.get("pattern").and_then(Value::as_str);
            if let Some(pattern) = pattern.filter(|pattern| !matches(pattern, text)) {
                causes.push(Cause::invalid(path, value, format!("{path} in body should match '{pattern}'")));
            }
            if let Some(most) = number("maxLength").filter(|most| length > *most) {
                causes.push(Cause {
                    reason: "FieldValueTooLong",
                    field: path.to_owned(),
                    message: format!("Too long: may not be more than {most} bytes"),
                });
            }
        }
        _ => {}
    }
}

fn validate_object(
    schema: &Value,
    map: &Map<String, Value>,
    path: &str,
    root: bool,
    causes: &mut Vec<Cause>,
) {
    for field in schema.get("required").and_then(Value::as_array).into_iter().flatten() {
        if let Some(field) = field.as_str()
            && !map.contains_key(field)
        {
            causes.push(Cause::required(join(path, field), ""));
        }
    }
    let properties = schema.get("properties").and_then(Value::as_object);
    let additional = schema.get("additionalProperties").filter(|a| a.is_object());
    for (field, value) in map {
        if root && field == "metadata" {
            continue;
        }
        if let Some(inner) = properties.and_then(|p| p.get(field)).or(additional) {
            validate_at(inner, value, &join(path, field), false, causes);
        }
    }
}

/// Lists declared as maps hold one entry for each key.
fn unique_keys(schema: &Value, list: &[Value], path: &str, causes: &mut Vec<Cause>) {
    if schema.get("x-kubernetes-list-type").and_then(Value::as_str) != Some("map") {
        return;
    }
    let Some(keys) = schema.get("x-kubernetes-list-map-keys").and_then(Value::as_array) else { return };
    let keys: Vec<&str> = keys.iter().filter_map(Value::as_str).collect();
    let mut seen: Vec<Vec<Option<&Value>>> = Vec::new();
    for (index, item) in list.iter().enumerate() {
        let key: Vec<Option<&Value>> = keys.iter().map(|k| item.get(k)).collect();
        if seen.contains(&key) {
            let shown: Map<String, Value> =
                keys.iter().filter_map(|k| item.get(k).map(|v| ((*k).to_owned(), v.clone()))).collect();
            causes.push(Cause {
                reason: "FieldValueDuplicate",
                field: format!("{path}[{index}]"),
                message: format!("Duplicate value: {}", Value::Object(shown)),
            });
        }
        seen.push(key);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema() -> Value {
        json!({
            "type": "object",
            "properties": {
                "spec": {
                    "type": "object",
                    "required": ["containers"],
                    "properties": {
                        "containers": { "type": "array", "items": {
                            "type": "object",
                            "properties": { "name": { "type": "string" }, "port": { "type": "integer" },
                                            "protocol": { "type": "string", "default": "TCP" } } } },
                        "free": { "type": "object", "x-kubernetes-preserve-unknown-fields": true },
                        "labels": { "type": "object", "additionalProperties": { "type": "string" } },
                        "size": { "x-kubernetes-int-or-string": true },
                        "mode": { "type": "string", "enum": ["A", "B"] },
                    }
                }
            }
        })
    }

    #[test]
    fn unknown_fields_go_and_are_named() {
        let mut value = json!({
            "apiVersion": "v1", "kind": "X", "metadata": { "name": "x", "odd": 1 }, "extra": 1,
            "spec": { "containers": [{ "name": "a", "nope": 1 }], "free": { "any": { "thing": 1 } },
                      "labels": { "a": "b" } }
        });
        let mut unknown = Vec::new();
        prune(&schema(), &mut value, &mut unknown);
        unknown.sort();
        assert_eq!(unknown, ["extra", "metadata.odd", "spec.containers[0].nope"]);
        assert_eq!(value["spec"]["free"]["any"]["thing"], 1);
        assert!(value["spec"]["containers"][0].get("nope").is_none());
    }

    #[test]
    fn defaults_and_violations_are_found_at_their_paths() {
        let mut value = json!({ "spec": { "containers": [{ "port": 1 }] } });
        default(&schema(), &mut value);
        assert_eq!(value["spec"]["containers"][0]["protocol"], "TCP");
        assert!(validate(&schema(), &value).is_empty());

        let wrong = json!({ "spec": { "containers": [{ "port": "x" }], "size": true, "mode": "C",
                                      "labels": { "a": 1 } } });
        let mut fields: Vec<String> = validate(&schema(), &wrong).into_iter().map(|c| c.field).collect();
        fields.sort();
        assert_eq!(fields, ["spec.containers[0].port", "spec.labels.a", "spec.mode", "spec.size"]);
        let missing = validate(&schema(), &json!({ "spec": {} }));
        assert_eq!(missing[0].message, "Required value");
    }
}
