//! Reconcilers of Service, Configuration, Revision, Route and ServerlessService, the labeler and garbage collection.
//!
//! Every reconciler is `observe → plan → apply`: it is woken by watches, decides by a pure function over what the
//! caches hold, and writes through one applier.

mod configuration;
mod context;
mod defaults;
mod gc;
#[cfg(test)]
mod golden;
mod labeler;
mod metadata;
mod owner;
mod plan;
mod revision;
mod route;
mod serverlessservice;
mod service;
mod tracker;

use std::sync::Arc;

use ember_reconcile::apply::Applier;
use ember_reconcile::config::ConfigStore;
use ember_reconcile::event::EventRecorder;
use kube::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use context::{Caches, Configs, Context};
pub use revision::{DigestResolver, KeepTags, Lookup};

/// What the controller is told at start; everything else comes from ConfigMaps.
#[derive(Clone, Debug)]
pub struct Config {
    /// The namespace of the system's own objects; default `knative-serving`.
    pub system_namespace: String,
    /// The DNS suffix of the cluster's Services; default `cluster.local`.
    pub cluster_domain: String,
    /// How many objects of one kind are worked on at the same time; default 16.
    pub concurrency: usize,
    /// Who knows the digests that tags of images stand for; default [`KeepTags`].
    pub digests: Arc<dyn DigestResolver>,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            system_namespace: ember_reconcile::SYSTEM_NAMESPACE.to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            concurrency: 16,
            digests: Arc::new(KeepTags),
        }
    }
}

/// Why the controller ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All its tasks are gone although nobody asked for it.
    #[error("the controller's tasks ended before shutdown")]
    Ended,
}

/// Runs all reconcilers until `shutdown`, and returns when those under way have ended.
///
/// # Errors
/// See [`Error`]; failures of the API are retried and never end it.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let tasks = TaskTracker::new();
    let (events, write_events) = EventRecorder::new(client.clone(), "controller", shutdown.clone());
    tasks.spawn(write_events);

    let configs = ConfigStore::new(Configs::default());
    let cluster_domain = config.cluster_domain;
    tasks.spawn(configs.run(
        client.clone(),
        &config.system_namespace,
        move |data| Configs::parse_in(data, &cluster_domain),
        shutdown.clone(),
    ));
    let ctx = Context {
        applier: Applier::new(client.clone()),
        client,
        configs,
        caches: Caches::default(),
        events,
        concurrency: config.concurrency.max(1),
        system_namespace: config.system_namespace.into(),
        digests: config.digests,
        shutdown: shutdown.clone(),
    };
    // Handlers are in place before the watches start, so that none misses the first listing.
    service::spawn(&ctx, &tasks);
    configuration::spawn(&ctx, &tasks);
    revision::spawn(&ctx, &tasks);
    serverlessservice::spawn(&ctx, &tasks);
    route::spawn(&ctx, &tasks);
    labeler::spawn(&ctx, &tasks);
    gc::spawn(&ctx, &tasks);
    ctx.caches.spawn(&ctx.client, &tasks, &ctx.shutdown);
    tasks.close();
    tasks.wait().await;
    if shutdown.is_cancelled() { Ok(()) } else { Err(Error::Ended) }
}
