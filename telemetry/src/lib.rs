//! Logs, the metrics endpoint, build information.
