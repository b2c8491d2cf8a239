//! The whole component against an API server: reports over a websocket, scrapes over HTTP, writes over the API.
//! What other components do, the test does: the ServerlessService's status, the pods, the activator's probe answer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod stage;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ember_api::autoscaling::v1alpha1::{Metric, PodAutoscaler};
use ember_api::networking::v1alpha1::ServerlessService;
use ember_apiserver::ApiServer;
use ember_autoscaler::Config;
use ember_dataplane::io::{Io, Listener, Network, Stream, SystemClock, SystemNetwork};
use ember_dataplane::stat::{Stat, WireStatMessage, WireStatMessages};
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Namespace, Pod};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::{Value, json};
use stage::{PATIENCE, create, eventually, follow_services};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// The machine's network, except that host names of Services lead to the test's own listener.
struct TestNetwork {
    services: SocketAddr,
    stats: Mutex<Option<SocketAddr>>,
}

impl Network for TestNetwork {
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, std::io::Result<Listener>> {
        Box::pin(async move {
            let listener = SystemNetwork.listen(addr).await?;
            *self.stats.lock() = Some(listener.local_addr()?);
            Ok(listener)
        })
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, std::io::Result<Stream>> {
        Box::pin(async move {
            if host.parse::<std::net::IpAddr>().is_ok() {
                SystemNetwork.connect(host, port).await
            } else {
                SystemNetwork.connect(&self.services.ip().to_string(), self.services.port()).await
            }
        })
    }
}

/// Answers like pods' queue-proxies on `/metrics`, and like an activator elsewhere.
struct Answers {
    load: Mutex<f64>,
    activator_in_path: AtomicBool,
}

impl Answers {
    fn respond(&self, request: &Request<Incoming>) -> Response<Full<Bytes>> {
        if request.uri().path() == "/metrics" {
            assert_eq!(request.headers()["accept"], "application/protobuf");
            let load = *self.load.lock();
            let stat = Stat {
                pod_name: "pod-1".into(),
                average_concurrent_requests: load,
                process_uptime: 100.0,
                ..Stat::default()
            };
            let mut response = Response::new(Full::from(stat.encode_to_vec()));
            response.headers_mut().insert("content-type", "application/protobuf".parse().unwrap());
            response
        } else {
            assert_eq!(request.uri().path(), "//healthz");
            assert_eq!(request.headers()["k-network-probe"], "activator");
            assert_eq!(request.headers()["user-agent"], "Knative-Autoscaling-Probe");
            let name = if self.activator_in_path.load(Ordering::SeqCst) { "activator" } else { "queue" };
            Response::new(Full::from(name))
        }
    }
}

struct World {
    client: Client,
    network: Arc<TestNetwork>,
    config: Config,
    autoscaler: CancellationToken,
    /// The autoscaler's writes: method and path.
    writes: Arc<Mutex<Vec<String>>>,
    stats: SocketAddr,
    answers: Arc<Answers>,
    shutdown: CancellationToken,
    tasks: TaskTracker,
    server: ApiServer,
    _data: tempfile::TempDir,
}

impl World {
    /// A running autoscaler with `config-autoscaler` of that data.
    async fn start(autoscaler: Value, adapt: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ember_apiserver::Config::new(data.path());
        Self::start_on(server, data, autoscaler, adapt).await
    }

    async fn start_on(
        server: ember_apiserver::Config,
        data: tempfile::TempDir,
        autoscaler: Value,
        adapt: impl FnOnce(&mut Config),
    ) -> Self {
        let server = ApiServer::open(server).unwrap();
        let client = server.client();
        for name in ["knative-serving", "ns"] {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            let result = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
            assert!(
                result.is_ok() || matches!(&result, Err(kube::Error::Api(s)) if s.code == 409),
                "{result:?}"
            );
        }
        let map = json!({"metadata": {"name": "config-autoscaler"}, "data": autoscaler});
        create::<ConfigMap>(&client, "knative-serving", map).await;

        let tasks = TaskTracker::new();
        let shutdown = CancellationToken::new();
        let answers = Arc::new(Answers { load: Mutex::new(0.0), activator_in_path: AtomicBool::new(true) });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let services = listener.local_addr().unwrap();
        tasks.spawn(answer(listener, Arc::clone(&answers), shutdown.clone()));

        let network = Arc::new(TestNetwork { services, stats: Mutex::new(None) });
        let mut config = Config {
            stats_addr: "127.0.0.1:0".parse().unwrap(),
            scrape_port: services.port(),
            ..Config::default()
        };
        adapt(&mut config);
        let writes = Arc::new(Mutex::new(Vec::new()));
        tasks.spawn(follow_services(client.clone(), shutdown.clone()));
        let autoscaler = CancellationToken::new();
        let stats = "0.0.0.0:0".parse().unwrap();
        let mut world = Self {
            client,
            network,
            config,
            autoscaler,
            writes,
            stats,
            answers,
            shutdown,
            tasks,
            server,
            _data: data,
        };
        world.start_autoscaler().await;
        world
    }

