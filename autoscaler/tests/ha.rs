//! Several replicas against one API server. Each has a runtime of its own, which a test can end without a word, as a
//! lost node ends; reports, scrapes and what replicas tell each other go over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod stage;

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ember_api::autoscaling::v1alpha1::PodAutoscaler;
use ember_apiserver::ApiServer;
use ember_autoscaler::{Config, Replica};
use ember_dataplane::io::{Io, Listener, Network, Stream, SystemClock, SystemNetwork};
use ember_dataplane::stat::{Stat, WireStatMessage, WireStatMessages};
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::{Value, json};
use stage::{PATIENCE, create, eventually, follow_services};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

const SYSTEM: &str = "knative-serving";

/// How replicas reach each other.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Reach {
    /// By address: there is no DNS.
    Address,
    /// By the names of buckets only: their addresses lead nowhere, as where policies allow Services alone.
    Service,
}

/// The machine's network without names, except those of buckets where they are the only way: pods are known by address.
/// Asked for anything else it answers as an activator, which is what the KPA probes.
struct Addresses {
    activator: SocketAddr,
    reach: Reach,
    /// The port of replicas.
    replicas: u16,
    /// Where EndpointSlices are looked up.
    client: Client,
    /// The names of buckets that led to a replica.
    named: Arc<Mutex<Vec<String>>>,
}

impl Addresses {
    /// What a cluster's DNS and its Services make of a bucket's name: the address in its EndpointSlice.
    async fn bucket(&self, host: &str, port: u16) -> std::io::Result<Stream> {
        let wrong = || std::io::Error::other(format!("{host}:{port} leads nowhere"));
        let mut labels = host.splitn(4, '.');
        let (Some(bucket), Some(SYSTEM), Some("svc"), Some("cluster.local")) =
            (labels.next(), labels.next(), labels.next(), labels.next())
        else {
            return Err(wrong());
        };
        let slice = Api::<EndpointSlice>::namespaced(self.client.clone(), SYSTEM).get_opt(bucket).await;
        let slice = slice.unwrap().ok_or_else(wrong)?;
        let stream = SystemNetwork.connect(&slice.endpoints[0].addresses[0], port).await?;
        self.named.lock().push(bucket.to_owned());
        Ok(stream)
    }
}

