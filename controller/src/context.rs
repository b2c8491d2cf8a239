//! What all reconcilers of the controller share: one watch per kind, configuration, the writer, and shutdown.

use std::fmt;
use std::future::Future;
use std::sync::Arc;

use ember_api::autoscaling::v1alpha1::PodAutoscaler;
use ember_api::caching::v1alpha1::Image;
pub(crate) use ember_api::configmaps::Configs;
use ember_api::networking::v1alpha1::{Certificate, Ingress, ServerlessService};
use ember_api::serving::v1::{Configuration, Revision, Route, Service};
use ember_reconcile::apply::{Action, Applier, ApplyError, Verb};
use ember_reconcile::cache::{Cache, Key};
use ember_reconcile::config::ConfigStore;
use ember_reconcile::event::EventRecorder;
use ember_reconcile::queue::{Next, WorkQueue};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1;
use kube::core::Resource;
use kube::runtime::watcher;
use kube::{Api, Client};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::leadership::{Leadership, Queues};
use crate::revision::DigestResolver;

/// Local copies of the kinds that the controller reads.
#[derive(Clone, Debug, Default)]
pub(crate) struct Caches {
    pub(crate) services: Cache<Service>,
    pub(crate) configurations: Cache<Configuration>,
    pub(crate) revisions: Cache<Revision>,
    pub(crate) routes: Cache<Route>,
    pub(crate) pod_autoscalers: Cache<PodAutoscaler>,
    pub(crate) serverless_services: Cache<ServerlessService>,
    pub(crate) ingresses: Cache<Ingress>,
    pub(crate) certificates: Cache<Certificate>,
    pub(crate) images: Cache<Image>,
    pub(crate) deployments: Cache<Deployment>,
    pub(crate) k8s_services: Cache<v1::Service>,
    pub(crate) endpoints: Cache<v1::Endpoints>,
}

/// Shared by every reconciler; cheap to clone.
#[derive(Clone)]
pub(crate) struct Context {
    pub(crate) client: Client,
    pub(crate) applier: Applier,
    pub(crate) configs: ConfigStore<Configs>,
    pub(crate) caches: Caches,
    /// Names its component `controller`; a reconciler records through [`EventRecorder::named`].
    pub(crate) events: EventRecorder,
    /// How many objects of a kind are worked on at the same time.
    pub(crate) concurrency: usize,
    /// Where the system's own objects live.
    pub(crate) system_namespace: Arc<str>,
    /// Who knows the digests of images.
    pub(crate) digests: Arc<dyn DigestResolver>,
    /// Which reconcilers are this replica's to run.
    pub(crate) leadership: Leadership,
    /// Where the queues are known.
    pub(crate) queues: Queues,
    pub(crate) shutdown: CancellationToken,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Caches {
    /// Starts one watch per kind; they end with `shutdown`.
    pub(crate) fn spawn(&self, client: &Client, tasks: &TaskTracker, shutdown: &CancellationToken) {
        fn follow<K>(cache: &Cache<K>, client: &Client, tasks: &TaskTracker, shutdown: &CancellationToken)
        where
            K: Resource<DynamicType = ()> + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
        {
            tasks.spawn(cache.run(Api::all(client.clone()), watcher::Config::default(), shutdown.clone()));
        }
        follow(&self.services, client, tasks, shutdown);
        follow(&self.configurations, client, tasks, shutdown);
        follow(&self.revisions, client, tasks, shutdown);
        follow(&self.routes, client, tasks, shutdown);
        follow(&self.pod_autoscalers, client, tasks, shutdown);
        follow(&self.serverless_services, client, tasks, shutdown);
        follow(&self.ingresses, client, tasks, shutdown);
        follow(&self.certificates, client, tasks, shutdown);
        follow(&self.images, client, tasks, shutdown);
        follow(&self.deployments, client, tasks, shutdown);
        follow(&self.k8s_services, client, tasks, shutdown);
        follow(&self.endpoints, client, tasks, shutdown);
    }

    /// Waits for the first listing of every kind: deciding on half a view would create what exists already.
    pub(crate) async fn synced(&self) {
        tokio::join!(
            self.services.synced(),
            self.configurations.synced(),
            self.revisions.synced(),
            self.routes.synced(),
            self.pod_autoscalers.synced(),
            self.serverless_services.synced(),
            self.ingresses.synced(),
            self.certificates.synced(),
            self.images.synced(),
            self.deployments.synced(),
            self.k8s_services.synced(),
            self.endpoints.synced(),
        );
    }

    /// Puts the API's answer to one of our writes into the cache of its kind.
    fn put_written(&self, action: &Action, stored: &Value) {
        fn put<K>(cache: &Cache<K>, stored: &Value)
        where
            K: Resource + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
        {
            if let Ok(object) = serde_json::from_value::<K>(stored.clone()) {
                cache.put_written(object);
            }
        }
        match (action.resource.group.as_ref(), action.resource.kind.as_ref()) {
            ("serving.knative.dev", "Service") => put(&self.services, stored),
            ("serving.knative.dev", "Configuration") => put(&self.configurations, stored),
            ("serving.knative.dev", "Revision") => put(&self.revisions, stored),
            ("serving.knative.dev", "Route") => put(&self.routes, stored),
            ("autoscaling.internal.knative.dev", "PodAutoscaler") => put(&self.pod_autoscalers, stored),
            ("networking.internal.knative.dev", "ServerlessService") => {
                put(&self.serverless_services, stored);
            }
            ("networking.internal.knative.dev", "Ingress") => put(&self.ingresses, stored),
            ("networking.internal.knative.dev", "Certificate") => put(&self.certificates, stored),
            ("caching.internal.knative.dev", "Image") => put(&self.images, stored),
            ("apps", "Deployment") => put(&self.deployments, stored),
            ("", "Service") => put(&self.k8s_services, stored),
            ("", "Endpoints") => put(&self.endpoints, stored),
            _ => {}
        }
    }
}

impl Context {
    /// Carries out one write and puts the answer into the cache of its kind, so that the next reconcile sees it
    /// whatever the watch's delay.
    pub(crate) async fn write(&self, action: &Action) -> Result<Value, ApplyError> {
        let stored = self.applier.execute(action).await?;
        // The answer to a deletion may be the object's last state: what the cache holds goes by the watch's event.
        if !matches!(action.verb, Verb::Delete { .. }) {
            self.caches.put_written(action, &stored);
        }
        Ok(stored)
    }

