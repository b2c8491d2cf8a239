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
    stop: CancellationToken,
}

impl Readiness {
    /// No probe: ready at once. `http2`: HTTP probes speak HTTP/2 to apps that do.
    pub(crate) fn new(
        probes: Vec<Probe>,
        io: Io,
        app_host: std::net::IpAddr,
        http2: bool,
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
                    tracing::warn!("not ready after {budget:?}: {}", self.0.error.lock());
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

impl Inner {
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
                        tracing::warn!("readiness probe failed: {error}");
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
        let mut failed = Failed { times: 0, last: String::new() };
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
                *known = Known { ready: true, started: true, failures: 0, ..*known };
            } else {
                known.failures += 1;
                known.ready &= known.failures < threshold;
            }
        });
    }
}

/// Says once, at the end, how often a probe failed.
struct Failed {
    times: u32,
    last: String,
}

impl Drop for Failed {
    fn drop(&mut self) {
        if self.times > 0 {
            tracing::warn!("aggressive probe error (failed {} times): {}", self.times, self.last);
        }
    }
}
