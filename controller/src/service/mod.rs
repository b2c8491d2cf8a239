//! Service: one Configuration and one Route under its name.

mod children;
mod plan;

use ember_api::serving::GROUP;
use ember_reconcile::cache::Key;
use ember_reconcile::queue::{Next, WorkQueue};
use jiff::Timestamp;
use tokio_util::task::TaskTracker;

use crate::context::{Context, enqueue_changes, enqueue_controllers};
use crate::plan::Error;

/// Starts the reconciler; it ends with the context's shutdown.
pub(crate) fn spawn(ctx: &Context, tasks: &TaskTracker) {
    let queue = WorkQueue::new();
    enqueue_changes(&ctx.caches.services, &queue);
    enqueue_controllers(&ctx.caches.configurations, GROUP, "Service", &queue);
    enqueue_controllers(&ctx.caches.routes, GROUP, "Service", &queue);
    ctx.run_queue("service", &queue, tasks, reconcile);
}

async fn reconcile(ctx: Context, key: Key) -> Result<Next, Error> {
    let caches = &ctx.caches;
    let Some(service) = caches.services.get_key(&key) else { return Ok(Next::Wait) };
    let now = Timestamp::now();
    let named = service.spec.template.metadata.name.as_deref().filter(|name| !name.is_empty());
    let observed = plan::Observed {
        configuration: caches.configurations.get_key(&key),
        route: caches.routes.get_key(&key),
        named_revision: named.and_then(|name| caches.revisions.get(&key.namespace, name)),
        service,
    };
    let plan = plan::plan(&observed, &ctx.configs.load(), now);
    let events = ctx.events.named("service-controller");
    ctx.carry_out(&*observed.service, plan, &caches.services, &events, now).await
}
