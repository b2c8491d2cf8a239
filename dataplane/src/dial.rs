//! Connecting, with attempts that start short and grow: a lost SYN is repeated much sooner than the kernel would.

use std::time::Duration;

use tokio::time::Instant;

use crate::address::Address;
use crate::error::ProxyError;
use crate::io::{Io, Stream};

/// How to connect. Only timeouts are tried again; any other error is final at once.
#[derive(Debug, Clone, PartialEq)]
pub struct Dial {
    /// Timeout of the first attempt. 50 ms.
    pub first: Duration,
    /// By how much each later attempt may take longer. 1.4.
    pub growth: f64,
    /// Attempts in all. 16, which is about 20 s.
    pub attempts: u32,
    /// Least pause before another attempt, at most twice that. 30 ms.
    pub pause: Duration,
}

impl Default for Dial {
    fn default() -> Self {
        Self { first: Duration::from_millis(50), growth: 1.4, attempts: 16, pause: Duration::from_millis(30) }
    }
}

impl Dial {
    /// Attempt timeouts in order, without jitter: one at `first`, the others from `first` growing.
    fn timeouts(&self) -> impl Iterator<Item = Duration> {
        let (first, growth) = (self.first, self.growth);
        let later = (0..self.attempts.saturating_sub(1))
            .map(move |step| first.mul_f64(growth.powi(i32::try_from(step).unwrap_or(i32::MAX))));
        std::iter::once(first).chain(later)
    }

    /// Connects to `address`, no later than `deadline`.
    ///
    /// # Errors
    /// [`ProxyError::Connect`] or [`ProxyError::ConnectTimeout`].
    pub async fn connect(
        &self,
        io: &Io,
        address: &Address,
        deadline: Option<Instant>,
    ) -> Result<Stream, ProxyError> {
        let begun = Instant::now();
        for (attempt, timeout) in self.timeouts().enumerate() {
            let capped = |at: Instant| deadline.map_or(at, |deadline| deadline.min(at));
            let mut timeout = timeout;
            if attempt > 0 {
                let now = io.clock.now();
                timeout = jitter(timeout, 0.1, now);
                tokio::time::sleep_until(capped(Instant::now() + jitter(self.pause, 1.0, now))).await;
            }
            let until = capped(Instant::now() + timeout);
            match tokio::time::timeout_at(until, io.network.connect(address.host(), address.port())).await {
                Ok(Ok(stream)) => return Ok(stream),
                Ok(Err(source)) if source.kind() != std::io::ErrorKind::TimedOut => {
                    return Err(ProxyError::Connect { address: address.clone(), source });
                }
                Ok(Err(_)) | Err(_) => {}
            }
            if deadline.is_some_and(|deadline| deadline <= Instant::now()) {
                break;
            }
        }
        Err(ProxyError::ConnectTimeout { address: address.clone(), elapsed: begun.elapsed() })
    }
}

/// `base` stretched by up to `share` of itself. The spread matters, its quality does not: the clock's digits below
/// a microsecond serve.
fn jitter(base: Duration, share: f64, now: Duration) -> Duration {
    base.mul_f64(1.0 + share * f64::from(now.subsec_nanos() % 1000) / 1000.0)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicU32, Ordering};

    use futures::future::BoxFuture;

    use super::*;
    use crate::io::{Listener, Network, SystemClock};

    /// A network on which nothing ever answers.
    #[derive(Default)]
    struct BlackHole(AtomicU32);

    impl Network for BlackHole {
        fn listen<'a>(&'a self, _: std::net::SocketAddr) -> BoxFuture<'a, std::io::Result<Listener>> {
            Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
        }

        fn connect<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, std::io::Result<Stream>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(std::future::pending())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn sixteen_attempts_take_about_twenty_seconds() {
        let hole = Arc::new(BlackHole::default());
        let io = Io { clock: Arc::new(SystemClock), network: Arc::clone(&hole) as _ };
        let begun = Instant::now();
        let error = Dial::default().connect(&io, &Address::new("10.0.0.1", 80), None).await.unwrap_err();
        let took = begun.elapsed().as_secs_f64();
        assert!((19.4 + 0.45..=19.4 * 1.1 + 0.95).contains(&took), "{took}");
        assert_eq!(hole.0.load(Ordering::Relaxed), 16);
        assert!(error.to_string().starts_with("timed out dialing 10.0.0.1:80 after "), "{error}");
    }

    /// A network on which everybody refuses.
    #[derive(Default)]
    struct Refusal(AtomicU32);

    impl Network for Refusal {
        fn listen<'a>(&'a self, _: std::net::SocketAddr) -> BoxFuture<'a, std::io::Result<Listener>> {
            Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
        }

        fn connect<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, std::io::Result<Stream>> {
            self.0.fetch_add(1, Ordering::Relaxed);
            Box::pin(async { Err(std::io::ErrorKind::ConnectionRefused.into()) })
        }
    }

    #[tokio::test(start_paused = true)]
    async fn only_timeouts_are_tried_again() {
        let refusal = Arc::new(Refusal::default());
        let io = Io { clock: Arc::new(SystemClock), network: Arc::clone(&refusal) as _ };
        let begun = Instant::now();
        let error = Dial::default().connect(&io, &Address::new("10.0.0.1", 80), None).await.unwrap_err();
        assert_eq!(error.to_string(), "dial tcp 10.0.0.1:80: connect: connection refused");
        assert_eq!((refusal.0.load(Ordering::Relaxed), begun.elapsed()), (1, Duration::ZERO));
    }

    #[tokio::test(start_paused = true)]
    async fn the_deadline_bounds_all_attempts() {
        let io = Io { clock: Arc::new(SystemClock), network: Arc::new(BlackHole::default()) };
        let begun = Instant::now();
        let deadline = begun + Duration::from_millis(70);
        let connected = Dial::default().connect(&io, &Address::new("10.0.0.1", 80), Some(deadline)).await;
        assert!(matches!(connected, Err(ProxyError::ConnectTimeout { .. })));
        assert!(begun.elapsed() < Duration::from_millis(120));
    }
}
