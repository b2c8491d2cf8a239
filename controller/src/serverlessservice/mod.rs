//! ServerlessService: the two Services of a revision, and where the public one leads: to the pods, or to activators
//! that hold requests until there are pods.

mod plan;
mod services;
mod subset;

use std::collections::BTreeMap;

use ember_api::networking::v1alpha1::ServerlessService;
use ember_api::{labels, names};
use ember_reconcile::cache::Key;
use ember_reconcile::queue::{Next, WorkQueue};
use jiff::Timestamp;
use kube::api::{ApiResource, DynamicObject, GroupVersionKind};
use kube::{Api, ResourceExt};
use tokio_util::task::TaskTracker;

use crate::context::{Context, enqueue_changes, enqueue_controllers};
use crate::plan::Error;
use plan::Observed;

const GROUP: &str = "networking.internal.knative.dev";
const KIND: &str = "ServerlessService";

/// Starts the reconciler; it ends with the context's shutdown.
pub(crate) fn spawn(ctx: &Context, tasks: &TaskTracker) {
    let queue = WorkQueue::new();
    let caches = &ctx.caches;
    enqueue_changes(&caches.serverless_services, &queue);
    enqueue_controllers(&caches.k8s_services, GROUP, KIND, &queue);
    enqueue_endpoints(ctx, &queue);
    ctx.run_queue("serverlessservice", &queue, tasks, reconcile);
}

/// Endpoints lead back to a ServerlessService by label: the private ones are made by Kubernetes, which copies the
/// labels of the Service. Those of the activator concern every ServerlessService.
fn enqueue_endpoints(ctx: &Context, queue: &WorkQueue<Key>) {
    let (queue, all, system) =
        (queue.clone(), ctx.caches.serverless_services.clone(), ctx.system_namespace.clone());
    ctx.caches.endpoints.on_change(move |change| {
        let endpoints = change.object();
        let namespace = endpoints.metadata.namespace.as_deref().unwrap_or_default();
        if let Some(name) = endpoints.labels().get(labels::SERVERLESS_SERVICE) {
            queue.add(Key::new(namespace, name));
        } else if namespace == &*system && endpoints.name_any() == names::ACTIVATOR_SERVICE {
            for sks in all.all() {
                queue.add(Key::of(&*sks));
            }
        }
    });
}

async fn reconcile(ctx: Context, key: Key) -> Result<Next, Error> {
    let Some(sks) = ctx.caches.serverless_services.get_key(&key) else { return Ok(Next::Wait) };
    if sks.metadata.deletion_timestamp.is_some() {
        return Ok(Next::Wait);
    }
    let now = Timestamp::now();
    let caches = &ctx.caches;
    let private = names::private_service(&key.name);
    let observed = Observed {
        selector: selector(&ctx, &sks).await,
        private_service: caches.k8s_services.get(&key.namespace, &private),
        public_service: caches.k8s_services.get_key(&key),
        private_endpoints: caches.endpoints.get(&key.namespace, &private),
        public_endpoints: caches.endpoints.get_key(&key),
        activator_endpoints: caches.endpoints.get(&ctx.system_namespace, names::ACTIVATOR_SERVICE),
        sks: sks.clone(),
    };
    let plan = plan::plan(&observed, now);
    let events = ctx.events.named("serverlessservice-controller");
    ctx.carry_out(&*sks, plan, &caches.serverless_services, &events, now).await
}

/// The selector of the pods of the scale target. Deployments are at hand; anything else of that shape is asked for.
async fn selector(ctx: &Context, sks: &ServerlessService) -> Result<BTreeMap<String, String>, String> {
    let target = &sks.spec.object_ref;
    let namespace = sks.namespace().unwrap_or_default();
    let name = target.name.clone().unwrap_or_default();
    let version = target.api_version.as_deref().unwrap_or_default();
    let kind = target.kind.as_deref().unwrap_or_default();
    let explained = |error: String| format!("error fetching Pod Scalable {namespace}/{name}: {error}");

    if (version, kind) == ("apps/v1", "Deployment") {
        let deployment = ctx.caches.deployments.get(&namespace, &name);
        let deployment =
            deployment.ok_or_else(|| explained(format!("deployments.apps {name:?} not found")))?;
        let selector = deployment.spec.as_ref().and_then(|spec| spec.selector.match_labels.clone());
        return Ok(selector.unwrap_or_default());
    }
    let (group, version) = version.split_once('/').unwrap_or(("", version));
    let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, version, kind));
    let api: Api<DynamicObject> = Api::namespaced_with(ctx.client.clone(), &namespace, &resource);
    let object = api.get(&name).await.map_err(|error| explained(error.to_string()))?;
    let labels = object.data.pointer("/spec/selector/matchLabels").cloned().unwrap_or_default();
    serde_json::from_value::<Option<BTreeMap<String, String>>>(labels)
        .map(Option::unwrap_or_default)
        .map_err(|error| explained(error.to_string()))
}
