//! One stored object: an immutable JSON document.

use std::sync::Arc;

use bytes::Bytes;
use serde::Deserialize;
use serde_json::{Map, Value};

/// Namespace (empty for cluster-scoped resources) and name, in the order of lists.
pub(crate) type Key = (String, String);

/// An object at one resourceVersion. Shared by the table, the watch history and every reader.
///
/// It is kept as the JSON that is written to disk and sent to clients: as a tree it takes eight to ten times as much,
/// and most objects are never looked into again. Who has to gets a tree for itself.
#[derive(Debug)]
pub(crate) struct Object {
    key: Arc<Key>,
    uid: Box<str>,
    version: u64,
    json: Bytes,
}

/// What is read of an object whose rest does not matter.
#[derive(Deserialize)]
struct Head {
    #[serde(default)]
    metadata: Value,
}

impl Object {
    /// Stamps `value` with `version`.
    pub(crate) fn new(mut value: Value, version: u64) -> Arc<Self> {
        metadata_mut(&mut value).insert("resourceVersion".into(), version.to_string().into());
        // Without the spare room of the string that it was written into.
        Arc::new(Self::of(&value, version, Bytes::from(value.to_string().into_bytes().into_boxed_slice())))
    }

    /// An object as it was stored, its version in its metadata. `None` when it has none.
    ///
    /// # Errors
    /// When it is not JSON.
    pub(crate) fn stored(json: Bytes) -> Result<Option<Arc<Self>>, serde_json::Error> {
        let value: Value = serde_json::from_slice(&json)?;
        let version = text(&value, "resourceVersion").parse().ok();
        Ok(version.map(|version| Arc::new(Self::of(&value, version, json))))
    }

    fn of(value: &Value, version: u64, json: Bytes) -> Self {
        let key = Arc::new((text(value, "namespace").to_owned(), text(value, "name").to_owned()));
        Self { key, uid: text(value, "uid").into(), version, json }
    }

    /// The object as a tree, made anew at each call.
    pub(crate) fn value(&self) -> Value {
        // It was JSON when it came here.
        serde_json::from_slice(&self.json).unwrap_or_else(|error| unreachable!("{error}"))
    }

    /// Its metadata as a tree, made anew at each call.
    pub(crate) fn metadata(&self) -> Value {
        // As above; an object is a map.
        serde_json::from_slice::<Head>(&self.json).unwrap_or_else(|error| unreachable!("{error}")).metadata
    }

    pub(crate) fn version(&self) -> u64 {
        self.version
    }

    /// The object as JSON.
    pub(crate) fn json(&self) -> &Bytes {
        &self.json
    }

    pub(crate) fn key(&self) -> &Arc<Key> {
        &self.key
    }

    pub(crate) fn uid(&self) -> &str {
        &self.uid
    }

    pub(crate) fn namespace(&self) -> &str {
        &self.key.0
    }

    pub(crate) fn name(&self) -> &str {
        &self.key.1
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
