//! What the tests of the activator share: a running one over real sockets, against an API server. What others do, the
//! test does: the autoscaler's end of the websocket, the pods' queue-proxies, the Endpoints.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(unreachable_pub, missing_docs, reason = "for tests only")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ember_activator::Config;
use ember_api::serving::v1::Revision;
use ember_apiserver::ApiServer;
use ember_dataplane::io::{Io, Listener, Network, Stream, SystemClock, SystemNetwork};
use ember_dataplane::stat::{WireStatMessage, WireStatMessages};
use ember_dataplane::worker::Workers;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, mpsc};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub const PATIENCE: Duration = Duration::from_secs(30);
/// No report but those made at once.
pub const NEVER: Duration = Duration::from_secs(3600);

pub async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

pub async fn soon<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, awaited).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// The machine's network; remembers where the activator listens.
#[derive(Default)]
pub struct TestNetwork(Mutex<Option<SocketAddr>>);

impl Network for TestNetwork {
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, std::io::Result<Listener>> {
        Box::pin(async move {
            let listener = SystemNetwork.listen(addr).await?;
            *self.0.lock() = Some(listener.local_addr()?);
            Ok(listener)
        })
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, std::io::Result<Stream>> {
        SystemNetwork.connect(host, port)
    }
}

/// The autoscaler's end: passes on what is reported.
pub async fn autoscaler(listener: TcpListener, reports: mpsc::UnboundedSender<WireStatMessage>) {
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
        while let Some(Ok(message)) = socket.next().await {
            if let Message::Binary(bytes) = message {
                for message in WireStatMessages::decode(bytes).unwrap().messages {
                    let _ = reports.send(message);
                }
            }
        }
    }
}

/// A pod's queue-proxy: answers probes, and requests with its name. Requests for `/hold` wait for a permit.
pub struct Pod {
    pub name: &'static str,
    pub addr: SocketAddr,
    pub seen: Mutex<Vec<(String, HeaderMap)>>,
    pub permits: Semaphore,
    pub in_flight: AtomicUsize,
    pub most: AtomicUsize,
    pub killed: CancellationToken,
    pub tasks: TaskTracker,
}

