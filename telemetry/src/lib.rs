//! Logs, the metrics endpoint, build information: what every process of Ember tells about itself.

pub mod build;
pub mod logs;
