//! The deciders and metric windows of all revisions, behind one short-held lock each.
//!
//! Everything here is in memory and immediate: reports go in, decisions come out. Who has to be told about a decision
//! is the caller's business.

mod clock;
mod figures;
mod revision;
mod scrapes;
mod table;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};

use ember_dataplane::stat::Stat;
use ember_reconcile::cache::Key;
use parking_lot::Mutex;

pub(crate) use self::clock::MonotonicClock;
pub(crate) use self::figures::Figures;
pub(crate) use self::revision::{Revision, RevisionLabels, WrittenScale};
pub(crate) use self::scrapes::ScrapeJob;

use self::revision::{CollectionState, DeciderState, State};
use self::table::Table;
use crate::buckets::Buckets;
use crate::collection::{Collection, CollectionSpec};
use crate::decider::{Decider, DeciderSpec, DeciderStatus};
use crate::held::HeldReports;
use crate::pods::PodIndex;
use crate::scraper::ScrapeError;
use crate::time::Time;

/// All revisions that this autoscaler takes care of.
pub(crate) struct Revisions {
    clock: MonotonicClock,
    pods: PodIndex,
    buckets: Arc<Buckets>,
    table: Table,
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
            table: Table::default(),
            held: Mutex::new(held),
            generations: AtomicI64::new(0),
        }
    }

    pub(crate) fn now(&self) -> Time {
        self.clock.now()
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<Revision>> {
        self.table.get(key)
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
        let revision = self.table.get_or_create(key);
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
        let revision = self.table.get_or_create(key);
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
        self.table.remove_if(key, |revision| {
            let mut state = revision.state.lock();
            part(&mut state);
            state.decider.is_none() && state.collection.is_none()
        });
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

    /// Forgets the revisions that are another replica's by now.
    pub(crate) fn forget_foreign(&self) {
        self.table.retain(|key| self.buckets.owns(key));
    }

    /// Evaluates every revision; calls `changed` for those whose reconciler has to be told.
    pub(crate) fn tick(&self, mut changed: impl FnMut(&Key, DeciderStatus)) {
        self.held.lock().forget_old();
        if self.buckets.are_shared() {
            self.forget_foreign();
        }
        for revision in self.table.all().iter() {
            let outcome = self.evaluate(&mut revision.state.lock());
            if let Some(status) = outcome {
                changed(&revision.key, status);
            }
        }
    }
}
