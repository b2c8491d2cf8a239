//! Who gets which pod: one fair queue per revision in front of its pods.
//!
//! With a concurrency limit a request gets the less busy of two pods that have a free place, or waits in turn; a
//! place that comes free goes to whoever waits longest. Without a limit every usable pod has room, and the choice is
//! made on an immutable snapshot without a lock. One short-held lock per revision; none is held while waiting.

use std::collections::{HashSet, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use arc_swap::ArcSwap;
use ember_dataplane::address::Address;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// A pod as requests see it.
#[derive(Debug)]
struct Pod {
    address: Address,
    in_flight: AtomicU32,
}

impl Pod {
    fn load(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }
}

struct Waiter {
    id: i64,
    grant: oneshot::Sender<Grant>,
}

#[derive(Default)]
struct State {
    /// In order of id, which is the order of service.
    waiting: VecDeque<Waiter>,
    next_id: i64,
    /// How many went to the head so far. Their ids count down from -1: no id is ever used twice, or one that leaves
    /// could take another out of the queue.
    heads: i64,
    closed: bool,
    /// Pods that may not be used now but still have requests: they come back with their counts.
    retired: Vec<Arc<Pod>>,
}

struct Shared {
    /// Most requests at a time in one pod; 0 for no limit.
    limit: u32,
    queue_depth: usize,
    /// Pods that may be used. Written under the lock, read without.
    pods: ArcSwap<Vec<Arc<Pod>>>,
    state: Mutex<State>,
}

/// The dispatcher of one revision. Clones are the same dispatcher.
#[derive(Clone)]
pub struct Dispatcher(Arc<Shared>);

impl fmt::Debug for Dispatcher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Dispatcher").field("limit", &self.0.limit).finish_non_exhaustive()
    }
}

/// Why no pod was given.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refused {
    /// As many wait as may wait.
    #[error("pending request queue full")]
    QueueFull,
    /// The revision is gone.
    #[error("the revision is gone")]
    Closed,
}

/// A place in a pod, given back on drop.
pub struct Grant {
    pod: Arc<Pod>,
    dispatcher: Dispatcher,
}

impl fmt::Debug for Grant {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Grant").field(&self.pod.address).finish()
    }
}

impl Grant {
    /// The pod.
    #[must_use]
    pub fn address(&self) -> &Address {
        &self.pod.address
    }
}

impl Drop for Grant {
    fn drop(&mut self) {
        self.dispatcher.release(&self.pod);
    }
}

/// Takes a waiter that gives up out of the queue.
struct Place<'a> {
    dispatcher: &'a Dispatcher,
    id: i64,
    answered: bool,
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        if self.answered {
            return;
        }
        let mut state = self.dispatcher.0.state.lock();
        if let Ok(index) = state.waiting.binary_search_by_key(&self.id, |waiter| waiter.id) {
            state.waiting.remove(index);
        }
    }
}

impl Dispatcher {
    /// A dispatcher without pods. `limit`: most requests at a time in one pod, 0 for no limit; `queue_depth`: how
    /// many requests may wait.
    #[must_use]
    pub fn new(limit: u32, queue_depth: usize) -> Self {
        Self(Arc::new(Shared { limit, queue_depth, pods: ArcSwap::default(), state: Mutex::default() }))
    }

    /// The limit it was made with.
    #[must_use]
    pub fn limit(&self) -> u32 {
        self.0.limit
    }

    /// A place in a pod, in turn. `again`: the request had a place before and lost it through no fault of its own, so
    /// it waits at the head. Dropping the future leaves the queue.
    ///
    /// # Errors
    /// [`Refused`].
    pub async fn acquire(&self, again: bool) -> Result<Grant, Refused> {
        let (id, granted) = match self.enter(again)? {
            Ok(grant) => return Ok(grant),
            Err(waiting) => waiting,
        };
        let mut place = Place { dispatcher: self, id, answered: false };
        let result = granted.await;
        // Granted, or turned out by `close`: no longer in the queue either way.
        place.answered = true;
        result.map_err(|_| Refused::Closed)
    }

