//! Which reconcilers are this replica's to run: each has a Lease of its own, by the names that Knative's controller uses,
//! so that the two never write the same objects.
//!
//! A replica without the Lease of a reconciler keeps its caches and gathers keys, and works once it has it. One that
//! loses a Lease ends.

use std::sync::Arc;

use ember_api::configmaps::leader_election::LeaderElection;
use ember_reconcile::cache::{Cache, Key};
use ember_reconcile::election::Timing;
use ember_reconcile::lease::{Election, Tenure};
use ember_reconcile::queue::WorkQueue;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::Api;
use kube::runtime::watcher;
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::context::Context;

/// The reconcilers, as their packages are called in Knative.
const RECONCILERS: [&str; 7] =
    ["configuration", "gc", "labeler", "revision", "route", "service", "serverlessservice"];

/// The name of a reconciler's Lease. There is one for all keys, whatever `buckets` says.
fn lease_name(reconciler: &str, settings: &LeaderElection) -> String {
    let queue = format!("controller.knative.dev.serving.pkg.reconciler.{reconciler}.reconciler");
    let prefix = settings.lease_name_prefixes.get(&queue).cloned().unwrap_or(queue);
    format!("{prefix}.00-of-01")
}

/// What this replica leads. Clones are the same.
#[derive(Clone, Debug)]
pub(crate) struct Leadership {
    /// In the order of [`RECONCILERS`].
    held: Arc<[watch::Sender<bool>; 7]>,
    lost: Arc<watch::Sender<Option<String>>>,
}

impl Leadership {
    /// Of a replica that is alone, or of one that leads nothing yet.
    pub(crate) fn new(alone: bool) -> Self {
        Self {
            held: Arc::new(RECONCILERS.map(|_| watch::Sender::new(alone))),
            lost: Arc::new(watch::Sender::new(None)),
        }
    }

    /// Waits until the reconciler is this replica's to run.
    pub(crate) fn of(&self, reconciler: &str) -> impl Future<Output = ()> + use<> {
        let place = RECONCILERS.iter().position(|name| *name == reconciler);
        let receiver = place.map(|place| self.held[place].subscribe());
        let lives = Arc::clone(&self.held);
        async move {
            if let Some(mut receiver) = receiver {
                // Its sender lives here: waiting cannot fail.
                let _ = receiver.wait_for(|held| *held).await;
            }
            drop(lives);
        }
    }

    /// Waits until a Lease was lost, and tells which.
    pub(crate) async fn lost(&self) -> String {
        let mut lost = self.lost.subscribe();
        match lost.wait_for(Option::is_some).await.map(|lease| lease.clone()) {
            Ok(Some(lease)) => lease,
            // The sender lives in `self`, and `Some` was waited for.
            _ => std::future::pending().await,
        }
    }

    /// Takes part in the elections until `resign`, then gives up what it has. Leases are watched until the end of the
    /// context.
    pub(crate) fn compete(
        &self,
        ctx: &Context,
        identity: &str,
        settings: &LeaderElection,
        (tasks, elections): (&TaskTracker, &TaskTracker),
        resign: &CancellationToken,
    ) {
        let leases = Cache::<Lease>::new();
        for (place, reconciler) in RECONCILERS.iter().enumerate() {
            let name = lease_name(reconciler, settings);
            let of = (&*ctx.system_namespace, name.as_str());
            let election = Election::new(ctx.client.clone(), &leases, of, identity, Timing::from(settings));
            let (this, shutdown) = (self.clone(), ctx.shutdown.clone());
            let tell = move |tenure| {
                let holds = matches!(tenure, Tenure::Held { .. });
                let held = this.held[place].send_replace(holds);
                if holds && !held {
                    tracing::info!(lease = name, "this replica has the Lease");
                } else if held && !holds && !shutdown.is_cancelled() {
                    this.lost.send_replace(Some(name.clone()));
                }
            };
            elections.spawn(election.run(Timestamp::now, tell, resign.clone()));
        }
        let api = Api::namespaced(ctx.client.clone(), &ctx.system_namespace);
        tasks.spawn(leases.run(api, watcher::Config::default(), ctx.shutdown.clone()));
    }
}

/// What is known of a reconciler's queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Queue {
    /// The reconciler's name.
    pub name: &'static str,
    /// Keys that wait to be worked on now.
    pub depth: usize,
}

/// A reconciler's name and its queue.
type Named = (&'static str, WorkQueue<Key>);

/// The reconcilers' queues, for metrics. Clones are the same.
#[derive(Clone, Debug, Default)]
pub struct Queues(Arc<Mutex<Vec<Named>>>);

impl Queues {
    pub(crate) fn add(&self, name: &'static str, queue: &WorkQueue<Key>) {
        self.0.lock().push((name, queue.clone()));
    }

    /// All of them as they are now.
    #[must_use]
    pub fn list(&self) -> Vec<Queue> {
        self.0.lock().iter().map(|(name, queue)| Queue { name, depth: queue.len() }).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_called_as_in_knative() {
        let mut settings = LeaderElection { buckets: 3, ..LeaderElection::default() };
        let route = "controller.knative.dev.serving.pkg.reconciler.route.reconciler";
        assert_eq!(lease_name("route", &settings), format!("{route}.00-of-01"));
        settings.lease_name_prefixes.insert(route.to_owned(), "mine".to_owned());
        assert_eq!(lease_name("route", &settings), "mine.00-of-01");
    }

    #[tokio::test]
    async fn who_is_alone_leads_everything() {
        for reconciler in RECONCILERS {
            Leadership::new(true).of(reconciler).await;
        }
        assert!(is_pending(Leadership::new(false).of("gc")).await);
    }

    /// Whether a future does not end by itself.
    async fn is_pending(future: impl Future<Output = ()>) -> bool {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| std::task::Poll::Ready(future.as_mut().poll(cx).is_pending())).await
    }
}
