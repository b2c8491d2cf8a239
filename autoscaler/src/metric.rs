//! The control loop of Metrics, and the scraping they ask for.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use ember_api::autoscaling::v1alpha1::{Metric, MetricStatus};
use ember_api::conditions::READY;
use ember_api::labels;
use ember_api::status::{Conditioned, Status};
use ember_dataplane::io::Io;
use ember_reconcile::apply::{Action, Applier, ApplyError};
use ember_reconcile::cache::{Cache, Key};
use ember_reconcile::queue::{Next, WorkQueue};
use jiff::Timestamp;
use kube::ResourceExt;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::collection::CollectionSpec;
use crate::config::Config;
use crate::pace;
use crate::podautoscaler::reconciler::Reconciler;
use crate::pods::PodIndex;
use crate::resolution;
use crate::revisions::{Revision, Revisions, ScrapeJob};
use crate::scrape_client::ScrapeClient;
use crate::scrape_durations::{ScrapeDurations, ScrapeLabels, Series};
use crate::scraper::{ScrapeError, Scraper};

/// Why metrics are not collected.
#[derive(Debug, Clone, thiserror::Error, PartialEq, Eq)]
pub enum CollectionError {
    /// It is not said whose pods are to be scraped.
    #[error("label \"{label}\" not found or empty in Metric {0}", label = labels::REVISION)]
    NoRevision(String),
    /// The last scrape failed.
    #[error(transparent)]
    Scrape(ScrapeError),
}

/// What a Metric asks for.
///
/// # Errors
/// When it asks for scrapes, and not of whom.
pub fn collection_spec(metric: &Metric) -> Result<CollectionSpec, CollectionError> {
    let nanos = |n: i64| Duration::from_nanos(u64::try_from(n).unwrap_or(0));
    let scraped = !metric.spec.scrape_target.is_empty();
    if scraped && metric.labels().get(labels::REVISION).is_none_or(String::is_empty) {
        return Err(CollectionError::NoRevision(metric.name_any()));
    }
    Ok(CollectionSpec {
        stable_window: nanos(metric.spec.stable_window),
        panic_window: nanos(metric.spec.panic_window),
        scrape_target: metric.spec.scrape_target.clone(),
        algorithm: resolution::algorithm(metric.annotations()),
    })
}

/// The status of a Metric whose collection is in that state.
#[must_use]
pub fn status(metric: &Metric, error: Option<&CollectionError>, now: Timestamp) -> MetricStatus {
    let read = metric.status.clone().unwrap_or_default();
    let mut status = read.clone();
    status.begin_reconcile(metric.generation(), now);
    let mut conditions = status.manage(now);
    match error {
        None => conditions.mark_true(READY),
        Some(error @ CollectionError::Scrape(ScrapeError::NoUnseenPod(_))) => {
            conditions.mark_false(READY, "DidNotReceiveStat", &error.to_string());
        }
        Some(error) => {
            let message = format!("Failed to reconcile metric collection: {error}");
            conditions.mark_false(READY, "CollectionFailed", &message);
        }
    }
    status.end_reconcile(&read, metric.generation(), now);
    status
}

/// A revision's scraper and its connections.
struct Way {
    generation: u64,
    scraper: Scraper,
    client: ScrapeClient,
    durations: Arc<Series>,
}

/// What the loop reads and writes.
pub(crate) struct MetricReconciler {
    pub(crate) config: Arc<Config>,
    pub(crate) io: Io,
    pub(crate) metrics: Cache<Metric>,
    pub(crate) pods: PodIndex,
    pub(crate) applier: Applier,
    pub(crate) revisions: Arc<Revisions>,
    pub(crate) queue: WorkQueue<Key>,
    pub(crate) podautoscalers: Arc<Reconciler>,
    pub(crate) durations: ScrapeDurations,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    ways: Mutex<HashMap<Key, Arc<Way>>>,
}

/// The parts of a [`MetricReconciler`] that it shares with the other loop.
pub(crate) struct Parts {
    pub(crate) applier: Applier,
    pub(crate) queue: WorkQueue<Key>,
    pub(crate) durations: ScrapeDurations,
}

impl MetricReconciler {
    pub(crate) fn new(podautoscalers: Arc<Reconciler>, parts: Parts) -> Self {
        let shared = &podautoscalers;
        Self {
            config: Arc::clone(&shared.config),
            io: shared.io.clone(),
            metrics: shared.metrics.clone(),
            pods: shared.pods.clone(),
            applier: parts.applier,
            revisions: Arc::clone(&shared.revisions),
            queue: parts.queue,
            durations: parts.durations,
            tasks: shared.tasks.clone(),
            stop: shared.stop.clone(),
            ways: Mutex::default(),
            podautoscalers,
        }
    }

