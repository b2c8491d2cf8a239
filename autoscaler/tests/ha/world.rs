//! Several replicas against one API server, and what surrounds them.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use ember_api::autoscaling::v1alpha1::PodAutoscaler;
use ember_apiserver::ApiServer;
use ember_autoscaler::{Config, Replica};
use ember_dataplane::io::{Io, SystemClock};
use ember_dataplane::stat::Stat;
use futures::StreamExt;
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::Value;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use crate::network::{Addresses, Reach};
use crate::stage::cluster::{self, SYSTEM, cluster, follow_services};
use crate::stage::{answer, eventually, labels, scraped};

/// One replica; ended without a word when dropped.
pub(super) struct Running {
    runtime: Option<tokio::runtime::Runtime>,
    pub(super) shutdown: CancellationToken,
    pub(super) address: SocketAddr,
    pub(super) identity: String,
}

impl Running {
    pub(super) fn kill(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        self.kill();
    }
}

pub(super) struct World {
    pub(super) client: Client,
    pub(super) replicas: Vec<Running>,
    /// Concurrency that the pod at an address reports.
    loads: Arc<Mutex<HashMap<IpAddr, f64>>>,
    /// The names of buckets by which replicas were reached.
    pub(super) named: Arc<Mutex<Vec<String>>>,
    pub(super) shutdown: CancellationToken,
    server: ApiServer,
    _data: tempfile::TempDir,
}

/// An address that is no other test's.
pub(super) fn loopback(last: u8) -> IpAddr {
    let process = std::process::id();
    let thread = std::thread::current().name().map_or(0, |name| name.bytes().map(u32::from).sum());
    IpAddr::from(Ipv4Addr::new(127, 16 + (process % 200) as u8, 1 + (thread % 200) as u8, last))
}

/// A port that is free at all of the addresses.
async fn free_port(addresses: &[IpAddr]) -> u16 {
    loop {
        let first = TcpListener::bind((addresses[0], 0)).await.unwrap();
        let port = first.local_addr().unwrap().port();
        let mut bound = Vec::new();
        for address in &addresses[1..] {
            bound.push(TcpListener::bind((*address, port)).await);
        }
        if bound.iter().all(Result::is_ok) {
            return port;
        }
    }
}

impl World {
    pub(super) async fn start(
        count: u8,
        election: Value,
        autoscaler: Value,
        adapt: impl Fn(&mut Config),
        prepare: impl AsyncFnOnce(&Client),
    ) -> Self {
        Self::start_reached(Reach::Address, count, (election, autoscaler), adapt, prepare).await
    }

    pub(super) async fn start_reached(
        reach: Reach,
        count: u8,
        (election, autoscaler): (Value, Value),
        adapt: impl Fn(&mut Config),
        prepare: impl AsyncFnOnce(&Client),
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        let maps = [("config-autoscaler", &autoscaler), ("config-leader-election", &election)];
        let server = cluster(ember_apiserver::Config::new(data.path()), &maps).await;
        let client = server.client();
        prepare(&client).await;
        let shutdown = CancellationToken::new();
        let loads = Arc::new(Mutex::new(HashMap::new()));
        let pods = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = pods.local_addr().unwrap().port();
        let reported = Arc::clone(&loads);
        let respond = move |ip: IpAddr, request: &Request<Incoming>| match request.uri().path() {
            "/metrics" => scraped(&Stat {
                pod_name: ip.to_string(),
                average_concurrent_requests: reported.lock().get(&ip).copied().unwrap_or(0.0),
                process_uptime: 1000.0,
                ..Stat::default()
            }),
            _ => Response::new(Full::from("activator")),
        };
        tokio::spawn(answer(pods, respond, shutdown.clone()));
        tokio::spawn(follow_services(client.clone(), shutdown.clone()));

        let addresses: Vec<IpAddr> = (1..=count).map(loopback).collect();
        let stats = free_port(&addresses).await;
        let named = Arc::new(Mutex::new(Vec::new()));
        let replicas = addresses.iter().enumerate().map(|(number, ip)| {
            let pod_name = format!("autoscaler-{number}");
            let mut config = Config {
                stats_addr: SocketAddr::new(*ip, stats),
                scrape_port: port,
                peer_port: stats,
                replica: Some(Replica { pod_name: pod_name.clone(), pod_ip: *ip }),
                ..Config::default()
            };
            adapt(&mut config);
            let network = Addresses {
                activator: SocketAddr::from(([127, 0, 0, 1], port)),
                reach,
                replicas: stats,
                client: client.clone(),
                named: Arc::clone(&named),
            };
            let io = Io { clock: Arc::new(SystemClock), network: Arc::new(network) };
            let mut builder = tokio::runtime::Builder::new_multi_thread();
            let runtime = builder.worker_threads(1).enable_all().build().unwrap();
            let (shutdown, api) = (CancellationToken::new(), client.clone());
            let stop = shutdown.clone();
            runtime.spawn(async move {
                // The client's own task is to die with the replica.
                let service = tower::service_fn(move |request: Request<kube::client::Body>| {
                    let api = api.clone();
                    async move { api.send(request).await }
                });
                let client = Client::new(service, "default");
                ember_autoscaler::run(config, io, client, stop).await.unwrap();
            });
            let identity = format!("{pod_name}_{ip}");
            Running { runtime: Some(runtime), shutdown, address: SocketAddr::new(*ip, stats), identity }
        });
        let replicas = replicas.collect();
        Self { client, replicas, loads, named, shutdown, server, _data: data }
    }

