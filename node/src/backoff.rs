//! How long a container that keeps ending waits for its next start.

use std::time::Duration;

/// The bounds of the restart back-off. The defaults are Kubernetes'.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BackOffConfig {
    /// The wait before the second restart (the first one is immediate). Default 10 s.
    pub initial: Duration,
    /// The longest wait. Default 300 s.
    pub max: Duration,
    /// A container that ran this long starts over with an immediate restart. Default 10 min.
    pub reset_after: Duration,
}

impl Default for BackOffConfig {
    fn default() -> Self {
        Self {
            initial: Duration::from_secs(10),
            max: Duration::from_secs(300),
            reset_after: Duration::from_secs(600),
        }
    }
}

/// The restart back-off of one container: nothing, then `initial`, doubling up to `max`.
#[derive(Debug, Clone)]
pub struct BackOff {
    config: BackOffConfig,
    next: Duration,
}

impl BackOff {
    /// A back-off that has seen no end yet.
    #[must_use]
    pub fn new(config: BackOffConfig) -> Self {
        Self { config, next: Duration::ZERO }
    }

    /// How long to wait before the next start, after a run that lasted `ran`.
    pub fn after_run(&mut self, ran: Duration) -> Duration {
        if ran >= self.config.reset_after {
            self.next = Duration::ZERO;
        }
        let wait = self.next;
        self.next = if wait.is_zero() { self.config.initial } else { wait * 2 }.min(self.config.max);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn waits(runs: &[u64]) -> Vec<u64> {
        let mut back_off = BackOff::new(BackOffConfig::default());
        runs.iter().map(|&ran| back_off.after_run(Duration::from_secs(ran)).as_secs()).collect()
    }

    #[test]
    fn doubles_to_the_bound() {
        assert_eq!(waits(&[0; 9]), [0, 10, 20, 40, 80, 160, 300, 300, 300]);
    }

    #[test]
    fn a_long_run_starts_over() {
        assert_eq!(waits(&[0, 0, 0, 599, 600, 0]), [0, 10, 20, 40, 0, 10]);
    }
}