impl Pod {
    pub async fn start(name: &'static str) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pod = Arc::new(Self {
            name,
            addr: listener.local_addr().unwrap(),
            seen: Mutex::default(),
            permits: Semaphore::new(0),
            in_flight: AtomicUsize::new(0),
            most: AtomicUsize::new(0),
            killed: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        pod.tasks.spawn(Arc::clone(&pod).serve(listener));
        pod
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let stream = tokio::select! {
                () = self.killed.cancelled() => return,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            let pod = Arc::clone(&self);
            self.tasks.spawn(async move {
                let killed = pod.killed.clone();
                let service = service_fn(move |request| {
                    let pod = Arc::clone(&pod);
                    async move { Ok::<_, std::convert::Infallible>(pod.answer(request).await) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                tokio::select! {
                    () = killed.cancelled() => {}
                    _ = serving => {}
                }
            });
        }
    }

    pub async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
        if request.headers().get("k-network-probe").is_some_and(|probe| probe == "queue") {
            assert_eq!(request.headers()["user-agent"], "Knative-Activator-Probe");
            return Response::new(Full::from("queue"));
        }
        self.seen.lock().push((request.uri().path().to_owned(), request.headers().clone()));
        let now = self.in_flight.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        let hold = request.uri().path() == "/hold";
        let body = request.into_body().collect().await.unwrap().to_bytes();
        if hold {
            self.permits.acquire().await.unwrap().forget();
        }
        self.in_flight.fetch_sub(1, Ordering::SeqCst);
        Response::new(Full::from(format!("{}{}", self.name, String::from_utf8_lossy(&body))))
    }

    /// From now on connections are refused, and those there are have ended.
    pub async fn kill(&self) {
        self.killed.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    pub fn paths(&self) -> Vec<String> {
        self.seen.lock().iter().map(|(path, _)| path.clone()).collect()
    }
}

pub struct World {
    pub client: Client,
    pub addr: SocketAddr,
    pub reports: mpsc::UnboundedReceiver<WireStatMessage>,
    pub shutdown: CancellationToken,
    pub activator: JoinHandle<Result<(), ember_activator::Error>>,
    pub workers: Workers,
    pub autoscaler: JoinHandle<()>,
    pub autoscaler_addr: SocketAddr,
    pub server: ApiServer,
    _data: tempfile::TempDir,
}

impl World {
    /// A running activator that knows a revision `rev` of that spec.
    pub async fn start(mut spec: Value, adapt: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ApiServer::open(ember_apiserver::Config::new(data.path())).unwrap();
        let client = server.client();
        for name in ["ns", "knative-serving"] {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        }
        let network: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "config-network"}})).unwrap();
        let maps = Api::namespaced(client.clone(), "knative-serving");
        maps.create(&PostParams::default(), &network).await.unwrap();
        spec["containers"] = json!([{"name": "user-container", "image": "dev.local/host"}]);
        create_revision(&client, &spec).await;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let autoscaler_addr = listener.local_addr().unwrap();
        let mut config = Config {
            bind: [127, 0, 0, 1].into(),
            ports: vec![0],
            autoscaler: ("127.0.0.1".to_owned(), autoscaler_addr.port()),
            first_reconnect: Duration::from_millis(5),
            report_interval: NEVER,
            drain_settle: Duration::ZERO,
            drain_timeout: Duration::from_secs(5),
            ..Config::default()
        };
        adapt(&mut config);
        let (send, reports) = mpsc::unbounded_channel();
        let autoscaler = tokio::spawn(autoscaler(listener, send));
        let network = Arc::new(TestNetwork::default());
        let io = Io { clock: Arc::new(SystemClock), network: Arc::clone(&network) as _ };
        let (workers, shutdown) = (Workers::start(2).unwrap(), CancellationToken::new());
        let activator =
            tokio::spawn(ember_activator::run(config, io, client.clone(), workers.clone(), shutdown.clone()));
        let addr = eventually("the activator to listen", async || *network.0.lock()).await;
        let world = Self {
            client,
            addr,
            reports,
            shutdown,
            activator,
            workers,
            autoscaler,
            autoscaler_addr,
            server,
            _data: data,
        };
        eventually("the link to the autoscaler", async || {
            let answer = world.request("/", &[("user-agent", "kube-probe/1")], "").await;
            (answer.0 == StatusCode::OK).then_some(())
        })
        .await;
        world
    }

    pub async fn uid(&self) -> String {
        let revisions: Api<Revision> = Api::namespaced(self.client.clone(), "ns");
        revisions.get("rev").await.unwrap().uid().unwrap()
    }

    /// The revision's pods as the API has them now.
    pub async fn pods(&self, ready: &[&Pod], not_ready: &[&Pod]) {
        self.pods_of(&self.uid().await, ready, not_ready).await;
    }

    pub async fn pods_of(&self, uid: &str, ready: &[&Pod], not_ready: &[&Pod]) {
        let subset = |kind: &str, pod: &Pod| {
            json!({kind: [{"ip": pod.addr.ip()}],
                   "ports": [{"name": "other", "port": 1}, {"name": "http", "port": pod.addr.port()}]})
        };
        let subsets: Vec<Value> = ready
            .iter()
            .map(|pod| subset("addresses", pod))
            .chain(not_ready.iter().map(|pod| subset("notReadyAddresses", pod)))
            .collect();
        let object: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "rev-private", "labels": {
                "serving.knative.dev/revision": "rev",
                "serving.knative.dev/revisionUID": uid,
                "networking.internal.knative.dev/serviceType": "Private",
            }},
            "subsets": subsets,
        }))
        .unwrap();
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), "ns");
        match api.create(&PostParams::default(), &object).await {
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                let mut next = object;
                next.metadata.resource_version = api.get("rev-private").await.unwrap().resource_version();
                api.replace("rev-private", &PostParams::default(), &next).await.unwrap();
            }
            created => drop(created.unwrap()),
        }
    }

    /// A request as the gateway sends it, on a connection of its own; dropping the future closes it.
    pub async fn request(&self, path: &str, headers: &[(&str, &str)], body: &str) -> (StatusCode, String) {
        exchange(self.addr, path, headers, body).await
    }

    pub fn spawn(&self, path: &str, body: &str) -> JoinHandle<(StatusCode, String)> {
        let (addr, path, body) = (self.addr, path.to_owned(), body.to_owned());
        tokio::spawn(async move { exchange(addr, &path, &OF_REV, &body).await })
    }

    /// The next report; its average and count.
    pub async fn report(&mut self) -> (f64, f64) {
        let message = soon("a report", self.reports.recv()).await.unwrap();
        assert_eq!((message.namespace.as_str(), message.name.as_str()), ("ns", "rev"));
        let stat = message.stat.unwrap();
        (stat.average_concurrent_requests, stat.request_count)
    }

    /// Waits until the activator reports that many requests at a time.
    pub async fn until_concurrency(&mut self, want: f64) {
        while (self.report().await.0 - want).abs() > 1e-6 {}
    }

    pub async fn stop(self) {
        self.shutdown.cancel();
        soon("the activator to end", self.activator).await.unwrap().unwrap();
        self.autoscaler.abort();
        self.workers.shutdown().await;
        self.server.close();
    }
}

pub const OF_REV: [(&str, &str); 2] =
    [("knative-serving-namespace", "ns"), ("knative-serving-revision", "rev")];

pub async fn create_revision(client: &Client, spec: &Value) {
    let revision: Revision = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": {"name": "rev"}, "spec": spec,
    }))
    .unwrap();
    Api::namespaced(client.clone(), "ns").create(&PostParams::default(), &revision).await.unwrap();
}

pub async fn exchange(
    addr: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (StatusCode, String) {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
    let method = if body.is_empty() { "GET" } else { "POST" };
    let mut request = Request::builder().method(method).uri(path).header("host", "hello.example.com");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::from(body.to_owned())).unwrap();
    let answer = async {
        let response = sender.send_request(request).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    };
    // The connection lives in this future, so that it ends with it.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended.unwrap();
            answer.await
        }
    }
}

pub fn ok(body: &str) -> (StatusCode, String) {
    (StatusCode::OK, body.to_owned())
}
