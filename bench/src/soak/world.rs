//! The system under test, and what is done to it.

use std::collections::VecDeque;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, anyhow, ensure};
use ember_apiserver::ApiServer;
use ember_dataplane::io::Io;
use ember_dataplane::worker::Workers;
use kube::Client;
use parking_lot::Mutex;
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::Plan;
use super::activator::{Activator, Autoscaler};
use super::addresses::Addresses;
use super::cluster::Cluster;
use super::ledger::Ledger;
use super::pod::{Drains, Place, Pod};

/// How long requests may take once the gateway or a sidecar is to end.
const DRAIN: Duration = Duration::from_secs(10);
/// How long the gateway may take to listen.
const LISTENS_WITHIN: Duration = Duration::from_secs(20);
/// How long counts may take to come down to nothing.
const SETTLES_WITHIN: Duration = Duration::from_secs(10);

/// What was done.
#[derive(Debug, Default)]
pub(super) struct Counts {
    pub(super) pods_started: AtomicU64,
    pub(super) pods_ended: AtomicU64,
    pub(super) path_switches: AtomicU64,
    pub(super) activator_restarts: AtomicU64,
}

struct Gateway {
    shutdown: CancellationToken,
    workers: Workers,
    task: JoinHandle<Result<(), ember_ingress::Error>>,
}

/// Everything.
pub(super) struct World {
    plan: Plan,
    pub(super) gateway_address: SocketAddr,
    pub(super) ledger: Arc<Ledger>,
    pub(super) counts: Counts,
    /// What did not go as it should, besides requests.
    pub(super) faults: Mutex<Vec<String>>,
    addresses: Addresses,
    client: Client,
    cluster: tokio::sync::Mutex<Cluster>,
    autoscaler: Autoscaler,
    gateway: Mutex<Option<Gateway>>,
    /// Those that are ready, the oldest first.
    pods: Mutex<VecDeque<Pod>>,
    /// Those that are ready, the one restarted last at the end.
    activators: Mutex<VecDeque<Activator>>,
    pod_workers: Workers,
    server: ApiServer,
    _data: tempfile::TempDir,
}

/// Up to a fifth of a second: two deeds that belong together, and what they set off, meet in any order.
async fn moment() {
    tokio::time::sleep(Duration::from_millis(fastrand::u64(0..200))).await;
}

