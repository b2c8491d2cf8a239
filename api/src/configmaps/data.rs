//! Reading typed values out of a ConfigMap's data.

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use serde_json::Value;

use super::ConfigError;
use crate::golang::{self, GoDuration};
use crate::quantity;

/// A ConfigMap's data; each method overwrites its target if the key is present.
pub(super) struct Data<'a>(pub(super) &'a BTreeMap<String, String>);

impl<'a> Data<'a> {
    pub(super) fn get(&self, key: &str) -> Option<&'a str> {
        self.0.get(key).map(String::as_str)
    }

    fn read<T, E: std::fmt::Display>(
        &self,
        key: &str,
        target: &mut T,
        parse: impl FnOnce(&str) -> Result<T, E>,
    ) -> Result<(), ConfigError> {
        if let Some(raw) = self.get(key) {
            *target = parse(raw)
                .map_err(|e| ConfigError(format!("failed to parse {}: {e}", golang::quote(key))))?;
        }
        Ok(())
    }

    /// A text without the blanks around it.
    pub(super) fn string(&self, key: &str, target: &mut String) {
        if let Some(raw) = self.get(key) {
            raw.trim().clone_into(target);
        }
    }

    pub(super) fn bool(&self, key: &str, target: &mut bool) -> Result<(), ConfigError> {
        self.read(key, target, golang::parse_bool)
    }

    pub(super) fn int32(&self, key: &str, target: &mut i32) -> Result<(), ConfigError> {
        self.read(key, target, golang::parse_int32)
    }

    pub(super) fn int(&self, key: &str, target: &mut i64) -> Result<(), ConfigError> {
        self.read(key, target, golang::parse_int)
    }

    pub(super) fn uint32(&self, key: &str, target: &mut u32) -> Result<(), ConfigError> {
        self.read(key, target, |raw| {
            let wide = golang::parse_uint(raw).map_err(|e| e.to_string())?;
            u32::try_from(wide)
                .map_err(|_| format!("strconv.ParseUint: parsing {}: value out of range", golang::quote(raw)))
        })
    }

    pub(super) fn float(&self, key: &str, target: &mut f64) -> Result<(), ConfigError> {
        self.read(key, target, golang::parse_float)
    }

    pub(super) fn duration(&self, key: &str, target: &mut GoDuration) -> Result<(), ConfigError> {
        self.read(key, target, golang::parse_duration)
    }

    pub(super) fn quantity(&self, key: &str, target: &mut Option<Quantity>) -> Result<(), ConfigError> {
        self.read(key, target, |raw| quantity::parse(raw).map(Some))
    }

    /// A comma-separated list.
    pub(super) fn set(&self, key: &str, target: &mut BTreeSet<String>) {
        if let Some(raw) = self.get(key) {
            *target = raw.split(',').map(|part| part.trim().to_owned()).collect();
        }
    }
}

/// YAML as JSON; nothing at all is null.
pub(super) fn yaml(text: &str) -> Result<Value, ConfigError> {
    if text.trim().is_empty() {
        return Ok(Value::Null);
    }
    serde_norway::from_str(text).map_err(|e| {
        // Every parser of YAML counts and words differently; the place and the problem are what helps.
        let line = e.location().map_or(1, |l| l.line().clamp(1, text.lines().count().max(1)));
        let text = e.to_string();
        let problem = text.split(" at line ").next().unwrap_or(&text);
        ConfigError(format!("error converting YAML to JSON: yaml: line {line}: {problem}"))
    })
}

/// A scalar where a text is wanted: YAML takes `1` and `true` without quotes for something else.
pub(super) fn text(value: &Value) -> Option<String> {
    match value {
        Value::String(text) => Some(text.clone()),
        Value::Bool(value) => Some(value.to_string()),
        Value::Number(number) if number.is_f64() => number.as_f64().map(golang::format_float),
        Value::Number(number) => Some(number.to_string()),
        Value::Null | Value::Array(_) | Value::Object(_) => None,
    }
}

/// All scalars of a value as texts.
pub(super) fn texts(value: Value) -> Value {
    match value {
        Value::Array(items) => items.into_iter().map(texts).collect(),
        Value::Object(fields) => fields.into_iter().map(|(key, value)| (key, texts(value))).collect(),
        value => text(&value).map_or(value, Value::String),
    }
}

/// The strings of a YAML map of strings; `kind` names the wanted type in the error.
pub(super) fn string_map(
    value: Option<&Value>,
    field: &str,
    kind: &str,
) -> Result<BTreeMap<String, String>, ConfigError> {
    match value {
        None | Some(Value::Null) => Ok(BTreeMap::new()),
        Some(Value::Object(map)) => map
            .iter()
            .map(|(key, value)| match (text(value), value) {
                (Some(text), _) => Ok((key.clone(), text)),
                (None, Value::Null) => Ok((key.clone(), String::new())),
                (None, other) => Err(unmarshal_error(other, &format!("{kind}.{field}"), "string")),
            })
            .collect(),
        Some(other) => Err(unmarshal_error(other, &format!("{kind}.{field}"), "map[string]string")),
    }
}

/// The error of a value that does not fit its type; `path` is empty at the top.
pub(super) fn unmarshal_error(value: &Value, path: &str, wanted: &str) -> ConfigError {
    let found = match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    };
    let target = if path.is_empty() {
        format!("value of type {wanted}")
    } else {
        format!("struct field {path} of type {wanted}")
    };
    ConfigError(format!(
        "error unmarshaling JSON: while decoding JSON: json: cannot unmarshal {found} into Go {target}"
    ))
}
