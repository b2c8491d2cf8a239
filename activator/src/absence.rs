//! A request that pods have handed back, because their apps do not listen: how long it waits for one that does.

use std::future::Future;
use std::time::Duration;

use ember_dataplane::error::ProxyError;
use tokio::time::Instant;

/// So many pods are tried although there is no time to wait.
const MOST_PODS: u32 = 8;
/// Pauses after a pod that had proven itself has handed the request back: its probe may look at something else than
/// where requests go.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);
/// Nobody is believed who asks for more patience than this.
const MOST_PATIENCE: Duration = Duration::from_secs(60);

/// What a request has met so far.
#[derive(Debug, Default)]
pub(crate) struct Absence(Option<Refusals>);

#[derive(Debug)]
struct Refusals {
    count: u32,
    until: Instant,
    pause: Duration,
    last: ProxyError,
}

impl Absence {
    /// A pod has handed the request back and says how long it may wait. Another is tried at once, those after it a
    /// little later.
    pub(crate) async fn refused(&mut self, error: ProxyError, patience: Duration) {
        match &mut self.0 {
            None => {
                let until = Instant::now() + patience.min(MOST_PATIENCE);
                self.0 = Some(Refusals { count: 1, until, pause: FIRST_PAUSE, last: error });
            }
            Some(refusals) => {
                refusals.count += 1;
                refusals.last = error;
                tokio::time::sleep(refusals.pause).await;
                refusals.pause = (refusals.pause * 2).min(LAST_PAUSE);
            }
        }
    }

    /// Waits for a pod, as long as a request that was handed back may.
    ///
    /// # Errors
    /// The latest refusal.
    pub(crate) async fn bound<T>(&mut self, acquiring: impl Future<Output = T>) -> Result<T, ProxyError> {
        let Some(refusals) = &self.0 else { return Ok(acquiring.await) };
        let over = refusals.until <= Instant::now() && refusals.count >= MOST_PODS;
        if !over && let Ok(acquired) = tokio::time::timeout_at(refusals.until, acquiring).await {
            return Ok(acquired);
        }
        // Taken, and not copied: this is the end of the request.
        match self.0.take() {
            Some(refusals) => Err(refusals.last),
            None => Err(ProxyError::QueueTimeout),
        }
    }
}
