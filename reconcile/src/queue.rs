//! The work queue of a control loop: a key is queued once however often it is added, is never worked on twice at the
//! same time, and comes back with growing delay while it fails.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::fmt::{Debug, Display};
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// What a reconciler asks for after success.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Next {
    /// Nothing: wait for a change.
    Wait,
    /// Look again after this time even if nothing changes.
    After(Duration),
}

/// The first delay after a failure; doubles with each further one.
const FIRST_RETRY: Duration = Duration::from_millis(5);
/// The longest delay between retries.
const LONGEST_RETRY: Duration = Duration::from_secs(60);

struct State<K> {
    ready: VecDeque<K>,
    /// Keys in `ready`, or to be put there when their current run ends.
    dirty: HashSet<K>,
    running: HashSet<K>,
    /// Keys to be added later, by time; the number tells those of one time apart.
    delayed: BTreeMap<(Instant, u64), K>,
    /// Where a key stands in `delayed`: once at most, or a loop that asks to look again would gain a timer with every
    /// change.
    due: HashMap<K, (Instant, u64)>,
    sequence: u64,
    failures: HashMap<K, u32>,
}

struct Shared<K> {
    state: Mutex<State<K>>,
    changed: Notify,
}

/// A queue of keys. Clones are the same queue.
pub struct WorkQueue<K>(Arc<Shared<K>>);

impl<K> Clone for WorkQueue<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Debug for WorkQueue<K> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("WorkQueue").finish_non_exhaustive()
    }
}

impl<K: Clone + Eq + Hash> Default for WorkQueue<K> {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: Mutex::new(State {
                ready: VecDeque::new(),
                dirty: HashSet::new(),
                running: HashSet::new(),
                delayed: BTreeMap::new(),
                due: HashMap::new(),
                sequence: 0,
                failures: HashMap::new(),
            }),
            changed: Notify::new(),
        }))
    }
}

