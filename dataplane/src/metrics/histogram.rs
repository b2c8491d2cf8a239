//! Distributions, counted without a lock.

use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::text::{Labels, Text};

/// What a histogram counts, and by that its buckets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unit {
    /// Times, recorded in nanoseconds.
    Seconds,
    /// Sizes, recorded in bytes.
    Bytes,
}

const SECONDS: [f64; 14] = [0.005, 0.01, 0.025, 0.05, 0.075, 0.1, 0.25, 0.5, 0.75, 1.0, 2.5, 5.0, 7.5, 10.0];
const NANOSECONDS: [u64; 14] = [
    5_000_000,
    10_000_000,
    25_000_000,
    50_000_000,
    75_000_000,
    100_000_000,
    250_000_000,
    500_000_000,
    750_000_000,
    1_000_000_000,
    2_500_000_000,
    5_000_000_000,
    7_500_000_000,
    10_000_000_000,
];
const SIZES: [f64; 15] =
    [0.0, 5.0, 10.0, 25.0, 50.0, 75.0, 100.0, 250.0, 500.0, 750.0, 1000.0, 2500.0, 5000.0, 7500.0, 10000.0];
const BYTES: [u64; 15] = [0, 5, 10, 25, 50, 75, 100, 250, 500, 750, 1000, 2500, 5000, 7500, 10000];

impl Unit {
    /// The upper bounds of the buckets, in seconds or bytes. One more bucket has no bound.
    #[must_use]
    pub fn bounds(self) -> &'static [f64] {
        match self {
            Self::Seconds => &SECONDS,
            Self::Bytes => &SIZES,
        }
    }

    fn recorded_bounds(self) -> &'static [u64] {
        match self {
            Self::Seconds => &NANOSECONDS,
            Self::Bytes => &BYTES,
        }
    }

    /// OpenTelemetry's name of the unit.
    #[must_use]
    pub fn name(self) -> &'static str {
        match self {
            Self::Seconds => "s",
            Self::Bytes => "By",
        }
    }
}

/// A time as histograms of [`Unit::Seconds`] record it.
#[must_use]
pub fn nanoseconds(time: Duration) -> u64 {
    u64::try_from(time.as_nanos()).unwrap_or(u64::MAX)
}

/// A distribution. Recording is two additions; a reader may see one without the other.
#[derive(Debug)]
pub struct Histogram {
    unit: Unit,
    buckets: Box<[AtomicU64]>,
    sum: AtomicU64,
}

impl Histogram {
    /// Nothing recorded.
    #[must_use]
    pub fn new(unit: Unit) -> Self {
        let buckets = (0..=unit.recorded_bounds().len()).map(|_| AtomicU64::new(0)).collect();
        Self { unit, buckets, sum: AtomicU64::new(0) }
    }

    /// Records nanoseconds or bytes.
    pub fn record(&self, value: u64) {
        let bucket = self.unit.recorded_bounds().partition_point(|bound| *bound < value);
        self.buckets[bucket].fetch_add(1, Ordering::Relaxed);
        self.sum.fetch_add(value, Ordering::Relaxed);
    }

    /// How often something was recorded.
    #[must_use]
    pub fn count(&self) -> u64 {
        self.buckets.iter().map(|bucket| bucket.load(Ordering::Relaxed)).sum()
    }

    pub(super) fn write(&self, text: &mut Text, name: &str, labels: &Labels) {
        let mut count = 0;
        let bounds = self.unit.bounds().iter().copied().map(Some).chain([None]);
        for (bucket, bound) in self.buckets.iter().zip(bounds) {
            count += bucket.load(Ordering::Relaxed);
            text.bucket(name, labels, bound, count);
        }
        let sum = self.sum.load(Ordering::Relaxed);
        match self.unit {
            Unit::Seconds => {
                let seconds = Duration::from_nanos(sum).as_secs_f64();
                text.sample(&format!("{name}_sum"), labels, seconds);
            }
            Unit::Bytes => text.sample(&format!("{name}_sum"), labels, sum),
        }
        text.sample(&format!("{name}_count"), labels, count);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bounds_are_the_same_in_both_units() {
        for (seconds, nanos) in SECONDS.iter().zip(NANOSECONDS) {
            assert_eq!(nanoseconds(Duration::from_secs_f64(*seconds)), nanos);
        }
        for (size, bytes) in SIZES.iter().zip(BYTES) {
            assert_eq!(*size as u64, bytes);
        }
    }

    #[test]
    fn a_bound_belongs_to_its_bucket() {
        let sizes = Histogram::new(Unit::Bytes);
        for size in [0, 5, 6, 10_000, 10_001] {
            sizes.record(size);
        }
        let mut text = Text::default();
        sizes.write(&mut text, "size", &Labels::default());
        let text = text.into_string();
        for line in [
            r#"size_bucket{le="0"} 1"#,
            r#"size_bucket{le="5"} 2"#,
            r#"size_bucket{le="10"} 3"#,
            r#"size_bucket{le="7500"} 3"#,
            r#"size_bucket{le="10000"} 4"#,
            r#"size_bucket{le="+Inf"} 5"#,
            "size_sum 20012",
            "size_count 5",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} in {text}");
        }
        let times = Histogram::new(Unit::Seconds);
        times.record(nanoseconds(Duration::from_millis(5)));
        let mut text = Text::default();
        times.write(&mut text, "time", &Labels::default());
        let text = text.into_string();
        assert!(text.contains("time_bucket{le=\"0.005\"} 1\n"), "{text}");
        assert!(text.contains("time_bucket{le=\"0.01\"} 1\n") && text.contains("time_sum 0.005\n"), "{text}");
    }
}