    /// Runs the reconciler called `name` on `queue` once all caches are filled, and its Lease is this replica's.
    /// Meanwhile the queue gathers every key there is.
    pub(crate) fn run_queue<F, Fut, E>(
        &self,
        name: &'static str,
        queue: &WorkQueue<Key>,
        tasks: &TaskTracker,
        reconcile: F,
    ) where
        F: Fn(Context, Key) -> Fut + Send + Sync + 'static,
        Fut: Future<Output = Result<Next, E>> + Send + 'static,
        E: fmt::Display + Send + 'static,
    {
        self.queues.add(name, queue);
        let (ctx, queue, held) = (self.clone(), queue.clone(), self.leadership.of(name));
        tasks.spawn(async move {
            let shutdown = ctx.shutdown.clone();
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = async { tokio::join!(ctx.caches.synced(), ctx.configs.synced(), held); } => {}
            }
            let concurrency = ctx.concurrency;
            queue.run(concurrency, shutdown, move |key| reconcile(ctx.clone(), key)).await;
        });
    }
}

/// Adds the key of everything in `cache` to `queue` whenever another configuration comes into force.
pub(crate) fn enqueue_all_on_new_configs<K>(
    ctx: &Context,
    cache: &Cache<K>,
    queue: &WorkQueue<Key>,
    tasks: &TaskTracker,
) where
    K: Resource + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let (cache, queue, shutdown) = (cache.clone(), queue.clone(), ctx.shutdown.clone());
    let mut changes = ctx.configs.subscribe();
    tasks.spawn(async move {
        loop {
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
            for object in cache.all() {
                queue.add(Key::of(&*object));
            }
        }
    });
}

/// Adds the key of every change of `cache` to `queue`.
pub(crate) fn enqueue_changes<K>(cache: &Cache<K>, queue: &WorkQueue<Key>)
where
    K: Resource + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let queue = queue.clone();
    cache.on_change(move |change| queue.add(Key::of(&**change.object())));
}

/// Adds the key of the controlling owner of kind `kind` in API group `group` to `queue` on every change of `cache`.
pub(crate) fn enqueue_controllers<K>(
    cache: &Cache<K>,
    group: &'static str,
    kind: &'static str,
    queue: &WorkQueue<Key>,
) where
    K: Resource + Clone + fmt::Debug + DeserializeOwned + Send + Sync + 'static,
{
    let queue = queue.clone();
    cache.on_change(move |change| {
        let meta = change.object().meta();
        let controller = meta.owner_references.iter().flatten().find(|o| o.controller == Some(true));
        if let Some(owner) = controller
            && owner.kind == kind
            && owner.api_version.split_once('/').is_some_and(|(g, _)| g == group)
        {
            queue.add(Key::new(meta.namespace.clone().unwrap_or_default(), owner.name.clone()));
        }
    });
}
