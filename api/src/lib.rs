//! Knative Serving's API: types, conditions, defaulting, validation, configuration.

pub mod annotations;
pub mod autoscaling;
pub mod caching;
pub mod conditions;
#[cfg(test)]
mod golden;
pub mod labels;
pub mod names;
pub mod networking;
mod omitempty;
pub mod serving;
pub mod status;
