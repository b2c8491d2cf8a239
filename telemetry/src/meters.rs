//! Metrics that are pushed by OTLP.

#[cfg(feature = "otlp")]
mod pushing;
#[cfg(not(feature = "otlp"))]
mod silent;

#[cfg(feature = "otlp")]
pub use pushing::{Gauge, Histogram, Meters};
#[cfg(not(feature = "otlp"))]
pub use silent::{Gauge, Histogram, Meters};

use std::time::Duration;

use crate::otlp::Destination;

/// Where metrics are pushed to, and when.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    /// Where.
    pub destination: Destination,
    /// How often; zero: every 60 s. `OTEL_METRIC_EXPORT_INTERVAL` overrides it.
    pub interval: Duration,
}

/// Who measures what.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Instrument {
    /// The instrumentation.
    pub scope: &'static str,
    /// Its version, or empty.
    pub version: &'static str,
    /// The metric.
    pub name: &'static str,
    /// OpenTelemetry's name of its unit.
    pub unit: &'static str,
    /// What is measured.
    pub description: &'static str,
}