impl<K: Clone + Eq + Hash + Display + Send + Sync + 'static> WorkQueue<K> {
    /// An empty queue.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Queues a key, unless it already is. A key that is being worked on runs again afterwards.
    pub fn add(&self, key: K) {
        let mut state = self.0.state.lock();
        if !state.dirty.insert(key.clone()) {
            return;
        }
        if !state.running.contains(&key) {
            state.ready.push_back(key);
            drop(state);
            self.0.changed.notify_one();
        }
    }

    /// Queues a key after a delay. Of several delays of one key the earliest counts.
    pub fn add_after(&self, key: K, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        let at = Instant::now() + delay;
        let mut state = self.0.state.lock();
        if let Some(known) = state.due.get(&key).copied() {
            if known.0 <= at {
                return;
            }
            state.delayed.remove(&known);
        }
        let place = (at, state.sequence);
        state.sequence += 1;
        state.due.insert(key.clone(), place);
        state.delayed.insert(place, key);
        drop(state);
        self.0.changed.notify_one();
    }

    /// How many keys wait to be worked on now.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.state.lock().ready.len()
    }

    /// Whether no key waits to be worked on now.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Works on keys until `shutdown`, at most `concurrency` at a time, and waits for those under way to end.
    /// A failing key is retried after 5 ms, doubling to a minute; `reconcile` reports its own failures otherwise.
    pub async fn run<F, Fut, E>(self, concurrency: usize, shutdown: CancellationToken, reconcile: F)
    where
        F: Fn(K) -> Fut + Send,
        Fut: Future<Output = Result<Next, E>> + Send + 'static,
        E: Display + Send + 'static,
    {
        let mut tasks: JoinSet<(K, Result<Next, E>)> = JoinSet::new();
        let mut owners: HashMap<tokio::task::Id, K> = HashMap::new();
        loop {
            let due = self.release_due();
            while tasks.len() < concurrency.max(1) && !shutdown.is_cancelled() {
                let Some(key) = self.take() else { break };
                let work = reconcile(key.clone());
                let owner = key.clone();
                let handle = tasks.spawn(async move {
                    let result = work.await;
                    (key, result)
                });
                owners.insert(handle.id(), owner);
            }
            if shutdown.is_cancelled() && tasks.is_empty() {
                return;
            }
            tokio::select! {
                () = shutdown.cancelled(), if !shutdown.is_cancelled() => {}
                () = self.0.changed.notified() => {}
                () = tokio::time::sleep_until(due.unwrap_or_else(Instant::now)), if due.is_some() => {}
                Some(ended) = tasks.join_next_with_id(), if !tasks.is_empty() => match ended {
                    Ok((id, (key, result))) => {
                        owners.remove(&id);
                        self.done(key, result);
                    }
                    Err(error) => {
                        // A panic in one reconcile must not end the loop for all others.
                        tracing::error!(%error, "a reconcile did not finish");
                        if let Some(key) = owners.remove(&error.id()) {
                            self.retry(key);
                        }
                    }
                },
            }
        }
    }

    fn take(&self) -> Option<K> {
        let mut state = self.0.state.lock();
        let key = state.ready.pop_front()?;
        state.dirty.remove(&key);
        state.running.insert(key.clone());
        Some(key)
    }

    fn done<E: Display>(&self, key: K, result: Result<Next, E>) {
        match result {
            Ok(next) => {
                self.0.state.lock().failures.remove(&key);
                self.finish(&key);
                if let Next::After(delay) = next {
                    self.add_after(key, delay);
                }
            }
            Err(error) => {
                tracing::debug!(%key, %error, "reconcile failed, trying again");
                self.retry(key);
            }
        }
    }

    fn retry(&self, key: K) {
        self.finish(&key);
        let delay = {
            let mut state = self.0.state.lock();
            let failures = state.failures.entry(key.clone()).or_insert(0);
            let delay = FIRST_RETRY.saturating_mul(1 << (*failures).min(20)).min(LONGEST_RETRY);
            *failures = failures.saturating_add(1);
            delay
        };
        self.add_after(key, delay);
    }

    fn finish(&self, key: &K) {
        let mut state = self.0.state.lock();
        state.running.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
        }
    }

    /// Queues what has waited long enough; returns when the next one is due.
    fn release_due(&self) -> Option<Instant> {
        let now = Instant::now();
        let mut due = Vec::new();
        let next = {
            let mut state = self.0.state.lock();
            loop {
                match state.delayed.first_entry() {
                    Some(first) if first.key().0 <= now => {
                        let key = first.remove();
                        state.due.remove(&key);
                        due.push(key);
                    }
                    Some(first) => break Some(first.key().0),
                    None => break None,
                }
            }
        };
        for key in due {
            self.add(key);
        }
        next
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use tokio::sync::mpsc;

    #[tokio::test(start_paused = true)]
    async fn a_key_added_many_times_runs_once_and_again_when_added_meanwhile() {
        let queue = WorkQueue::new();
        for _ in 0..5 {
            queue.add("a".to_owned());
        }
        let (started, mut starts) = mpsc::unbounded_channel();
        let gate = Arc::new(Notify::new());
        let stop = CancellationToken::new();
        let running = Arc::new(AtomicUsize::new(0));
        let task = tokio::spawn(queue.clone().run(4, stop.clone(), {
            let (gate, running) = (Arc::clone(&gate), Arc::clone(&running));
            move |key| {
                let (started, gate, running) = (started.clone(), Arc::clone(&gate), Arc::clone(&running));
                async move {
                    assert_eq!(running.fetch_add(1, Ordering::SeqCst), 0, "one key, one run at a time");
                    started.send(key).unwrap();
                    gate.notified().await;
                    running.fetch_sub(1, Ordering::SeqCst);
                    Ok::<_, std::io::Error>(Next::Wait)
                }
            }
        }));
        starts.recv().await.unwrap();
        queue.add("a".to_owned());
        queue.add("a".to_owned());
        gate.notify_one();
        starts.recv().await.unwrap();
        gate.notify_one();
        stop.cancel();
        task.await.unwrap();
        assert!(starts.try_recv().is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn a_failing_or_panicking_key_comes_back_later_each_time() {
        let queue = WorkQueue::new();
        queue.add("a".to_owned());
        let (tried, mut tries) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let task = tokio::spawn(queue.clone().run(1, stop.clone(), move |_| {
            let tried = tried.clone();
            async move {
                tried.send(Instant::now()).unwrap();
                Err::<Next, _>(std::io::Error::other("no"))
            }
        }));
        let mut at = Vec::new();
        for _ in 0..4 {
            at.push(tries.recv().await.unwrap());
        }
        let gaps: Vec<_> = at.windows(2).map(|w| (w[1] - w[0]).as_millis()).collect();
        assert!(gaps[0] >= 5 && gaps[1] >= 10 && gaps[2] >= 20, "{gaps:?}");
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_retry_takes_the_place_of_a_later_look() {
        let queue = WorkQueue::new();
        queue.add_after("a".to_owned(), Duration::from_secs(30));
        queue.add("a".to_owned());
        let begin = Instant::now();
        let (seen, mut runs) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let count = AtomicUsize::new(0);
        let task = tokio::spawn(queue.clone().run(1, stop.clone(), move |_| {
            seen.send(begin.elapsed().as_secs()).unwrap();
            let first = count.fetch_add(1, Ordering::SeqCst) == 0;
            async move {
                if first {
                    Err(std::io::Error::other("no"))
                } else {
                    Ok(Next::After(Duration::from_secs(34)))
                }
            }
        }));
        let mut at = Vec::new();
        for _ in 0..3 {
            at.push(runs.recv().await.unwrap());
        }
        // What the retry asks for counts: nobody else remembers the look that was to come.
        assert_eq!(at, [0, 0, 34]);
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn a_delayed_key_comes_when_due() {
        let queue = WorkQueue::new();
        let begin = Instant::now();
        queue.add_after("late".to_owned(), Duration::from_secs(7));
        queue.add_after("soon".to_owned(), Duration::from_secs(1));
        let (seen, mut keys) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let task = tokio::spawn(queue.clone().run(1, stop.clone(), move |key| {
            seen.send((key, begin.elapsed().as_secs())).unwrap();
            async { Ok::<_, std::io::Error>(Next::Wait) }
        }));
        assert_eq!(keys.recv().await.unwrap(), ("soon".to_owned(), 1));
        assert_eq!(keys.recv().await.unwrap(), ("late".to_owned(), 7));
        stop.cancel();
        task.await.unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn of_several_delays_of_one_key_the_earliest_counts() {
        let queue = WorkQueue::new();
        let begin = Instant::now();
        for seconds in [9, 3, 5] {
            queue.add_after("a".to_owned(), Duration::from_secs(seconds));
        }
        assert_eq!(queue.0.state.lock().delayed.len(), 1);
        let (seen, mut runs) = mpsc::unbounded_channel();
        let stop = CancellationToken::new();
        let task = tokio::spawn(queue.clone().run(1, stop.clone(), move |_| {
            seen.send(begin.elapsed().as_secs()).unwrap();
            async { Ok::<_, std::io::Error>(Next::After(Duration::from_secs(10))) }
        }));
        assert_eq!(runs.recv().await, Some(3));
        // A change in between does not start a second row of looks.
        queue.add("a".to_owned());
        assert_eq!(runs.recv().await, Some(3));
        assert_eq!(runs.recv().await, Some(13));
        assert_eq!(runs.recv().await, Some(23));
        stop.cancel();
        task.await.unwrap();
    }
}
