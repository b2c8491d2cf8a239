//! The node: what pods share, and a worker for each pod.

use std::collections::{HashMap, HashSet};
use std::net::Ipv4Addr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Pod;
use kube::Client;
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::address::Addresses;
use crate::cache::{Cache, Key};
use crate::config::Config;
use crate::event::Events;
use crate::pod;
use crate::ports::{self, PortMap, Ports};
use crate::resource::Machine;
use crate::runtime::Runtime;
use crate::sidecar::Sidecar;

/// What the parts of a node share.
pub(crate) struct Node {
    pub(crate) config: Config,
    pub(crate) client: Client,
    pub(crate) pods: Cache<Pod>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) sidecar: Arc<dyn Sidecar>,
    pub(crate) events: Events,
    pub(crate) shutdown: CancellationToken,
    /// What has been warned about.
    pub(crate) warned: Mutex<HashSet<String>>,
    /// What stands for limits that are not declared.
    pub(crate) machine: Machine,
    leases: Arc<Leases>,
}

#[derive(Debug)]
struct Leases {
    pool: Mutex<(Addresses, Ports)>,
    freed: Notify,
}

/// A pod's address and ports; dropping it gives them back.
#[derive(Debug)]
pub(crate) struct Lease {
    leases: Arc<Leases>,
    ip: Ipv4Addr,
    ports: PortMap,
}

impl Lease {
    pub(crate) fn ip(&self) -> Ipv4Addr {
        self.ip
    }

    /// From declared ports to those picked.
    pub(crate) fn ports(&self) -> &PortMap {
        &self.ports
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        let mut pool = self.leases.pool.lock();
        pool.0.release(self.ip);
        for port in self.ports.values().filter_map(|p| u16::try_from(*p).ok()) {
            pool.1.release(port);
        }
        drop(pool);
        self.leases.freed.notify_waiters();
    }
}

impl Node {
    pub(crate) fn new(
        config: Config,
        client: Client,
        runtime: Arc<dyn Runtime>,
        sidecar: Arc<dyn Sidecar>,
        events: Events,
        shutdown: CancellationToken,
    ) -> Arc<Self> {
        let addresses = Addresses::new(config.block, config.reserved.iter().copied());
        let ports = Ports::new(config.app_ports.clone());
        let leases = Arc::new(Leases { pool: Mutex::new((addresses, ports)), freed: Notify::new() });
        Arc::new(Self {
            config,
            client,
            pods: Cache::new(),
            runtime,
            sidecar,
            events,
            shutdown,
            warned: Mutex::default(),
            machine: Machine::current(),
            leases,
        })
    }

    /// An address and ports for a pod; `None` if there are none.
    pub(crate) fn lease(&self, pod: &Pod) -> Option<Lease> {
        let declared = pod.spec.as_ref().map(ports::declared).unwrap_or_default();
        let mut pool = self.leases.pool.lock();
        let ip = pool.0.allocate()?;
        let picked: Vec<Option<u16>> = declared.iter().map(|_| pool.1.allocate()).collect();
        drop(pool);
        let complete = picked.iter().all(Option::is_some);
        let ports = declared.into_iter().zip(picked).filter_map(|(d, p)| Some((d, i32::from(p?)))).collect();
        let lease = Lease { leases: Arc::clone(&self.leases), ip, ports };
        complete.then_some(lease)
    }

    /// Completes when a lease has been given back.
    pub(crate) async fn freed(&self) {
        self.leases.freed.notified().await;
    }

    /// Follows the pods of this node until shutdown, then ends them all.
    pub(crate) async fn run(self: Arc<Self>) {
        let mut changes = self.pods.subscribe();
        let mut workers: HashMap<Key, Worker> = HashMap::new();
        let mut tasks: JoinSet<Key> = JoinSet::new();
        loop {
            tokio::select! {
                biased;
                () = self.shutdown.cancelled() => break,
                changed = changes.next() => {
                    for key in changed.into_keys() {
                        self.dispatch(&key, &mut workers, &mut tasks);
                    }
                }
                Some(ended) = tasks.join_next(), if !tasks.is_empty() => match ended {
                    Ok(key) => {
                        workers.remove(&key);
                        // A pod of the same name may have come meanwhile.
                        self.dispatch(&key, &mut workers, &mut tasks);
                    }
                    Err(error) => tracing::error!(%error, "a pod's worker broke"),
                },
            }
        }
        // Each worker bounds its own end.
        while tasks.join_next().await.is_some() {}
    }

    fn dispatch(self: &Arc<Self>, key: &Key, workers: &mut HashMap<Key, Worker>, tasks: &mut JoinSet<Key>) {
        let pod = self.pods.get(key);
        if let Some(worker) = workers.get_mut(key) {
            // Another pod of this name waits until this one has ended.
            let same = pod.filter(|p| p.metadata.uid == worker.uid);
            worker.updates.send_replace(same);
            return;
        }
        let Some(pod) = pod else { return };
        let elsewhere = |name: &String| !name.is_empty() && *name != self.config.node_name;
        if pod.spec.as_ref().and_then(|s| s.node_name.as_ref()).is_some_and(elsewhere) {
            return;
        }
        let (updates, receiver) = watch::channel(Some(Arc::clone(&pod)));
        workers.insert(key.clone(), Worker { uid: pod.metadata.uid.clone(), updates });
        let (node, key, shutdown) = (Arc::clone(self), key.clone(), self.shutdown.clone());
        tasks.spawn(async move {
            pod::run(node, pod, receiver, shutdown).await;
            key
        });
    }
}

struct Worker {
    uid: Option<String>,
    updates: watch::Sender<Option<Arc<Pod>>>,
}