    fn enter(&self, again: bool) -> Result<Result<Grant, (i64, oneshot::Receiver<Grant>)>, Refused> {
        if self.0.limit == 0
            && let Some(grant) = self.pick_unlimited()
        {
            return Ok(Ok(grant));
        }
        let mut state = self.0.state.lock();
        if state.closed {
            return Err(Refused::Closed);
        }
        // Nobody overtakes those who wait, unless it is at the head anyway.
        if (again || state.waiting.is_empty())
            && let Some(grant) = self.pick()
        {
            return Ok(Ok(grant));
        }
        // Who was let in before is not turned away: these are no more than places there were.
        if !again && state.waiting.len() >= self.0.queue_depth {
            return Err(Refused::QueueFull);
        }
        let (grant, granted) = oneshot::channel();
        let id = if again {
            state.heads += 1;
            let id = -state.heads;
            state.waiting.push_front(Waiter { id, grant });
            id
        } else {
            let id = state.next_id;
            state.next_id += 1;
            state.waiting.push_back(Waiter { id, grant });
            id
        };
        Ok(Err((id, granted)))
    }

    fn grant(&self, pod: &Arc<Pod>) -> Grant {
        pod.in_flight.fetch_add(1, Ordering::Relaxed);
        Grant { pod: Arc::clone(pod), dispatcher: self.clone() }
    }

    fn pick_unlimited(&self) -> Option<Grant> {
        let pods = self.0.pods.load();
        two_choices(&pods, |_| true).map(|pod| self.grant(pod))
    }

    /// A pod with a free place. With a limit only under the lock.
    fn pick(&self) -> Option<Grant> {
        let pods = self.0.pods.load();
        let limit = self.0.limit;
        two_choices(&pods, |pod| limit == 0 || pod.load() < limit).map(|pod| self.grant(pod))
    }

