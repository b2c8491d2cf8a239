//! From the API to the routing table: watches Ingresses, Services and Endpoints, puts tables into force and reports
//! in the Ingresses' status once a table that holds them is.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ember_api::annotations;
use ember_api::networking::v1alpha1::Ingress;
use ember_dataplane::io::Io;
use ember_reconcile::apply::{Action, Applier};
use ember_reconcile::cache::{Cache, Change, Key};
use ember_reconcile::queue::{Next, WorkQueue};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::backend::{Backend, BackendKey, Backends, PortRef, Resolved, resolve};
use crate::config::Config;
use crate::status::{self, Outcome};
use crate::table::{Compiled, Table};

/// How many Ingresses' statuses are written at the same time.
const CONCURRENCY: usize = 16;

/// What is in force.
#[derive(Default)]
struct Published {
    compiled: HashMap<Key, Result<Arc<Compiled>, String>>,
    conflicts: HashMap<Key, String>,
    /// Counts changes of Ingresses that the table in force has taken in.
    included: u64,
}

struct Shared {
    class: String,
    service_host: String,
    io: Io,
    applier: Applier,
    client: Client,
    ingresses: Cache<Ingress>,
    services: Cache<Service>,
    endpoints: Cache<Endpoints>,
    backends: Backends,
    activator: Arc<Backend>,
    published: Mutex<Published>,
    changes: std::sync::atomic::AtomicU64,
    table: Arc<ArcSwap<Table>>,
    synced: watch::Sender<bool>,
    queue: WorkQueue<Key>,
}

/// The gateway's control loop. Cheap to clone.
#[derive(Clone)]
pub struct Publisher(Arc<Shared>);

impl fmt::Debug for Publisher {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Publisher").finish_non_exhaustive()
    }
}

impl Publisher {
    /// A publisher that puts tables into `table`.
    pub(crate) fn new(config: &Config, client: Client, io: Io, table: Arc<ArcSwap<Table>>) -> Self {
        let backends = Backends::default();
        let key = BackendKey {
            namespace: config.system_namespace.clone(),
            service: config.activator_service.clone(),
            port: PortRef::Number(80),
        };
        let activator = backends.get(&key, |_| Resolved::default());
        Self(Arc::new(Shared {
            class: config.ingress_class.clone(),
            service_host: config.service_host.clone(),
            io,
            applier: Applier::new(client.clone()),
            client,
            ingresses: Cache::new(),
            services: Cache::new(),
            endpoints: Cache::new(),
            backends,
            activator,
            published: Mutex::default(),
            changes: std::sync::atomic::AtomicU64::new(0),
            table,
            synced: watch::Sender::new(false),
            queue: WorkQueue::new(),
        }))
    }

    /// Where requests go whose own backend has no address.
    pub(crate) fn activator(&self) -> Arc<Backend> {
        Arc::clone(&self.0.activator)
    }

    /// Waits until the first table is in force.
    pub(crate) async fn synced(&self) {
        // The sender lives in `self`: waiting cannot fail.
        let _ = self.0.synced.subscribe().wait_for(|synced| *synced).await;
    }

    /// Runs until `shutdown`.
    pub(crate) async fn run(self, shutdown: CancellationToken) {
        let shared = &self.0;
        shared.ingresses.on_change({
            let weak = Arc::downgrade(shared);
            move |change: &Change<Ingress>| {
                if let Some(shared) = weak.upgrade() {
                    shared.changes.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                    shared.queue.add(Key::of(&**change.object()));
                }
            }
        });
        shared.services.on_change({
            let weak = Arc::downgrade(shared);
            move |change: &Change<Service>| {
                if let Some(shared) = weak.upgrade() {
                    let object = change.object();
                    shared.refresh(&object.namespace().unwrap_or_default(), &object.name_any());
                }
            }
        });
        shared.endpoints.on_change({
            let weak = Arc::downgrade(shared);
            move |change: &Change<Endpoints>| {
                if let Some(shared) = weak.upgrade() {
                    let object = change.object();
                    shared.refresh(&object.namespace().unwrap_or_default(), &object.name_any());
                }
            }
        });
        let everything = watcher::Config::default;
        let client = || shared.client.clone();
        let watching = async {
            tokio::join!(
                shared.ingresses.run(Api::all(client()), everything(), shutdown.clone()),
                shared.services.run(Api::all(client()), everything(), shutdown.clone()),
                shared.endpoints.run(Api::all(client()), everything(), shutdown.clone()),
            );
        };
        let publishing = async {
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = async {
                    tokio::join!(shared.ingresses.synced(), shared.services.synced(), shared.endpoints.synced());
                } => {}
            }
            shared.publish();
            shared.synced.send_replace(true);
            let work = Arc::clone(shared);
            shared
                .queue
                .clone()
                .run(CONCURRENCY, shutdown.clone(), move |key| {
                    let shared = Arc::clone(&work);
                    async move { shared.reconcile(key).await }
                })
                .await;
        };
        tokio::join!(watching, publishing);
    }
}

