//! The sidecar on its public ports, over real sockets, in front of a real app.
#![expect(clippy::unwrap_used, reason = "a test")]

mod admission;
mod authority;
#[cfg(feature = "otlp")]
mod collector;
mod container;
mod drain;
mod h2c;
#[cfg(feature = "otlp")]
mod otlp;
mod pod;
mod prometheus_tls;
mod readiness;
mod request;
mod request_log;
mod statistics;
mod telemetry;
mod tls;
