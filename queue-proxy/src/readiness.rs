//! Whether the app is ready.
//!
//! The sidecar looks by itself from its start, without waiting to be asked: from 0.5 ms after a failure, ever more
//! slowly. Who asks before the answer is known waits for it. Once the app was ready, every question is a new look,
//! shared by all who ask meanwhile; if nobody asks for a while the sidecar looks by itself again.

mod attempt;
pub mod spec;

use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::io::Io;
use futures::future::{BoxFuture, FutureExt, Shared, join_all};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use attempt::Prober;
use spec::Probe;

/// First pause between attempts.
const FIRST_PAUSE: Duration = Duration::from_micros(500);
/// The pause grows with the time waited so far and is this part of it: it is what an app's start takes longer at most.
const DELAY_SHARE: u32 = 8;
/// Longest pause between attempts of an aggressive probe.
const LAST_PAUSE: Duration = Duration::from_millis(50);
/// How long an aggressive probe is tried before the one who asked gets an answer.
const AGGRESSIVE_BUDGET: Duration = Duration::from_secs(10);
/// How long the first attempts of an aggressive probe may take; later ones may take longer, so that a slow app gets
/// its chance.
const AGGRESSIVE_ATTEMPT: Duration = Duration::from_millis(100);

/// How long nothing is said after it was said that an app is not ready; twice as long each time after that.
const REMINDER: Duration = Duration::from_secs(10);

/// What is known so far.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Known {
    ready: bool,
    /// Whether the app has ever been ready.
    started: bool,
    failures: u32,
    /// When the latest look began.
    at: Instant,
}

type Look = Shared<BoxFuture<'static, bool>>;

/// Looks whether the app is ready. Cheap to clone.
#[derive(Debug, Clone)]
pub(crate) struct Readiness(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    probes: Vec<Probe>,
    prober: Prober,
    known: watch::Sender<Known>,
    current: Mutex<Option<Look>>,
    /// Why the latest attempt failed.
    error: Mutex<String>,
    /// Whose app it is, for the log.
    whose: String,
    reminder: Mutex<Reminder>,
    stop: CancellationToken,
}

impl Readiness {
    /// No probe: ready at once. `http2`: HTTP probes speak HTTP/2 to apps that do. `whose` app it is, is for the log.
    pub(crate) fn new(
        probes: Vec<Probe>,
        io: Io,
        app_host: std::net::IpAddr,
        http2: bool,
        whose: String,
        stop: CancellationToken,
    ) -> Self {
        let ready = probes.is_empty();
        let known = Known { ready, started: ready, failures: 0, at: Instant::now() };
        Self(Arc::new(Inner {
            probes,
            prober: Prober::new(io, app_host, http2),
            known: watch::Sender::new(known),
            current: Mutex::new(None),
            error: Mutex::default(),
            whose,
            reminder: Mutex::default(),
            stop,
        }))
    }

    /// Looks until the app is ready, then now and then. Tells `readiness` every change; false in the end. `revision`
    /// is whose app it is, for the log.
    pub(crate) async fn run(self, readiness: watch::Sender<bool>, revision: String) {
        let mut known = self.0.known.subscribe();
        let tell = async {
            loop {
                let ready = known.borrow_and_update().ready;
                readiness.send_if_modified(|told| std::mem::replace(told, ready) != ready);
                if known.changed().await.is_err() {
                    return;
                }
            }
        };
        let look = async {
            self.start(&revision).await;
            self.watch().await;
        };
        tokio::select! {
            biased;
            () = self.0.stop.cancelled() => {}
            () = tell => {}
            () = look => {}
        }
        readiness.send_replace(false);
    }

    /// Looks until every probe has succeeded once, each in its own rhythm.
    async fn start(&self, revision: &str) {
        join_all(self.0.probes.iter().map(|probe| self.0.until_success(probe))).await;
        tracing::debug!(target: "ember::coldstart", phase = "app_listening", revision);
        self.0.record(true, Instant::now());
    }

    /// Looks again whenever nobody has asked for longer than a kubelet would wait.
    async fn watch(&self) {
        let Some(period) = self.0.probes.iter().map(Probe::period).min() else {
            return std::future::pending().await;
        };
        loop {
            let known = *self.0.known.borrow();
            // Half a period of patience, or kubelet's own probes would always come a moment too late. Not while they
            // fail: where there is no kubelet, an app that fails is to be known as such no later than by one.
            let patience = if known.failures == 0 { period.mul_f32(1.5) } else { period };
            if known.at.elapsed() < patience {
                tokio::time::sleep_until(known.at + patience).await;
            } else {
                self.look().await;
            }
        }
    }

    /// The answer to a probe. Dropping the future does not end the look, which others may share.
    pub(crate) async fn check(&self) -> bool {
        if self.0.known.borrow().started {
            return self.look().await;
        }
        let mut known = self.0.known.subscribe();
        let budget = self.0.budget();
        tokio::select! {
            biased;
            () = self.0.stop.cancelled() => false,
            answer = tokio::time::timeout(budget, known.wait_for(|known| known.started)) => {
                let ready = matches!(answer, Ok(Ok(_)));
                if !ready {
                    self.0.warn(budget);
                }
                ready
            }
        }
    }

