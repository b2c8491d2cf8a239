//! What the gauges show.

use std::sync::Arc;

use super::Revisions;
use super::revision::{Revision, RevisionLabels};
use crate::decider::{DeciderSpec, DeciderStatus, Decision, Load, Mode, ScalingMetric};
use crate::pods::PodCounts;

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
    pub(crate) pods: PodCounts,
    /// Requests at the same time, and a second, over the windows; `None` without data.
    pub(crate) concurrency: Option<Load>,
    pub(crate) rps: Option<Load>,
}

impl Revisions {
    /// All deciders' figures.
    pub(crate) fn figures(&self) -> Vec<Figures> {
        let now = self.clock.now();
        let figures = |revision: &Arc<Revision>| {
            let state = revision.state.lock();
            let decider = state.decider.as_ref()?;
            let load = |metric| state.collection.as_ref()?.collection.load(metric, now);
            Some(Figures {
                namespace: revision.key.namespace.clone(),
                labels: decider.labels.clone(),
                spec: decider.spec.clone(),
                status: decider.status,
                panicking: matches!(decider.decider.mode(), Mode::Panic { .. }),
                last: decider.last,
                requested: decider.requested,
                pods: self.pods.counts(&decider.revision),
                concurrency: load(ScalingMetric::Concurrency),
                rps: load(ScalingMetric::Rps),
            })
        };
        self.table.all().iter().filter_map(figures).collect()
    }
}
