//! The three timers of a request.
//!
//! They start together when the request reaches the stage that owns them: waiting in a queue counts.
//! Only output towards the client is progress; upload activity is not.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use pin_project_lite::pin_project;
use tokio::time::{Instant, Sleep};

/// How long a request may take. `None` is off.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Timeouts {
    /// From the start to the end of the response. Zero expires at once.
    pub total: Option<Duration>,
    /// From the start to the head of the response.
    pub response_start: Option<Duration>,
    /// Longest silence towards the client.
    pub idle: Option<Duration>,
}

impl Timeouts {
    /// Starts the timers.
    #[must_use]
    pub fn start(&self) -> Deadlines {
        let now = Instant::now();
        Deadlines { timeouts: *self, started: now }
    }
}

/// [`Timeouts`] that run.
#[derive(Debug, Clone, Copy)]
pub struct Deadlines {
    timeouts: Timeouts,
    started: Instant,
}

/// Which timer ran out, and how long it was.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expired {
    /// The whole request.
    Total(Duration),
    /// The head of the response.
    ResponseStart(Duration),
    /// Silence.
    Idle(Duration),
}

impl fmt::Display for Expired {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Total(after) => write!(f, "Request timeout: {after:?}"),
            Self::ResponseStart(after) => write!(f, "Response start timeout: {after:?}"),
            Self::Idle(after) => write!(f, "Idle timeout: {after:?}"),
        }
    }
}

impl std::error::Error for Expired {}

impl Deadlines {
    /// When the timers started.
    #[must_use]
    pub fn started(&self) -> Instant {
        self.started
    }

    /// When the whole request has to be over.
    #[must_use]
    pub fn total(&self) -> Option<Instant> {
        later(self.started, self.timeouts.total)
    }

    /// The next timer to run out. `written`: when something was last sent to the client, if anything was.
    #[must_use]
    pub fn next(&self, written: Option<Instant>) -> Option<(Instant, Expired)> {
        let Timeouts { total, response_start, idle } = self.timeouts;
        let timer = |since, after, expired: fn(Duration) -> Expired| {
            Some((later(since, after)?, expired(after.unwrap_or_default())))
        };
        let start = if written.is_none() { response_start } else { None };
        [
            timer(self.started, total, Expired::Total),
            timer(self.started, start, Expired::ResponseStart),
            timer(written.unwrap_or(self.started), idle, Expired::Idle),
        ]
        .into_iter()
        .flatten()
        .min_by_key(|(at, _)| *at)
    }

    /// Whether no timer is set.
    #[must_use]
    pub fn is_unlimited(&self) -> bool {
        self.timeouts == Timeouts::default()
    }

    /// Runs what produces the head of the response: everything before it, queueing too. When a timer wins, the
    /// future is dropped, which gives back permits and aborts the call to the backend.
    ///
    /// Resolves to the timer that ran out, or to what was produced.
    pub fn before_response<F: Future>(&self, produce: F) -> BeforeResponse<F> {
        let (sleep, expired, late) = match self.next(None) {
            None => (None, None, false),
            Some((at, expired)) => (Some(tokio::time::sleep_until(at)), Some(expired), at <= Instant::now()),
        };
        BeforeResponse { sleep, expired, late, produce }
    }
}

pin_project! {
    /// See [`Deadlines::before_response`]. Written out, because an `async fn` would have room for the future twice.
    #[must_use]
    pub struct BeforeResponse<F> {
        #[pin]
        sleep: Option<Sleep>,
        expired: Option<Expired>,
        // The timer had run out before anything was begun.
        late: bool,
        #[pin]
        produce: F,
    }
}

impl<F: Future> Future for BeforeResponse<F> {
    type Output = Result<F::Output, Expired>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        let this = self.project();
        // The timer is looked at first: what ends because of the same deadline, such as a connection attempt, is a
        // timeout and no error of its own; and work whose time is up is not begun.
        if let (Some(sleep), Some(expired)) = (this.sleep.as_pin_mut(), *this.expired)
            && (*this.late || sleep.poll(cx).is_ready())
        {
            return Poll::Ready(Err(expired));
        }
        this.produce.poll(cx).map(Ok)
    }
}

/// `after` that; never, if there is no such time.
fn later(since: Instant, after: Option<Duration>) -> Option<Instant> {
    since.checked_add(after?)
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[tokio::test(start_paused = true)]
    async fn the_earliest_timer_wins() {
        let deadlines =
            Timeouts { total: Some(30 * MS), response_start: Some(10 * MS), idle: Some(20 * MS) }.start();
        let begun = deadlines.started();
        assert_eq!(deadlines.next(None).unwrap(), (begun + 10 * MS, Expired::ResponseStart(10 * MS)));
        assert_eq!(deadlines.next(Some(begun)).unwrap(), (begun + 20 * MS, Expired::Idle(20 * MS)));
        assert_eq!(
            deadlines.next(Some(begun + 15 * MS)).unwrap(),
            (begun + 30 * MS, Expired::Total(30 * MS))
        );
        let expired = deadlines.before_response(std::future::pending::<()>()).await.unwrap_err();
        assert_eq!(expired, Expired::ResponseStart(10 * MS));
        assert_eq!(begun.elapsed(), 10 * MS);
    }

    #[tokio::test(start_paused = true)]
    async fn the_timer_wins_over_what_ends_by_the_same_deadline() {
        let deadlines = Timeouts { total: Some(10 * MS), ..Timeouts::default() }.start();
        let at = deadlines.total().unwrap();
        let produced = deadlines.before_response(tokio::time::sleep_until(at)).await;
        assert_eq!(produced, Err(Expired::Total(10 * MS)));
    }

    #[tokio::test(start_paused = true)]
    async fn zero_expires_at_once_and_none_never() {
        let at_once = Timeouts { total: Some(Duration::ZERO), ..Timeouts::default() }.start();
        assert_eq!(at_once.before_response(async {}).await, Err(Expired::Total(Duration::ZERO)));
        let never = Timeouts::default().start();
        assert!(never.is_unlimited());
        assert_eq!(never.before_response(async { 1 }).await, Ok(1));
        let endless = Some(Duration::MAX);
        let endless = Timeouts { total: endless, response_start: endless, idle: endless }.start();
        assert_eq!(endless.before_response(async { 1 }).await, Ok(1));
        assert_eq!((endless.total(), endless.next(Some(Instant::now()))), (None, None));
    }
}
