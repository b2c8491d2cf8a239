//! The time that windows are filled by.

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use ember_dataplane::io::Clock;

use crate::time::Time;

/// The clock that windows are filled by: wall time that never goes back.
#[derive(Clone)]
pub(crate) struct MonotonicClock {
    clock: Arc<dyn Clock>,
    latest: Arc<AtomicI64>,
}

impl MonotonicClock {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, latest: Arc::new(AtomicI64::new(i64::MIN)) }
    }

    pub(crate) fn now(&self) -> Time {
        let now = Time::from_epoch(self.clock.now()).as_millis();
        Time::from_millis(self.latest.fetch_max(now, Ordering::Relaxed).max(now))
    }
}
