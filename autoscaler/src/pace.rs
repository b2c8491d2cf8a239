//! When the periodic work is done.
//!
//! Metric buckets are seconds of wall time, and a panic window may be as short as one of them. So pods are scraped
//! early in a second and revisions evaluated late in one: the evaluation finds that second's scrape, and not, by
//! chance of phase, an empty bucket.

use std::time::Duration;

/// Where in its period a scrape is done.
pub(crate) const SCRAPE: Duration = Duration::from_millis(100);
/// Where in its period an evaluation is done: later than scrapes are answered.
pub(crate) const EVALUATION: Duration = Duration::from_millis(600);

/// How long from `now` it is to the next moment at which wall time modulo `period` is `phase`. Missed ones are not made
/// up for.
pub(crate) fn until(now: Duration, period: Duration, phase: Duration) -> Duration {
    let period = period.as_micros().max(1_000);
    let passed = (now.as_micros() + period - phase.as_micros() % period) % period;
    // A timer that fired a moment early has been answered already.
    let left = if passed + 1_000 >= period { 2 * period - passed } else { period - passed };
    Duration::from_micros(u64::try_from(left).unwrap_or(u64::MAX))
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn moments_are_aligned_to_wall_time() {
        let second = 1_000 * MS;
        assert_eq!(until(5_000 * MS, second, SCRAPE), 100 * MS);
        assert_eq!(until(5_100 * MS, second, SCRAPE), second);
        assert_eq!(until(5_099 * MS, second, SCRAPE), 1_001 * MS);
        assert_eq!(until(5_000 * MS, 2 * second, EVALUATION), 1_600 * MS);
        assert_eq!(until(5_000 * MS, 50 * MS, EVALUATION), 50 * MS);
    }
}