impl World {
    /// Starts all but the pods.
    pub(super) async fn start(plan: Plan) -> anyhow::Result<Arc<Self>> {
        let data = tempfile::Builder::new().prefix("ember-soak-").tempdir()?;
        let server = ApiServer::open(ember_apiserver::Config::new(data.path()))?;
        let client = server.client();
        let addresses = Addresses::claim()?;
        let cluster = Cluster::new(client.clone(), plan.concurrency, addresses.ports.data).await?;
        let gateway_address = SocketAddr::new(addresses.gateway(), addresses.ports.gateway);
        let config = ember_ingress::Config {
            listen: gateway_address,
            drain_timeout: DRAIN,
            ..ember_ingress::Config::default()
        };
        let (shutdown, workers) = (CancellationToken::new(), Workers::start(1)?);
        let running =
            ember_ingress::run(config, Io::system(), client.clone(), workers.clone(), shutdown.clone());
        let gateway = Gateway { shutdown, workers, task: tokio::spawn(running) };
        let world = Arc::new(Self {
            plan,
            gateway_address,
            ledger: Arc::new(Ledger::new()),
            counts: Counts::default(),
            faults: Mutex::default(),
            addresses,
            client,
            cluster: tokio::sync::Mutex::new(cluster),
            autoscaler: Autoscaler::start().await?,
            gateway: Mutex::new(Some(gateway)),
            pods: Mutex::default(),
            activators: Mutex::default(),
            pod_workers: Workers::start(1)?,
            server,
            _data: data,
        });
        for ip in world.addresses.activators() {
            world.start_activator(ip).await?;
        }
        world.cluster.lock().await.served().await?;
        let deadline = Instant::now() + LISTENS_WITHIN;
        while TcpStream::connect(gateway_address).await.is_err() {
            ensure!(Instant::now() < deadline, "the gateway does not listen on {gateway_address}");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(world)
    }

    async fn start_activator(&self, ip: IpAddr) -> anyhow::Result<()> {
        let generation = self.counts.activator_restarts.load(Ordering::Relaxed);
        let name = format!("activator-{ip}-{generation}");
        let address = SocketAddr::new(ip, self.addresses.ports.data);
        let activator = Activator::start(name, address, &self.autoscaler, self.client.clone()).await?;
        self.ledger.note(format!("{} is ready", activator.name));
        self.cluster.lock().await.set_activator(ip, true).await?;
        self.activators.lock().push_back(activator);
        Ok(())
    }

    pub(super) fn ready_pods(&self) -> usize {
        self.pods.lock().len()
    }

    pub(super) fn fault(&self, error: &anyhow::Error) {
        self.ledger.note(format!("fault: {error:#}"));
        self.faults.lock().push(format!("{error:#}"));
    }

    /// A pod more: known before it is ready.
    pub(super) async fn add_pod(&self) -> anyhow::Result<()> {
        let ip = self.addresses.take()?;
        let number = self.counts.pods_started.fetch_add(1, Ordering::Relaxed);
        let name: Arc<str> = format!("pod-{number}-{ip}").into();
        let drains = Drains { quiet_period: self.plan.quiet_period, timeout: DRAIN };
        let (place, ledger) = (Place { ip, ports: self.addresses.ports }, Arc::clone(&self.ledger));
        let starting =
            Pod::start(Arc::clone(&name), place, self.plan.concurrency, drains, &self.pod_workers, ledger);
        let known = async {
            self.ledger.note(format!("{name} is known"));
            self.cluster.lock().await.put_pod(ip, false).await
        };
        let (pod, known) = tokio::join!(starting, known);
        known?;
        let mut pod = pod?;
        pod.ready().await?;
        self.ledger.note(format!("{name} is ready"));
        self.cluster.lock().await.put_pod(ip, true).await?;
        self.pods.lock().push_back(pod);
        Ok(())
    }

    /// The oldest pod goes, in one of the orders in which that may happen: routing and the pod are told independently
    /// of each other.
    pub(super) async fn remove_pod(&self) -> anyhow::Result<()> {
        let Some(pod) = self.pods.lock().pop_front() else { return Ok(()) };
        let (ip, name) = (pod.place.ip, Arc::clone(&pod.name));
        let forget = async || {
            self.cluster.lock().await.remove_pod(ip).await?;
            self.ledger.note(format!("{name} is out of the Endpoints"));
            anyhow::Ok(())
        };
        let end = async || {
            self.ledger.note(format!("{name} has SIGTERM"));
            pod.end().await
        };
        match fastrand::u8(..3) {
            0 => {
                forget().await?;
                moment().await;
                end().await?;
            }
            1 => {
                self.cluster.lock().await.put_pod(ip, false).await?;
                self.ledger.note(format!("{name} is not ready"));
                moment().await;
                let later = async {
                    moment().await;
                    forget().await
                };
                let (ended, forgotten) = tokio::join!(end(), later);
                ended.and(forgotten)?;
            }
            _ => {
                let later = async {
                    moment().await;
                    forget().await
                };
                let (ended, forgotten) = tokio::join!(end(), later);
                ended.and(forgotten)?;
            }
        }
        self.ledger.note(format!("{name} is gone"));
        self.counts.pods_ended.fetch_add(1, Ordering::Relaxed);
        self.addresses.give_back(ip);
        Ok(())
    }

    /// The activators come into the path, or out of it.
    pub(super) async fn switch_path(&self) -> anyhow::Result<()> {
        let inside = self.cluster.lock().await.switch_path().await?;
        self.ledger.note(format!("activators in the path: {inside}"));
        self.counts.path_switches.fetch_add(1, Ordering::Relaxed);
        Ok(())
    }

    /// One activator ends and starts anew under its address; not while it is the only one.
    pub(super) async fn restart_activator(&self) -> anyhow::Result<()> {
        let activator = {
            let mut activators = self.activators.lock();
            if activators.len() < 2 {
                return Ok(());
            }
            activators.pop_front()
        };
        let Some(activator) = activator else { return Ok(()) };
        let (ip, name) = (activator.ip, activator.name.clone());
        let forget = async || {
            self.cluster.lock().await.set_activator(ip, false).await?;
            self.ledger.note(format!("{name} is out of the Endpoints"));
            anyhow::Ok(())
        };
        let end = async || {
            self.ledger.note(format!("{name} has SIGTERM"));
            activator.end().await
        };
        if fastrand::bool() {
            forget().await?;
            moment().await;
            end().await?;
        } else {
            let later = async {
                moment().await;
                forget().await
            };
            let (ended, forgotten) = tokio::join!(end(), later);
            ended.and(forgotten)?;
        }
        self.ledger.note(format!("{name} is gone"));
        self.counts.activator_restarts.fetch_add(1, Ordering::Relaxed);
        self.start_activator(ip).await
    }

    /// Waits until nothing is in flight anywhere, by everybody's own account.
    pub(super) async fn settle(&self) {
        let deadline = Instant::now() + SETTLES_WITHIN;
        loop {
            let found = self.in_flight().await;
            match found {
                Ok(None) => return,
                Ok(Some(what)) if Instant::now() > deadline => {
                    return self.fault(&anyhow!("not zero after all requests were answered: {what}"));
                }
                Err(error) if Instant::now() > deadline => return self.fault(&error),
                _ => tokio::time::sleep(Duration::from_millis(50)).await,
            }
        }
    }

    async fn in_flight(&self) -> anyhow::Result<Option<String>> {
        for activator in &*self.activators.lock() {
            // One that had no requests has nothing to report.
            if let Some(last) = self.autoscaler.last(&activator.name).filter(|last| *last > 0.0) {
                return Ok(Some(format!("{} reports {last} requests", activator.name)));
            }
        }
        // Nobody else takes pods now.
        let pods = std::mem::take(&mut *self.pods.lock());
        let mut found = Ok(None);
        for pod in &pods {
            found = pod.in_flight().await;
            if !matches!(found, Ok(None)) {
                break;
            }
        }
        *self.pods.lock() = pods;
        found
    }

    /// Ends everything, and sees that it ends by itself.
    pub(super) async fn end(&self) {
        let gateway = self.gateway.lock().take();
        if let Some(gateway) = gateway
            && let Err(error) = gateway.end().await
        {
            self.fault(&error);
        }
        let pods = std::mem::take(&mut *self.pods.lock());
        for ended in futures::future::join_all(pods.into_iter().map(Pod::end)).await {
            match ended {
                Ok(()) => drop(self.counts.pods_ended.fetch_add(1, Ordering::Relaxed)),
                Err(error) => self.fault(&error),
            }
        }
        let activators = std::mem::take(&mut *self.activators.lock());
        for ended in futures::future::join_all(activators.into_iter().map(Activator::end)).await {
            if let Err(error) = ended {
                self.fault(&error);
            }
        }
        self.pod_workers.shutdown().await;
        self.server.close();
    }
}

impl Gateway {
    async fn end(self) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.shutdown.cancel();
        let ended = timeout(DRAIN * 2, self.task).await;
        ended.map_err(|_| anyhow!("the gateway does not end"))??.context("the gateway")?;
        self.workers.shutdown().await;
        ensure!(begun.elapsed() < DRAIN, "the gateway took {:?} to end", begun.elapsed());
        Ok(())
    }
}
