//! The labeler: tells Configurations and Revisions which Routes lead to them. The autoscaler keeps Revisions up only
//! while some Route leads to them, and the garbage collector spares them.

mod plan;

use std::sync::Arc;

use ember_api::labels::{self, RoutingState};
use ember_api::serving::v1::{Configuration, Revision, Route};
use ember_reconcile::cache::Key;
use ember_reconcile::queue::{Next, WorkQueue};
use jiff::Timestamp;
use tokio_util::task::TaskTracker;

use crate::context::{Context, enqueue_changes};
use crate::plan::Error;
use crate::route::{CachedNamespace, enqueue_followers};
use crate::tracker::Tracker;

impl plan::Namespace for CachedNamespace<'_> {
    fn configurations(&self) -> Vec<Arc<Configuration>> {
        self.caches.configurations.list(self.namespace)
    }

    fn active_revisions(&self) -> Vec<Arc<Revision>> {
        self.caches.revisions.list_labelled(
            self.namespace,
            labels::ROUTING_STATE,
            RoutingState::Active.as_str(),
        )
    }
}

/// Starts the reconciler; it ends with the context's shutdown.
pub(crate) fn spawn(ctx: &Context, tasks: &TaskTracker) {
    let queue = WorkQueue::new();
    let tracker = Tracker::default();
    enqueue_changes(&ctx.caches.routes, &queue);
    enqueue_followers(&ctx.caches.configurations, "Configuration", &tracker, &queue);
    enqueue_followers(&ctx.caches.revisions, "Revision", &tracker, &queue);
    ctx.run_queue("labeler", &queue, tasks, move |ctx, key| reconcile(ctx, tracker.clone(), key));
}

async fn reconcile(ctx: Context, tracker: Tracker, key: Key) -> Result<Next, Error> {
    let Some(route) = ctx.caches.routes.get_key(&key) else {
        tracker.track(&key, std::collections::BTreeSet::new());
        return Ok(Next::Wait);
    };
    let now = Timestamp::now();
    let namespace = CachedNamespace { caches: &ctx.caches, namespace: &key.namespace };
    let decided = plan::plan(&route, &namespace, now);
    tracker.track(&key, decided.references);
    let events = ctx.events.named("labeler-controller");
    ctx.carry_out::<Route>(&route, decided.plan, &ctx.caches.routes, &events, now).await
}