    /// One look, shared with whoever is looking already.
    async fn look(&self) -> bool {
        let look = {
            let mut current = self.0.current.lock();
            match &*current {
                Some(look) if look.peek().is_none() => look.clone(),
                _ => {
                    let inner = Arc::clone(&self.0);
                    let task = tokio::spawn(async move {
                        let begun = Instant::now();
                        let ready = tokio::select! {
                            ready = inner.evaluate() => ready,
                            () = inner.stop.cancelled() => false,
                        };
                        inner.record(ready, begun);
                        ready
                    });
                    let look = task.map(|done| done.unwrap_or(false)).boxed().shared();
                    *current = Some(look.clone());
                    look
                }
            }
        };
        look.await
    }
}

/// When the log is told again that an app is not ready: ever more seldom.
#[derive(Debug, Default)]
struct Reminder {
    begun: Option<Instant>,
    next: Duration,
}

impl Reminder {
    /// How long the app has not been ready, if that is to be said at `now`, when it has not been for `least`.
    fn due(&mut self, now: Instant, least: Duration) -> Option<Duration> {
        let begun = *self.begun.get_or_insert(now.checked_sub(least).unwrap_or(now));
        let waited = now.duration_since(begun);
        (waited >= self.next).then(|| {
            self.next = (waited * 2).max(REMINDER);
            waited
        })
    }
}

impl Inner {
    /// Says that the app has not been ready for `least`, unless that was said not long ago.
    fn warn(&self, least: Duration) {
        let due = self.reminder.lock().due(Instant::now(), least);
        if let Some(waited) = due {
            let error = self.error.lock();
            tracing::warn!("{} is not ready after {}s: {error}", self.whose, waited.as_secs());
        }
    }

    /// How long an answer may take.
    fn budget(&self) -> Duration {
        let budget = |probe: &Probe| if probe.is_aggressive() { AGGRESSIVE_BUDGET } else { probe.timeout() };
        self.probes.iter().map(budget).max().unwrap_or_default()
    }

    /// All probes at a time, each as its mode asks.
    async fn evaluate(&self) -> bool {
        let looks = self.probes.iter().map(async |probe| {
            if probe.is_aggressive() {
                tokio::time::timeout(AGGRESSIVE_BUDGET, self.until_success(probe)).await.is_ok()
            } else {
                match self.prober.attempt(&probe.action, probe.timeout()).await {
                    Ok(()) => true,
                    Err(error) => {
                        *self.error.lock() = error;
                        self.warn(Duration::ZERO);
                        false
                    }
                }
            }
        });
        join_all(looks).await.into_iter().all(|ready| ready)
    }

    /// Attempts until as many successes in a row as the probe asks for.
    async fn until_success(&self, probe: &Probe) {
        let longest = if probe.is_aggressive() { LAST_PAUSE } else { probe.period() };
        let (begun, mut timeout) = (Instant::now(), AGGRESSIVE_ATTEMPT);
        let mut successes = 0;
        let mut failed = Failed { inner: self, times: 0, last: String::new() };
        loop {
            let patience = if probe.is_aggressive() { timeout } else { probe.timeout() };
            match self.prober.attempt(&probe.action, patience).await {
                Ok(()) => {
                    successes += 1;
                    if successes >= probe.success_threshold {
                        failed.times = 0;
                        return;
                    }
                }
                Err(error) => {
                    successes = 0;
                    failed.times += 1;
                    failed.last.clone_from(&error);
                    *self.error.lock() = error;
                    timeout = (timeout * 2).min(probe.timeout());
                }
            }
            tokio::time::sleep((begun.elapsed() / DELAY_SHARE).max(FIRST_PAUSE).min(longest)).await;
        }
    }

    /// Takes note of what a look showed that began at `begun`.
    fn record(&self, ready: bool, begun: Instant) {
        let threshold = self.probes.iter().map(|probe| probe.failure_threshold).min().unwrap_or(1);
        self.known.send_modify(|known| {
            known.at = begun;
            if ready {
                *self.reminder.lock() = Reminder::default();
                *known = Known { ready: true, started: true, failures: 0, ..*known };
            } else {
                known.failures += 1;
                known.ready &= known.failures < threshold;
            }
        });
    }
}

/// Says once, at the end, how often a probe failed.
struct Failed<'a> {
    inner: &'a Inner,
    times: u32,
    last: String,
}

impl Drop for Failed<'_> {
    fn drop(&mut self) {
        let Self { inner, times, last } = self;
        if *times == 0 {
            return;
        }
        if inner.known.borrow().started {
            // One look of many, for as long as the app is away.
            inner.warn(AGGRESSIVE_BUDGET);
        } else {
            tracing::warn!("{}: aggressive probe error (failed {times} times): {last}", inner.whose);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn an_app_that_is_not_ready_is_told_of_ever_more_seldom() {
        let (mut reminder, mut told) = (Reminder::default(), Vec::new());
        for _ in 0..60 {
            tokio::time::advance(AGGRESSIVE_BUDGET).await;
            told.extend(reminder.due(Instant::now(), AGGRESSIVE_BUDGET).map(|waited| waited.as_secs()));
        }
        assert_eq!(told, [10, 20, 40, 80, 160, 320]);
        assert_eq!(Reminder::default().due(Instant::now(), Duration::ZERO), Some(Duration::ZERO));
    }
}
