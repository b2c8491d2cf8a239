//! Configuration: a Revision for each generation of its template, and which of them is the latest ready one.

mod plan;

use ember_api::labels;
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
    enqueue_changes(&ctx.caches.configurations, &queue);
    enqueue_controllers(&ctx.caches.revisions, GROUP, "Configuration", &queue);
    ctx.run_queue("configuration", &queue, tasks, reconcile);
}

async fn reconcile(ctx: Context, key: Key) -> Result<Next, Error> {
    let caches = &ctx.caches;
    let Some(configuration) = caches.configurations.get_key(&key) else { return Ok(Next::Wait) };
    let now = Timestamp::now();
    let named = configuration.spec.template.metadata.name.as_deref().filter(|name| !name.is_empty());
    let observed = plan::Observed {
        revisions: caches.revisions.list_labelled(&key.namespace, labels::CONFIGURATION, &key.name),
        named_revision: named.and_then(|name| caches.revisions.get(&key.namespace, name)),
        configuration,
    };
    let plan = plan::plan(&observed, &ctx.configs.load(), now);
    let events = ctx.events.named("configuration-controller");
    ctx.carry_out(&*observed.configuration, plan, &caches.configurations, &events, now).await
}