    fn release(&self, pod: &Arc<Pod>) {
        if self.0.limit == 0 {
            pod.in_flight.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let mut state = self.0.state.lock();
        pod.in_flight.fetch_sub(1, Ordering::Relaxed);
        let unclaimed = self.serve_waiting(&mut state);
        drop(state);
        drop(unclaimed);
    }

    /// Hands free places to those who wait. A place whose waiter has just left comes back to the caller, to be
    /// dropped without the lock.
    fn serve_waiting(&self, state: &mut State) -> Vec<Grant> {
        let mut unclaimed = Vec::new();
        while !state.waiting.is_empty() {
            let Some(grant) = self.pick() else { break };
            let Some(waiter) = state.waiting.pop_front() else { break };
            if let Err(grant) = waiter.grant.send(grant) {
                unclaimed.push(grant);
            }
        }
        unclaimed
    }

    /// The pods that may be used from now on. Those that stay, or come back, keep their counts; requests in those that
    /// go run on.
    pub fn set_pods(&self, addresses: &[Address]) {
        let mut state = self.0.state.lock();
        if state.closed {
            return;
        }
        let old = self.0.pods.load_full();
        let wanted: HashSet<&Address> = addresses.iter().collect();
        let (mut pods, gone): (Vec<Arc<Pod>>, Vec<Arc<Pod>>) = old
            .iter()
            .cloned()
            .chain(std::mem::take(&mut state.retired))
            .partition(|pod| wanted.contains(&pod.address));
        // A request that is just being let in without the lock is missed at worst: without a limit counts only weigh.
        state.retired = gone.into_iter().filter(|pod| pod.load() > 0).collect();
        let kept: HashSet<Address> = pods.iter().map(|pod| pod.address.clone()).collect();
        for address in addresses.iter().filter(|address| !kept.contains(address)) {
            pods.push(Arc::new(Pod { address: address.clone(), in_flight: AtomicU32::new(0) }));
        }
        self.0.pods.store(Arc::new(pods));
        let unclaimed = self.serve_waiting(&mut state);
        drop(state);
        drop(unclaimed);
    }

    /// How many wait.
    #[must_use]
    pub fn waiting(&self) -> usize {
        self.0.state.lock().waiting.len()
    }

    /// The revision is gone: all who wait are turned away.
    pub fn close(&self) {
        let mut state = self.0.state.lock();
        state.closed = true;
        state.waiting.clear();
        state.retired.clear();
        self.0.pods.store(Arc::default());
    }
}

/// The less busy of two pods taken at random, of those with room; any with room if neither has.
fn two_choices(pods: &[Arc<Pod>], has_room: impl Fn(&Pod) -> bool) -> Option<&Arc<Pod>> {
    let count = pods.len();
    if count < 2 {
        return pods.first().filter(|pod| has_room(pod));
    }
    let first = fastrand::usize(..count);
    let second = (first + 1 + fastrand::usize(..count - 1)) % count;
    let (a, b) = (&pods[first], &pods[second]);
    let (better, other) = if a.load() <= b.load() { (a, b) } else { (b, a) };
    [better, other]
        .into_iter()
        .find(|pod| has_room(pod))
        .or_else(|| (0..count).map(|step| &pods[(first + step) % count]).find(|pod| has_room(pod)))
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use futures::FutureExt;
    use proptest::prelude::*;

    use super::*;

    fn address(n: u16) -> Address {
        Address::new("10.0.0.1", n)
    }

    #[tokio::test]
    async fn who_waits_longest_is_served_first_and_retries_before_all() {
        let dispatcher = Dispatcher::new(1, 10);
        let mut first = Box::pin(dispatcher.acquire(false));
        let mut second = Box::pin(dispatcher.acquire(false));
        let mut again = Box::pin(dispatcher.acquire(true));
        for waiter in [&mut first, &mut second, &mut again] {
            assert!(waiter.now_or_never().is_none());
        }
        dispatcher.set_pods(&[address(1)]);
        assert!(first.as_mut().now_or_never().is_none());
        drop(again.as_mut().now_or_never().unwrap().unwrap());
        let grant = first.as_mut().now_or_never().unwrap().unwrap();
        assert!(second.as_mut().now_or_never().is_none());
        drop(grant);
        assert!(second.as_mut().now_or_never().unwrap().is_ok());
    }

    #[tokio::test]
    async fn who_leaves_loses_nothing_for_others() {
        let dispatcher = Dispatcher::new(1, 2);
        dispatcher.set_pods(&[address(1)]);
        let held = dispatcher.acquire(false).await.unwrap();
        let mut leaver = Box::pin(dispatcher.acquire(false));
        assert!(leaver.as_mut().now_or_never().is_none());
        let mut stayer = Box::pin(dispatcher.acquire(false));
        assert!(stayer.as_mut().now_or_never().is_none());
        assert_eq!(dispatcher.acquire(false).now_or_never().unwrap().unwrap_err(), Refused::QueueFull);
        // The place is handed to the leaver, who leaves without looking.
        drop(held);
        drop(leaver);
        assert!(tokio::time::timeout(Duration::from_secs(5), stayer).await.unwrap().is_ok());
        assert_eq!(dispatcher.waiting(), 0);
    }

    #[tokio::test]
    async fn without_a_limit_all_go_in_once_there_is_a_pod() {
        let dispatcher = Dispatcher::new(0, 10);
        let mut waiters: Vec<_> = (0..5).map(|_| Box::pin(dispatcher.acquire(false))).collect();
        for waiter in &mut waiters {
            assert!(waiter.now_or_never().is_none());
        }
        dispatcher.set_pods(&[address(1)]);
        for waiter in &mut waiters {
            assert!(waiter.now_or_never().unwrap().is_ok());
        }
        dispatcher.set_pods(&[]);
        let mut late = Box::pin(dispatcher.acquire(false));
        assert!(late.as_mut().now_or_never().is_none());
        dispatcher.close();
        assert_eq!(late.now_or_never().unwrap().unwrap_err(), Refused::Closed);
    }

    #[tokio::test]
    async fn who_leaves_takes_no_other_out_of_the_queue() {
        let dispatcher = Dispatcher::new(1, 10);
        let mut first = Box::pin(dispatcher.acquire(false));
        let mut second = Box::pin(dispatcher.acquire(false));
        assert!(first.as_mut().now_or_never().is_none());
        assert!(second.as_mut().now_or_never().is_none());
        dispatcher.set_pods(&[address(1)]);
        // The first has its place but has not looked yet.
        let mut again = Box::pin(dispatcher.acquire(true));
        assert!(again.as_mut().now_or_never().is_none());
        drop(first);
        assert!(again.as_mut().now_or_never().unwrap().is_ok());
        assert!(second.as_mut().now_or_never().unwrap().is_ok());
    }

    #[tokio::test]
    async fn a_full_queue_does_not_turn_away_who_was_let_in_before() {
        let dispatcher = Dispatcher::new(1, 1);
        let mut waiter = Box::pin(dispatcher.acquire(false));
        assert!(waiter.as_mut().now_or_never().is_none());
        assert_eq!(dispatcher.acquire(false).now_or_never().unwrap().unwrap_err(), Refused::QueueFull);
        assert!(dispatcher.acquire(true).now_or_never().is_none());
    }

    #[tokio::test]
    async fn a_pod_that_comes_back_is_as_full_as_it_was() {
        let dispatcher = Dispatcher::new(1, 10);
        dispatcher.set_pods(&[address(1)]);
        let running = dispatcher.acquire(false).await.unwrap();
        dispatcher.set_pods(&[]);
        dispatcher.set_pods(&[address(1)]);
        let mut waiter = Box::pin(dispatcher.acquire(false));
        assert!(waiter.as_mut().now_or_never().is_none());
        drop(running);
        drop(waiter.as_mut().now_or_never().unwrap().unwrap());
        dispatcher.set_pods(&[]);
        assert!(dispatcher.0.state.lock().retired.is_empty());
        dispatcher.close();
        dispatcher.set_pods(&[address(1)]);
        assert_eq!(dispatcher.acquire(false).await.unwrap_err(), Refused::Closed);
    }

    #[derive(Debug, Clone)]
    enum Step {
        Arrive,
        Leave(usize),
        Finish(usize),
        Pods(u16),
    }

    proptest! {
        /// Never more than the limit in a pod, never someone waiting while a place is free, nothing leaks.
        #[test]
        fn places_are_conserved(
            limit in 1_u32..4,
            steps in proptest::collection::vec(prop_oneof![
                3 => Just(Step::Arrive),
                1 => (0_usize..20).prop_map(Step::Leave),
                2 => (0_usize..20).prop_map(Step::Finish),
                1 => (0_u16..5).prop_map(Step::Pods),
            ], 1..80),
        ) {
            let dispatcher = Dispatcher::new(limit, 1000);
            let mut waiting: Vec<futures::future::BoxFuture<'_, Result<Grant, Refused>>> = Vec::new();
            let mut running: Vec<Grant> = Vec::new();
            let mut pods: u16 = 0;
            for step in steps {
                match step {
                    Step::Arrive => waiting.push(Box::pin(dispatcher.acquire(false))),
                    Step::Leave(n) if !waiting.is_empty() => drop(waiting.remove(n % waiting.len())),
                    Step::Finish(n) if !running.is_empty() => drop(running.remove(n % running.len())),
                    Step::Pods(n) => {
                        pods = n;
                        dispatcher.set_pods(&(0..n).map(address).collect::<Vec<_>>());
                    }
                    Step::Leave(_) | Step::Finish(_) => {}
                }
                let mut still = Vec::new();
                for mut waiter in waiting {
                    match waiter.as_mut().now_or_never() {
                        Some(grant) => running.push(grant.unwrap()),
                        None => still.push(waiter),
                    }
                }
                waiting = still;
                let current = dispatcher.0.pods.load();
                prop_assert_eq!(current.len(), usize::from(pods));
                prop_assert!(current.iter().all(|pod| pod.load() <= limit));
                let free = current.iter().any(|pod| pod.load() < limit);
                prop_assert!(waiting.is_empty() || !free, "someone waits while a place is free");
                prop_assert_eq!(dispatcher.waiting(), waiting.len());
            }
            drop(waiting);
            drop(running);
            prop_assert!(dispatcher.0.pods.load().iter().all(|pod| pod.load() == 0));
            prop_assert_eq!(dispatcher.waiting(), 0);
        }
    }
}
