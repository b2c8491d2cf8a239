//! The entries of `metadata.managedFields`.

use serde_json::{Value, json};

use super::fields_v1;
use super::set::Set;

/// So many entries of updates are kept; beyond that the oldest become one.
const UPDATES_KEPT: usize = 10;
/// Who the oldest updates are attributed to.
const ANCIENT: &str = "ancient-changes";

/// How a manager writes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Self::Apply => "Apply",
            Self::Update => "Update",
        }
    }
}

/// Whose fields an entry has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Id {
    pub manager: String,
    pub operation: Operation,
    /// Empty for the main resource.
    pub subresource: String,
}

/// The fields of one manager.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Entry {
    pub id: Id,
    pub api_version: String,
    /// RFC 3339; when the manager last took or gave up a field.
    pub time: Option<String>,
    pub fields: Set,
}

impl Entry {
    fn decode(value: &Value) -> Option<Self> {
        let text = |field: &str| value.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
        let operation = match value.get("operation")?.as_str()? {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return None,
        };
        if text("fieldsType") != "FieldsV1" {
            return None;
        }
        Some(Self {
            id: Id { manager: text("manager"), operation, subresource: text("subresource") },
            api_version: text("apiVersion"),
            time: value.get("time").and_then(Value::as_str).map(str::to_owned),
            fields: value.get("fieldsV1").map_or(Some(Set::default()), fields_v1::decode)?,
        })
    }

    fn encode(&self) -> Value {
        let mut value = json!({
            "manager": self.id.manager,
            "operation": self.id.operation.as_str(),
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": fields_v1::encode(&self.fields),
        });
        if let Some(time) = &self.time {
            value["time"] = time.as_str().into();
        }
        if !self.id.subresource.is_empty() {
            value["subresource"] = self.id.subresource.as_str().into();
        }
        value
    }
}

/// Who owns which fields of an object.
#[derive(Debug, Clone, Default, PartialEq)]
pub(crate) struct Managed(pub Vec<Entry>);

impl Managed {
    /// Reads `metadata.managedFields`; `None` when an entry is not what it should be.
    pub(crate) fn decode(value: &Value) -> Option<Self> {
        let mut managed = Self::default();
        for entry in value.as_array()? {
            let entry = Entry::decode(entry)?;
            match managed.find_mut(&entry.id) {
                Some(known) => known.fields.union(&entry.fields),
                None => managed.0.push(entry),
            }
        }
        Some(managed)
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(crate) fn find(&self, id: &Id) -> Option<&Entry> {
        self.0.iter().find(|entry| entry.id == *id)
    }

    pub(crate) fn find_mut(&mut self, id: &Id) -> Option<&mut Entry> {
        self.0.iter_mut().find(|entry| entry.id == *id)
    }

    /// The entries in the order of a cluster; the ones without fields are left out.
    pub(crate) fn encode(mut self) -> Value {
        self.0.retain(|entry| !entry.fields.is_empty());
        self.sort();
        self.forget_oldest();
        self.0.iter().map(Entry::encode).collect()
    }

    fn sort(&mut self) {
        self.0.sort_by(|a, b| {
            let key = |e: &Entry| {
                (
                    e.id.operation,
                    e.time.clone(),
                    e.id.manager.clone(),
                    e.api_version.clone(),
                    e.id.subresource.clone(),
                )
            };
            key(a).cmp(&key(b))
        });
    }

    fn forget_oldest(&mut self) {
        let updates = |all: &[Entry]| all.iter().filter(|e| e.id.operation == Operation::Update).count();
        while updates(&self.0) > UPDATES_KEPT {
            let old = |e: &Entry| e.id.operation == Operation::Update && e.id.manager != ANCIENT;
            let Some(at) = self.0.iter().position(old) else { return };
            let oldest = self.0.remove(at);
            let id = Id { manager: ANCIENT.into(), ..oldest.id };
            match self.find_mut(&id) {
                Some(ancient) => {
                    ancient.fields.union(&oldest.fields);
                    ancient.time = oldest.time.or(ancient.time.take());
                }
                None => self.0.push(Entry { id, ..oldest }),
            }
            self.sort();
        }
    }
}