    /// A revision with that many ready pods, each of which carries `load`.
    pub(super) async fn revision(
        &self,
        name: &str,
        replicas: i32,
        addresses: &[u8],
        load: f64,
        annotations: Value,
    ) {
        let labels = labels(name);
        for last in addresses {
            let ip = loopback(*last);
            self.loads.lock().insert(ip, load);
            cluster::pod(&self.client, &format!("{name}-{last}"), ip, &labels).await;
        }
        cluster::revision(&self.client, name, replicas, &annotations, &labels).await;
    }

    /// Who holds each Lease, once every Lease is held by one of the replicas in `of`.
    pub(super) async fn holders(&self, buckets: usize, of: &[String]) -> HashMap<String, String> {
        let api = Api::<Lease>::namespaced(self.client.clone(), SYSTEM);
        eventually("an owner of every bucket", async || {
            let leases = api.list(&Default::default()).await.unwrap();
            let held = leases.into_iter().filter_map(|lease| {
                let holder = lease.spec.as_ref()?.holder_identity.clone()?;
                of.contains(&holder).then(|| (lease.name_any(), holder))
            });
            Some(held.collect::<HashMap<_, _>>()).filter(|held| held.len() == buckets)
        })
        .await
    }

    pub(super) async fn replicas_of(&self, name: &str) -> i32 {
        let api = Api::<Deployment>::namespaced(self.client.clone(), "ns");
        api.get(&format!("{name}-deployment")).await.unwrap().spec.unwrap().replicas.unwrap()
    }

    pub(super) async fn until_settled(&self, name: &str, desired: i32) {
        let api = Api::<PodAutoscaler>::namespaced(self.client.clone(), "ns");
        eventually(&format!("{name} to want {desired}"), async || {
            let status = api.get(name).await.unwrap().status?;
            let initialized = status.conditions.is_true("ScaleTargetInitialized");
            (status.desired_scale == Some(desired) && (initialized || desired <= 0)).then_some(())
        })
        .await;
    }

    pub(super) fn identities(&self) -> Vec<String> {
        let living = self.replicas.iter().filter(|replica| replica.runtime.is_some());
        living.map(|replica| replica.identity.clone()).collect()
    }

    /// Every scale that Deployments ever have from now on, by name.
    pub(super) async fn scales(&self) -> Arc<Mutex<Vec<(String, i32)>>> {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let api = Api::<Deployment>::namespaced(self.client.clone(), "ns");
        let list = api.list(&Default::default()).await.unwrap();
        let version = list.metadata.resource_version.unwrap();
        let mut events = api.watch(&Default::default(), &version).await.unwrap().boxed();
        let (noting, shutdown) = (Arc::clone(&seen), self.shutdown.clone());
        tokio::spawn(async move {
            while let Some(Some(event)) = shutdown.run_until_cancelled(events.next()).await {
                if let kube::api::WatchEvent::Modified(deployment) = event.unwrap() {
                    let replicas = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap();
                    noting.lock().push((deployment.name_any(), replicas));
                }
            }
        });
        seen
    }

    pub(super) fn stop(mut self) {
        self.shutdown.cancel();
        for replica in &mut self.replicas {
            replica.kill();
        }
        self.server.close();
    }
}
