//! Reports for revisions that are not known yet: bounded in number and in time.

use std::collections::HashMap;
use std::time::Duration;

use ember_dataplane::stat::Stat;
use ember_reconcile::cache::Key;
use tokio::time::Instant;

/// A report and when it came.
struct Held {
    stat: Stat,
    since: Instant,
}

/// Reports that wait for their revisions.
pub(crate) struct HeldReports {
    limit: usize,
    lifetime: Duration,
    by_revision: HashMap<Key, Vec<Held>>,
    count: usize,
}

impl HeldReports {
    pub(crate) fn new(limit: usize, lifetime: Duration) -> Self {
        Self { limit, lifetime, by_revision: HashMap::new(), count: 0 }
    }

    /// Keeps a report, unless too many wait already.
    pub(crate) fn push(&mut self, key: &Key, stat: Stat) -> bool {
        if self.count >= self.limit {
            self.forget_old();
        }
        if self.count >= self.limit {
            return false;
        }
        self.count += 1;
        self.by_revision.entry(key.clone()).or_default().push(Held { stat, since: Instant::now() });
        true
    }

    /// Hands out a revision's reports, without those that waited for too long.
    pub(crate) fn take(&mut self, key: &Key) -> Vec<Stat> {
        let Some(reports) = self.by_revision.remove(key) else { return Vec::new() };
        self.count -= reports.len();
        let lifetime = self.lifetime;
        reports.into_iter().filter(|r| r.since.elapsed() < lifetime).map(|r| r.stat).collect()
    }

    /// Drops what waited for too long.
    pub(crate) fn forget_old(&mut self) {
        if self.count == 0 {
            return;
        }
        let lifetime = self.lifetime;
        self.by_revision.retain(|_, reports| {
            reports.retain(|report| report.since.elapsed() < lifetime);
            !reports.is_empty()
        });
        self.count = self.by_revision.values().map(Vec::len).sum();
    }

    /// How many reports wait.
    #[cfg(test)]
    pub(crate) fn len(&self) -> usize {
        self.count
    }
}
