//! Keeps one Lease of the API for as long as this replica can: the shell around [`crate::election`].

use std::sync::Arc;
use std::time::Duration;

use ember_api::configmaps::leader_election::LeaderElection;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::api::core::v1::ConfigMap;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::{Api, Client, ResourceExt};
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::apply::{Action, Applier};
use crate::cache::Cache;
use crate::election::{Candidate, Record, Step, Timing};

/// How long giving a Lease up may take when the process ends.
const RELEASE_TIMEOUT: Duration = Duration::from_secs(2);

/// What elections are held by: ConfigMap `name` as it is now, or the defaults without one.
///
/// # Errors
/// When the ConfigMap cannot be read, or makes no sense; the text says why.
pub async fn settings(client: &Client, namespace: &str, name: &str) -> Result<LeaderElection, String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = maps.get_opt(name).await.map_err(|error| error.to_string())?.unwrap_or_default();
    let settings = LeaderElection::parse(&map.data.unwrap_or_default()).map_err(|error| error.to_string())?;
    Timing::from(&settings).validate()?;
    Ok(settings)
}

/// What a Lease says.
#[must_use]
pub fn record(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        seconds: spec.lease_duration_seconds.and_then(|s| u32::try_from(s).ok()).unwrap_or(0),
        acquired: spec.acquire_time.map(|t| t.0),
        renewed: spec.renew_time.map(|t| t.0),
        transitions: spec.lease_transitions.unwrap_or(0),
    }
}

/// Whether this replica has the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tenure {
    /// Until that time at least, if it is not renewed before.
    Held {
        /// From then on nothing may be done in the name of the Lease.
        until: Instant,
    },
    /// Somebody else may have it.
    Lost,
}

/// One replica's part in the election for one Lease.
pub struct Election {
    /// For writes; the same API as the cache's.
    client: Client,
    /// The Leases of the namespace.
    leases: Cache<Lease>,
    namespace: String,
    name: String,
    identity: String,
    timing: Timing,
    changed: Arc<Notify>,
}

impl std::fmt::Debug for Election {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Election").field("name", &self.name).field("identity", &self.identity).finish()
    }
}

impl Election {
    /// A candidate called `identity` for Lease `name`. `leases` is run by the caller, and after this call.
    #[must_use]
    pub fn new(
        client: Client,
        leases: &Cache<Lease>,
        (namespace, name): (&str, &str),
        identity: &str,
        timing: Timing,
    ) -> Self {
        let changed = Arc::new(Notify::new());
        let (notify, of) = (Arc::clone(&changed), (namespace.to_owned(), name.to_owned()));
        leases.on_change(move |change| {
            let lease = change.object();
            if lease.name_any() == of.1 && lease.namespace().as_deref() == Some(&of.0) {
                notify.notify_one();
            }
        });
        Self {
            client,
            leases: leases.clone(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            identity: identity.to_owned(),
            timing,
            changed,
        }
    }

    /// Takes and keeps the Lease whenever it can, until `shutdown`; then gives it up. `tell` hears of every change and
    /// every renewal.
    pub async fn run(
        self,
        wall: impl Fn() -> Timestamp + Send,
        mut tell: impl FnMut(Tenure) + Send,
        shutdown: CancellationToken,
    ) {
        let begin = Instant::now();
        let mut candidate = Candidate::new(&self.identity, self.timing);
        let mut told = Tenure::Lost;
        tokio::select! {
            () = shutdown.cancelled() => return,
            () = self.leases.synced() => {}
        }
        loop {
            let lease = self.leases.get(&self.namespace, &self.name);
            candidate.observe(begin.elapsed(), lease.as_deref().map(versioned));
            let now = begin.elapsed();
            let tenure = match candidate.leads_until().filter(|until| now < *until) {
                Some(until) => Tenure::Held { until: begin + until },
                None => Tenure::Lost,
            };
            if tenure != told {
                tell(tenure);
                told = tenure;
            }
            if shutdown.is_cancelled() {
                break;
            }
            match candidate.step(now, wall()) {
                Step::Write(record, version) => {
                    // A leader has to know in time that it is none any more.
                    let end = candidate.leads_until().filter(|until| now < *until);
                    let patience = end.map_or(self.timing.renew_deadline, |until| until - now);
                    let writing = self.write(&record, version, lease.as_deref());
                    let written = tokio::time::timeout(patience.min(self.timing.renew_deadline), writing);
                    match shutdown.run_until_cancelled(written).await {
                        Some(Ok(Some(version))) => candidate.written(now, record, version),
                        Some(Ok(None) | Err(_)) => candidate.refused(begin.elapsed(), fastrand::f64()),
                        None => {}
                    }
                }
                Step::Wait(until) => tokio::select! {
                    () = shutdown.cancelled() => {}
                    () = self.changed.notified() => {}
                    () = tokio::time::sleep_until(begin + until) => {}
                },
            }
        }
        if let Some((record, version)) = candidate.release(begin.elapsed(), wall()) {
            let lease = self.leases.get(&self.namespace, &self.name);
            tell(Tenure::Lost);
            let releasing = self.write(&record, Some(version), lease.as_deref());
            if !matches!(tokio::time::timeout(RELEASE_TIMEOUT, releasing).await, Ok(Some(_))) {
                tracing::warn!(lease = %self.name, "a Lease was not given up: others wait until it is over");
            }
        }
    }

    /// Writes a record; the object's new version if it succeeded.
    async fn write(&self, record: &Record, version: Option<String>, live: Option<&Lease>) -> Option<String> {
        let base = live.map_or_else(
            || ObjectMeta {
                name: Some(self.name.clone()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            |live| live.metadata.clone(),
        );
        let lease = Lease {
            metadata: ObjectMeta { resource_version: version.clone(), ..base },
            spec: Some(LeaseSpec {
                holder_identity: Some(record.holder.clone()),
                lease_duration_seconds: i32::try_from(record.seconds).ok(),
                acquire_time: record.acquired.map(MicroTime),
                renew_time: record.renewed.map(MicroTime),
                lease_transitions: Some(record.transitions),
                ..live.and_then(|live| live.spec.clone()).unwrap_or_default()
            }),
        };
        let action = if version.is_some() { Action::update(&lease) } else { Action::create(&lease) };
        match Applier::new(self.client.clone()).execute_into(&action, &self.leases).await {
            Ok(written) => written.resource_version(),
            Err(error) => {
                tracing::debug!(lease = %self.name, %error, "a Lease was not written");
                if error.is_conflict() || error.is_already_exists() {
                    self.look().await;
                }
                None
            }
        }
    }

    /// Reads the Lease itself, where the watch may lag behind.
    async fn look(&self) {
        let api: Api<Lease> = Api::namespaced(self.client.clone(), &self.namespace);
        if let Ok(lease) = api.get(&self.name).await {
            self.leases.put_written(lease);
        }
    }
}

fn versioned(lease: &Lease) -> (Record, String) {
    (record(lease), lease.resource_version().unwrap_or_default())
}