    async fn start_autoscaler(&mut self) {
        self.autoscaler = self.shutdown.child_token();
        *self.network.stats.lock() = None;
        let network = Arc::clone(&self.network) as Arc<dyn Network>;
        let io = Io { clock: Arc::new(SystemClock), network };
        let client = noting(&self.client, &self.writes);
        let running = ember_autoscaler::run(self.config.clone(), io, client, self.autoscaler.clone());
        self.tasks.spawn(async move { running.await.unwrap() });
        let network = Arc::clone(&self.network);
        self.stats = eventually("the stats port", async || *network.stats.lock()).await;
    }

    fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "ns")
    }

    /// A revision's Deployment and PodAutoscaler, and its ServerlessService as its controller leaves it.
    async fn revision(&self, name: &str, replicas: i32, annotations: Value) {
        let labels = json!({
            "serving.knative.dev/revision": name, "serving.knative.dev/revisionUID": "u-1",
            "serving.knative.dev/configuration": "hello", "serving.knative.dev/service": "hello",
        });
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
        let pa = json!({
            "metadata": {"name": name, "labels": labels, "annotations": all},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": format!("{name}-deployment")},
                "reachability": "Reachable",
                "protocolType": "http1",
            },
        });
        create::<PodAutoscaler>(&self.client, "ns", pa).await;
        eventually("the Metric", async || {
            let metric = self.api::<Metric>().get_opt(name).await.unwrap()?;
            metric.status.filter(|s| s.conditions.is_true("Ready"))
        })
        .await;
    }

    async fn replicas(&self, name: &str) -> Option<i32> {
        let deployment = self.api::<Deployment>().get(&format!("{name}-deployment")).await.unwrap();
        deployment.spec.unwrap().replicas
    }

    async fn until_replicas(&self, name: &str, want: i32) {
        let what = format!("{want} replicas");
        eventually(&what, async || (self.replicas(name).await == Some(want)).then_some(())).await;
    }

    async fn until_active(&self, name: &str, status: &str, reason: &str) -> PodAutoscaler {
        eventually(&format!("Active {status} {reason}"), async || {
            let pa = self.api::<PodAutoscaler>().get(name).await.unwrap();
            let active = pa.status.as_ref()?.conditions.get("Active")?;
            (active.status.as_str() == status && active.reason == reason).then_some(pa.clone())
        })
        .await
    }

    /// A ready pod of a revision, answering scrapes here.
    async fn pod(&self, revision: &str, name: &str) {
        let pod = json!({
            "metadata": {"name": name, "labels": {
                "serving.knative.dev/revision": revision, "serving.knative.dev/revisionUID": "u-1",
            }},
            "spec": {"containers": [{"name": "user-container", "image": "dev.local/host"}]},
        });
        create::<Pod>(&self.client, "ns", pod).await;
        let status = json!({"status": {
            "phase": "Running", "podIP": "127.0.0.1", "startTime": "2020-01-01T00:00:00Z",
            "conditions": [{"type": "Ready", "status": "True"}],
        }});
        self.api::<Pod>().patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
    }

    async fn report(&self, revision: &str) {
        let stream = tokio::net::TcpStream::connect(self.stats).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let url = format!("ws://autoscaler.knative-serving.svc.cluster.local:{}", self.stats.port());
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        socket.send(Message::Binary(first_report(revision).into())).await.unwrap();
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    }

    async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(PATIENCE, self.tasks.wait()).await.expect("everything ends");
        self.server.close();
    }
}

