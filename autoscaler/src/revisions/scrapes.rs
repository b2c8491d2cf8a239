//! What is to be scraped, and what came of it.

use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::stat::Stat;
use ember_reconcile::cache::Key;

use super::Revisions;
use super::revision::Revision;
use crate::scraper::ScrapeError;

/// What is to be scraped.
#[derive(Debug, Clone)]
pub(crate) struct ScrapeJob {
    pub(crate) target: String,
    pub(crate) stable_window: Duration,
    pub(crate) generation: u64,
}

impl Revisions {
    /// What to scrape now. Calls `recovered` for revisions that have no pods left to fail.
    pub(crate) fn scrape_jobs(&self, mut recovered: impl FnMut(&Key)) -> Vec<(Arc<Revision>, ScrapeJob)> {
        let mut jobs = Vec::new();
        for revision in self.table.all().iter() {
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
            jobs.push((Arc::clone(revision), job));
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
}
