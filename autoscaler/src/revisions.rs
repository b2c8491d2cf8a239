//! The deciders and metric windows of all revisions, behind one short-held lock each.
//!
//! Everything here is in memory and immediate: reports go in, decisions come out. Who has to be told about a decision
//! is the caller's business.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};
use std::time::Duration;

use ember_dataplane::io::Clock;
use ember_dataplane::stat::Stat;
use ember_reconcile::cache::Key;
use parking_lot::{Mutex, RwLock};
use tokio::time::Instant;

use crate::buckets::Buckets;
use crate::collection::{Collection, CollectionSpec};
use crate::decider::{Decider, DeciderSpec, DeciderStatus, Decision, Load, ScalingMetric};
use crate::held::HeldReports;
use crate::pods::PodIndex;
use crate::scraper::ScrapeError;
use crate::time::Time;

/// The clock that windows are filled by: wall time that never goes back.
#[derive(Clone)]
pub(crate) struct MonotonicClock {
    clock: Arc<dyn Clock>,
    latest: Arc<AtomicI64>,
}

impl MonotonicClock {
    pub(crate) fn new(clock: Arc<dyn Clock>) -> Self {
        Self { clock, latest: Arc::new(AtomicI64::new(i64::MIN)) }
    }

    pub(crate) fn now(&self) -> Time {
        let now = Time::from_epoch(self.clock.now()).as_millis();
        Time::from_millis(self.latest.fetch_max(now, Ordering::Relaxed).max(now))
    }
}

/// What was last written to a scale target.
#[derive(Debug, Clone, Copy)]
pub(crate) struct WrittenScale {
    /// resourceVersion of the target after the write.
    pub(crate) version: u64,
    pub(crate) replicas: i32,
}

/// One revision.
pub(crate) struct Revision {
    pub(crate) key: Key,
    state: Mutex<State>,
    /// Held while the scale is written, so that writes come one after the other.
    pub(crate) scale: tokio::sync::Mutex<Option<WrittenScale>>,
    pub(crate) scraping: AtomicBool,
    pub(crate) probing: AtomicBool,
    requeue: Mutex<Option<Instant>>,
}

#[derive(Default)]
struct State {
    decider: Option<DeciderState>,
    collection: Option<CollectionState>,
}

struct DeciderState {
    /// The revision whose pods count.
    revision: Key,
    labels: RevisionLabels,
    spec: DeciderSpec,
    decider: Decider,
    status: DeciderStatus,
    last: Option<Decision>,
    /// The latest scale that was asked of the target.
    requested: Option<i32>,
    /// The scale found at the beginning, and until when less is not asked for.
    floor: Option<(i32, Time)>,
}

impl DeciderState {
    /// Whoever takes a revision over knows nothing of its past: until the windows have filled, it keeps what it found.
    fn floor(&self, now: Time) -> i32 {
        match self.floor {
            Some((replicas, until)) if self.spec.reachable && now < until => replicas,
            _ => 0,
        }
    }
}

struct CollectionState {
    collection: Collection,
    error: Option<ScrapeError>,
    /// Changes with every change of the Metric, so that what was learned about the way to the pods is forgotten.
    generation: u64,
}

/// What a revision belongs to; for its gauges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RevisionLabels {
    pub(crate) service: String,
    pub(crate) configuration: String,
    pub(crate) revision: String,
}

/// A revision's figures at one moment.
#[derive(Debug, Clone)]
pub(crate) struct Figures {
    pub(crate) namespace: String,
    pub(crate) labels: RevisionLabels,
    pub(crate) spec: DeciderSpec,
    pub(crate) status: DeciderStatus,
    pub(crate) panicking: bool,
    pub(crate) last: Option<Decision>,
    pub(crate) requested: Option<i32>,
    pub(crate) pods: crate::pods::PodCounts,
    /// Requests at the same time, and a second, over the windows; `None` without data.
    pub(crate) concurrency: Option<Load>,
    pub(crate) rps: Option<Load>,
}

/// What is to be scraped.
#[derive(Debug, Clone)]
pub(crate) struct ScrapeJob {
    pub(crate) target: String,
    pub(crate) stable_window: Duration,
    pub(crate) generation: u64,
}

/// All revisions that this autoscaler takes care of.
pub(crate) struct Revisions {
    clock: MonotonicClock,
    pods: PodIndex,
    buckets: Arc<Buckets>,
    revisions: RwLock<HashMap<Key, Arc<Revision>>>,
    held: Mutex<HeldReports>,
    generations: AtomicI64,
}

