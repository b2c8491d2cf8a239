//! Metrics that are pushed by OTLP.

use std::time::Duration;

use opentelemetry::metrics::{self, MeterProvider as _};
use opentelemetry::{InstrumentationScope, KeyValue};
use opentelemetry_sdk::metrics::SdkMeterProvider;

use super::{Instrument, Settings};
use crate::otlp::{Attribute, ExportError, exporter};
use crate::traces::key_value;

/// Makes instruments, and pushes what they measure.
#[derive(Debug)]
pub struct Meters(SdkMeterProvider);

impl Drop for Meters {
    fn drop(&mut self) {
        // On a thread of its own: it may wait for this one.
        let provider = self.0.clone();
        std::thread::spawn(move || provider.shutdown());
    }
}

impl Meters {
    /// Pushes metrics. To be called in a tokio runtime, which carries the export.
    ///
    /// # Errors
    /// The destination is none.
    pub fn start(settings: &Settings) -> Result<Self, ExportError> {
        Ok(Self(exporter::metrics(settings)?))
    }

    fn meter(&self, instrument: Instrument) -> metrics::Meter {
        let scope = InstrumentationScope::builder(instrument.scope);
        let scope =
            if instrument.version.is_empty() { scope } else { scope.with_version(instrument.version) };
        self.0.meter_with_scope(scope.build())
    }

    /// A distribution.
    #[must_use]
    pub fn histogram(&self, instrument: Instrument, bounds: &'static [f64]) -> Histogram {
        let meter = self.meter(instrument);
        let histogram = meter
            .f64_histogram(instrument.name)
            .with_unit(instrument.unit)
            .with_description(instrument.description)
            .with_boundaries(bounds.to_vec());
        Histogram(histogram.build())
    }

    /// A number that goes up and down.
    #[must_use]
    pub fn gauge(&self, instrument: Instrument) -> Gauge {
        let meter = self.meter(instrument);
        let gauge = meter
            .i64_gauge(instrument.name)
            .with_unit(instrument.unit)
            .with_description(instrument.description);
        Gauge(gauge.build())
    }

    /// Pushes what is left, and no longer than `within`.
    pub async fn finish(&self, within: Duration) {
        let provider = self.0.clone();
        exporter::finish("metrics", within, move || provider.shutdown_with_timeout(within)).await;
    }
}

/// A distribution.
#[derive(Debug)]
pub struct Histogram(metrics::Histogram<f64>);

impl Histogram {
    /// Adds a measurement.
    pub fn record(&self, value: f64, attributes: impl IntoIterator<Item = Attribute>) {
        let attributes: Vec<KeyValue> = attributes.into_iter().map(key_value).collect();
        self.0.record(value, &attributes);
    }
}

/// A number that goes up and down.
#[derive(Debug)]
pub struct Gauge(metrics::Gauge<i64>);

impl Gauge {
    /// Sets it.
    pub fn set(&self, value: i64) {
        self.0.record(value, &[]);
    }
}
