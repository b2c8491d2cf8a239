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
mod leadership;
mod metadata;
mod owner;
mod plan;
mod revision;
mod route;
mod serverlessservice;
mod service;
mod tracker;

use std::sync::Arc;

use ember_api::configmaps::leader_election;
use ember_reconcile::apply::Applier;
use ember_reconcile::config::ConfigStore;
use ember_reconcile::event::EventRecorder;
use kube::Client;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use context::{Caches, Configs, Context};
use leadership::Leadership;
pub use leadership::{Queue, Queues};
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
    /// What this replica calls itself, where there may be others: each reconciler then works only while it has its
    /// Lease. `None` (the default): it is the only one, and no Lease is needed.
    pub identity: Option<String>,
    /// Name of the ConfigMap on leader election, read once. Default `config-leader-election`.
    pub leader_election_name: String,
    /// What is known of the reconcilers' queues while it runs.
    pub queues: Queues,
}

impl Default for Config {
    fn default() -> Self {
        Self {
            system_namespace: ember_reconcile::SYSTEM_NAMESPACE.to_owned(),
            cluster_domain: "cluster.local".to_owned(),
            concurrency: 16,
            digests: Arc::new(KeepTags),
            identity: None,
            leader_election_name: leader_election::NAME.to_owned(),
            queues: Queues::default(),
        }
    }
}

/// Why the controller ended by itself.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// All its tasks are gone although nobody asked for it.
    #[error("the controller's tasks ended before shutdown")]
    Ended,
    /// The ConfigMap on leader election cannot be used.
    #[error("ConfigMap {0}: {1}")]
    Election(String, String),
    /// A Lease was lost while reconcilers worked on its account.
    #[error("Lease {0} is no longer this replica's: another one may be at work")]
    LeaseLost(String),
}

/// Runs all reconcilers until `shutdown`, and returns when those under way have ended and its Leases are given up.
///
/// # Errors
/// See [`Error`]; failures of the API are retried and never end it, unless they cost a Lease: a replica that begins
/// anew holds nothing half done.
pub async fn run(config: Config, client: Client, shutdown: CancellationToken) -> Result<(), Error> {
    let election = match config.identity {
        Some(identity) => {
            let (namespace, name) = (&config.system_namespace, &config.leader_election_name);
            let settings = ember_reconcile::lease::settings(&client, namespace, name).await;
            Some((identity, settings.map_err(|why| Error::Election(name.clone(), why))?))
        }
        None => None,
    };
    let asked = shutdown;
    let shutdown = asked.child_token();
    let tasks = TaskTracker::new();
    let (events, write_events) = EventRecorder::new(client.clone(), "controller", shutdown.clone());
    tasks.spawn(write_events);

    let configs = ConfigStore::new(Configs::default());
    let cluster_domain = config.cluster_domain;
    let leadership = Leadership::new(election.is_none());
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
        leadership: leadership.clone(),
        queues: config.queues,
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
    let (elections, resign) = (TaskTracker::new(), CancellationToken::new());
    if let Some((identity, settings)) = &election {
        leadership.compete(&ctx, identity, settings, (&tasks, &elections), &resign);
    }
    tasks.close();
    let lost = tokio::select! {
        () = tasks.wait() => None,
        lease = leadership.lost() => {
            shutdown.cancel();
            tasks.wait().await;
            Some(lease)
        }
    };
    // Only now: whoever takes over finds nobody else at work.
    resign.cancel();
    elections.close();
    elections.wait().await;
    match lost {
        Some(lease) => Err(Error::LeaseLost(lease)),
        None if asked.is_cancelled() => Ok(()),
        None => Err(Error::Ended),
    }
}