impl Revisions {
    pub(crate) fn new(
        clock: MonotonicClock,
        pods: PodIndex,
        held: HeldReports,
        buckets: Arc<Buckets>,
    ) -> Self {
        Self {
            clock,
            pods,
            buckets,
            revisions: RwLock::default(),
            held: Mutex::new(held),
            generations: AtomicI64::new(0),
        }
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Revision>> {
        self.revisions.read().get(key).cloned()
    }

    fn get_or_create(&self, key: &Key) -> Arc<Revision> {
        if let Some(revision) = self.get(key) {
            return revision;
        }
        Arc::clone(self.revisions.write().entry(key.clone()).or_insert_with(|| {
            Arc::new(Revision {
                key: key.clone(),
                state: Mutex::default(),
                scale: tokio::sync::Mutex::default(),
                scraping: AtomicBool::new(false),
                probing: AtomicBool::new(false),
                requeue: Mutex::new(None),
            })
        }))
    }

    /// Creates or updates a decider; returns its status. Reports that waited for it count already. A new one asks for
    /// no less than `found` for a stable window: the scale of a revision that ran before.
    pub(crate) fn ensure_decider(
        &self,
        key: &Key,
        labels: RevisionLabels,
        spec: &DeciderSpec,
        found: Option<i32>,
    ) -> DeciderStatus {
        let revision = self.get_or_create(key);
        let mut state = revision.state.lock();
        match &mut state.decider {
            Some(decider) => {
                if decider.spec != *spec {
                    decider.spec = spec.clone();
                }
                decider.labels = labels;
            }
            None => {
                let counted = Key::new(&key.namespace, &labels.revision);
                let ready = self.pods.counts(&counted).ready;
                let now = self.now();
                state.decider = Some(DeciderState {
                    revision: counted,
                    labels,
                    decider: Decider::new(spec, ready, now),
                    status: DeciderStatus::initial(spec),
                    spec: spec.clone(),
                    last: None,
                    requested: None,
                    floor: found.map(|replicas| (replicas, now.after(spec.stable_window))),
                });
            }
        }
        self.release_held(key, &mut state);
        state.decider.as_ref().map_or_else(|| DeciderStatus::initial(spec), |d| d.status)
    }

    /// Creates or updates a collection; returns why the last scrape failed, if it did, and the decider's new status
    /// if reports that waited led to one.
    pub(crate) fn ensure_collection(
        &self,
        key: &Key,
        spec: CollectionSpec,
    ) -> (Option<ScrapeError>, Option<DeciderStatus>) {
        let revision = self.get_or_create(key);
        let mut state = revision.state.lock();
        let now = self.now();
        let mut error = None;
        match &mut state.collection {
            Some(current) => {
                error.clone_from(&current.error);
                let unchanged =
                    CollectionSpec { algorithm: current.collection.spec().algorithm, ..spec.clone() };
                if unchanged != *current.collection.spec() {
                    current.collection.update(now, spec);
                    current.generation = self.next_generation();
                }
            }
            None => {
                state.collection = Some(CollectionState {
                    collection: Collection::new(spec),
                    error: None,
                    generation: self.next_generation(),
                });
            }
        }
        let changed = self.release_held(key, &mut state);
        (error, changed)
    }

    fn next_generation(&self) -> u64 {
        self.generations.fetch_add(1, Ordering::Relaxed).unsigned_abs()
    }

    pub(crate) fn remove_decider(&self, key: &Key) {
        self.remove(key, |state| state.decider = None);
    }

    pub(crate) fn remove_collection(&self, key: &Key) {
        self.remove(key, |state| state.collection = None);
    }

    fn remove(&self, key: &Key, part: impl FnOnce(&mut State)) {
        let mut revisions = self.revisions.write();
        let Some(revision) = revisions.get(key) else { return };
        let mut state = revision.state.lock();
        part(&mut state);
        let unused = state.decider.is_none() && state.collection.is_none();
        drop(state);
        if unused {
            revisions.remove(key);
        }
    }

    /// The status of a decider, while the revision is this replica's to decide on.
    pub(crate) fn status(&self, key: &Key) -> Option<DeciderStatus> {
        if !self.buckets.owns(key) {
            return None;
        }
        self.get(key)?.state.lock().decider.as_ref().map(|d| d.status)
    }

    /// Remembers, for the gauges, the scale asked of the target; -1 keeps the last one.
    pub(crate) fn requested(&self, key: &Key, want: i32) {
        let Some(revision) = self.get(key) else { return };
        let mut state = revision.state.lock();
        if let Some(decider) = state.decider.as_mut().filter(|_| want >= 0) {
            decider.requested = Some(want);
        }
    }

    /// Takes a report of an activator. Traffic for a revision that has no wanted scale, or zero, is evaluated at
    /// once; returns the status that the reconciler has to be told about.
    pub(crate) fn accept(&self, key: &Key, stat: Stat) -> Option<DeciderStatus> {
        if let Some(revision) = self.get(key) {
            let mut state = revision.state.lock();
            if state.decider.is_some() && state.collection.is_some() {
                return self.take(&mut state, &stat);
            }
        }
        self.hold(key, stat);
        // Both may have come into being between looking and holding.
        let revision = self.get(key)?;
        let mut state = revision.state.lock();
        self.release_held(key, &mut state)
    }

    fn take(&self, state: &mut State, stat: &Stat) -> Option<DeciderStatus> {
        let collection = &mut state.collection.as_mut()?.collection;
        collection.record(Time::from_millis(stat.timestamp.saturating_mul(1000)), stat);
        let asleep = state.decider.as_ref()?.status.desired_scale <= 0;
        if asleep && stat.average_concurrent_requests != 0.0 { self.evaluate(state) } else { None }
    }

    fn hold(&self, key: &Key, stat: Stat) {
        if stat.average_concurrent_requests == 0.0 {
            return;
        }
        if !self.held.lock().push(key, stat) {
            tracing::warn!(revision = %key, "a report for an unknown revision was dropped: too many wait");
        }
    }

    /// Applies the reports that waited, once both parts of the revision are there.
    fn release_held(&self, key: &Key, state: &mut State) -> Option<DeciderStatus> {
        if state.decider.is_none() || state.collection.is_none() {
            return None;
        }
        let reports = self.held.lock().take(key);
        let mut changed = None;
        for stat in reports {
            changed = self.take(state, &stat).or(changed);
        }
        changed
    }

    /// Evaluates; returns the new status if the reconciler has to be told.
    fn evaluate(&self, state: &mut State) -> Option<DeciderStatus> {
        let now = self.now();
        let decider = state.decider.as_mut()?;
        let load = state.collection.as_ref()?.collection.load(decider.spec.scaling_metric, now)?;
        let ready = self.pods.counts(&decider.revision).ready;
        let decision = decider.decider.evaluate(&decider.spec, now, ready, load)?;
        tracing::trace!(revision = %decider.revision, ?decision, ready, ?load, "decided");
        decider.last = Some(decision);
        let next = DeciderStatus {
            desired_scale: decision.desired.max(decider.floor(now)),
            excess_burst_capacity: decision.excess_burst_capacity,
        };
        let before = std::mem::replace(&mut decider.status, next);
        before.notifies(next).then_some(next)
    }

    fn all(&self) -> Vec<Arc<Revision>> {
        self.revisions.read().values().cloned().collect()
    }

    /// Forgets the revisions that are another replica's by now.
    pub(crate) fn forget_foreign(&self) {
        self.revisions.write().retain(|key, _| self.buckets.owns(key));
    }

    /// Evaluates every revision; calls `changed` for those whose reconciler has to be told.
    pub(crate) fn tick(&self, mut changed: impl FnMut(&Key, DeciderStatus)) {
        self.held.lock().forget_old();
        if self.buckets.are_shared() {
            self.forget_foreign();
        }
        for revision in self.all() {
            let outcome = self.evaluate(&mut revision.state.lock());
            if let Some(status) = outcome {
                changed(&revision.key, status);
            }
        }
    }

    /// What to scrape now. Calls `recovered` for revisions that have no pods left to fail.
    pub(crate) fn scrape_jobs(&self, mut recovered: impl FnMut(&Key)) -> Vec<(Arc<Revision>, ScrapeJob)> {
        let mut jobs = Vec::new();
        for revision in self.all() {
            let key = &revision.key;
            let mut state = revision.state.lock();
            let Some(current) = &mut state.collection else { continue };
            let spec = current.collection.spec();
            if spec.scrape_target.is_empty() || !self.pods.has_ready(key) {
                if current.error.take().is_some() {
                    recovered(key);
                }
                continue;
            }
            let job = ScrapeJob {
                target: spec.scrape_target.clone(),
                stable_window: spec.stable_window,
                generation: current.generation,
            };
            drop(state);
            jobs.push((revision, job));
        }
        jobs
    }

    /// Takes the outcome of a scrape; returns whether it differs from the last one in being, or how it is, a failure.
    pub(crate) fn scraped(&self, key: &Key, outcome: Result<Option<Stat>, ScrapeError>) -> bool {
        let Some(revision) = self.get(key) else { return false };
        let mut state = revision.state.lock();
        let Some(current) = &mut state.collection else { return false };
        let error = match outcome {
            Ok(stat) => {
                if let Some(stat) = stat {
                    current.collection.record(self.now(), &stat);
                }
                None
            }
            Err(error) => Some(error),
        };
        std::mem::replace(&mut current.error, error.clone()) != error
    }

    /// All deciders' figures.
    pub(crate) fn figures(&self) -> Vec<Figures> {
        let now = self.clock.now();
        let figures = |revision: Arc<Revision>| {
            let state = revision.state.lock();
            let decider = state.decider.as_ref()?;
            let load = |metric| state.collection.as_ref()?.collection.load(metric, now);
            Some(Figures {
                namespace: revision.key.namespace.clone(),
                labels: decider.labels.clone(),
                spec: decider.spec.clone(),
                status: decider.status,
                panicking: matches!(decider.decider.mode(), crate::decider::Mode::Panic { .. }),
                last: decider.last,
                requested: decider.requested,
                pods: self.pods.counts(&decider.revision),
                concurrency: load(ScalingMetric::Concurrency),
                rps: load(ScalingMetric::Rps),
            })
        };
        self.all().into_iter().filter_map(figures).collect()
    }
}

impl Revision {
    /// Whether a look at the revision after `delay` has to be arranged: not if one is due earlier anyway.
    pub(crate) fn arrange_requeue(&self, delay: Duration) -> bool {
        let (now, mut due) = (Instant::now(), self.requeue.lock());
        let at = now + delay;
        if due.is_some_and(|due| due > now && due <= at) {
            return false;
        }
        *due = Some(at);
        true
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decider::ScalingMetric;
    use crate::window::Algorithm;
    use std::time::{SystemTime, UNIX_EPOCH};

    struct FixedClock;

    impl Clock for FixedClock {
        fn now(&self) -> Duration {
            Duration::from_secs(946_684_800)
        }
    }

    fn revisions() -> Revisions {
        let clock = MonotonicClock::new(Arc::new(FixedClock));
        let held = HeldReports::new(8, Duration::from_secs(60));
        Revisions::new(clock, PodIndex::default(), held, Arc::new(Buckets::sole()))
    }

    fn spec() -> DeciderSpec {
        DeciderSpec {
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            scaling_metric: ScalingMetric::Concurrency,
            target_value: 70.0,
            total_value: 100.0,
            target_burst_capacity: 211.0,
            activator_capacity: 100.0,
            panic_threshold: 2.0,
            stable_window: Duration::from_secs(60),
            scale_down_delay: Duration::ZERO,
            initial_scale: 0,
            reachable: true,
            activation_scale: 0,
        }
    }

    fn collection() -> CollectionSpec {
        CollectionSpec {
            stable_window: Duration::from_secs(60),
            panic_window: Duration::from_secs(6),
            scrape_target: "rev-private".into(),
            algorithm: Algorithm::Linear,
        }
    }

    fn report() -> Stat {
        Stat {
            average_concurrent_requests: 1.0,
            request_count: 1.0,
            timestamp: 946_684_800,
            ..Stat::default()
        }
    }

    fn labels() -> RevisionLabels {
        RevisionLabels { service: "s".into(), configuration: "c".into(), revision: "rev".into() }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_report_for_a_revision_that_never_ran_wakes_it_at_once() {
        let (revisions, key) = (revisions(), Key::new("ns", "rev"));
        assert_eq!(revisions.ensure_decider(&key, labels(), &spec(), None).desired_scale, -1);
        revisions.ensure_collection(&key, collection());
        let status = revisions.accept(&key, report()).expect("a decision without a tick");
        assert_eq!(status.desired_scale, 1);
        assert_eq!(revisions.accept(&key, report()), None, "awake: the tick is enough");
    }

    #[tokio::test(start_paused = true)]
    async fn what_ran_before_is_kept_until_a_window_has_been_seen() {
        struct Steps(AtomicI64);
        impl Clock for Steps {
            fn now(&self) -> Duration {
                Duration::from_secs(self.0.load(Ordering::Relaxed).unsigned_abs())
            }
        }
        let clock = Arc::new(Steps(AtomicI64::new(946_684_800)));
        let held = HeldReports::new(8, Duration::from_secs(60));
        let monotonic = MonotonicClock::new(Arc::clone(&clock) as Arc<dyn Clock>);
        let revisions = Revisions::new(monotonic, PodIndex::default(), held, Arc::new(Buckets::sole()));
        let key = Key::new("ns", "rev");
        revisions.ensure_collection(&key, collection());
        assert_eq!(revisions.ensure_decider(&key, labels(), &spec(), Some(7)).desired_scale, -1);
        let wanted = |seconds: i64| {
            clock.0.store(946_684_800 + seconds, Ordering::Relaxed);
            let timestamp = 946_684_800 + seconds;
            revisions.accept(&key, Stat { timestamp, ..report() });
            revisions.tick(|_, _| {});
            revisions.status(&key).unwrap().desired_scale
        };
        assert_eq!((wanted(1), wanted(59), wanted(60)), (7, 7, 1));
    }

    #[tokio::test(start_paused = true)]
    async fn a_report_that_comes_before_its_revision_waits_for_both_parts() {
        let (revisions, key) = (revisions(), Key::new("ns", "rev"));
        assert_eq!(revisions.accept(&key, report()), None);
        assert_eq!(revisions.ensure_collection(&key, collection()), (None, None));
        assert_eq!(revisions.ensure_decider(&key, labels(), &spec(), None).desired_scale, 1);
        assert_eq!(revisions.held.lock().len(), 0);

        let other = Key::new("ns", "other");
        assert_eq!(revisions.accept(&other, report()), None);
        assert_eq!(revisions.ensure_decider(&other, labels(), &spec(), None).desired_scale, -1);
        let (_, changed) = revisions.ensure_collection(&other, collection());
        assert_eq!(changed.map(|s| s.desired_scale), Some(1));
    }

    #[tokio::test(start_paused = true)]
    async fn reports_for_unknown_revisions_are_bounded_in_number_and_time() {
        let revisions = revisions();
        for number in 0..20 {
            revisions.accept(&Key::new("ns", format!("rev-{number}")), report());
        }
        assert_eq!(revisions.held.lock().len(), 8);
        tokio::time::advance(Duration::from_secs(61)).await;
        let key = Key::new("ns", "rev-0");
        revisions.ensure_collection(&key, collection());
        assert_eq!(revisions.ensure_decider(&key, labels(), &spec(), None).desired_scale, -1, "too old");
        revisions.tick(|_, _| {});
        assert_eq!(revisions.held.lock().len(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_tick_over_many_sleeping_revisions_is_short() {
        let revisions = revisions();
        for number in 0..300 {
            let key = Key::new("ns", format!("rev-{number}"));
            revisions.ensure_decider(&key, labels(), &spec(), None);
            revisions.ensure_collection(&key, collection());
        }
        let begun = std::time::Instant::now();
        for _ in 0..10 {
            revisions.tick(|key, _| panic!("nothing happened to {key}"));
            assert!(revisions.scrape_jobs(|_| {}).is_empty());
        }
        let each = begun.elapsed() / 10;
        println!("a tick and a look for pods to scrape, for 300 revisions: {each:?}");
        assert!(each < Duration::from_millis(50), "{each:?}");
    }

    #[test]
    fn the_clock_never_goes_back() {
        struct Steps(AtomicI64);
        impl Clock for Steps {
            fn now(&self) -> Duration {
                Duration::from_millis(self.0.fetch_sub(500, Ordering::Relaxed).unsigned_abs())
            }
        }
        let clock = MonotonicClock::new(Arc::new(Steps(AtomicI64::new(5000))));
        assert_eq!(clock.now(), clock.now());
        let wall = SystemTime::now().duration_since(UNIX_EPOCH).unwrap();
        assert!(
            MonotonicClock::new(Arc::new(ember_dataplane::io::SystemClock)).now() >= Time::from_epoch(wall)
        );
    }
}