/// A client that notes what is written through it.
fn noting(client: &Client, writes: &Arc<Mutex<Vec<String>>>) -> Client {
    let (writes, client) = (Arc::clone(writes), client.clone());
    let service = tower::service_fn(move |request: Request<kube::client::Body>| {
        if request.method() != http::Method::GET {
            writes.lock().push(format!("{} {}", request.method(), request.uri().path()));
        }
        let client = client.clone();
        async move { client.send(request).await }
    });
    Client::new(service, "default")
}

/// What an activator sends at the first request for a revision.
fn first_report(revision: &str) -> Vec<u8> {
    let stat = Stat {
        pod_name: "activator-1".into(),
        average_concurrent_requests: 1.0,
        request_count: 1.0,
        ..Stat::default()
    };
    let message = WireStatMessage { namespace: "ns".into(), name: revision.into(), stat: Some(stat) };
    WireStatMessages { messages: vec![message] }.encode_to_vec()
}

async fn answer(listener: TcpListener, answers: Arc<Answers>, shutdown: CancellationToken) {
    let connections = TaskTracker::new();
    while let Some(Ok((stream, _))) = shutdown.run_until_cancelled(listener.accept()).await {
        let (answers, shutdown) = (Arc::clone(&answers), shutdown.clone());
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = answers.respond(&request);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let serving =
                hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), service);
            let _ = shutdown.run_until_cancelled(serving).await;
        });
    }
    connections.close();
    connections.wait().await;
}

fn sleepy() -> Value {
    json!({"allow-zero-initial-scale": "true", "scale-to-zero-grace-period": "1s", "stable-window": "6s"})
}

/// No tick and no scrape within a test's lifetime: what happens, happens because of an event.
fn no_timers(config: &mut Config) {
    config.tick = Duration::from_secs(3600);
    config.scrape_interval = Duration::from_secs(3600);
}