impl Shared {
    fn is_ours(&self, ingress: &Ingress) -> bool {
        annotations::INGRESS_CLASS
            .first()
            .and_then(|key| ingress.annotations().get(*key))
            .is_some_and(|class| *class == self.class)
    }

    fn resolve(&self, key: &BackendKey) -> Resolved {
        let service = self.services.get(&key.namespace, &key.service);
        let endpoints = self.endpoints.get(&key.namespace, &key.service);
        resolve(&key.port, service.as_deref(), endpoints.as_deref())
    }

    fn refresh(&self, namespace: &str, service: &str) {
        self.backends.refresh(namespace, service, |key| self.resolve(key));
    }

    /// Puts a table into force that holds every Ingress as the cache has it; a no-op when none has changed since the
    /// last one, so that a burst of changes costs few tables.
    fn publish(&self) {
        let mut published = self.published.lock();
        let changes = self.changes.load(std::sync::atomic::Ordering::Relaxed);
        if published.included == changes && *self.synced.borrow() {
            return;
        }
        let mut ours: Vec<Arc<Ingress>> =
            self.ingresses.all().into_iter().filter(|i| self.is_ours(i)).collect();
        // Oldest first: who came first keeps a contested host.
        ours.sort_by_cached_key(|i| {
            (i.creation_timestamp().map(|t| t.0), i.namespace().unwrap_or_default(), i.name_any())
        });
        let mut compiled = HashMap::with_capacity(ours.len());
        for ingress in &ours {
            let key = Key::of(&**ingress);
            let result = match published.compiled.get(&key) {
                Some(Ok(kept)) if kept.is_current(ingress) => Ok(Arc::clone(kept)),
                _ => Compiled::new(ingress, |key| self.backends.get(key, |key| self.resolve(key)))
                    .map(Arc::new)
                    .map_err(|error| error.to_string()),
            };
            compiled.insert(key, result);
        }
        let keys: Vec<Key> = ours
            .iter()
            .map(|i| Key::of(&**i))
            .filter(|key| compiled.get(key).is_some_and(Result::is_ok))
            .collect();
        let valid: Vec<Arc<Compiled>> =
            keys.iter().filter_map(|key| compiled.get(key)?.as_ref().ok().map(Arc::clone)).collect();
        let (table, conflicts) = Table::build(&valid);
        self.table.store(Arc::new(table));
        let conflicts: HashMap<Key, String> =
            conflicts.into_iter().map(|conflict| (keys[conflict.index].clone(), conflict.host)).collect();
        // Who lost a host may have it now that another let go of it; and an older Ingress that claims more hosts than
        // before takes them from one that was told it serves them.
        let freed = published.conflicts.keys().filter(|key| !conflicts.contains_key(*key));
        let lost = conflicts.iter().filter(|(key, host)| published.conflicts.get(*key) != Some(*host));
        for key in freed.chain(lost.map(|(key, _)| key)) {
            self.queue.add(key.clone());
        }
        *published = Published { compiled, conflicts, included: changes };
        drop(published);
        self.backends.forget_unused();
    }

    async fn reconcile(&self, key: Key) -> Result<Next, ember_reconcile::apply::ApplyError> {
        self.publish();
        let Some(ingress) = self.ingresses.get_key(&key) else { return Ok(Next::Wait) };
        if !self.is_ours(&ingress) || ingress.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Wait);
        }
        let outcome = {
            let published = self.published.lock();
            match (published.compiled.get(&key), published.conflicts.get(&key)) {
                (_, Some(host)) => Outcome::Conflict(host.clone()),
                (Some(Err(why)), _) => Outcome::Invalid(why.clone()),
                (Some(Ok(compiled)), None) if compiled.is_current(&ingress) => Outcome::Serving,
                // The cache has moved on since the table was made: its change has queued the key again.
                _ => return Ok(Next::Wait),
            }
        };
        let now =
            Timestamp::from_duration(jiff::SignedDuration::try_from(self.io.clock.now()).unwrap_or_default())
                .unwrap_or_default();
        if let Some(next) = status::plan(&ingress, &outcome, &self.service_host, now) {
            let written = self.applier.execute_into(&Action::update_status(&next), &self.ingresses).await;
            match written {
                Err(error) if error.is_not_found() => {}
                other => drop(other?),
            }
        }
        Ok(Next::Wait)
    }
}
