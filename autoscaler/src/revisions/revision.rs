//! What is kept for one revision.

use std::sync::atomic::AtomicBool;

use ember_reconcile::cache::Key;
use parking_lot::Mutex;

use crate::collection::Collection;
use crate::decider::{Decider, DeciderSpec, DeciderStatus, Decision};
use crate::scraper::ScrapeError;
use crate::time::Time;

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
    pub(super) state: Mutex<State>,
    /// Held while the scale is written, so that writes come one after the other.
    pub(crate) scale: tokio::sync::Mutex<Option<WrittenScale>>,
    pub(crate) scraping: AtomicBool,
    pub(crate) probing: AtomicBool,
}

impl Revision {
    /// One of which only the key is known yet.
    pub(super) fn new(key: Key) -> Self {
        Self {
            key,
            state: Mutex::default(),
            scale: tokio::sync::Mutex::default(),
            scraping: AtomicBool::new(false),
            probing: AtomicBool::new(false),
        }
    }
}

#[derive(Default)]
pub(super) struct State {
    pub(super) decider: Option<DeciderState>,
    pub(super) collection: Option<CollectionState>,
}

pub(super) struct DeciderState {
    /// The revision whose pods count.
    pub(super) revision: Key,
    pub(super) labels: RevisionLabels,
    pub(super) spec: DeciderSpec,
    pub(super) decider: Decider,
    pub(super) status: DeciderStatus,
    pub(super) last: Option<Decision>,
    /// The latest scale that was asked of the target.
    pub(super) requested: Option<i32>,
    /// The scale found at the beginning, and until when less is not asked for.
    pub(super) floor: Option<(i32, Time)>,
}

impl DeciderState {
    /// Whoever takes a revision over knows nothing of its past: until the windows have filled, it keeps what it found.
    pub(super) fn floor(&self, now: Time) -> i32 {
        match self.floor {
            Some((replicas, until)) if self.spec.reachable && now < until => replicas,
            _ => 0,
        }
    }
}

pub(super) struct CollectionState {
    pub(super) collection: Collection,
    pub(super) error: Option<ScrapeError>,
    /// Changes with every change of the Metric, so that what was learned about the way to the pods is forgotten.
    pub(super) generation: u64,
}

/// What a revision belongs to; for its gauges.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct RevisionLabels {
    pub(crate) service: String,
    pub(crate) configuration: String,
    pub(crate) revision: String,
}
