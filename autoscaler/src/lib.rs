//! The Knative Pod Autoscaler.
//!
//! The pure parts decide: [`window`] averages, [`decider`] turns averages into a wanted scale, [`scaler`] bounds it
//! and takes care of zero, [`resolution`] says what holds for a revision, [`podautoscaler::plan`] what to write. Around
//! them: scraping, the server that activators report to, and the control loops. Nothing between an activator's first
//! report for a sleeping revision and the write of its scale waits for a timer.

pub mod bucket;
pub mod bucket_objects;
mod buckets;
pub mod collection;
pub mod config;
pub mod decider;
pub mod environment;
#[cfg(test)]
mod examples;
mod forwarder;
mod gauges;
#[cfg(test)]
mod golden;
mod held;
pub mod hpa;
#[cfg(test)]
mod laws;
pub mod metric;
mod pace;
pub mod podautoscaler;
pub mod pods;
mod probe;
mod replica;
pub mod resolution;
mod revisions;
pub mod sample_size;
pub mod scaler;
mod scales;
mod scrape_client;
mod scrape_durations;
pub mod scraper;
pub mod stat_server;
pub mod time;
pub mod window;

use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

use ember_api::autoscaling::v1alpha1::{Metric, PodAutoscaler};
use ember_api::labels;
use ember_api::networking::v1alpha1::ServerlessService;
use ember_dataplane::io::Io;
use ember_reconcile::apply::Applier;
use ember_reconcile::cache::{Cache, Change, Key};
use ember_reconcile::config::ConfigStore;
use ember_reconcile::event::EventRecorder;
use ember_reconcile::queue::WorkQueue;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::watcher;
use kube::{Api, Client, Resource, ResourceExt};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::{Config, HpaClass, Replica};
pub use environment::Environment;
pub use scales::{RevisionScale, Scales};

use crate::buckets::Buckets;
use crate::forwarder::Forwarder;
use crate::held::HeldReports;
use crate::hpa::reconciler::HpaReconciler;
use crate::metric::{MetricReconciler, Parts};
use crate::podautoscaler::reconciler::{Reconciler, is_ours};
use crate::podautoscaler::scale_target::ScaleTargets;
use crate::pods::PodIndex;
use crate::replica::Membership;
use crate::resolution::Settings;
use crate::revisions::{MonotonicClock, Revisions};
use crate::scrape_durations::ScrapeDurations;
use crate::stat_server::StatSink;

/// Name that events are recorded under.
const EVENT_SOURCE: &str = "kpa-class-podautoscaler-controller";
const HPA_EVENT_SOURCE: &str = "hpa-class-podautoscaler-controller";

