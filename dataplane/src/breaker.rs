//! Admission: so many at a time, so many waiting, the rest refused at once.
//!
//! Waiters are served in the order they came. A waiter that is dropped leaves its place at once; a permit that was
//! on its way to it goes to the next.

use std::collections::BTreeMap;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::sync::oneshot;

/// What cannot be a breaker.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidBreaker {
    /// A queue needs a place.
    #[error("queue depth must be greater than 0")]
    QueueDepth,
    /// More than the most.
    #[error("initial capacity must be between 0 and max concurrency")]
    InitialCapacity,
}

/// No place left: capacity and queue are full.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("pending request queue full")]
pub struct Full;

/// A bounded admission queue. Cheap to clone; all clones are one.
#[derive(Debug, Clone)]
pub struct Breaker(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    /// Most that may run and wait together.
    total: usize,
    max: usize,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    capacity: usize,
    running: usize,
    /// Waiters by their number; numbers grow, so the first is the oldest.
    waiting: BTreeMap<u64, oneshot::Sender<Permit>>,
    next: u64,
}

/// Permission to run. Dropping it lets the next waiter run. Attach it to the response body.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    breaker: Option<Arc<Inner>>,
}

impl Drop for Permit {
    fn drop(&mut self) {
        if let Some(breaker) = self.breaker.take() {
            breaker.release();
        }
    }
}

/// A place in the queue.
struct Waiter<'a> {
    breaker: &'a Inner,
    number: u64,
}

impl Drop for Waiter<'_> {
    fn drop(&mut self) {
        self.breaker.state.lock().waiting.remove(&self.number);
    }
}

impl Breaker {
    /// `queue_depth` may wait in addition to `max_concurrency`, the upper bound of the capacity, which starts at
    /// `initial`.
    ///
    /// # Errors
    /// No queue, or an initial capacity above the maximum.
    pub fn new(queue_depth: usize, max_concurrency: usize, initial: usize) -> Result<Self, InvalidBreaker> {
        if queue_depth == 0 {
            return Err(InvalidBreaker::QueueDepth);
        }
        if initial > max_concurrency {
            return Err(InvalidBreaker::InitialCapacity);
        }
        let state = State { capacity: initial, running: 0, waiting: BTreeMap::new(), next: 0 };
        Ok(Self(Arc::new(Inner {
            total: queue_depth.saturating_add(max_concurrency),
            max: max_concurrency,
            state: Mutex::new(state),
        })))
    }

    /// Waits for permission. Cancel safe: dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Full`], at once.
    pub async fn acquire(&self) -> Result<Permit, Full> {
        let (waiter, granted) = {
            let mut state = self.0.state.lock();
            if state.running + state.waiting.len() >= self.0.total {
                return Err(Full);
            }
            if state.running < state.capacity && state.waiting.is_empty() {
                state.running += 1;
                return Ok(Permit { breaker: Some(Arc::clone(&self.0)) });
            }
            let (grant, granted) = oneshot::channel();
            let number = state.next;
            state.next += 1;
            state.waiting.insert(number, grant);
            (Waiter { breaker: &self.0, number }, granted)
        };
        let permit = granted.await;
        drop(waiter);
        // The sender is removed only by granting, or by the waiter's own end.
        permit.map_err(|_| Full)
    }

    /// Permission now or never.
    #[must_use]
    pub fn try_reserve(&self) -> Option<Permit> {
        let mut state = self.0.state.lock();
        let free = state.running < state.capacity && state.waiting.is_empty() && state.running < self.0.total;
        free.then(|| {
            state.running += 1;
            Permit { breaker: Some(Arc::clone(&self.0)) }
        })
    }

    /// Sets how many may run, at most the maximum. Raising it wakes waiters; lowering it interrupts nobody.
    pub fn update_concurrency(&self, capacity: usize) {
        let mut grants = Vec::new();
        {
            let mut state = self.0.state.lock();
            state.capacity = capacity.min(self.0.max);
            while state.running < state.capacity
                && let Some((_, grant)) = state.waiting.pop_first()
            {
                state.running += 1;
                grants.push(grant);
            }
        }
        for grant in grants {
            // A waiter that has just left drops the permit, which goes to the next.
            let _ = grant.send(Permit { breaker: Some(Arc::clone(&self.0)) });
        }
    }

    /// How many may run.
    #[must_use]
    pub fn capacity(&self) -> usize {
        self.0.state.lock().capacity
    }

    /// Running and waiting together.
    #[must_use]
    pub fn in_flight(&self) -> usize {
        let state = self.0.state.lock();
        state.running + state.waiting.len()
    }

    /// Waiting.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.state.lock().waiting.len()
    }
}

