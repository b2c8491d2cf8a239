//! Route: where traffic goes, under which hosts, and how it gets from one revision to the next.

mod certificates;
mod configs;
#[cfg(test)]
pub(crate) mod golden;
mod ingress;
mod placeholder;
mod plan;
mod rollout;
mod tls;
mod traffic;
mod visibility;

use std::collections::BTreeSet;
use std::fmt::Debug;
use std::sync::Arc;

use ember_api::labels;
use ember_api::networking::v1alpha1::{Certificate, Ingress};
use ember_api::serving::GROUP;
use ember_api::serving::v1::{Configuration, Revision};
use ember_reconcile::cache::{Cache, Key};
use ember_reconcile::queue::{Next, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::core::Resource;
use serde::de::DeserializeOwned;
use tokio_util::task::TaskTracker;

use crate::context::{Caches, Context, enqueue_all_on_new_configs, enqueue_changes, enqueue_controllers};
use crate::plan::Error;
use crate::tracker::{Reference, Tracker};

pub(crate) use traffic::Lookup;

/// One namespace of the caches.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CachedNamespace<'a> {
    pub(crate) caches: &'a Caches,
    pub(crate) namespace: &'a str,
}

impl Lookup for CachedNamespace<'_> {
    fn configuration(&self, name: &str) -> Option<Arc<Configuration>> {
        self.caches.configurations.get(self.namespace, name)
    }

    fn revision(&self, name: &str) -> Option<Arc<Revision>> {
        self.caches.revisions.get(self.namespace, name)
    }
}

impl plan::Namespace for CachedNamespace<'_> {
    fn service(&self, name: &str) -> Option<Arc<Service>> {
        self.caches.k8s_services.get(self.namespace, name)
    }

    fn services_of(&self, route: &str) -> Vec<Arc<Service>> {
        self.caches.k8s_services.list_labelled(self.namespace, labels::ROUTE, route)
    }

    fn endpoints(&self, name: &str) -> Option<Arc<Endpoints>> {
        self.caches.endpoints.get(self.namespace, name)
    }

    fn ingress(&self, name: &str) -> Option<Arc<Ingress>> {
        self.caches.ingresses.get(self.namespace, name)
    }

    fn certificate(&self, name: &str) -> Option<Arc<Certificate>> {
        self.caches.certificates.get(self.namespace, name)
    }

    fn certificates(&self, label: &str, value: &str) -> Vec<Arc<Certificate>> {
        self.caches.certificates.list_labelled(self.namespace, label, value)
    }
}

/// Adds everyone who refers to a changed object of `cache` to `queue`.
pub(crate) fn enqueue_followers<K>(
    cache: &Cache<K>,
    kind: &'static str,
    tracker: &Tracker,
    queue: &WorkQueue<Key>,
) where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (tracker, queue) = (tracker.clone(), queue.clone());
    cache.on_change(move |change| {
        let key = Key::of(&**change.object());
        for follower in tracker.followers(&Reference { kind, key }) {
            queue.add(follower);
        }
    });
}

/// Starts the reconciler; it ends with the context's shutdown.
pub(crate) fn spawn(ctx: &Context, tasks: &TaskTracker) {
    let queue = WorkQueue::new();
    let tracker = Tracker::default();
    let caches = &ctx.caches;
    enqueue_changes(&caches.routes, &queue);
    enqueue_controllers(&caches.ingresses, GROUP, "Route", &queue);
    enqueue_controllers(&caches.certificates, GROUP, "Route", &queue);
    enqueue_controllers(&caches.k8s_services, GROUP, "Route", &queue);
    enqueue_followers(&caches.configurations, "Configuration", &tracker, &queue);
    enqueue_followers(&caches.revisions, "Revision", &tracker, &queue);
    // Hosts, classes and TLS come from ConfigMaps.
    enqueue_all_on_new_configs(ctx, &caches.routes, &queue, tasks);
    ctx.run_queue("route", &queue, tasks, move |ctx, key| reconcile(ctx, tracker.clone(), key));
}

async fn reconcile(ctx: Context, tracker: Tracker, key: Key) -> Result<Next, Error> {
    let Some(route) = ctx.caches.routes.get_key(&key) else {
        tracker.track(&key, BTreeSet::new());
        return Ok(Next::Wait);
    };
    let now = Timestamp::now();
    let configs = ctx.configs.load();
    let decided = {
        let namespace = CachedNamespace { caches: &ctx.caches, namespace: &key.namespace };
        plan::plan(&route, &namespace, &configs, now)
    };
    tracker.track(&key, decided.references);
    let events = ctx.events.named("route-controller");
    ctx.carry_out(&*route, decided.plan, &ctx.caches.routes, &events, now).await
}
