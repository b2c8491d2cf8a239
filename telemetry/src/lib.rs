//! Logs, request logs, traces, pushed metrics, build information: what every process of Ember tells about itself.
//!
//! Traces and pushed metrics are in builds with the feature `otlp` only; without it their types are there and do
//! nothing, so that a component has one code for both.

pub mod build;
pub mod logs;
pub mod meters;
pub mod otlp;
pub mod request_log;
pub mod traces;
