//! What the registry needs to know of each kind's shape: its schema and its printer columns.

use serde_json::Value;

use crate::resource::RESOURCES;
use crate::table::{self, Column};

/// Shapes by position in the registry.
pub(crate) struct Kinds(Vec<Kind>);

struct Kind {
    schema: Option<Value>,
    columns: Vec<Column>,
}

impl Kinds {
    pub(crate) fn new() -> Self {
        Self(
            RESOURCES
                .iter()
                .map(|resource| Kind { schema: None, columns: table::builtin(resource) })
                .collect(),
        )
    }

    /// The structural schema of a custom kind.
    pub(crate) fn schema(&self, resource: usize) -> Option<&Value> {
        self.0[resource].schema.as_ref()
    }

    pub(crate) fn columns(&self, resource: usize) -> &[Column] {
        &self.0[resource].columns
    }
}
