//! A running autoscaler, and everything around it that a test plays: pods, activator, other controllers.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use ember_api::autoscaling::v1alpha1::{Metric, PodAutoscaler};
use ember_apiserver::ApiServer;
use ember_autoscaler::Config;
use ember_dataplane::io::{Io, Listener, Network, Stream, SystemClock, SystemNetwork};
use ember_dataplane::stat::Stat;
use futures::future::BoxFuture;
use futures::{SinkExt, StreamExt};
use http::{Request, Response, StatusCode};
use http_body_util::Full;
use hyper::body::Incoming;
use k8s_openapi::api::apps::v1::Deployment;
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::stage::cluster::{self, cluster, follow_services};
use crate::stage::{PATIENCE, answer, eventually, labels, report, scraped};

/// The machine's network, except that host names of Services lead to the test's own listener.
pub(crate) struct TestNetwork {
    services: SocketAddr,
    /// Where the autoscaler listens: for reports, and for Prometheus if it does.
    listeners: Mutex<Vec<SocketAddr>>,
}

impl Network for TestNetwork {
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, std::io::Result<Listener>> {
        Box::pin(async move {
            let listener = SystemNetwork.listen(addr).await?;
            self.listeners.lock().push(listener.local_addr()?);
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

/// What pods say when they are scraped.
#[derive(Debug, Clone)]
pub(crate) struct Scrapes {
    /// Concurrency: of each pod, or of all together where `shared_by` says how many share it.
    pub(crate) load: f64,
    /// Requests a second of each pod.
    pub(crate) requests: f64,
    /// How many pods share the load; 0: each has all of it.
    pub(crate) shared_by: usize,
    /// How a pod answers that is asked by address.
    pub(crate) pod: StatusCode,
    /// How the revision's Service answers: always by the same pod.
    pub(crate) service: StatusCode,
}

/// Answers like pods' queue-proxies on `/metrics`, and like an activator elsewhere.
pub(crate) struct Answers {
    pub(crate) scrapes: Mutex<Scrapes>,
    pub(crate) activator_in_path: AtomicBool,
    /// The `Host` of every scrape by a Service.
    pub(crate) services: Mutex<Vec<String>>,
}

impl Default for Answers {
    fn default() -> Self {
        let (pod, service) = (StatusCode::OK, StatusCode::OK);
        let scrapes = Scrapes { load: 0.0, requests: 0.0, shared_by: 0, pod, service };
        Self {
            scrapes: Mutex::new(scrapes),
            activator_in_path: AtomicBool::new(true),
            services: Mutex::default(),
        }
    }
}

impl Answers {
    fn respond(&self, request: &Request<Incoming>) -> Response<Full<bytes::Bytes>> {
        if request.uri().path() == "/metrics" {
            assert_eq!(request.headers()["accept"], "application/protobuf");
            let host = request.headers()["host"].to_str().unwrap();
            let scrapes = self.scrapes.lock().clone();
            let status = if host.starts_with("127.") {
                scrapes.pod
            } else {
                self.services.lock().push(host.to_owned());
                scrapes.service
            };
            let stat = Stat {
                pod_name: "pod-1".into(),
                average_concurrent_requests: scrapes.load / scrapes.shared_by.max(1) as f64,
                request_count: scrapes.requests,
                process_uptime: 100.0,
                ..Stat::default()
            };
            let mut response = scraped(&stat);
            *response.status_mut() = status;
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

pub(crate) struct World {
    pub(crate) client: Client,
    network: Arc<TestNetwork>,
    config: Config,
    pub(crate) autoscaler: CancellationToken,
    /// The autoscaler's writes: method and path.
    pub(crate) writes: Arc<Mutex<Vec<String>>>,
    pub(crate) stats: SocketAddr,
    /// Where Prometheus scrapes, if it may.
    pub(crate) metrics: Option<SocketAddr>,
    /// What stands between the autoscaler and the API.
    through: Option<Through>,
    pub(crate) answers: Arc<Answers>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) tasks: TaskTracker,
    server: ApiServer,
    _data: tempfile::TempDir,
}

/// Makes the autoscaler's client of the real one.
pub(crate) type Through = Box<dyn Fn(Client) -> Client + Send + Sync>;

impl World {
    /// A running autoscaler with `config-autoscaler` of that data.
    pub(crate) async fn start(autoscaler: Value, adapt: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ember_apiserver::Config::new(data.path());
        Self::start_on(server, data, autoscaler, adapt, None).await
    }

    /// The same with something between the autoscaler and the API.
    pub(crate) async fn start_through(
        through: Through,
        autoscaler: Value,
        adapt: impl FnOnce(&mut Config),
    ) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ember_apiserver::Config::new(data.path());
        Self::start_on(server, data, autoscaler, adapt, Some(through)).await
    }

    pub(crate) async fn start_on(
        server: ember_apiserver::Config,
        data: tempfile::TempDir,
        autoscaler: Value,
        adapt: impl FnOnce(&mut Config),
        through: Option<Through>,
    ) -> Self {
        let server = cluster(server, &[("config-autoscaler", &autoscaler)]).await;
        let client = server.client();
        let tasks = TaskTracker::new();
        let shutdown = CancellationToken::new();
        let answers = Arc::new(Answers::default());
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let services = listener.local_addr().unwrap();
        let answering = Arc::clone(&answers);
        let respond = move |_, request: &Request<Incoming>| answering.respond(request);
        tasks.spawn(answer(listener, respond, shutdown.clone()));

        let network = Arc::new(TestNetwork { services, listeners: Mutex::default() });
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
            metrics: None,
            through,
            answers,
            shutdown,
            tasks,
            server,
            _data: data,
        };
        world.start_autoscaler().await;
        world
    }

    pub(crate) async fn start_autoscaler(&mut self) {
        self.autoscaler = self.shutdown.child_token();
        self.network.listeners.lock().clear();
        let network = Arc::clone(&self.network) as Arc<dyn Network>;
        let io = Io { clock: Arc::new(SystemClock), network };
        let mut client = noting(&self.client, &self.writes);
        if let Some(through) = &self.through {
            client = through(client);
        }
        let running = ember_autoscaler::run(self.config.clone(), io, client, self.autoscaler.clone());
        self.tasks.spawn(async move { running.await.unwrap() });
        let network = Arc::clone(&self.network);
        let ports = 1 + usize::from(self.config.metrics_addr.is_some());
        let listeners = eventually("the ports", async || {
            Some(network.listeners.lock().clone()).filter(|listeners| listeners.len() == ports)
        })
        .await;
        self.stats = listeners[0];
        self.metrics = listeners.get(1).copied();
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
    {
        Api::namespaced(self.client.clone(), "ns")
    }

    /// A revision's Deployment and PodAutoscaler, and its ServerlessService as its controller leaves it.
    pub(crate) async fn revision(&self, name: &str, replicas: i32, annotations: Value) {
        self.labelled(name, replicas, annotations, labels(name)).await;
    }

    /// The same where the Configuration belongs to no Service.
    pub(crate) async fn unserved(&self, name: &str, replicas: i32, annotations: Value) {
        let labels = json!({
            "serving.knative.dev/revision": name, "serving.knative.dev/revisionUID": "u-1",
            "serving.knative.dev/configuration": "hello",
        });
        self.labelled(name, replicas, annotations, labels).await;
    }

    async fn labelled(&self, name: &str, replicas: i32, annotations: Value, labels: Value) {
        self.objects(name, replicas, annotations, labels).await;
        eventually("the Metric", async || {
            let metric = self.api::<Metric>().get_opt(name).await.unwrap()?;
            metric.status.filter(|s| s.conditions.is_true("Ready"))
        })
        .await;
    }

    /// Deployment and PodAutoscaler of a revision with those labels.
    pub(crate) async fn objects(&self, name: &str, replicas: i32, annotations: Value, labels: Value) {
        cluster::revision(&self.client, name, replicas, &annotations, &labels).await;
    }

    pub(crate) async fn replicas(&self, name: &str) -> Option<i32> {
        let deployment = self.api::<Deployment>().get(&format!("{name}-deployment")).await.unwrap();
        deployment.spec.unwrap().replicas
    }

    pub(crate) async fn until_replicas(&self, name: &str, want: i32) {
        let what = format!("{want} replicas");
        eventually(&what, async || (self.replicas(name).await == Some(want)).then_some(())).await;
    }

    pub(crate) async fn until_active(&self, name: &str, status: &str, reason: &str) -> PodAutoscaler {
        eventually(&format!("Active {status} {reason}"), async || {
            let pa = self.api::<PodAutoscaler>().get(name).await.unwrap();
            let active = pa.status.as_ref()?.conditions.get("Active")?;
            (active.status.as_str() == status && active.reason == reason).then_some(pa.clone())
        })
        .await
    }

    /// A ready pod of a revision, answering scrapes here.
    pub(crate) async fn pod(&self, revision: &str, name: &str) {
        cluster::pod(&self.client, name, Ipv4Addr::LOCALHOST.into(), &labels(revision)).await;
    }

    /// Where pods are scraped.
    pub(crate) fn scrape_port(&self) -> u16 {
        self.config.scrape_port
    }

    /// One GET of a port of the autoscaler; the body.
    pub(crate) async fn get(&self, address: SocketAddr, path: &str) -> String {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(address).await.unwrap();
        let request = format!("GET {path} HTTP/1.1\r\nHost: autoscaler\r\nConnection: close\r\n\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer
    }

    pub(crate) async fn report(&self, revision: &str) {
        let stream = tokio::net::TcpStream::connect(self.stats).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let url = format!("ws://autoscaler.knative-serving.svc.cluster.local:{}", self.stats.port());
        let (mut socket, _) = tokio_tungstenite::client_async(url, stream).await.unwrap();
        socket.send(report(&[revision], 1.0)).await.unwrap();
        socket.close(None).await.unwrap();
        while let Some(Ok(_)) = socket.next().await {}
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.tasks.close();
        tokio::time::timeout(PATIENCE, self.tasks.wait()).await.expect("everything ends");
        self.server.close();
    }
}

/// A client that notes what is written through it.
pub(crate) fn noting(client: &Client, writes: &Arc<Mutex<Vec<String>>>) -> Client {
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

pub(crate) fn sleepy() -> Value {
    json!({"allow-zero-initial-scale": "true", "scale-to-zero-grace-period": "1s", "stable-window": "6s"})
}