/// Why the autoscaler stopped.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address could not be listened on.
    #[error("cannot listen on {0}: {1}")]
    Listen(std::net::SocketAddr, #[source] io::Error),
    /// The port that activators report to is gone.
    #[error("the stats port failed: {0}")]
    Stats(#[source] io::Error),
    /// The ConfigMap on leader election cannot be used.
    #[error("ConfigMap {0}: {1}")]
    Election(String, String),
}

/// Watched copies of what the autoscaler looks at.
struct Caches {
    podautoscalers: Cache<PodAutoscaler>,
    metrics: Cache<Metric>,
    services: Cache<ServerlessService>,
    deployments: Cache<Deployment>,
    pods: Cache<Pod>,
    horizontal: Cache<HorizontalPodAutoscaler>,
}

/// Scales revisions until `shutdown`.
///
/// # Errors
/// When an address cannot be listened on, the stats port fails, or the ConfigMap on leader election makes no sense.
pub async fn run(config: Config, io: Io, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let config = Arc::new(config);
    let listen = async |addr| io.network.listen(addr).await.map_err(|e| Error::Listen(addr, e));
    let stats = listen(config.stats_addr).await?;
    let exposition = match config.metrics_addr {
        Some(addr) => Some(listen(addr).await?),
        None => None,
    };
    let election = match &config.replica {
        Some(replica) => Some((replica.clone(), replica::settings(&client, &config).await?)),
        None => None,
    };
    let buckets = Arc::new(match &election {
        Some((_, settings)) => Buckets::shared(settings.buckets),
        None => Buckets::sole(),
    });
    let stop = shutdown.child_token();
    let tasks = TaskTracker::new();
    let caches = Caches {
        podautoscalers: Cache::new(),
        metrics: Cache::new(),
        services: Cache::new(),
        deployments: Cache::new(),
        pods: Cache::new(),
        horizontal: Cache::new(),
    };
    let (events, writing_events) = EventRecorder::new(client.clone(), EVENT_SOURCE, stop.clone());
    tasks.spawn(writing_events);

    let pods = PodIndex::default();
    let clock = MonotonicClock::new(Arc::clone(&io.clock));
    let held = HeldReports::new(config.held_reports, config.held_report_lifetime);
    let revisions = Arc::new(Revisions::new(clock, pods.clone(), held, Arc::clone(&buckets)));
    config.scales.show(&revisions);
    let durations = ScrapeDurations::default();
    let registry = gauges::registry(Arc::clone(&revisions), durations.clone());
    let reconciler = Arc::new(Reconciler {
        config: Arc::clone(&config),
        io: io.clone(),
        settings: ConfigStore::new(Settings::default()),
        podautoscalers: caches.podautoscalers.clone(),
        services: caches.services.clone(),
        metrics: caches.metrics.clone(),
        pods,
        targets: ScaleTargets::new(caches.deployments.clone(), client.clone()),
        applier: Applier::new(client.clone()),
        events,
        buckets: Arc::clone(&buckets),
        revisions,
        queue: WorkQueue::new(),
        tasks: tasks.clone(),
        stop: stop.clone(),
    });
    let parts = Parts { applier: Applier::new(client.clone()), queue: WorkQueue::new(), durations };
    let metrics = Arc::new(MetricReconciler::new(Arc::clone(&reconciler), parts));

    let (hpa_events, writing_events) = EventRecorder::new(client.clone(), HPA_EVENT_SOURCE, stop.clone());
    tasks.spawn(writing_events);
    let hpa = Arc::new(HpaReconciler {
        shared: Arc::clone(&reconciler),
        autoscalers: caches.horizontal.clone(),
        events: hpa_events,
        queue: WorkQueue::new(),
    });

    enqueue_changes(&caches, &reconciler, &metrics, &hpa);
    watch(&caches, &client, &tasks, &stop, config.hpa_class);
    let settings = &reconciler.settings;
    tasks.spawn(settings.run(client.clone(), &config.system_namespace, Settings::parse, stop.clone()));
    if let Some(listener) = exposition {
        tasks.spawn(gauges::serve(listener, Arc::new(registry), stop.clone(), tasks.clone()));
    }
    let (elections, resign) = (TaskTracker::new(), CancellationToken::new());
    if let Some((replica, settings)) = election {
        let membership = Membership {
            replica,
            settings,
            client,
            io: io.clone(),
            reconciler: Arc::clone(&reconciler),
            metrics: Arc::clone(&metrics),
            hpa: Arc::clone(&hpa),
        };
        membership.start(&tasks, &elections, &resign);
    }
    let local = Arc::clone(&reconciler) as Arc<dyn StatSink>;
    let forwarder = Forwarder::start(&buckets, &local, &config, &io, (&tasks, &stop));
    tasks.spawn(control(caches, reconciler, metrics, hpa));

    // Activators may connect before anything else is ready: their reports wait for their revisions.
    let served = stat_server::serve(stats, &config, io, Arc::new(forwarder), shutdown).await;
    stop.cancel();
    tasks.close();
    if tokio::time::timeout(config.shutdown_timeout, tasks.wait()).await.is_err() {
        tracing::warn!("some work did not end in time");
    }
    // Only now: whoever takes over finds nobody else at work.
    resign.cancel();
    elections.close();
    if tokio::time::timeout(config.shutdown_timeout, elections.wait()).await.is_err() {
        tracing::warn!("some Leases were not given up in time");
    }
    served.map_err(Error::Stats)
}

/// Runs the control loops, once everything they look at has been seen.
async fn control(
    caches: Caches,
    reconciler: Arc<Reconciler>,
    metrics: Arc<MetricReconciler>,
    hpa: Arc<HpaReconciler>,
) {
    let stop = reconciler.stop.clone();
    let synced = async {
        tokio::join!(
            caches.podautoscalers.synced(),
            caches.metrics.synced(),
            caches.services.synced(),
            caches.deployments.synced(),
            caches.pods.synced(),
            reconciler.settings.synced(),
        );
    };
    tokio::select! {
        () = stop.cancelled() => return,
        () = synced => {}
    }
    let concurrency = reconciler.config.reconcile_concurrency;
    let reconciling = {
        let reconciler = Arc::clone(&reconciler);
        reconciler.queue.clone().run(concurrency, stop.clone(), move |key| {
            let reconciler = Arc::clone(&reconciler);
            async move { reconciler.reconcile(key).await }
        })
    };
    let measuring = {
        let metrics = Arc::clone(&metrics);
        metrics.queue.clone().run(concurrency, stop.clone(), move |key| {
            let metrics = Arc::clone(&metrics);
            async move { metrics.reconcile(key).await }
        })
    };
    let following = {
        let (hpa, stop, horizontal) = (Arc::clone(&hpa), stop.clone(), caches.horizontal.clone());
        async move {
            // Where HorizontalPodAutoscalers cannot be listed, the Knative class goes on without them.
            match hpa.shared.config.hpa_class {
                HpaClass::Elsewhere => return,
                HpaClass::Managed if stop.run_until_cancelled(horizontal.synced()).await.is_none() => return,
                HpaClass::Managed | HpaClass::Unavailable => {}
            }
            let queue = hpa.queue.clone();
            let work = move |key| {
                let hpa = Arc::clone(&hpa);
                async move { hpa.reconcile(key).await }
            };
            queue.run(concurrency, stop, work).await;
        }
    };
    tokio::join!(
        reconciling,
        measuring,
        following,
        Arc::clone(&reconciler).tick(),
        metrics.scrape(),
        follow_settings(&reconciler, &hpa),
    );
}

/// Looks at every PodAutoscaler again when the configuration changed.
async fn follow_settings(reconciler: &Reconciler, hpa: &HpaReconciler) {
    let mut changes = reconciler.settings.subscribe();
    loop {
        tokio::select! {
            () = reconciler.stop.cancelled() => return,
            changed = changes.changed() => if changed.is_err() { return },
        }
        for pa in reconciler.podautoscalers.all() {
            enqueue(&reconciler.queue, &hpa.queue, pa.annotations(), Key::of(&*pa));
        }
    }
}

/// Queues a PodAutoscaler where its class, told by annotations of its own or of a child, is taken care of. What is of
/// no class known here may have been of the Knative class before.
fn enqueue(queue: &WorkQueue<Key>, hpa: &WorkQueue<Key>, annotations: &BTreeMap<String, String>, key: Key) {
    if hpa::reconciler::is_ours(annotations) {
        hpa.add(key.clone());
    }
    queue.add(key);
}

fn enqueue_changes(
    caches: &Caches,
    reconciler: &Arc<Reconciler>,
    metrics: &Arc<MetricReconciler>,
    hpa: &Arc<HpaReconciler>,
) {
    let (queue, horizontal) = (reconciler.queue.clone(), hpa.queue.clone());
    caches.podautoscalers.on_change(move |change| {
        if !is_known(change) {
            let pa = change.object();
            enqueue(&queue, &horizontal, pa.annotations(), Key::of(&**pa));
        }
    });
    let (queue, horizontal) = (reconciler.queue.clone(), hpa.queue.clone());
    caches.services.on_change(move |change| add_owner(&queue, &horizontal, change));
    let (queue, horizontal) = (reconciler.queue.clone(), hpa.queue.clone());
    caches.horizontal.on_change(move |change| add_owner(&queue, &horizontal, change));
    let horizontal = hpa.queue.clone();
    let (queue, collecting) = (reconciler.queue.clone(), metrics.queue.clone());
    caches.metrics.on_change(move |change| {
        collecting.add(Key::of(&**change.object()));
        add_owner(&queue, &horizontal, change);
    });
    let (queue, index) = (reconciler.queue.clone(), reconciler.pods.clone());
    caches.pods.on_change(move |change| {
        if let Some(revision) = index.observe(change) {
            queue.add(revision);
        }
    });
}

/// Whether the watch delivers what the cache holds already: our own write, of which nobody has to be told. Where it
/// calls for another look, the reconcile that wrote it arranged one.
fn is_known<K: Resource>(change: &Change<K>) -> bool {
    match change {
        Change::Applied { old: Some(old), new } => old.meta().resource_version == new.meta().resource_version,
        _ => false,
    }
}

/// Queues the PodAutoscaler that a child belongs to.
fn add_owner<K: Resource>(queue: &WorkQueue<Key>, hpa: &WorkQueue<Key>, change: &Change<K>) {
    if is_known(change) {
        return;
    }
    let child = change.object();
    let owners = child.meta().owner_references.iter().flatten();
    let mut owners = owners.filter(|owner| owner.controller == Some(true) && owner.kind == "PodAutoscaler");
    let Some(owner) = owners.next() else { return };
    let key = Key::new(child.namespace().unwrap_or_default(), &owner.name);
    if is_ours(child.annotations()) {
        queue.add(key);
    } else if hpa::reconciler::is_ours(child.annotations()) {
        hpa.add(key);
    }
}

fn watch(
    caches: &Caches,
    client: &Client,
    tasks: &TaskTracker,
    stop: &CancellationToken,
    hpa_class: HpaClass,
) {
    let watch = Watch { client, tasks, stop };
    watch.all(&caches.podautoscalers, "");
    watch.all(&caches.metrics, "");
    watch.all(&caches.services, "");
    watch.all(&caches.deployments, labels::REVISION_UID);
    watch.all(&caches.pods, labels::REVISION_UID);
    if hpa_class == HpaClass::Managed {
        watch.all(&caches.horizontal, "");
    }
}

struct Watch<'a> {
    client: &'a Client,
    tasks: &'a TaskTracker,
    stop: &'a CancellationToken,
}

impl Watch<'_> {
    /// Keeps `cache` filled with the objects of all namespaces that carry the label, if one is given.
    fn all<K>(&self, cache: &Cache<K>, label: &str)
    where
        K: Resource<DynamicType = ()> + Clone + std::fmt::Debug + DeserializeOwned + Send + Sync + 'static,
    {
        let mut config = watcher::Config::default();
        if !label.is_empty() {
            config = config.labels(label);
        }
        self.tasks.spawn(cache.run(Api::all(self.client.clone()), config, self.stop.clone()));
    }
}
