//! Bucketed time windows: what "average over the last minute" means.
//!
//! The order of floating-point operations, the rounding and the treatment of silence are Knative's, because scaling
//! decisions hang on the last digit of an average.

use std::collections::VecDeque;
use std::time::Duration;

use crate::time::{Time, millis};

/// From 0001-01-01 to the Unix epoch. Knative truncates time from that zero; the difference shows only for
/// granularities that do not divide it.
const YEAR_ONE_MILLIS: i64 = 62_135_596_800_000;

/// What the weights of a full window may lack to one.
const WEIGHT_LACKING: f64 = 0.0001;

/// The weight of the newest bucket is never below this, however long the window.
const SMALLEST_COEFFICIENT: f64 = 0.2;

/// How the buckets of a window become one number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Algorithm {
    /// The mean of the buckets.
    #[default]
    Linear,
    /// Newer buckets weigh more, with exponentially falling weights.
    WeightedExponential,
}

/// A ring of buckets over a time window. Values of one bucket add up; the average is over buckets.
#[derive(Debug, Clone)]
pub struct Window {
    algorithm: Algorithm,
    /// Used by the weighted average only.
    coefficient: f64,
    granularity: i64,
    window: i64,
    buckets: Vec<f64>,
    total: f64,
    first_write: Option<i64>,
    last_write: Option<i64>,
}

impl Window {
    /// An empty window of `window` in buckets of `granularity` (whole seconds, at least one).
    #[must_use]
    pub fn new(algorithm: Algorithm, window: Duration, granularity: Duration) -> Self {
        let granularity = millis(granularity).max(1000);
        let window = millis(window);
        let buckets = bucket_count(window, granularity);
        Self {
            algorithm,
            coefficient: smoothing_coefficient(buckets),
            granularity,
            window,
            buckets: vec![0.0; buckets],
            total: 0.0,
            first_write: None,
            last_write: None,
        }
    }

    /// Adds `value` to the bucket of `at`. A value one window late, or later, is dropped.
    pub fn record(&mut self, at: Time, value: f64) {
        let bucket = self.truncate(at);
        // Of the time itself: where the granularity does not divide the time since year one, the bucket's own differs.
        let index = self.index(at.as_millis());
        if self.last_write != Some(bucket) {
            if self.last_write.is_some_and(|last| bucket.saturating_add(self.window) <= last) {
                return;
            }
            if self.first_write.is_none_or(|first| first > bucket) {
                self.first_write = Some(bucket);
            }
            self.advance(bucket, index);
        }
        let slot = self.slot(index);
        self.buckets[slot] += value;
        self.total += value;
    }

    /// Forgets what `bucket`, if it is the newest so far, pushes out of the window. `index` is that of the value in it.
    fn advance(&mut self, bucket: i64, index: i64) {
        match self.last_write {
            Some(last) if bucket <= last => return,
            Some(last) if bucket - last < self.window => {
                for outdated in self.index(last) + 1..=index {
                    let slot = self.slot(outdated);
                    self.total -= self.buckets[slot];
                    self.buckets[slot] = 0.0;
                }
            }
            _ => {
                self.first_write = Some(bucket);
                self.buckets.fill(0.0);
                self.total = 0.0;
            }
        }
        self.last_write = Some(bucket);
    }

    /// The average as of `now`, by the window's algorithm.
    #[must_use]
    pub fn average(&self, now: Time) -> f64 {
        let Some(last) = self.last_write else { return 0.0 };
        let now = self.truncate(now);
        match self.algorithm {
            Algorithm::Linear => self.linear_average(now, last),
            Algorithm::WeightedExponential => self.weighted_average(now, last),
        }
    }

    fn linear_average(&self, now: i64, last: i64) -> f64 {
        let silence = now - last;
        if silence >= self.window.max(1) {
            return 0.0;
        }
        let mut total = self.total;
        let mut valid = self.buckets.len() as i64;
        if silence > 0 {
            let (start, end) = (self.index(last), self.index(now));
            for index in start + 1..=end {
                total -= self.buckets[self.slot(index)];
            }
            valid -= end - start;
        }
        // A window whose first write is unknown counts as old.
        let age = self.first_write.map_or(i64::MAX, |first| (last - first) / self.granularity + 1);
        round_to_6_digits(total / age.min(valid) as f64)
    }

    fn weighted_average(&self, now: i64, last: i64) -> f64 {
        if now - last > self.window {
            return 0.0;
        }
        let mut weight = self.coefficient;
        let mut count = self.buckets.len() as i64;
        if now > last {
            let silent = (now - last) / self.granularity;
            count -= silent;
            weight *= (1.0 - self.coefficient).powf(silent as f64);
        }
        // The ring from the newest bucket backwards, as two slices: a remainder for each bucket would cost more than
        // its weight.
        let (recent, older) = self.buckets.split_at(self.slot(self.index(last)) + 1);
        let mut left = usize::try_from(count).unwrap_or(0);
        let mut average = 0.0;
        for half in [recent, older] {
            for value in half.iter().rev().take(left) {
                average += value * weight;
                weight *= 1.0 - self.coefficient;
            }
            left = left.saturating_sub(half.len());
        }
        average
    }

