//! Ending without losing a request.
//!
//! [`Drain`] is the tokens of a component's servers: announce, stop, abort, and the tasks to wait for.
//! [`Quiet`] counts requests in flight and knows when traffic has ceased.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How servers and upgraded streams end, in three steps. Cheap to clone; all clones are one.
#[derive(Debug, Clone, Default)]
pub struct Drain {
    announced: Arc<AtomicBool>,
    stop: CancellationToken,
    abort: CancellationToken,
    tasks: TaskTracker,
}

/// How a drain ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Outcome {
    /// Everything in flight finished.
    Drained,
    /// The grace period ended first; the rest was cut.
    Forced,
}

impl Drain {
    /// Nothing draining yet.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// From now on every HTTP/1 answer carries `Connection: close`, and an HTTP/2 connection is told to go with its
    /// next answer. Connections are still accepted and served.
    pub fn announce(&self) {
        self.announced.store(true, Ordering::Relaxed);
    }

    /// Takes the announcement back.
    pub fn resume(&self) {
        self.announced.store(false, Ordering::Relaxed);
    }

    /// Whether [`announce`](Self::announce) holds.
    #[must_use]
    pub fn is_announced(&self) -> bool {
        self.announced.load(Ordering::Relaxed)
    }

    /// No more connections; idle ones close, busy ones finish their requests.
    pub fn stop(&self) {
        self.announce();
        self.stop.cancel();
    }

    /// Cuts what is left, upgraded streams too.
    pub fn abort(&self) {
        self.stop();
        self.abort.cancel();
    }

    /// Resolves once [`stop`](Self::stop) was called.
    #[must_use]
    pub fn stopped(&self) -> &CancellationToken {
        &self.stop
    }

    /// Resolves once [`abort`](Self::abort) was called.
    #[must_use]
    pub fn aborted(&self) -> &CancellationToken {
        &self.abort
    }

    /// Connections, upgraded streams and client connections that belong to the component.
    #[must_use]
    pub fn tasks(&self) -> &TaskTracker {
        &self.tasks
    }

    /// [`stop`](Self::stop), waits up to `grace` for every task, then [`abort`](Self::abort)s and waits for the rest.
    pub async fn finish(&self, grace: Duration) -> Outcome {
        self.stop();
        self.tasks.close();
        if tokio::time::timeout(grace, self.tasks.wait()).await.is_ok() {
            return Outcome::Drained;
        }
        self.abort();
        self.tasks.wait().await;
        Outcome::Forced
    }
}

/// Requests in flight, and whether traffic has ceased. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Quiet(Arc<State>);

#[derive(Debug)]
struct State {
    period: Duration,
    draining: watch::Sender<bool>,
    in_flight: AtomicUsize,
    idle: Notify,
    last_arrival: Mutex<Instant>,
}

/// One request in flight. Attach it to the response body.
#[derive(Debug)]
#[must_use]
pub struct InFlight(Arc<State>);

impl Drop for InFlight {
    fn drop(&mut self) {
        if self.0.in_flight.fetch_sub(1, Ordering::AcqRel) == 1 {
            self.0.idle.notify_waiters();
        }
    }
}

impl Quiet {
    /// `period`: how long no request may arrive for traffic to have ceased.
    #[must_use]
    pub fn new(period: Duration) -> Self {
        Self(Arc::new(State {
            period,
            draining: watch::Sender::new(false),
            in_flight: AtomicUsize::new(0),
            idle: Notify::new(),
            last_arrival: Mutex::new(Instant::now()),
        }))
    }

    /// Counts a request in. While draining it restarts the quiet period.
    pub fn enter(&self) -> InFlight {
        self.0.in_flight.fetch_add(1, Ordering::AcqRel);
        if self.is_draining() {
            *self.0.last_arrival.lock() = Instant::now();
        }
        InFlight(Arc::clone(&self.0))
    }

    /// Requests in flight.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        self.0.in_flight.load(Ordering::Acquire)
    }

    /// Whether draining has begun.
    #[must_use]
    pub fn is_draining(&self) -> bool {
        *self.0.draining.borrow()
    }

    /// Begins draining, once: later calls do not restart the quiet period.
    pub fn begin(&self) {
        self.0.draining.send_if_modified(|draining| {
            let begins = !*draining;
            if begins {
                *self.0.last_arrival.lock() = Instant::now();
            }
            *draining = true;
            begins
        });
    }

    /// Ends draining and releases who waits in [`quiet`](Self::quiet).
    pub fn reset(&self) {
        self.0.draining.send_if_modified(std::mem::take);
    }

    /// Begins draining; resolves when no request has arrived for the quiet period, or at a reset.
    pub async fn quiet(&self) {
        self.begin();
        let mut draining = self.0.draining.subscribe();
        loop {
            let until = *self.0.last_arrival.lock() + self.0.period;
            if until <= Instant::now() {
                return;
            }
            tokio::select! {
                () = tokio::time::sleep_until(until) => {}
                _ = draining.wait_for(|draining| !draining) => return,
            }
        }
    }

    /// Resolves when nothing is in flight.
    pub async fn idle(&self) {
        loop {
            let notified = self.0.idle.notified();
            tokio::pin!(notified);
            notified.as_mut().enable();
            if self.in_flight() == 0 {
                return;
            }
            notified.await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const S: Duration = Duration::from_secs(1);

    #[tokio::test(start_paused = true)]
    async fn arrivals_restart_the_quiet_period() {
        let quiet = Quiet::new(30 * S);
        let begun = Instant::now();
        let waiter = tokio::spawn({
            let quiet = quiet.clone();
            async move { quiet.quiet().await }
        });
        tokio::time::sleep(10 * S).await;
        drop(quiet.enter());
        waiter.await.unwrap();
        assert_eq!(begun.elapsed(), 40 * S);
        assert!(quiet.is_draining());
    }

    #[tokio::test(start_paused = true)]
    async fn a_second_caller_shares_the_period_and_reset_releases_both() {
        let quiet = Quiet::new(30 * S);
        let begun = Instant::now();
        let spawn = || {
            let quiet = quiet.clone();
            tokio::spawn(async move { quiet.quiet().await })
        };
        let first = spawn();
        tokio::time::sleep(S).await;
        let second = spawn();
        tokio::time::sleep(S).await;
        quiet.reset();
        first.await.unwrap();
        second.await.unwrap();
        assert_eq!(begun.elapsed(), 2 * S);
        assert!(!quiet.is_draining());
        quiet.quiet().await;
        assert_eq!(begun.elapsed(), 32 * S);
    }

    #[tokio::test(start_paused = true)]
    async fn idle_waits_for_the_last_guard() {
        let quiet = Quiet::new(S);
        quiet.idle().await;
        let (one, two) = (quiet.enter(), quiet.enter());
        let waiter = tokio::spawn({
            let quiet = quiet.clone();
            async move { quiet.idle().await }
        });
        drop(one);
        tokio::task::yield_now().await;
        assert!(!waiter.is_finished());
        drop(two);
        waiter.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn finish_waits_then_forces() {
        let drain = Drain::new();
        drain.tasks().spawn(tokio::time::sleep(S));
        assert_eq!(drain.finish(2 * S).await, Outcome::Drained);

        let drain = Drain::new();
        let aborted = drain.aborted().clone();
        drain.tasks().spawn(async move { aborted.cancelled().await });
        assert_eq!(drain.finish(S).await, Outcome::Forced);
    }
}
