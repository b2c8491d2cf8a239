//! Logs, request logs, build information: what every process of Ember tells about itself.

pub mod build;
pub mod logs;
pub mod request_log;