const NEVER_RAN: &str = "autoscaling.knative.dev/initial-scale";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_report_wakes_a_revision_without_any_timer() {
    let world = World::start(sleepy(), no_timers).await;
    world.revision("rev", 0, json!({NEVER_RAN: "0"})).await;
    let pa = world.until_active("rev", "False", "NoTraffic").await;
    assert_eq!(pa.status.unwrap().desired_scale, Some(-1), "it was never evaluated");

    let begin = Instant::now();
    world.report("rev").await;
    world.until_replicas("rev", 1).await;
    println!("report to scale: {:?}", begin.elapsed());
    let pa = world.until_active("rev", "Unknown", "Queued").await;
    assert_eq!(pa.status.unwrap().desired_scale, Some(1));

    world.pod("rev", "rev-1").await;
    world.until_active("rev", "True", "").await;
    let status = eventually("Ready", async || {
        let pa = world.api::<PodAutoscaler>().get("rev").await.unwrap();
        pa.status.filter(|s| s.conditions.is_true("Ready"))
    })
    .await;
    assert_eq!((status.actual_scale, status.service_name.as_str()), (Some(1), "rev"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_comes_before_the_revision_is_known_is_not_lost() {
    let world = World::start(sleepy(), no_timers).await;
    world.report("rev").await;
    world.revision("rev", 0, json!({NEVER_RAN: "0"})).await;
    world.until_replicas("rev", 1).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_autoscaler_wakes_sleeping_revisions_without_any_timer() {
    let mut world = World::start(sleepy(), no_timers).await;
    world.revision("rev", 0, json!({NEVER_RAN: "0"})).await;
    world.until_active("rev", "False", "NoTraffic").await;
    world.autoscaler.cancel();
    world.start_autoscaler().await;
    world.report("rev").await;
    world.until_replicas("rev", 1).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_wakes_scales_with_its_load_and_sleeps() {
    let world = World::start(sleepy(), |config| {
        config.tick = Duration::from_millis(200);
        config.scrape_interval = Duration::from_millis(500);
    })
    .await;
    world.revision("rev", 0, json!({NEVER_RAN: "0", "autoscaling.knative.dev/target": "10"})).await;
    world.report("rev").await;
    world.until_replicas("rev", 1).await;

    // 14 a scrape, twice a second: more than one pod should carry.
    *world.answers.load.lock() = 14.0;
    world.pod("rev", "rev-1").await;
    eventually("more replicas", async || world.replicas("rev").await.filter(|n| *n >= 3)).await;
    world.until_active("rev", "True", "").await;

    *world.answers.load.lock() = 0.0;
    world.answers.activator_in_path.store(false, Ordering::SeqCst);
    let pa = world.until_active("rev", "False", "NoTraffic").await;
    assert_eq!(pa.status.unwrap().desired_scale, Some(0));
    assert_ne!(world.replicas("rev").await, Some(0), "pods stay until the activator is in the path");
    world.answers.activator_in_path.store(true, Ordering::SeqCst);
    world.until_replicas("rev", 0).await;

    world.api::<Pod>().delete("rev-1", &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually("no pods in the status", async || {
        let pa = world.api::<PodAutoscaler>().get("rev").await.unwrap();
        (pa.status.unwrap().actual_scale == Some(0)).then_some(())
    })
    .await;

    // And again: it has been at zero before.
    world.report("rev").await;
    world.until_replicas("rev", 1).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waking_and_sleeping_costs_few_writes_and_the_scale_comes_first() {
    let world = World::start(sleepy(), |config| {
        config.tick = Duration::from_millis(200);
        config.scrape_interval = Duration::from_millis(500);
    })
    .await;
    world.revision("rev", 0, json!({NEVER_RAN: "0"})).await;
    world.until_active("rev", "False", "NoTraffic").await;
    // Nothing of the beginning is still on its way.
    eventually("a settled ServerlessService", async || {
        let sks = world.api::<ServerlessService>().get("rev").await.unwrap();
        let pa = world.api::<PodAutoscaler>().get("rev").await.unwrap();
        let seen = sks.status?.observed_generation == sks.metadata.generation?;
        (seen && sks.spec.num_activators == 3 && pa.status?.conditions.is_true("SKSReady")).then_some(())
    })
    .await;
    world.writes.lock().clear();
    world.report("rev").await;
    world.until_active("rev", "Unknown", "Queued").await;
    world.pod("rev", "rev-1").await;
    world.until_active("rev", "True", "").await;
    world.until_active("rev", "False", "NoTraffic").await;
    world.until_replicas("rev", 0).await;
    world.api::<Pod>().delete("rev-1", &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually("no pods in the status", async || {
        let pa = world.api::<PodAutoscaler>().get("rev").await.unwrap();
        (pa.status.unwrap().actual_scale == Some(0)).then_some(())
    })
    .await;
    let writes = world.writes.lock().clone();
    println!("{} writes:\n{}", writes.len(), writes.join("\n"));
    assert_eq!(writes[0], "PATCH /apis/apps/v1/namespaces/ns/deployments/rev-deployment/scale");
    assert_eq!(writes.iter().filter(|w| w.ends_with("/scale")).count(), 2, "once up, once down");
    // Eight, and room for a write that is refused as outdated and done again.
    assert!(writes.len() <= 10, "{writes:#?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_follow_edits_of_annotations_and_configuration() {
    let world = World::start(sleepy(), |config| {
        config.tick = Duration::from_millis(100);
        config.scrape_interval = Duration::from_millis(300);
    })
    .await;
    world.revision("rev", 1, json!({"autoscaling.knative.dev/min-scale": "2"})).await;
    world.pod("rev", "rev-1").await;
    world.until_replicas("rev", 2).await;
    let patch = json!({"metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "4"}}});
    world.api::<PodAutoscaler>().patch("rev", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    world.until_replicas("rev", 4).await;

    let patch = json!({"metadata": {"annotations": {"autoscaling.knative.dev/min-scale": null}}});
    world.api::<PodAutoscaler>().patch("rev", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "knative-serving");
    let patch = json!({"data": {"min-scale": "5"}});
    maps.patch("config-autoscaler", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    world.until_replicas("rev", 5).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_configuration_leaves_the_last_good_one_in_force() {
    let mut first = sleepy();
    first["min-scale"] = "3".into();
    // As where the webhook is away: what is stored may be anything.
    let data = tempfile::tempdir().unwrap();
    let mut server = ember_apiserver::Config::new(data.path());
    server.admission = Arc::new(ember_apiserver::AdmitAll);
    let world = World::start_on(server, data, first, no_timers).await;
    world.revision("rev", 1, json!({})).await;
    world.until_replicas("rev", 3).await;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "knative-serving");
    let change = async |data: Value| {
        let patch = Patch::Merge(json!({"data": data}));
        maps.patch("config-autoscaler", &PatchParams::default(), &patch).await.unwrap();
    };
    change(json!({"min-scale": "7", "max-scale-up-rate": "1.0"})).await;
    world.revision("other", 1, json!({})).await;
    world.until_replicas("other", 3).await;
    change(json!({"min-scale": "5", "max-scale-up-rate": "2.0"})).await;
    for name in ["rev", "other"] {
        world.until_replicas(name, 5).await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hpa_class_says_so_where_nothing_runs_it() {
    let world = World::start(sleepy(), no_timers).await;
    let pa = json!({
        "metadata": {
            "name": "rev",
            "annotations": {"autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev"},
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "rev-deployment"},
            "protocolType": "http1",
        },
    });
    create::<PodAutoscaler>(&world.client, "ns", pa).await;
    let pa = world.until_active("rev", "False", "HorizontalPodAutoscalerUnavailable").await;
    let ready = pa.status.unwrap().conditions.get("Ready").unwrap().clone();
    assert_eq!(ready.status.as_str(), "False");
    assert!(ready.message.contains("use class kpa.autoscaling.knative.dev"), "{}", ready.message);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_child_is_left_alone_and_reported() {
    let world = World::start(sleepy(), no_timers).await;
    let sks = json!({
        "metadata": {"name": "rev"},
        "spec": {"mode": "Serve", "protocolType": "http1", "objectRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "other"}},
    });
    create::<ServerlessService>(&world.client, "ns", sks).await;
    let pa = json!({
        "metadata": {
            "name": "rev",
            "annotations": {"autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev"},
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "rev-deployment"},
            "protocolType": "http1",
        },
    });
    create::<PodAutoscaler>(&world.client, "ns", pa).await;
    world.until_active("rev", "False", "NotOwned").await;
    eventually("the event", async || {
        let events = world.api::<Event>().list(&Default::default()).await.unwrap();
        let text = "error reconciling SKS: PA: rev does not own SKS: rev";
        events
            .into_iter()
            .find(|e| e.reason.as_deref() == Some("InternalError") && e.message.as_deref() == Some(text))
    })
    .await;
    let sks = world.api::<ServerlessService>().get("rev").await.unwrap();
    assert_eq!((sks.spec.mode.as_str(), sks.owner_references().len()), ("Serve", 0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stats_port_speaks_as_activators_and_kubelets_expect() {
    let world = World::start(sleepy(), no_timers).await;
    let ask = async |headers: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(world.stats).await.unwrap();
        let request = format!("GET /any HTTP/1.1\r\nHost: autoscaler\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(ask("User-Agent: kube-probe/1.34\r\n").await, "HTTP/1.1 200 OK");
    assert_eq!(ask("K-Kubelet-Probe: queue\r\n").await, "HTTP/1.1 200 OK");
    assert_eq!(ask("").await, "HTTP/1.1 400 Bad Request");

    let connect = async |request: http::request::Builder| {
        let stream = tokio::net::TcpStream::connect(world.stats).await.unwrap();
        let request = request
            .uri("ws://autoscaler:8080")
            .header("Host", "autoscaler:8080")
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        tokio_tungstenite::client_async(request.body(()).unwrap(), stream).await
    };
    assert!(connect(Request::builder().header("Origin", "http://elsewhere")).await.is_err());
    let (mut socket, _) =
        connect(Request::builder().header("Origin", "http://autoscaler:8080")).await.unwrap();
    // What cannot be read ends nothing, and a ping is answered.
    socket.send(Message::Binary(Bytes::from_static(b"\xff\xff"))).await.unwrap();
    socket.send(Message::Text("hello".into())).await.unwrap();
    socket.send(Message::Ping(Bytes::from_static(b"there"))).await.unwrap();
    let pong = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(pong, Message::Pong(Bytes::from_static(b"there")));

    world.shutdown.cancel();
    let goodbye = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    let Message::Close(Some(frame)) = goodbye else { panic!("{goodbye:?}") };
    assert_eq!((frame.code, frame.reason.as_str()), (CloseCode::Restart, "Restarting"));
    while let Some(Ok(_)) = socket.next().await {}
    world.stop().await;
}
