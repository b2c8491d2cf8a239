//! One stored object: an immutable JSON document with its serialised form.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use serde_json::{Map, Value};

/// Namespace (empty for cluster-scoped resources) and name, in the order of lists.
pub(crate) type Key = (String, String);

/// An object at one resourceVersion. Shared by the table, the watch history and every reader.
#[derive(Debug)]
pub(crate) struct Object {
    value: Value,
    version: u64,
    json: OnceLock<Bytes>,
}

impl Object {
    /// Stamps `value` with `version`.
    pub(crate) fn new(mut value: Value, version: u64) -> Arc<Self> {
        metadata_mut(&mut value).insert("resourceVersion".into(), version.to_string().into());
        Arc::new(Self { value, version, json: OnceLock::new() })
    }

    /// An object as it was stored, its version in its metadata.
    pub(crate) fn stored(value: Value, json: Bytes) -> Option<Arc<Self>> {
        let version = text(&value, "resourceVersion").parse().ok()?;
        let cell = OnceLock::new();
        // The cell is new: setting it cannot fail.
        let _ = cell.set(json);
        Some(Arc::new(Self { value, version, json: cell }))
    }

    pub(crate) fn value(&self) -> &Value {
        &self.value
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The object as JSON; serialised on first use.
    pub(crate) fn json(&self) -> &Bytes {
        self.json.get_or_init(|| Bytes::from(self.value.to_string()))
    }

    pub(crate) fn uid(&self) -> &str {
        text(&self.value, "uid")
    }

    pub(crate) fn name(&self) -> &str {
        text(&self.value, "name")
    }
}

/// A string of the metadata; empty when absent.
pub(crate) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get("metadata").and_then(|m| m.get(field)).and_then(Value::as_str).unwrap_or_default()
}

/// A field of the metadata.
pub(crate) fn meta<'a>(value: &'a Value, field: &str) -> Option<&'a Value> {
    value.get("metadata").and_then(|m| m.get(field)).filter(|v| !v.is_null())
}

/// The metadata map, put in place if the object has none.
pub(crate) fn metadata_mut(value: &mut Value) -> &mut Map<String, Value> {
    if !value.is_object() {
        *value = Value::Object(Map::new());
    }
    let metadata = &mut value["metadata"];
    if !metadata.is_object() {
        *metadata = Value::Object(Map::new());
    }
    match metadata {
        Value::Object(map) => map,
        _ => unreachable!("made an object above"),
    }
}

/// Whether the object is on its way out.
pub(crate) fn is_terminating(value: &Value) -> bool {
    meta(value, "deletionTimestamp").is_some()
}

/// Whether something still holds the object back from removal.
pub(crate) fn has_finalizers(value: &Value) -> bool {
    let any = |v: Option<&Value>| v.and_then(Value::as_array).is_some_and(|list| !list.is_empty());
    any(meta(value, "finalizers"))
        // A Namespace has a second list, emptied through its `finalize` subresource.
        || (value.get("kind").and_then(Value::as_str) == Some("Namespace") && any(value.pointer("/spec/finalizers")))
}