    /// Brings one Metric in order. A failed collection is its status and no error of the loop.
    pub(crate) async fn reconcile(&self, key: Key) -> Result<Next, ApplyError> {
        if !self.podautoscalers.buckets.owns(&key) {
            return Ok(Next::Wait);
        }
        let metric = match self.metrics.get_key(&key) {
            Some(metric) if metric.metadata.deletion_timestamp.is_none() => metric,
            Some(_) => return Ok(Next::Wait),
            None => {
                self.revisions.remove_collection(&key);
                self.ways.lock().remove(&key);
                return Ok(Next::Wait);
            }
        };
        let failure = match collection_spec(&metric) {
            Ok(spec) => {
                let (error, decided) = self.revisions.ensure_collection(&key, spec);
                if let Some(decided) = decided {
                    self.podautoscalers.decided(&key, decided);
                }
                error.map(CollectionError::Scrape)
            }
            Err(error) => Some(error),
        };
        let now = Timestamp::from_millisecond(self.revisions.now().as_millis()).unwrap_or(Timestamp::MAX);
        let next = status(&metric, failure.as_ref(), now);
        if !metric.status.as_ref().is_some_and(|status| status.same_state(&next)) {
            let action = Action::update_status(&Metric { status: Some(next), ..(*metric).clone() });
            self.applier.execute_into(&action, &self.metrics).await?;
        }
        Ok(Next::Wait)
    }

    /// Forgets the ways to pods of revisions that are another replica's by now.
    pub(crate) fn forget_foreign(&self) {
        self.ways.lock().retain(|key, _| self.podautoscalers.buckets.owns(key));
    }

    /// Scrapes all revisions that have pods, again and again until the component stops.
    pub(crate) async fn scrape(self: Arc<Self>) {
        loop {
            let wait = pace::until(self.io.clock.now(), self.config.scrape_interval, pace::SCRAPE);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            for (revision, job) in self.revisions.scrape_jobs(|key| self.queue.add(key.clone())) {
                // A revision whose last scrape is not over yet is left out.
                if !revision.scraping.swap(true, Ordering::AcqRel) {
                    self.tasks.spawn(Arc::clone(&self).scrape_one(revision, job));
                }
            }
        }
    }

    async fn scrape_one(self: Arc<Self>, revision: Arc<Revision>, job: ScrapeJob) {
        let way = self.way(&revision.key, &job);
        let pods = self.pods.ready(&revision.key);
        let begun = tokio::time::Instant::now();
        let scrape = way.scraper.scrape(&way.client, pods, self.revisions.now(), job.stable_window);
        let outcome = tokio::select! {
            () = self.stop.cancelled() => return,
            outcome = scrape => outcome,
        };
        // Where no pod was left there was no scrape; a failed one is one.
        if !matches!(outcome, Ok(None)) {
            way.durations.observe(begun.elapsed());
        }
        if let Err(error) = &outcome {
            tracing::debug!(revision = %revision.key, %error, "a scrape failed");
        }
        if self.revisions.scraped(&revision.key, outcome) {
            self.queue.add(revision.key.clone());
        }
        revision.scraping.store(false, Ordering::Release);
    }

    fn way(&self, key: &Key, job: &ScrapeJob) -> Arc<Way> {
        let mut ways = self.ways.lock();
        if let Some(way) = ways.get(key).filter(|way| way.generation == job.generation) {
            return Arc::clone(way);
        }
        let (config, settings) = (&self.config, self.podautoscalers.settings.load());
        let metric = self.metrics.get_key(key);
        let label =
            |name: &str| metric.as_ref().and_then(|m| m.labels().get(name).cloned()).unwrap_or_default();
        let labels = ScrapeLabels {
            namespace: key.namespace.clone(),
            service: label(labels::SERVICE),
            configuration: label(labels::CONFIGURATION),
        };
        let way = Arc::new(Way {
            generation: job.generation,
            scraper: Scraper::new(settings.mesh, settings.through_mesh),
            client: ScrapeClient::new(
                self.io.clone(),
                format!("{}.{}", job.target, key.namespace),
                config.scrape_port,
                config.scrape_timeout,
                self.tasks.clone(),
            ),
            durations: self.durations.series(labels),
        });
        ways.insert(key.clone(), Arc::clone(&way));
        way
    }
}