impl Inner {
    fn release(self: Arc<Self>) {
        loop {
            let grant = {
                let mut state = self.state.lock();
                let next = if state.running > state.capacity { None } else { state.waiting.pop_first() };
                match next {
                    Some((_, grant)) => grant,
                    None => {
                        state.running -= 1;
                        return;
                    }
                }
            };
            // The place is handed on, so `running` stays.
            match grant.send(Permit { breaker: Some(Arc::clone(&self)) }) {
                Ok(()) => return,
                Err(mut refused) => refused.breaker = None,
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::pin::Pin;
    use std::task::{Context, Poll, Waker};

    use futures::future::BoxFuture;
    use proptest::prelude::*;

    use super::*;

    fn poll<T>(future: &mut BoxFuture<'static, T>) -> Poll<T> {
        Pin::new(future).poll(&mut Context::from_waker(Waker::noop()))
    }

    fn acquire(breaker: &Breaker) -> BoxFuture<'static, Result<Permit, Full>> {
        let breaker = breaker.clone();
        Box::pin(async move { breaker.acquire().await })
    }

    #[test]
    fn constructor_checks() {
        assert_eq!(Breaker::new(0, 1, 1).unwrap_err(), InvalidBreaker::QueueDepth);
        assert_eq!(Breaker::new(1, 1, 2).unwrap_err(), InvalidBreaker::InitialCapacity);
        assert!(Breaker::new(1, 0, 0).is_ok());
    }

    #[test]
    fn one_runs_ten_wait_the_rest_is_refused() {
        let breaker = Breaker::new(10, 1, 1).unwrap();
        let mut all: Vec<_> = (0..14).map(|_| acquire(&breaker)).collect();
        let polled: Vec<_> = all.iter_mut().map(poll).collect();
        assert_eq!(polled.iter().filter(|polled| matches!(polled, Poll::Ready(Ok(_)))).count(), 1);
        assert_eq!(polled.iter().filter(|polled| polled.is_pending()).count(), 10);
        assert_eq!(polled.iter().filter(|polled| matches!(polled, Poll::Ready(Err(Full)))).count(), 3);
        assert_eq!(breaker.in_flight(), 11);
        drop(polled);
        assert!(matches!(poll(&mut all[1]), Poll::Ready(Ok(_))), "the oldest waiter is next");
    }

    #[test]
    fn a_waiter_that_leaves_frees_its_place_and_its_grant() {
        let breaker = Breaker::new(2, 1, 1).unwrap();
        let running = breaker.try_reserve().unwrap();
        let (mut first, mut second) = (acquire(&breaker), acquire(&breaker));
        assert!(poll(&mut first).is_pending() && poll(&mut second).is_pending());
        assert!(matches!(poll(&mut acquire(&breaker)), Poll::Ready(Err(Full))));
        drop(running);
        drop(first);
        let Poll::Ready(Ok(permit)) = poll(&mut second) else { panic!("the permit was lost") };
        drop(permit);
        assert_eq!(breaker.in_flight(), 0);
    }

    #[test]
    fn capacity_changes_wake_and_never_interrupt() {
        let breaker = Breaker::new(10, 5, 0).unwrap();
        assert!(breaker.try_reserve().is_none());
        let mut waiters: Vec<_> = (0..3).map(|_| acquire(&breaker)).collect();
        assert!(waiters.iter_mut().all(|waiter| poll(waiter).is_pending()));
        breaker.update_concurrency(2);
        let one = poll(&mut waiters[0]);
        let two = poll(&mut waiters[1]);
        assert!(one.is_ready() && two.is_ready() && poll(&mut waiters[2]).is_pending());
        breaker.update_concurrency(1);
        drop(one);
        assert!(poll(&mut waiters[2]).is_pending(), "still one too many");
        drop(two);
        assert!(poll(&mut waiters[2]).is_ready());
        breaker.update_concurrency(100);
        assert_eq!(breaker.capacity(), 5);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arrive,
        Cancel(usize),
        Finish(usize),
        Resize(usize),
    }

    fn steps() -> impl Strategy<Value = Vec<Step>> {
        let step = prop_oneof![
            4 => Just(Step::Arrive),
            1 => (0..20usize).prop_map(Step::Cancel),
            3 => (0..20usize).prop_map(Step::Finish),
            1 => (0..5usize).prop_map(Step::Resize),
        ];
        prop::collection::vec(step, 0..200)
    }

    proptest! {
        /// Never more than the capacity, except for what ran when it was lowered; never idle while someone waits;
        /// first come, first served; nothing is lost.
        #[test]
        fn laws(steps in steps()) {
            let breaker = Breaker::new(8, 4, 2).unwrap();
            let mut waiting: Vec<BoxFuture<'static, _>> = Vec::new();
            let mut running = Vec::new();
            for step in steps {
                match step {
                    Step::Arrive => {
                        let before = running.len() + waiting.len();
                        let mut future = acquire(&breaker);
                        match poll(&mut future) {
                            Poll::Ready(Ok(permit)) => {
                                prop_assert!(waiting.is_empty(), "overtook a waiter");
                                running.push(permit);
                            }
                            Poll::Ready(Err(Full)) => prop_assert_eq!(before, 12),
                            Poll::Pending => waiting.push(future),
                        }
                    }
                    Step::Cancel(index) if index < waiting.len() => drop(waiting.remove(index)),
                    Step::Finish(index) if index < running.len() => {
                        let before = running.len();
                        drop(running.swap_remove(index));
                        prop_assert_eq!(running.len(), before - 1);
                    }
                    Step::Resize(capacity) => breaker.update_concurrency(capacity),
                    Step::Cancel(_) | Step::Finish(_) => {}
                }
                let mut still = Vec::new();
                for mut future in waiting {
                    match poll(&mut future) {
                        Poll::Ready(Ok(permit)) => {
                            prop_assert!(still.is_empty(), "overtook a waiter");
                            prop_assert!(running.len() < breaker.capacity());
                            running.push(permit);
                        }
                        Poll::Ready(Err(Full)) => prop_assert!(false, "a waiter was refused"),
                        Poll::Pending => still.push(future),
                    }
                }
                waiting = still;
                prop_assert_eq!(breaker.in_flight(), running.len() + waiting.len());
                prop_assert!(waiting.is_empty() || running.len() >= breaker.capacity());
            }
        }
    }
}
