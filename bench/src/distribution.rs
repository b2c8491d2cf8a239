//! How times are distributed.

use anyhow::Context;
use hdrhistogram::Histogram;

/// Significant digits that are kept of each time.
const DIGITS: u8 = 4;

/// A set of times.
#[derive(Debug)]
pub(crate) struct Distribution(Histogram<u64>);

impl Distribution {
    /// Of times in microseconds.
    pub(crate) fn of(times: impl IntoIterator<Item = u64>) -> anyhow::Result<Self> {
        let mut histogram = Histogram::new(DIGITS).context("cannot make a histogram")?;
        for time in times {
            histogram.record(time).with_context(|| format!("cannot record {time} µs"))?;
        }
        Ok(Self(histogram))
    }

    /// How many.
    pub(crate) fn count(&self) -> u64 {
        self.0.len()
    }

    /// What the share `quantile` of the times does not exceed, in milliseconds; `None` of none.
    pub(crate) fn quantile_ms(&self, quantile: f64) -> Option<f64> {
        if self.0.is_empty() {
            return None;
        }
        let micros = u32::try_from(self.0.value_at_quantile(quantile)).unwrap_or(u32::MAX);
        Some(f64::from(micros) / 1000.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quantiles_in_milliseconds() {
        let times = Distribution::of((1..=100).map(|n| n * 100)).unwrap();
        assert_eq!(times.count(), 100);
        assert_eq!(times.quantile_ms(0.50), Some(5.0));
        assert_eq!(times.quantile_ms(0.90), Some(9.0));
        assert_eq!(times.quantile_ms(0.99), Some(9.9));
    }

    #[test]
    fn of_few_and_of_none() {
        assert_eq!(Distribution::of([0]).unwrap().quantile_ms(0.99), Some(0.0));
        assert_eq!(Distribution::of([12_345]).unwrap().quantile_ms(0.5), Some(12.345));
        assert_eq!(Distribution::of([]).unwrap().quantile_ms(0.5), None);
    }
}
