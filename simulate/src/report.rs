//! Histories as JSON.

use serde::Serialize;

use crate::history::History;

/// The version of the layout; it grows when a field goes or changes its meaning.
pub const VERSION: u32 = 1;

#[derive(Serialize)]
struct Report<'a> {
    version: u32,
    histories: &'a [History],
}

/// The histories as one JSON document: `{"version", "histories": […]}`, fields as in [`History`].
///
/// # Errors
/// None that is known: all fields can be written.
pub fn json(histories: &[History]) -> serde_json::Result<String> {
    serde_json::to_string_pretty(&Report { version: VERSION, histories })
}
