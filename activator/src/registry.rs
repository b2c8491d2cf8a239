//! All revisions the activator knows, kept by watches. Requests look revisions up in an immutable snapshot.

use std::collections::HashMap;
use std::fmt;
use std::hash::{BuildHasher, RandomState};
use std::sync::Arc;

use arc_swap::ArcSwap;
use ember_api::serving::v1::Revision;
use ember_api::{labels, names};
use ember_reconcile::cache::{Cache, Change, Key};
use k8s_openapi::api::core::v1::Endpoints;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::assignment::position;
use crate::config::Config;
use crate::revision::{Prober, RevisionState, private_service, ready_ips};

/// By namespace, then name.
type Revisions = HashMap<String, HashMap<String, Arc<RevisionState>>>;

/// A change copies one of so many parts of the whole.
const SHARDS: usize = 256;

/// An immutable snapshot of some of the revisions, and the right to replace it.
#[derive(Default)]
struct Shard {
    snapshot: ArcSwap<Revisions>,
    /// One writer at a time.
    writing: Mutex<()>,
}

/// The known revisions.
pub struct Registry {
    config: Config,
    prober: Prober,
    revisions: Cache<Revision>,
    endpoints: Cache<Endpoints>,
    shards: Box<[Shard]>,
    hasher: RandomState,
}

impl fmt::Debug for Registry {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Registry").finish_non_exhaustive()
    }
}

impl Registry {
    pub(crate) fn new(config: Config, prober: Prober) -> Arc<Self> {
        Arc::new(Self {
            config,
            prober,
            revisions: Cache::new(),
            endpoints: Cache::new(),
            shards: (0..SHARDS).map(|_| Shard::default()).collect(),
            hasher: RandomState::new(),
        })
    }

    /// The revision of that name.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<RevisionState>> {
        self.shard(namespace, name).snapshot.load().get(namespace)?.get(name).cloned()
    }

    fn shard(&self, namespace: &str, name: &str) -> &Shard {
        // The remainder is below the number of shards.
        #[expect(clippy::cast_possible_truncation, reason = "only spreads")]
        let hash = self.hasher.hash_one((namespace, name)) as usize;
        &self.shards[hash % SHARDS]
    }

    /// All revisions.
    pub(crate) fn all(&self) -> Vec<Arc<RevisionState>> {
        let mut all = Vec::new();
        for shard in &self.shards {
            all.extend(shard.snapshot.load().values().flat_map(|names| names.values().cloned()));
        }
        all
    }

    /// Waits until the first listings are in.
    pub(crate) async fn synced(&self) {
        tokio::join!(self.revisions.synced(), self.endpoints.synced(), self.prober.services.synced());
    }

    /// Follows the API until `shutdown`.
    pub(crate) async fn run(self: Arc<Self>, client: Client, shutdown: CancellationToken) {
        self.revisions.on_change({
            let registry = Arc::downgrade(&self);
            move |change: &Change<Revision>| {
                let Some(registry) = registry.upgrade() else { return };
                match change {
                    Change::Applied { new, .. } => registry.put(new),
                    Change::Deleted(last) => registry.remove(last),
                }
            }
        });
        self.endpoints.on_change({
            let registry = Arc::downgrade(&self);
            move |change: &Change<Endpoints>| {
                let Some(registry) = registry.upgrade() else { return };
                let object = change.object();
                let Some(revision) = object.labels().get(labels::REVISION) else { return };
                let Some(state) = registry.get(&object.namespace().unwrap_or_default(), revision) else {
                    return;
                };
                let present = matches!(change, Change::Applied { .. });
                registry.take_over(&state, object, present);
            }
        });
        let selector = watcher::Config::default().labels(labels::SERVICE_TYPE);
        let private = format!("{}={}", labels::SERVICE_TYPE, labels::SERVICE_TYPE_PRIVATE);
        let private = watcher::Config::default().labels(&private);
        tokio::join!(
            self.revisions.run(Api::all(client.clone()), watcher::Config::default(), shutdown.clone()),
            self.endpoints.run(Api::all(client.clone()), selector.clone(), shutdown.clone()),
            self.prober.services.run(Api::all(client), private, shutdown),
        );
    }

    fn take_over(&self, state: &Arc<RevisionState>, endpoints: &Endpoints, present: bool) {
        // A revision made anew under the name of a deleted one has nothing to do with the pods of that one.
        if endpoints.labels().get(labels::REVISION_UID).is_some_and(|uid| *uid != state.uid) {
            return;
        }
        match endpoints.labels().get(labels::SERVICE_TYPE).map(String::as_str) {
            Some(labels::SERVICE_TYPE_PRIVATE) => state.set_endpoints(present.then_some(endpoints)),
            Some(labels::SERVICE_TYPE_PUBLIC) if present => {
                if let Some(position) = position(&self.config.pod_ip, ready_ips(endpoints, state.port_name)) {
                    state.set_position(position);
                }
            }
            _ => {}
        }
    }

    fn put(&self, revision: &Revision) {
        let key = Key::of(revision);
        let uid = revision.metadata.uid.as_deref().unwrap_or_default();
        let known = self.get(&key.namespace, &key.name);
        // A revision's spec does not change: only another object of the same name makes a difference.
        if known.as_ref().is_some_and(|state| state.uid == uid) {
            return;
        }
        let state = Arc::new(RevisionState::new(revision, &self.config, self.prober.clone()));
        self.shard(&key.namespace, &key.name).edit(|revisions| {
            revisions.entry(key.namespace.clone()).or_default().insert(key.name.clone(), Arc::clone(&state));
        });
        if let Some(known) = known {
            known.close();
        }
        // Endpoints may have come before their revision.
        for name in [private_service(&key.name), names::pod_autoscaler(&key.name)] {
            if let Some(endpoints) = self.endpoints.get(&key.namespace, &name) {
                self.take_over(&state, &endpoints, true);
            }
        }
    }

    fn remove(&self, revision: &Revision) {
        let key = Key::of(revision);
        let Some(known) = self.get(&key.namespace, &key.name) else { return };
        if known.uid != revision.metadata.uid.as_deref().unwrap_or_default() {
            return;
        }
        self.shard(&key.namespace, &key.name).edit(|revisions| {
            if let Some(names) = revisions.get_mut(&key.namespace) {
                names.remove(&key.name);
                if names.is_empty() {
                    revisions.remove(&key.namespace);
                }
            }
        });
        known.close();
    }
}

impl Shard {
    fn edit(&self, change: impl FnOnce(&mut Revisions)) {
        let _one_at_a_time = self.writing.lock();
        let mut next = Revisions::clone(&self.snapshot.load());
        change(&mut next);
        self.snapshot.store(Arc::new(next));
    }
}
