//! Garbage collection of Revisions that no Route leads to any more.

mod plan;

use ember_api::labels;
use ember_api::serving::GROUP;
use ember_api::serving::v1::Configuration;
use ember_reconcile::cache::Key;
use ember_reconcile::queue::{Next, WorkQueue};
use jiff::Timestamp;
use tokio_util::task::TaskTracker;

use crate::context::{Context, enqueue_all_on_new_configs, enqueue_changes, enqueue_controllers};

const KIND: &str = "Configuration";

/// Starts the collector; it ends with the context's shutdown.
pub(crate) fn spawn(ctx: &Context, tasks: &TaskTracker) {
    let queue = WorkQueue::new();
    enqueue_changes(&ctx.caches.configurations, &queue);
    enqueue_controllers(&ctx.caches.revisions, GROUP, KIND, &queue);
    // Other retention times can make any Revision stale.
    enqueue_all_on_new_configs(ctx, &ctx.caches.configurations, &queue, tasks);
    ctx.run_queue("gc", &queue, tasks, collect);
}

async fn collect(ctx: Context, key: Key) -> Result<Next, std::convert::Infallible> {
    let Some(configuration) = ctx.caches.configurations.get_key(&key) else { return Ok(Next::Wait) };
    let revisions = ctx.caches.revisions.list_labelled(&key.namespace, labels::CONFIGURATION, &key.name);
    let configs = ctx.configs.load();
    for action in plan::plan(&configuration, &revisions, &configs.gc, Timestamp::now()) {
        // What could not be deleted is stale next time, too.
        if let Err(error) = ctx.write(&action).await {
            tracing::warn!(%action, %error, "a Revision was not collected");
        }
    }
    Ok(Next::Wait)
}

/// The Configuration's Revision that gets the traffic of its Routes.
fn latest_ready(configuration: &Configuration) -> &str {
    configuration.status.as_ref().map(|status| status.latest_ready_revision_name.as_str()).unwrap_or_default()
}
