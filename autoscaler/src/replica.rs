//! This replica among others: which buckets it owns by Lease, and where the others are.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use ember_api::configmaps::leader_election::LeaderElection;
use ember_dataplane::io::Io;
use ember_reconcile::cache::{Cache, Change, Key};
use ember_reconcile::election::Timing;
use ember_reconcile::lease::{self, Election, Tenure};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::{Config, Replica};
use crate::hpa::reconciler::HpaReconciler;
use crate::metric::MetricReconciler;
use crate::podautoscaler::reconciler::Reconciler;
use crate::{Error, bucket, bucket_objects, enqueue};

/// Pause between attempts at writing a bucket's Service and EndpointSlice; doubles up to the longest one.
const FIRST_RETRY: Duration = Duration::from_millis(100);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// What an election is held by: the ConfigMap's, as of now.
///
/// # Errors
/// When the ConfigMap cannot be read, or makes no sense.
pub(crate) async fn settings(client: &Client, config: &Config) -> Result<LeaderElection, Error> {
    let name = &config.leader_election_name;
    let settings = lease::settings(client, &config.system_namespace, name).await;
    settings.map_err(|why| Error::Election(name.clone(), why))
}

/// The other replica that a Lease says has the bucket.
fn peer(lease: &Lease, identity: &str) -> Option<IpAddr> {
    let holder = lease::record(lease).holder;
    if holder.is_empty() || holder == identity {
        return None;
    }
    match bucket::parse_holder(&holder).map(|(_, ip)| ip.parse()) {
        Ok(Ok(ip)) => Some(ip),
        Ok(Err(error)) => {
            tracing::warn!(lease = %lease.name_any(), holder, %error, "the holder's address cannot be used");
            None
        }
        Err(error) => {
            tracing::warn!(lease = %lease.name_any(), error, "the holder cannot be used");
            None
        }
    }
}

/// Takes part in the elections for all buckets.
pub(crate) struct Membership {
    pub(crate) replica: Replica,
    pub(crate) settings: LeaderElection,
    pub(crate) client: Client,
    pub(crate) io: Io,
    pub(crate) reconciler: Arc<Reconciler>,
    pub(crate) metrics: Arc<MetricReconciler>,
    pub(crate) hpa: Arc<HpaReconciler>,
}

impl Membership {
    /// Starts following the Leases, with `tasks`, and one election a bucket, with `elections`: these end, and give up
    /// what they hold, with `resign`.
    pub(crate) fn start(self, tasks: &TaskTracker, elections: &TaskTracker, resign: &CancellationToken) {
        let (namespace, stop) =
            (self.reconciler.config.system_namespace.clone(), self.reconciler.stop.clone());
        let leases = Cache::<Lease>::new();
        let identity = format!("{}_{}", self.replica.pod_name, self.replica.pod_ip);
        let (buckets, own) = (Arc::clone(&self.reconciler.buckets), identity.clone());
        leases.on_change(move |change| {
            if let Some(bucket) = buckets.find(&change.object().name_any()) {
                let peer = match change {
                    Change::Applied { new, .. } => peer(new, &own),
                    Change::Deleted(_) => None,
                };
                buckets.follow(bucket, peer);
            }
        });
        let this = Arc::new(self);
        for bucket in 0..this.reconciler.buckets.len() {
            let name = this.reconciler.buckets.name(bucket).to_owned();
            let election = Election::new(
                this.client.clone(),
                &leases,
                (&namespace, &name),
                &identity,
                Timing::from(&this.settings),
            );
            let clock = Arc::clone(&this.io.clock);
            let wall = move || {
                let now = i64::try_from(clock.now().as_micros()).unwrap_or(i64::MAX);
                Timestamp::from_microsecond(now).unwrap_or(Timestamp::MAX)
            };
            let (member, tracker) = (Arc::clone(&this), tasks.clone());
            let tell = move |tenure| member.changed(bucket, tenure, &tracker);
            elections.spawn(election.run(wall, tell, resign.clone()));
        }
        let api = Api::namespaced(this.client.clone(), &namespace);
        tasks.spawn(leases.run(api, watcher::Config::default(), stop));
    }

    fn changed(self: &Arc<Self>, bucket: usize, tenure: Tenure, tasks: &TaskTracker) {
        let buckets = &self.reconciler.buckets;
        let name = buckets.name(bucket);
        match tenure {
            Tenure::Held { until } => {
                if buckets.hold(bucket, Some(until)) {
                    tracing::info!(bucket = name, "this replica owns the bucket");
                    self.take_over(bucket);
                    tasks.spawn(Arc::clone(self).make_known(bucket));
                }
            }
            Tenure::Lost => {
                if buckets.hold(bucket, None) {
                    tracing::info!(bucket = name, "the bucket is no longer this replica's");
                    self.reconciler.revisions.forget_foreign();
                    self.metrics.forget_foreign();
                }
            }
        }
    }

    /// Looks at everything of a bucket.
    fn take_over(&self, bucket: usize) {
        let Self { reconciler, metrics, .. } = self;
        let in_bucket = |key: &Key| reconciler.buckets.of(key) == bucket;
        for pa in reconciler.podautoscalers.all() {
            let key = Key::of(&*pa);
            if in_bucket(&key) {
                enqueue(&reconciler.queue, &self.hpa.queue, pa.annotations(), key);
            }
        }
        let all = metrics.metrics.all();
        let keys = all.iter().map(|metric| Key::of(&**metric));
        keys.filter(in_bucket).for_each(|key| metrics.queue.add(key));
    }

    /// Makes the bucket's name lead here, for as long as the bucket is ours. Until then others come by our address.
    async fn make_known(self: Arc<Self>, bucket: usize) {
        let Self { reconciler, client, replica, .. } = &*self;
        let (namespace, name) = (&reconciler.config.system_namespace, reconciler.buckets.name(bucket));
        let mut pause = FIRST_RETRY;
        while reconciler.buckets.is_ours(bucket) {
            let ensured = reconciler
                .stop
                .run_until_cancelled(bucket_objects::ensure(client, namespace, name, replica.pod_ip))
                .await;
            match ensured {
                Some(Ok(())) | None => return,
                Some(Err(error)) => {
                    tracing::warn!(bucket = name, %error, "the bucket's Service or EndpointSlice is not in order");
                }
            }
            tokio::select! {
                () = reconciler.stop.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
            pause = (pause * 2).min(LONGEST_RETRY);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_lease_tells_where_another_replica_is() {
        let lease = |holder: Option<&str>| {
            serde_json::from_value(json!({"metadata": {"name": "b"}, "spec": {"holderIdentity": holder}}))
                .unwrap()
        };
        assert_eq!(peer(&lease(Some("as-2_10.0.0.8")), "as-1_10.0.0.7"), Some("10.0.0.8".parse().unwrap()));
        assert_eq!(peer(&lease(Some("as-2_fd00::8")), "as-1_10.0.0.7"), Some("fd00::8".parse().unwrap()));
        for none in [Some("as-1_10.0.0.7"), Some(""), None, Some("10.0.0.8"), Some("as-2_"), Some("as-2_x")] {
            assert_eq!(peer(&lease(none), "as-1_10.0.0.7"), None, "{none:?}");
        }
    }
}
