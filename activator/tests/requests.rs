//! The whole component over real sockets, against an API server: requests wait, are reported and reach pods. What
//! others do, the test does: the autoscaler's end of the websocket, the pods' queue-proxies, the Endpoints.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

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
use kube::api::{DeleteParams, PostParams};
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

const PATIENCE: Duration = Duration::from_secs(30);
/// No report but those made at once.
const NEVER: Duration = Duration::from_secs(3600);

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "waited in vain for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

async fn soon<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    match tokio::time::timeout(PATIENCE, awaited).await {
        Ok(value) => value,
        Err(_) => panic!("waited in vain for {what}"),
    }
}

/// The machine's network; remembers where the activator listens.
#[derive(Default)]
struct TestNetwork(Mutex<Option<SocketAddr>>);

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
async fn autoscaler(listener: TcpListener, reports: mpsc::UnboundedSender<WireStatMessage>) {
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
struct Pod {
    name: &'static str,
    addr: SocketAddr,
    seen: Mutex<Vec<(String, HeaderMap)>>,
    permits: Semaphore,
    in_flight: AtomicUsize,
    most: AtomicUsize,
    killed: CancellationToken,
    tasks: TaskTracker,
}

impl Pod {
    async fn start(name: &'static str) -> Arc<Self> {
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

    async fn answer(&self, request: Request<Incoming>) -> Response<Full<Bytes>> {
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
    async fn kill(&self) {
        self.killed.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn paths(&self) -> Vec<String> {
        self.seen.lock().iter().map(|(path, _)| path.clone()).collect()
    }
}

struct World {
    client: Client,
    addr: SocketAddr,
    reports: mpsc::UnboundedReceiver<WireStatMessage>,
    shutdown: CancellationToken,
    activator: JoinHandle<Result<(), ember_activator::Error>>,
    workers: Workers,
    autoscaler: JoinHandle<()>,
    autoscaler_addr: SocketAddr,
    server: ApiServer,
    _data: tempfile::TempDir,
}

impl World {
    /// A running activator that knows a revision `rev` of that spec.
    async fn start(mut spec: Value, adapt: impl FnOnce(&mut Config)) -> Self {
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

    async fn uid(&self) -> String {
        let revisions: Api<Revision> = Api::namespaced(self.client.clone(), "ns");
        revisions.get("rev").await.unwrap().uid().unwrap()
    }

    /// The revision's pods as the API has them now.
    async fn pods(&self, ready: &[&Pod], not_ready: &[&Pod]) {
        self.pods_of(&self.uid().await, ready, not_ready).await;
    }

    async fn pods_of(&self, uid: &str, ready: &[&Pod], not_ready: &[&Pod]) {
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
    async fn request(&self, path: &str, headers: &[(&str, &str)], body: &str) -> (StatusCode, String) {
        exchange(self.addr, path, headers, body).await
    }

    fn spawn(&self, path: &str, body: &str) -> JoinHandle<(StatusCode, String)> {
        let (addr, path, body) = (self.addr, path.to_owned(), body.to_owned());
        tokio::spawn(async move { exchange(addr, &path, &OF_REV, &body).await })
    }

    /// The next report; its average and count.
    async fn report(&mut self) -> (f64, f64) {
        let message = soon("a report", self.reports.recv()).await.unwrap();
        assert_eq!((message.namespace.as_str(), message.name.as_str()), ("ns", "rev"));
        let stat = message.stat.unwrap();
        (stat.average_concurrent_requests, stat.request_count)
    }

    /// Waits until the activator reports that many requests at a time.
    async fn until_concurrency(&mut self, want: f64) {
        while (self.report().await.0 - want).abs() > 1e-6 {}
    }

    async fn stop(self) {
        self.shutdown.cancel();
        soon("the activator to end", self.activator).await.unwrap().unwrap();
        self.autoscaler.abort();
        self.workers.shutdown().await;
        self.server.close();
    }
}

const OF_REV: [(&str, &str); 2] = [("knative-serving-namespace", "ns"), ("knative-serving-revision", "rev")];

async fn create_revision(client: &Client, spec: &Value) {
    let revision: Revision = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": {"name": "rev"}, "spec": spec,
    }))
    .unwrap();
    Api::namespaced(client.clone(), "ns").create(&PostParams::default(), &revision).await.unwrap();
}

async fn exchange(
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

fn ok(body: &str) -> (StatusCode, String) {
    (StatusCode::OK, body.to_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_at_zero_is_reported_at_once_and_waits_for_the_first_pod() {
    let mut world = World::start(json!({}), |_| {}).await;
    let waiting = world.spawn("/first", " body");
    assert_eq!(world.report().await, (1.0, 1.0));
    let pod = Pod::start("a").await;
    // Not ready by Kubernetes' word: the pod's own word is enough.
    world.pods(&[], &[&pod]).await;
    assert_eq!(soon("the answer", waiting).await.unwrap(), ok("a body"));

    let (path, headers) = pod.seen.lock()[0].clone();
    assert_eq!(path, "/first");
    assert_eq!(headers["host"], pod.addr.to_string().as_str());
    assert_eq!(headers["k-original-host"], "hello.example.com");
    assert_eq!(headers["k-proxy-request"], "activator");
    assert!(!headers.contains_key("knative-serving-revision"));
    assert!(!headers.contains_key("knative-serving-namespace"));

    // By host, too; and who is unknown is told so.
    let host = [("host", "rev.ns.svc.cluster.local:80")];
    let by_host = async {
        let stream = TcpStream::connect(world.addr).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/").header(host[0].0, host[0].1).body(Full::default()).unwrap();
        sender.send_request(request).await.unwrap().status()
    };
    assert_eq!(soon("the answer by host", by_host).await, StatusCode::OK);
    let unknown = [("knative-serving-namespace", "ns"), ("knative-serving-revision", "other")];
    let (status, text) = world.request("/", &unknown, "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(text, "Error getting active endpoint: revision.serving.knative.dev \"other\" not found\n");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_while_the_autoscaler_restarts_is_reported_to_the_next_one() {
    for told_before in [false, true] {
        let mut world = World::start(json!({}), |config| {
            config.longest_reconnect = Duration::from_millis(20);
        })
        .await;
        let mut waiting = None;
        if told_before {
            // Told to one that forgets it.
            waiting = Some(world.spawn("/", ""));
            assert_eq!(world.report().await, (1.0, 1.0));
        }
        world.autoscaler.abort();
        assert!((&mut world.autoscaler).await.unwrap_err().is_cancelled());
        let waiting = waiting.unwrap_or_else(|| world.spawn("/", ""));
        let listener = TcpListener::bind(world.autoscaler_addr).await.unwrap();
        let (send, reports) = mpsc::unbounded_channel();
        (world.autoscaler, world.reports) = (tokio::spawn(autoscaler(listener, send)), reports);
        world.until_concurrency(1.0).await;
        let pod = Pod::start("a").await;
        world.pods(&[&pod], &[]).await;
        assert_eq!(soon("the answer", waiting).await.unwrap(), ok("a"));
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_never_has_more_requests_than_its_concurrency() {
    let world = World::start(json!({"containerConcurrency": 2}), |_| {}).await;
    let waiting: Vec<_> = (0..7).map(|_| world.spawn("/hold", "")).collect();
    let pod = Pod::start("a").await;
    world.pods(&[&pod], &[]).await;
    for answered in 0..7 {
        let expected = 2.min(7 - answered);
        eventually("a full pod", async || (pod.in_flight.load(Ordering::SeqCst) == expected).then_some(()))
            .await;
        assert_eq!(pod.seen.lock().len(), answered + expected, "a place is taken as soon as it is free");
        pod.permits.add_permits(1);
        eventually("the next request", async || {
            let seen = pod.seen.lock().len();
            (seen == (answered + 1 + 2).min(7)).then_some(())
        })
        .await;
    }
    for request in waiting {
        assert_eq!(soon("an answer", request).await.unwrap(), ok("a"));
    }
    assert_eq!(pod.most.load(Ordering::SeqCst), 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_a_dead_pod_go_to_another_without_error() {
    for concurrency in [0, 5] {
        let world = World::start(json!({"containerConcurrency": concurrency}), |_| {}).await;
        let (dead, alive) = (Pod::start("dead").await, Pod::start("alive").await);
        world.pods(&[&dead], &[]).await;
        assert_eq!(soon("the first answer", world.spawn("/", "")).await.unwrap(), ok("dead"));
        // The Endpoints do not know yet.
        dead.kill().await;
        let waiting: Vec<_> = (0..5).map(|_| world.spawn("/", " post")).collect();
        world.pods(&[&dead, &alive], &[]).await;
        for request in waiting {
            assert_eq!(soon("an answer", request).await.unwrap(), ok("alive post"));
        }
        for _ in 0..20 {
            assert_eq!(soon("an answer", world.spawn("/", "")).await.unwrap(), ok("alive"));
        }
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_gives_up_its_place() {
    let mut world = World::start(json!({"containerConcurrency": 1}), |config| {
        config.report_interval = Duration::from_millis(50);
    })
    .await;
    let leavers = [world.spawn("/leaver", ""), world.spawn("/leaver", "with a body")];
    let stayer = world.spawn("/stayer", "");
    world.until_concurrency(3.0).await;
    for leaver in leavers {
        leaver.abort();
        assert!(leaver.await.unwrap_err().is_cancelled());
    }
    world.until_concurrency(1.0).await;
    let pod = Pod::start("a").await;
    world.pods(&[&pod], &[]).await;
    assert_eq!(soon("the answer", stayer).await.unwrap(), ok("a"));
    assert_eq!(pod.paths(), ["/stayer"]);
    world.until_concurrency(0.0).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_revision_that_is_deleted_is_told_so() {
    let mut world = World::start(json!({}), |_| {}).await;
    let waiting = world.spawn("/", "");
    world.report().await;
    let old = world.uid().await;
    let revisions: Api<Revision> = Api::namespaced(world.client.clone(), "ns");
    revisions.delete("rev", &DeleteParams::default()).await.unwrap();
    let (status, text) = soon("the answer", waiting).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(text, "Error getting active endpoint: revision.serving.knative.dev \"rev\" not found\n");

    // Made anew under the same name: the old one's pods are not its own.
    let (before, now) = (Pod::start("before").await, Pod::start("now").await);
    world.pods_of(&old, &[&before], &[]).await;
    let containers = json!([{"name": "user-container", "image": "dev.local/host"}]);
    create_revision(&world.client, &json!({"containers": containers})).await;
    let waiting = eventually("the new revision", async || {
        let waiting = world.spawn("/", "");
        let reported = tokio::select! {
            _ = world.reports.recv() => true,
            () = async { while !waiting.is_finished() { tokio::task::yield_now().await } } => false,
        };
        reported.then_some(waiting)
    })
    .await;
    world.pods(&[&now], &[]).await;
    assert_eq!(soon("the answer", waiting).await.unwrap(), ok("now"));
    assert!(before.paths().is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_counts_against_the_timeout() {
    let world = World::start(json!({"timeoutSeconds": 1}), |_| {}).await;
    let answer = soon("the answer", world.spawn("/", "")).await.unwrap();
    assert_eq!(answer, (StatusCode::GATEWAY_TIMEOUT, "activator request timeout".to_owned()));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_are_answered_without_waking_anything() {
    let mut world = World::start(json!({}), |_| {}).await;
    let probe =
        |value: &'static str| [OF_REV[0], OF_REV[1], ("k-network-probe", value), ("k-network-hash", "h")];
    assert_eq!(world.request("//healthz", &probe("activator"), "").await, ok("activator"));
    assert_eq!(world.request("/", &probe("probe"), "").await, ok(""));
    let (status, text) = world.request("/", &probe("\"<queue>"), "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(text, "unexpected probe header value: \"&#34;&lt;queue&gt;\"\n");
    assert!(world.reports.try_recv().is_err());
    world.stop().await;
}
