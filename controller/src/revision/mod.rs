//! Revision: one version of the code and its configuration, as a Deployment with queue-proxy in each pod, scaled by a
//! PodAutoscaler.

mod deployment;
mod digest;
mod image;
mod metadata;
mod plan;
mod pod_autoscaler;
mod pod_failure;
mod probe;
mod queue_proxy;
mod sidecar_resources;
mod system_certificate;

use std::sync::Arc;
use std::time::Duration;

use ember_api::conditions::Condition;
use ember_api::names;
use ember_api::serving::GROUP;
use ember_api::serving::v1::Revision;
use ember_api::status::Conditioned;
use ember_reconcile::cache::{Change, Key};
use ember_reconcile::queue::{Next, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Namespace, Pod, Secret};
use kube::api::ListParams;
use kube::{Api, ResourceExt};
use tokio_util::task::TaskTracker;

use crate::context::{Configs, Context, enqueue_all_on_new_configs, enqueue_changes, enqueue_controllers};
use crate::plan::Error;
use digest::Resolution;
pub use digest::{DigestResolver, KeepTags, Lookup};
use plan::Observed;
use system_certificate::SystemCertificate;

const KIND: &str = "Revision";

/// How often a Revision is looked at whose pods do not come up. Pods are not watched: how a container ended shows in
/// nothing that is.
const LOOK_AT_PODS_AGAIN: Duration = Duration::from_secs(1);

/// Starts the reconciler; it ends with the context's shutdown.
pub(crate) fn spawn(ctx: &Context, tasks: &TaskTracker) {
    let queue = WorkQueue::new();
    let resolver = Arc::clone(&ctx.digests);
    let caches = &ctx.caches;
    enqueue_changes(&caches.revisions, &queue);
    enqueue_controllers(&caches.deployments, GROUP, KIND, &queue);
    enqueue_controllers(&caches.pod_autoscalers, GROUP, KIND, &queue);
    enqueue_controllers(&caches.images, GROUP, KIND, &queue);
    let forgetful = Arc::clone(&resolver);
    caches.revisions.on_change(move |change| {
        if let Change::Deleted(revision) = change {
            forgetful.forget(&Key::of(&**revision));
        }
    });
    enqueue_on_system_certificates(ctx, &queue);
    // Another configuration can mean another Deployment for every Revision.
    enqueue_all_on_new_configs(ctx, &caches.revisions, &queue, tasks);
    ctx.run_queue("revision", &queue, tasks, move |ctx, key| reconcile(ctx, Arc::clone(&resolver), key));
}

/// The Revisions of a namespace wait for the certificate that they share.
fn enqueue_on_system_certificates(ctx: &Context, queue: &WorkQueue<Key>) {
    let (revisions, queue) = (ctx.caches.revisions.clone(), queue.clone());
    ctx.caches.certificates.on_change(move |change| {
        let certificate = change.object();
        if certificate.metadata.name.as_deref() == Some(names::SERVING_CERT) {
            for revision in revisions.list(certificate.metadata.namespace.as_deref().unwrap_or_default()) {
                queue.add(Key::of(&*revision));
            }
        }
    });
}

async fn reconcile(ctx: Context, resolver: Arc<dyn DigestResolver>, key: Key) -> Result<Next, Error> {
    let Some(revision) = ctx.caches.revisions.get_key(&key) else { return Ok(Next::Wait) };
    if revision.metadata.deletion_timestamp.is_some() {
        return Ok(Next::Wait);
    }
    let now = Timestamp::now();
    let configs = ctx.configs.load();
    let observed = observe(&ctx, &configs, &*resolver, revision.clone()).await?;
    let plan = plan::plan(&observed, &configs, now);
    // A pod that has come up changes the Deployment; one that has failed need not.
    let troubled = observed.deployment.as_deref().is_some_and(plan::needs_pod)
        && plan
            .object
            .as_ref()
            .is_some_and(|after| after.ready_condition().is_none_or(Condition::is_unknown));
    let events = ctx.events.named("revision-controller");
    let next = ctx.carry_out(&*revision, plan, &ctx.caches.revisions, &events, now).await?;
    Ok(if troubled { Next::After(LOOK_AT_PODS_AGAIN) } else { next })
}

async fn observe(
    ctx: &Context,
    configs: &Configs,
    resolver: &dyn DigestResolver,
    revision: Arc<Revision>,
) -> Result<Observed, Error> {
    let caches = &ctx.caches;
    let key = Key::of(&*revision);
    let digests = if plan::has_digests(&revision) {
        resolver.forget(&key);
        Resolution::Resolved(digest::Digests::default())
    } else {
        let resolution =
            digest::resolve(&revision, &configs.deployment.registries_skipping_tag_resolving, resolver);
        // The next attempt shall ask again.
        if matches!(resolution, Resolution::Failed(_)) {
            resolver.forget(&key);
        }
        resolution
    };
    let deployment = caches.deployments.get(&key.namespace, &names::deployment(&key.name));
    let pod = match deployment.as_deref().filter(|deployment| plan::needs_pod(deployment)) {
        Some(deployment) => any_pod(ctx, &key.namespace, deployment).await,
        None => None,
    };
    let pod_spec = &revision.spec.pod_spec;
    let containers = pod_spec.containers.iter().chain(pod_spec.init_containers.iter().flatten());
    let images = containers
        .map(|container| names::image_cache(&key.name, &container.name))
        .filter(|name| caches.images.get(&key.namespace, name).is_some())
        .collect();
    let system_certificate = if configs.network.system_internal_tls {
        Some(observe_system_certificate(ctx, &key.namespace).await)
    } else {
        None
    };
    Ok(Observed {
        system_namespace: ctx.system_namespace.clone(),
        digests,
        deployment,
        images,
        pod_autoscaler: caches.pod_autoscalers.get(&key.namespace, &names::pod_autoscaler(&key.name)),
        pod,
        system_certificate,
        revision,
    })
}

/// One of the Deployment's pods: as nothing is available, any of them shows why. A listing that fails tells nothing,
/// and is no reason to hold up the rest.
async fn any_pod(ctx: &Context, namespace: &str, deployment: &Deployment) -> Option<Pod> {
    let labels = deployment.spec.as_ref()?.selector.match_labels.as_ref()?;
    let selector: Vec<String> = labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    let params = ListParams::default().labels(&selector.join(",")).limit(1);
    match Api::<Pod>::namespaced(ctx.client.clone(), namespace).list(&params).await {
        Ok(pods) => pods.items.into_iter().next(),
        Err(error) => {
            tracing::warn!(namespace, deployment = deployment.name_any(), %error, "pods cannot be listed");
            None
        }
    }
}

async fn observe_system_certificate(ctx: &Context, namespace: &str) -> SystemCertificate {
    let words = |error: kube::Error| match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    };
    let namespaces: Api<Namespace> = Api::all(ctx.client.clone());
    let secrets: Api<Secret> = Api::namespaced(ctx.client.clone(), namespace);
    let (owner, secret) = tokio::join!(namespaces.get(namespace), secrets.get_opt(names::SERVING_CERT));
    SystemCertificate {
        namespace: owner.map_err(words),
        certificate: ctx.caches.certificates.get(namespace, names::SERVING_CERT),
        secret: secret.map_err(words),
    }
}
