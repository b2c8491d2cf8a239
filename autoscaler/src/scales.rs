//! What the autoscaler thinks of its revisions, for whoever watches it in the same process.

use std::fmt;
use std::sync::{Arc, OnceLock, Weak};

use crate::revisions::Revisions;

/// A revision's scale and load.
#[derive(Debug, Clone, PartialEq)]
pub struct RevisionScale {
    /// Where it is.
    pub namespace: String,
    /// The service that it belongs to; empty for none.
    pub service: String,
    /// Its name.
    pub revision: String,
    /// Pods wanted; `None` before the first decision.
    pub wanted: Option<u32>,
    /// Pods that are ready.
    pub ready: u32,
    /// Requests at the same time, over the stable window.
    pub concurrency: Option<f64>,
    /// Requests a second, over the stable window.
    pub rps: Option<f64>,
    /// Whether the panic window decides.
    pub panicking: bool,
}

/// The revisions of the autoscaler that runs with it in its configuration; none before. Clones are the same.
#[derive(Clone, Default)]
pub struct Scales(Arc<OnceLock<Weak<Revisions>>>);

impl fmt::Debug for Scales {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Scales").finish_non_exhaustive()
    }
}

impl Scales {
    /// Shows these; only the first call counts.
    pub(crate) fn show(&self, revisions: &Arc<Revisions>) {
        // A second autoscaler of one configuration is not looked at.
        let _ = self.0.set(Arc::downgrade(revisions));
    }

    /// All of them as they are now.
    #[must_use]
    pub fn list(&self) -> Vec<RevisionScale> {
        let Some(revisions) = self.0.get().and_then(Weak::upgrade) else { return Vec::new() };
        let count = |count: i32| u32::try_from(count).unwrap_or(0);
        let scale = |figures: crate::revisions::Figures| RevisionScale {
            namespace: figures.namespace,
            service: figures.labels.service,
            revision: figures.labels.revision,
            wanted: figures.requested.or_else(|| figures.last.map(|last| last.desired)).map(count),
            ready: count(figures.pods.ready),
            concurrency: figures.concurrency.map(|load| load.stable),
            rps: figures.rps.map(|load| load.stable),
            panicking: figures.panicking,
        };
        revisions.figures().into_iter().map(scale).collect()
    }
}