    /// Whether nothing was recorded for more than a window. Exactly one window after the last write a window is
    /// not empty yet, although it averages to 0.
    #[must_use]
    pub fn is_empty(&self, now: Time) -> bool {
        self.last_write.is_none_or(|last| self.truncate(now) - last > self.window)
    }

    /// Changes the length of the window, keeping the newest data if it is recent.
    pub fn resize(&mut self, now: Time, window: Duration) {
        let window = millis(window);
        if window == self.window {
            return;
        }
        let old_count = self.buckets.len();
        let count = bucket_count(window, self.granularity);
        let mut buckets = vec![0.0; count];
        let mut total = 0.0;
        let now = self.truncate(now);
        match self.last_write {
            Some(last) if now - last <= self.window => {
                let newest = self.index(last);
                for back in 0..count.min(old_count) as i64 {
                    let value = self.buckets[self.slot(newest - back)];
                    buckets[(newest - back).rem_euclid(count as i64) as usize] = value;
                    total += value;
                }
                // The earliest time that may have been written: younger data is diluted, as in Knative.
                self.first_write = Some(last - (old_count as i64 - 1) * self.granularity);
            }
            _ => self.first_write = None,
        }
        self.window = window;
        self.buckets = buckets;
        self.total = total;
        self.coefficient = smoothing_coefficient(count);
    }

    fn truncate(&self, at: Time) -> i64 {
        let at = at.as_millis();
        at - (at + YEAR_ONE_MILLIS).rem_euclid(self.granularity)
    }

    fn index(&self, at: i64) -> i64 {
        at.div_euclid(1000).div_euclid(self.granularity / 1000)
    }

    fn slot(&self, index: i64) -> usize {
        index.rem_euclid(self.buckets.len() as i64) as usize
    }
}

fn bucket_count(window: i64, granularity: i64) -> usize {
    usize::try_from((window + granularity - 1) / granularity).unwrap_or(0).max(1)
}

/// The weight of the newest bucket in a weighted window of `buckets`.
#[must_use]
pub fn smoothing_coefficient(buckets: usize) -> f64 {
    (1.0 - WEIGHT_LACKING.powf(1.0 / buckets as f64)).max(SMALLEST_COEFFICIENT)
}

/// Rounds to six decimals, halves away from zero.
#[must_use]
pub fn round_to_6_digits(value: f64) -> f64 {
    (value * 1e6).round() / 1e6
}

/// The maximum of what was recorded in the last while: a scale-down delay.
#[derive(Debug, Clone)]
pub struct MaxWindow {
    granularity: i64,
    slots: i64,
    /// Falling values with rising indices: the front is the maximum.
    maxima: VecDeque<(i64, i32)>,
}

impl MaxWindow {
    /// A window of `duration` in steps of `granularity` (whole seconds, at least one).
    #[must_use]
    pub fn new(duration: Duration, granularity: Duration) -> Self {
        // Delays up to an hour pass validation of annotations; longer ones grow the ring when they need to.
        const RESERVED_SLOTS: usize = 2048;
        let granularity = millis(granularity).max(1000);
        let slots = bucket_count(millis(duration), granularity);
        Self {
            granularity,
            slots: slots as i64,
            maxima: VecDeque::with_capacity((slots + 1).min(RESERVED_SLOTS)),
        }
    }

    /// Records `value` and returns the maximum of the window that ends at `at`.
    pub fn record(&mut self, at: Time, value: i32) -> i32 {
        let index = at.as_secs().div_euclid(self.granularity / 1000);
        while self.maxima.back().is_some_and(|&(_, last)| last <= value) {
            self.maxima.pop_back();
        }
        while self.maxima.front().is_some_and(|&(first, _)| index - first >= self.slots) {
            self.maxima.pop_front();
        }
        // What is left at the back is larger: a smaller value of the same step changes nothing.
        if self.maxima.back().is_none_or(|&(last, _)| last != index) {
            self.maxima.push_back((index, value));
        }
        self.maxima.front().map_or(value, |&(_, maximum)| maximum)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An evaluation records into a window and reads averages: neither may allocate.
    #[test]
    fn a_delay_window_never_grows() {
        let mut window = MaxWindow::new(Duration::from_secs(3600), Duration::from_secs(2));
        let reserved = window.maxima.capacity();
        for index in 0..20_000 {
            // Falling values are all kept, until they are too old.
            window.record(Time::from_millis(index * 2000), i32::try_from(20_000 - index).unwrap());
        }
        assert_eq!((window.maxima.len(), window.maxima.capacity()), (1800, reserved));
    }
}
