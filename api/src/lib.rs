//! Knative Serving's API: types, conditions, defaulting, validation, configuration.

pub mod admission;
pub mod annotations;
pub mod autoscaling;
pub mod caching;
pub mod conditions;
pub mod configmaps;
pub mod defaulting;
pub mod domains;
pub mod field_error;
pub mod golang;
#[cfg(test)]
mod golden;
pub mod images;
pub mod labels;
pub mod names;
pub mod networking;
mod omitempty;
pub mod quantity;
pub mod schema;
pub mod serving;
pub mod status;
pub mod syntax;
pub mod validation;

pub use ember_template as template;
