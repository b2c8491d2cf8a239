//! Pushed metrics in a build without exporters: there are none.

use std::time::Duration;

use super::{Instrument, Settings};
use crate::otlp::{Attribute, ExportError};

/// Makes instruments, and pushes what they measure.
#[derive(Debug)]
pub struct Meters(());

impl Meters {
    /// Pushes metrics.
    ///
    /// # Errors
    /// [`ExportError::Unsupported`], in this build.
    pub fn start(_: &Settings) -> Result<Self, ExportError> {
        Err(ExportError::Unsupported)
    }

    /// A distribution.
    #[must_use]
    pub fn histogram(&self, _: Instrument, _: &'static [f64]) -> Histogram {
        Histogram(())
    }

    /// A number that goes up and down.
    #[must_use]
    pub fn gauge(&self, _: Instrument) -> Gauge {
        Gauge(())
    }

    /// Pushes what is left, and no longer than `within`.
    pub async fn finish(&self, _: Duration) {}
}

/// A distribution.
#[derive(Debug)]
pub struct Histogram(());

impl Histogram {
    /// Adds a measurement.
    pub fn record(&self, _: f64, _: impl IntoIterator<Item = Attribute>) {}
}

/// A number that goes up and down.
#[derive(Debug)]
pub struct Gauge(());

impl Gauge {
    /// Sets it.
    pub fn set(&self, _: i64) {}
}
