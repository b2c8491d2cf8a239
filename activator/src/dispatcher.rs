//! Who gets which pod: one fair queue per revision in front of its pods.
//!
//! With a concurrency limit a request gets the less busy of two pods that have a free place, or waits in turn; a
//! place that comes free goes to whoever waits longest. Without a limit every usable pod has room, and the choice is
//! made on an immutable snapshot without a lock. One short-held lock per revision; none is held while waiting. What a
//! request costs does not depend on how many pods there are.

use std::collections::{HashMap, VecDeque};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicUsize, Ordering};

use arc_swap::ArcSwap;
use ember_dataplane::address::Address;
use parking_lot::Mutex;
use tokio::sync::oneshot;

/// Where requests may go, and how many at a time.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    /// A pod, or what stands for all of them.
    pub address: Address,
    /// Most requests at a time; without a limit it is not looked at.
    pub places: u32,
}

/// A backend as requests see it. All but the count changes under the lock only.
#[derive(Debug)]
struct Pod {
    address: Address,
    in_flight: AtomicU32,
    places: AtomicU32,
    /// Its place in [`State::free`], or [`FULL`] or [`RETIRED`].
    slot: AtomicUsize,
}

/// In use, without a free place.
const FULL: usize = usize::MAX;
/// Not in use any more.
const RETIRED: usize = usize::MAX - 1;

impl Pod {
    fn load(&self) -> u32 {
        self.in_flight.load(Ordering::Relaxed)
    }

    fn has_room(&self) -> bool {
        self.load() < self.places.load(Ordering::Relaxed)
    }
}

struct Waiter {
    id: i64,
    /// It found no pod at all.
    cold: bool,
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
    /// With a limit: pods with a free place, in no order.
    free: Vec<Arc<Pod>>,
}

impl State {
    fn add_free(&mut self, pod: &Arc<Pod>) {
        pod.slot.store(self.free.len(), Ordering::Relaxed);
        self.free.push(Arc::clone(pod));
    }

    fn remove_free(&mut self, index: usize) {
        let pod = self.free.swap_remove(index);
        pod.slot.store(FULL, Ordering::Relaxed);
        if let Some(moved) = self.free.get(index) {
            moved.slot.store(index, Ordering::Relaxed);
        }
    }
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
    cold: bool,
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

    /// Whether there was no pod to use when the request came.
    #[must_use]
    pub fn is_cold(&self) -> bool {
        self.cold
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
            && let Some(grant) = self.pick(&mut state)
        {
            return Ok(Ok(grant));
        }
        // Who was let in before is not turned away: these are no more than places there were.
        if !again && state.waiting.len() >= self.0.queue_depth {
            return Err(Refused::QueueFull);
        }
        let (grant, granted) = oneshot::channel();
        let cold = self.0.pods.load().is_empty();
        let id = if again {
            state.heads += 1;
            let id = -state.heads;
            state.waiting.push_front(Waiter { id, cold, grant });
            id
        } else {
            let id = state.next_id;
            state.next_id += 1;
            state.waiting.push_back(Waiter { id, cold, grant });
            id
        };
        Ok(Err((id, granted)))
    }

    fn grant(&self, pod: &Arc<Pod>) -> Grant {
        pod.in_flight.fetch_add(1, Ordering::Relaxed);
        Grant { pod: Arc::clone(pod), dispatcher: self.clone(), cold: false }
    }

    fn pick_unlimited(&self) -> Option<Grant> {
        let pods = self.0.pods.load();
        two_choices(&pods).map(|index| self.grant(&pods[index]))
    }

    /// A pod with a free place.
    fn pick(&self, state: &mut State) -> Option<Grant> {
        if self.0.limit == 0 {
            return self.pick_unlimited();
        }
        let index = two_choices(&state.free)?;
        let grant = self.grant(&state.free[index]);
        if !grant.pod.has_room() {
            state.remove_free(index);
        }
        Some(grant)
    }

    fn release(&self, pod: &Arc<Pod>) {
        if self.0.limit == 0 {
            pod.in_flight.fetch_sub(1, Ordering::Relaxed);
            return;
        }
        let mut state = self.0.state.lock();
        pod.in_flight.fetch_sub(1, Ordering::Relaxed);
        if pod.slot.load(Ordering::Relaxed) == FULL && pod.has_room() {
            state.add_free(pod);
        }
        let unclaimed = self.serve_waiting(&mut state);
        drop(state);
        drop(unclaimed);
    }

    /// Hands free places to those who wait. A place whose waiter has just left comes back to the caller, to be
    /// dropped without the lock.
    fn serve_waiting(&self, state: &mut State) -> Vec<Grant> {
        let mut unclaimed = Vec::new();
        while !state.waiting.is_empty() {
            let Some(mut grant) = self.pick(state) else { break };
            let Some(waiter) = state.waiting.pop_front() else { break };
            grant.cold = waiter.cold;
            if let Err(grant) = waiter.grant.send(grant) {
                unclaimed.push(grant);
            }
        }
        unclaimed
    }

    /// The pods that may be used from now on, each up to the limit. See [`Dispatcher::set_backends`].
    pub fn set_pods(&self, addresses: &[Address]) {
        let backend = |address: &Address| Backend { address: address.clone(), places: self.0.limit };
        self.set_backends(addresses.iter().map(backend).collect());
    }

    /// Where requests may go from now on. Those that stay, or come back, keep their counts; requests in those that go
    /// run on.
    pub fn set_backends(&self, backends: Vec<Backend>) {
        let mut state = self.0.state.lock();
        if state.closed {
            return;
        }
        let old = self.0.pods.load_full();
        let mut known: HashMap<Address, Arc<Pod>> = old
            .iter()
            .cloned()
            .chain(std::mem::take(&mut state.retired))
            .map(|pod| (pod.address.clone(), pod))
            .collect();
        let mut pods = Vec::with_capacity(backends.len());
        for Backend { address, places } in backends {
            let pod = known.remove(&address).unwrap_or_else(|| {
                Arc::new(Pod {
                    address,
                    in_flight: AtomicU32::new(0),
                    places: AtomicU32::new(0),
                    slot: AtomicUsize::new(FULL),
                })
            });
            pod.places.store(places, Ordering::Relaxed);
            pods.push(pod);
        }
        for gone in known.values() {
            gone.slot.store(RETIRED, Ordering::Relaxed);
        }
        // A request that is just being let in without the lock is missed at worst: without a limit counts only weigh.
        state.retired = known.into_values().filter(|pod| pod.load() > 0).collect();
        state.free.clear();
        for pod in &pods {
            pod.slot.store(FULL, Ordering::Relaxed);
            if self.0.limit > 0 && pod.has_room() {
                state.add_free(pod);
            }
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
        state.free.clear();
        for pod in self.0.pods.load().iter() {
            pod.slot.store(RETIRED, Ordering::Relaxed);
        }
        self.0.pods.store(Arc::default());
    }
}

/// The index of the less busy of two pods taken at random.
fn two_choices(pods: &[Arc<Pod>]) -> Option<usize> {
    let count = pods.len();
    if count < 2 {
        return count.checked_sub(1);
    }
    let first = fastrand::usize(..count);
    let second = (first + 1 + fastrand::usize(..count - 1)) % count;
    Some(if pods[first].load() <= pods[second].load() { first } else { second })
}

#[cfg(test)]
mod tests;