impl Network for Addresses {
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, std::io::Result<Listener>> {
        SystemNetwork.listen(addr)
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, std::io::Result<Stream>> {
        Box::pin(async move {
            if host.parse::<IpAddr>().is_ok() {
                if self.reach == Reach::Service && port == self.replicas {
                    return Err(std::io::Error::from(std::io::ErrorKind::HostUnreachable));
                }
                SystemNetwork.connect(host, port).await
            } else if host.starts_with("autoscaler-bucket") {
                match self.reach {
                    Reach::Address => Err(std::io::Error::other("there is no DNS")),
                    Reach::Service => self.bucket(host, port).await,
                }
            } else {
                SystemNetwork.connect(&self.activator.ip().to_string(), self.activator.port()).await
            }
        })
    }
}

/// One replica; ended without a word when dropped.
struct Running {
    runtime: Option<tokio::runtime::Runtime>,
    shutdown: CancellationToken,
    address: SocketAddr,
    identity: String,
}

impl Running {
    fn kill(&mut self) {
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

struct World {
    client: Client,
    replicas: Vec<Running>,
    /// Concurrency that the pod at an address reports.
    loads: Arc<Mutex<HashMap<IpAddr, f64>>>,
    port: u16,
    /// The names of buckets by which replicas were reached.
    named: Arc<Mutex<Vec<String>>>,
    shutdown: CancellationToken,
    server: ApiServer,
    _data: tempfile::TempDir,
}

/// An address that is no other test's.
fn loopback(last: u8) -> IpAddr {
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
    async fn start(
        count: u8,
        election: Value,
        autoscaler: Value,
        adapt: impl Fn(&mut Config),
        prepare: impl AsyncFnOnce(&Client),
    ) -> Self {
        Self::start_reached(Reach::Address, count, (election, autoscaler), adapt, prepare).await
    }

    async fn start_reached(
        reach: Reach,
        count: u8,
        (election, autoscaler): (Value, Value),
        adapt: impl Fn(&mut Config),
        prepare: impl AsyncFnOnce(&Client),
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ApiServer::open(ember_apiserver::Config::new(data.path())).unwrap();
        let client = server.client();
        for name in [SYSTEM, "ns"] {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            let made = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
            assert!(made.is_ok() || matches!(&made, Err(kube::Error::Api(s)) if s.code == 409), "{made:?}");
        }
        for (name, data) in [("config-autoscaler", autoscaler), ("config-leader-election", election)] {
            let map = json!({"metadata": {"name": name}, "data": data});
            create::<ConfigMap>(&client, SYSTEM, map).await;
        }
        prepare(&client).await;
        let shutdown = CancellationToken::new();
        let loads = Arc::new(Mutex::new(HashMap::new()));
        let pods = TcpListener::bind("0.0.0.0:0").await.unwrap();
        let port = pods.local_addr().unwrap().port();
        tokio::spawn(answer(pods, Arc::clone(&loads), shutdown.clone()));
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
        Self { client, replicas, loads, port, named, shutdown, server, _data: data }
    }

    /// A revision with that many ready pods, each of which carries `load`.
    async fn revision(&self, name: &str, replicas: i32, addresses: &[u8], load: f64, annotations: Value) {
        let labels = json!({
            "serving.knative.dev/revision": name, "serving.knative.dev/revisionUID": "u-1",
            "serving.knative.dev/configuration": "hello", "serving.knative.dev/service": "hello",
        });
        for last in addresses {
            let ip = loopback(*last);
            self.loads.lock().insert(ip, load);
            let (pods, pod) = (Api::<Pod>::namespaced(self.client.clone(), "ns"), format!("{name}-{last}"));
            let object = json!({
                "metadata": {"name": pod, "labels": labels},
                "spec": {"containers": [{"name": "user-container", "image": "dev.local/host"}]},
            });
            create::<Pod>(&self.client, "ns", object).await;
            let status = json!({"status": {
                "phase": "Running", "podIP": ip, "startTime": "2020-01-01T00:00:00Z",
                "conditions": [{"type": "Ready", "status": "True"}],
            }});
            pods.patch_status(&pod, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
        }
        let deployment = json!({
            "metadata": {"name": format!("{name}-deployment"), "labels": labels},
            "spec": {
                "replicas": replicas,
                "selector": {"matchLabels": {"app": name}},
                "template": {
                    "metadata": {"labels": {"app": name}},
                    "spec": {"containers": [{"name": "user-container", "image": "dev.local/host"}]},
                },
            },
        });
        create::<Deployment>(&self.client, "ns", deployment).await;
        let mut all = json!({"autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev"});
        all.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
        let target =
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": format!("{name}-deployment")});
        let pa = json!({
            "metadata": {"name": name, "labels": labels, "annotations": all},
            "spec": {"scaleTargetRef": target, "reachability": "Reachable", "protocolType": "http1"},
        });
        create::<PodAutoscaler>(&self.client, "ns", pa).await;
    }

    /// Who holds each Lease, once every Lease is held by one of the replicas in `of`.
    async fn holders(&self, buckets: usize, of: &[String]) -> HashMap<String, String> {
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

    async fn replicas_of(&self, name: &str) -> i32 {
        let api = Api::<Deployment>::namespaced(self.client.clone(), "ns");
        api.get(&format!("{name}-deployment")).await.unwrap().spec.unwrap().replicas.unwrap()
    }

    async fn until_settled(&self, name: &str, desired: i32) {
        let api = Api::<PodAutoscaler>::namespaced(self.client.clone(), "ns");
        eventually(&format!("{name} to want {desired}"), async || {
            let status = api.get(name).await.unwrap().status?;
            let initialized = status.conditions.is_true("ScaleTargetInitialized");
            (status.desired_scale == Some(desired) && (initialized || desired <= 0)).then_some(())
        })
        .await;
    }

    fn identities(&self) -> Vec<String> {
        let living = self.replicas.iter().filter(|replica| replica.runtime.is_some());
        living.map(|replica| replica.identity.clone()).collect()
    }

    /// Every scale that Deployments ever have from now on, by name.
    async fn scales(&self) -> Arc<Mutex<Vec<(String, i32)>>> {
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

    fn stop(mut self) {
        self.shutdown.cancel();
        for replica in &mut self.replicas {
            replica.kill();
        }
        self.server.close();
    }
}

/// Answers like queue-proxies, each by the load of its address, and like an activator.
async fn answer(listener: TcpListener, loads: Arc<Mutex<HashMap<IpAddr, f64>>>, shutdown: CancellationToken) {
    while let Some(Ok((stream, _))) = shutdown.run_until_cancelled(listener.accept()).await {
        let ip = stream.local_addr().unwrap().ip();
        let (loads, shutdown) = (Arc::clone(&loads), shutdown.clone());
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let mut response = Response::new(Full::<Bytes>::from("activator"));
                if request.uri().path() == "/metrics" {
                    let stat = Stat {
                        pod_name: ip.to_string(),
                        average_concurrent_requests: loads.lock().get(&ip).copied().unwrap_or(0.0),
                        process_uptime: 1000.0,
                        ..Stat::default()
                    };
                    *response.body_mut() = Full::from(stat.encode_to_vec());
                    let kind = "application/protobuf".parse().unwrap();
                    response.headers_mut().insert("content-type", kind);
                }
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            let _ = shutdown.run_until_cancelled(http.serve_connection(TokioIo::new(stream), service)).await;
        });
    }
}

type Reports = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

async fn connect(address: SocketAddr) -> Reports {
    let url = format!("ws://autoscaler.{SYSTEM}.svc.cluster.local:8080");
    eventually("the stats port", async || {
        let stream = tokio::net::TcpStream::connect(address).await.ok()?;
        Some(tokio_tungstenite::client_async(&url, stream).await.ok()?.0)
    })
    .await
}

/// What an activator reports of revisions.
fn batch(revisions: &[&str], concurrency: f64) -> Message {
    let message = |name: &&str| WireStatMessage {
        namespace: "ns".into(),
        name: (*name).to_owned(),
        stat: Some(Stat {
            pod_name: "activator-1".into(),
            average_concurrent_requests: concurrency,
            request_count: 1.0,
            ..Stat::default()
        }),
    };
    let messages = WireStatMessages { messages: revisions.iter().map(message).collect() };
    Message::Binary(messages.encode_to_vec().into())
}

async fn report(socket: &mut Reports, revisions: &[&str], concurrency: f64) {
    socket.send(batch(revisions, concurrency)).await.unwrap();
}

fn election(buckets: &str, [lease, renew, retry]: [&str; 3]) -> Value {
    json!({"buckets": buckets, "lease-duration": lease, "renew-deadline": renew, "retry-period": retry})
}

/// Owners are waited for no longer than a lease; nothing else in such a test waits for a timer.
fn no_timers(config: &mut Config) {
    config.tick = Duration::from_secs(3600);
    config.scrape_interval = Duration::from_secs(3600);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_scale_dips_when_an_owner_is_lost() {
    const LEASE: Duration = Duration::from_secs(4);
    const WINDOW: Duration = Duration::from_secs(12);
    let revisions = ["steady", "small", "growing"];
    let autoscaler = json!({"stable-window": "12s", "panic-window-percentage": "20"});
    let mut world = World::start(
        3,
        election("3", ["4s", "3s", "500ms"]),
        autoscaler,
        |config| config.tick = Duration::from_millis(500),
        async |_| {},
    )
    .await;
    // Each pod should carry 7 of its 10. Of the last one's five pods only two are ready by now: what its new owner
    // sees first, one report, calls for a single pod.
    let scale = |scale: &str| json!({"autoscaling.knative.dev/target": "10", "autoscaling.knative.dev/initial-scale": scale});
    world.revision("steady", 3, &[21, 22, 23], 6.0, scale("3")).await;
    world.revision("small", 2, &[31, 32], 6.0, scale("2")).await;
    world.revision("growing", 2, &[41, 42], 16.0, scale("2")).await;
    let before = world.holders(3, &world.identities()).await;
    for (name, desired) in [("steady", 3), ("small", 2), ("growing", 5)] {
        world.until_settled(name, desired).await;
    }
    eventually("the growing one's Deployment", async || {
        (world.replicas_of("growing").await == 5).then_some(())
    })
    .await;

    let lost = world.replicas.iter().position(|replica| before.values().any(|h| *h == replica.identity));
    let lost = lost.unwrap();
    let survivor = world.replicas[(lost + 1) % 3].address;
    let scales = world.scales().await;
    let mut socket = connect(survivor).await;
    let reporting = tokio::spawn(world.shutdown.clone().run_until_cancelled_owned(async move {
        loop {
            socket.send(batch(&revisions, 1.0)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }));
    let killed = Instant::now();
    world.replicas[lost].kill();
    world.holders(3, &world.identities()).await;
    let without_owner = killed.elapsed();
    println!("new owners after {without_owner:?}, of {} that one replica had", before.len());
    assert!(without_owner < LEASE + Duration::from_secs(3), "{without_owner:?}");

    // The floor is gone after a window, and the new owner has one of its own by then.
    tokio::time::sleep_until(killed + without_owner + WINDOW + Duration::from_secs(3)).await;
    let scales = scales.lock().clone();
    println!("scales since then: {scales:?}");
    for (name, least) in [("steady-deployment", 3), ("small-deployment", 2), ("growing-deployment", 5)] {
        let dips: Vec<_> = scales.iter().filter(|(of, scale)| of == name && *scale < least).collect();
        assert!(dips.is_empty(), "{dips:?}");
    }
    assert!(!reporting.is_finished());
    world.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_reaches_the_owner_through_any_replica() {
    let autoscaler = json!({"allow-zero-initial-scale": "true"});
    let world =
        World::start(2, election("2", ["60s", "40s", "10s"]), autoscaler, no_timers, async |_| {}).await;
    let names: Vec<String> = (0..6).map(|number| format!("rev-{number}")).collect();
    let zero = json!({"autoscaling.knative.dev/initial-scale": "0"});
    for name in &names {
        world.revision(name, 0, &[], 0.0, zero.clone()).await;
        world.until_settled(name, -1).await;
    }
    let holders = world.holders(2, &world.identities()).await;
    println!("{holders:?}");
    // Half of them by one replica, half by the other: whoever owns them, some are another's.
    for (replica, names) in world.replicas.iter().zip(names.chunks(3)) {
        let mut socket = connect(replica.address).await;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        report(&mut socket, &names, 1.0).await;
        for name in names {
            eventually(&format!("{name} awake"), async || (world.replicas_of(name).await == 1).then_some(()))
                .await;
        }
    }
    // Who asks for a bucket by its name is served by its owner only.
    for (bucket, holder) in &holders {
        for replica in &world.replicas {
            let stream = tokio::net::TcpStream::connect(replica.address).await.unwrap();
            let url = format!("ws://{bucket}.{SYSTEM}.svc.cluster.local:8080");
            let served = tokio_tungstenite::client_async(url, stream).await.is_ok();
            assert_eq!(served, *holder == replica.identity, "{bucket} at {}", replica.identity);
        }
        // And is led there.
        let slices = Api::<EndpointSlice>::namespaced(world.client.clone(), SYSTEM);
        let slice = eventually("the EndpointSlice", async || slices.get_opt(bucket).await.unwrap()).await;
        assert!(holder.ends_with(&format!("_{}", slice.endpoints[0].addresses[0])), "{holder}");
        let services = Api::<Service>::namespaced(world.client.clone(), SYSTEM);
        assert!(services.get_opt(bucket).await.unwrap().is_some());
    }
    world.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_goes_by_the_buckets_service_where_the_owners_address_leads_nowhere() {
    let maps = (election("2", ["60s", "40s", "10s"]), json!({"allow-zero-initial-scale": "true"}));
    let world = World::start_reached(Reach::Service, 2, maps, no_timers, async |_| {}).await;
    let names: Vec<String> = (0..6).map(|number| format!("rev-{number}")).collect();
    for name in &names {
        world.revision(name, 0, &[], 0.0, json!({"autoscaling.knative.dev/initial-scale": "0"})).await;
        world.until_settled(name, -1).await;
    }
    let holders = world.holders(2, &world.identities()).await;
    for (replica, names) in world.replicas.iter().zip(names.chunks(3)) {
        let mut socket = connect(replica.address).await;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        report(&mut socket, &names, 1.0).await;
        for name in names {
            eventually(&format!("{name} awake"), async || (world.replicas_of(name).await == 1).then_some(()))
                .await;
        }
    }
    let named = world.named.lock().clone();
    println!("{holders:?}, by name: {named:?}");
    assert!(!named.is_empty() && named.iter().all(|bucket| holders.contains_key(bucket)), "{named:?}");
    world.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_in_order_is_followed_at_once() {
    let autoscaler = json!({"allow-zero-initial-scale": "true"});
    let mut world =
        World::start(2, election("1", ["60s", "40s", "10s"]), autoscaler, no_timers, async |_| {}).await;
    world.revision("rev", 0, &[], 0.0, json!({"autoscaling.knative.dev/initial-scale": "0"})).await;
    world.until_settled("rev", -1).await;
    let holders = world.holders(1, &world.identities()).await;
    let owner =
        world.replicas.iter().position(|r| r.identity == holders["autoscaler-bucket-00-of-01"]).unwrap();
    // One that goes on reporting to the other notices nothing.
    let mut socket = connect(world.replicas[1 - owner].address).await;
    let begun = Instant::now();
    world.replicas[owner].shutdown.cancel();
    let heir = vec![world.replicas[1 - owner].identity.clone()];
    world.holders(1, &heir).await;
    println!("followed after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20), "that is, long before the Lease was over");
    report(&mut socket, &["rev"], 1.0).await;
    eventually("awake", async || (world.replicas_of("rev").await == 1).then_some(())).await;
    world.replicas[owner].kill();
    world.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_waits_while_its_bucket_has_no_owner() {
    let autoscaler = json!({"allow-zero-initial-scale": "true"});
    let world = World::start(
        1,
        election("1", ["60s", "40s", "1s"]),
        autoscaler,
        no_timers,
        async |client: &Client| {
            // Held by one that is gone, for a little longer.
            let lease = json!({
                "metadata": {"name": "autoscaler-bucket-00-of-01"},
                "spec": {
                    "holderIdentity": format!("autoscaler-gone_{}", loopback(250)), "leaseDurationSeconds": 3,
                    "renewTime": "2026-01-01T00:00:00.000000Z",
                },
            });
            create::<Lease>(client, SYSTEM, lease).await;
            // A foreign Lease is none of our business.
            create::<Lease>(client, SYSTEM, json!({"metadata": {"name": "foreign"}, "spec": {}})).await;
        },
    )
    .await;
    let mut socket = connect(world.replicas[0].address).await;
    world.revision("rev", 0, &[], 0.0, json!({"autoscaling.knative.dev/initial-scale": "0"})).await;
    report(&mut socket, &["rev"], 1.0).await;
    let api = Api::<PodAutoscaler>::namespaced(world.client.clone(), "ns");
    assert_eq!(api.get("rev").await.unwrap().status, None, "nobody owns it");
    eventually("awake", async || (world.replicas_of("rev").await == 1).then_some(())).await;
    let foreign = Api::<Lease>::namespaced(world.client.clone(), SYSTEM).get("foreign").await.unwrap();
    assert_eq!(foreign.spec.unwrap().holder_identity, None);
    assert!(world.port > 0);
    world.stop();
}

#[tokio::test]
async fn times_that_could_make_two_owners_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let server = ApiServer::open(ember_apiserver::Config::new(data.path())).unwrap();
    let client = server.client();
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": SYSTEM}})).unwrap();
    let _ = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
    let map = json!({"metadata": {"name": "config-leader-election"}, "data": {"lease-duration": "30s"}});
    create::<ConfigMap>(&client, SYSTEM, map).await;
    let config = Config {
        stats_addr: "127.0.0.1:0".parse().unwrap(),
        replica: Some(Replica { pod_name: "a".into(), pod_ip: "127.0.0.1".parse().unwrap() }),
        ..Config::default()
    };
    let io = Io { clock: Arc::new(SystemClock), network: Arc::new(SystemNetwork) };
    let running = ember_autoscaler::run(config, io, client, CancellationToken::new());
    let error = tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "ConfigMap config-leader-election: leaseDuration must be greater than renewDeadline"
    );
    server.close();
}
