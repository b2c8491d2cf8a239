//! The gateway over real sockets, against an API server. Pods and the activator are small servers of the test.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ember_api::networking::v1alpha1::Ingress;
use ember_api::status::Conditioned;
use ember_apiserver::ApiServer;
use ember_dataplane::io::{Io, Listener, Network, Stream, SystemClock, SystemNetwork};
use ember_dataplane::worker::Workers;
use ember_ingress::Config;
use ember_ingress::fingerprint::fingerprint;
use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Service};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

const PATIENCE: Duration = Duration::from_secs(30);
const HOST: &str = "hello.ns.example.com";
const LOCAL_HOST: &str = "hello.ns.svc.cluster.local";

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

/// The machine's network; remembers what was listened on, in order.
#[derive(Default)]
struct TestNetwork(Mutex<Vec<SocketAddr>>);

impl Network for TestNetwork {
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, std::io::Result<Listener>> {
        Box::pin(async move {
            let listener = SystemNetwork.listen(addr).await?;
            self.0.lock().push(listener.local_addr()?);
            Ok(listener)
        })
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, std::io::Result<Stream>> {
        SystemNetwork.connect(host, port)
    }
}

/// Answers every request with its name.
struct Pod {
    name: &'static str,
    addr: SocketAddr,
    seen: Mutex<Vec<HeaderMap>>,
    stopped: CancellationToken,
    tasks: TaskTracker,
}

impl Pod {
    async fn start(name: &'static str) -> Arc<Self> {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let pod = Arc::new(Self {
            name,
            addr: listener.local_addr().unwrap(),
            seen: Mutex::default(),
            stopped: CancellationToken::new(),
            tasks: TaskTracker::new(),
        });
        pod.tasks.spawn(Arc::clone(&pod).serve(listener));
        pod
    }

    async fn serve(self: Arc<Self>, listener: TcpListener) {
        loop {
            let stream = tokio::select! {
                () = self.stopped.cancelled() => return,
                accepted = listener.accept() => accepted.unwrap().0,
            };
            let pod = Arc::clone(&self);
            self.tasks.spawn(async move {
                let stopped = pod.stopped.clone();
                let service = service_fn(move |request: Request<Incoming>| {
                    pod.seen.lock().push(request.headers().clone());
                    let name = pod.name;
                    async move { Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from(name))) }
                });
                let serving = hyper::server::conn::http1::Builder::new()
                    .serve_connection(TokioIo::new(stream), service);
                let mut serving = std::pin::pin!(serving);
                tokio::select! {
                    () = stopped.cancelled() => {
                        serving.as_mut().graceful_shutdown();
                        let _ = serving.await;
                    }
                    _ = serving.as_mut() => {}
                }
            });
        }
    }

    /// Ends like a pod: what is under way is answered, then connections are refused.
    async fn stop(&self) {
        self.stopped.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }

    fn last(&self) -> HeaderMap {
        self.seen.lock().last().unwrap().clone()
    }
}

/// One client connection.
struct Connection(hyper::client::conn::http1::SendRequest<Full<Bytes>>);

struct Answer {
    status: StatusCode,
    text: String,
}

impl Connection {
    async fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    async fn get(&mut self, host: &str, headers: &[(&str, &str)]) -> Answer {
        self.0.ready().await.unwrap();
        let mut request = Request::get("/").header("host", host);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let response = self.0.send_request(request.body(Full::default()).unwrap()).await.unwrap();
        let status = response.status();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        Answer { status, text: String::from_utf8(body.to_vec()).unwrap() }
    }
}

struct World {
    client: Client,
    external: SocketAddr,
    internal: SocketAddr,
    shutdown: CancellationToken,
    gateway: JoinHandle<Result<(), ember_ingress::Error>>,
    workers: Workers,
    server: ApiServer,
    _data: tempfile::TempDir,
}

impl World {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ApiServer::open(ember_apiserver::Config::new(data.path())).unwrap();
        let client = server.client();
        for name in ["knative-serving", "ns"] {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            let created = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
            assert!(
                created.is_ok() || matches!(&created, Err(kube::Error::Api(s)) if s.code == 409),
                "{created:?}"
            );
        }
        let any: SocketAddr = "127.0.0.1:0".parse().unwrap();
        let config = Config {
            listen: any,
            listen_internal: Some(any),
            drain_timeout: Duration::from_secs(5),
            ..Config::default()
        };
        let network = Arc::new(TestNetwork::default());
        let io = Io { clock: Arc::new(SystemClock), network: Arc::clone(&network) as _ };
        let (workers, shutdown) = (Workers::start(2).unwrap(), CancellationToken::new());
        let gateway =
            tokio::spawn(ember_ingress::run(config, io, client.clone(), workers.clone(), shutdown.clone()));
        let (external, internal) = eventually("the gateway to listen", async || match network.0.lock()[..] {
            [external, internal] => Some((external, internal)),
            _ => None,
        })
        .await;
        Self { client, external, internal, shutdown, gateway, workers, server, _data: data }
    }

    /// Creates an object, or merges into the one there is.
    async fn put<K>(&self, namespace: &str, name: &str, mut object: Value) -> K
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        object["metadata"]["name"] = name.into();
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let typed: K = serde_json::from_value(object.clone()).unwrap();
        match api.create(&PostParams::default(), &typed).await {
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                api.patch(name, &PatchParams::default(), &Patch::Merge(object)).await.unwrap()
            }
            created => created.unwrap(),
        }
    }

    /// A Service and the pods behind it.
    async fn backend(&self, namespace: &str, name: &str, pods: &[&Pod]) {
        self.backend_at(namespace, name, json!({"name": "http", "port": 80, "targetPort": 8012}), pods).await;
    }

    /// A Service with that port, and the pods behind it.
    async fn backend_at(&self, namespace: &str, name: &str, port: Value, pods: &[&Pod]) {
        let port_name = port["name"].clone();
        let service = json!({"spec": {"ports": [port]}});
        self.put::<Service>(namespace, name, service).await;
        let subset = |pod: &&Pod| json!({"addresses": [{"ip": pod.addr.ip()}], "ports": [{"name": port_name, "port": pod.addr.port()}]});
        let subsets: Vec<Value> = pods.iter().map(subset).collect();
        self.put::<Endpoints>(namespace, name, json!({"subsets": subsets})).await;
    }

    /// An Ingress, once the gateway has said that it serves it.
    async fn ingress(&self, name: &str, rules: Value) -> Ingress {
        let annotations =
            json!({"networking.knative.dev/ingress.class": "ember.ingress.networking.knative.dev"});
        let object = json!({"metadata": {"annotations": annotations}, "spec": {"rules": rules}});
        let put = self.put::<Ingress>("ns", name, object).await;
        eventually("the Ingress to be ready", async || {
            let api: Api<Ingress> = Api::namespaced(self.client.clone(), "ns");
            let ingress = api.get(name).await.unwrap();
            let observed = ingress.status.as_ref()?.observed_generation;
            (ingress.is_ready() && observed >= put.metadata.generation?).then_some(ingress)
        })
        .await
    }

    async fn outside(&self) -> Connection {
        Connection::open(self.external).await
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.gateway).await.unwrap().unwrap().unwrap();
        self.workers.shutdown().await;
        self.server.close();
    }
}

fn split(service: &str, percent: u32) -> Value {
    json!({
        "serviceNamespace": "ns", "serviceName": service, "servicePort": 80, "percent": percent,
        "appendHeaders": {"Knative-Serving-Revision": service, "Knative-Serving-Namespace": "ns"},
    })
}

fn rule(host: &str, splits: &[Value]) -> Value {
    json!({"hosts": [host], "visibility": "ExternalIP", "http": {"paths": [{"splits": splits}]}})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_known_or_not_and_local_ones_only_inside() {
    let world = World::start().await;
    let pod = Pod::start("pod").await;
    world.backend("ns", "rev", &[&pod]).await;
    let mut local = rule(LOCAL_HOST, &[split("rev", 100)]);
    local["visibility"] = "ClusterLocal".into();
    let ingress = world.ingress("hello", json!([rule(HOST, &[split("rev", 100)]), local])).await;
    let status = ingress.status.unwrap();
    for balancer in [status.public_load_balancer, status.private_load_balancer] {
        assert_eq!(
            balancer.unwrap().ingress[0].domain_internal,
            "ember-gateway.knative-serving.svc.cluster.local"
        );
    }
    let (mut outside, mut inside) = (world.outside().await, Connection::open(world.internal).await);
    assert_eq!(outside.get("other.example.com", &[]).await.status, StatusCode::NOT_FOUND);
    assert_eq!(outside.get(LOCAL_HOST, &[]).await.status, StatusCode::NOT_FOUND);
    let answers = [
        outside.get("HELLO.ns.example.com:8080", &[]).await,
        inside.get(HOST, &[]).await,
        inside.get(LOCAL_HOST, &[]).await,
    ];
    for answer in answers {
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "pod"));
    }
    drop((outside, inside));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn internal_headers_of_clients_do_not_pass_and_the_hash_is_filled_in() {
    let world = World::start().await;
    let pod = Pod::start("pod").await;
    world.backend("ns", "rev", &[&pod]).await;
    let ingress = world.ingress("hello", json!([rule(HOST, &[split("rev", 100)])])).await;
    let mut client = world.outside().await;
    let forged = [
        ("k-kubelet-probe", "x"),
        ("k-proxy-request", "activator"),
        ("k-original-host", "x"),
        ("k-passthrough-lb", "true"),
        ("knative-direct-lb", "true"),
        ("knative-serving-revision", "other"),
        ("knative-serving-namespace", "other"),
        ("k-network-probe", "probe"),
        ("k-network-probe", "queue"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-for", "192.0.2.1"),
        ("k-network-hash", "mine"),
        ("traceparent", "00-1-2-03"),
    ];
    assert_eq!(client.get(HOST, &forged).await.status, StatusCode::OK);
    let seen = pod.last();
    for name in
        ["k-kubelet-probe", "k-proxy-request", "k-original-host", "k-passthrough-lb", "knative-direct-lb"]
    {
        assert!(!seen.contains_key(name), "{name}");
    }
    assert!(!seen.contains_key("k-network-probe"));
    assert_eq!(seen["host"], HOST);
    assert_eq!(seen.get_all("knative-serving-revision").iter().collect::<Vec<_>>(), ["rev"]);
    assert_eq!(seen.get_all("knative-serving-namespace").iter().collect::<Vec<_>>(), ["ns"]);
    assert_eq!(seen["x-forwarded-proto"], "http");
    assert_eq!(seen["x-forwarded-for"], "192.0.2.1, 127.0.0.1");
    assert_eq!(seen["k-network-hash"], "mine");
    assert_eq!(seen["traceparent"], "00-1-2-03");

    // Nor does a client get rid of what the gateway says by naming it as its own hop's.
    let named = [
        ("connection", "knative-serving-revision, knative-serving-namespace, x-forwarded-proto"),
        ("connection", "x-forwarded-for, host, x-mine"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-mine", "1"),
    ];
    assert_eq!(client.get(HOST, &named).await.status, StatusCode::OK);
    let seen = pod.last();
    assert_eq!(
        (&seen["knative-serving-revision"], &seen["knative-serving-namespace"]),
        (&"rev".parse().unwrap(), &"ns".parse().unwrap())
    );
    assert_eq!(
        (&seen["x-forwarded-proto"], &seen["host"]),
        (&"http".parse().unwrap(), &HOST.parse().unwrap())
    );
    assert_eq!(seen["x-forwarded-for"], "192.0.2.1, 127.0.0.1");
    assert!(!seen.contains_key("x-mine"));

    // Such a request ends the connection, too.
    let mut two = world.outside().await;
    assert_eq!(two.get(HOST, &[("host", LOCAL_HOST)]).await.status, StatusCode::BAD_REQUEST);
    assert!(two.0.ready().await.is_err());

    client.get(HOST, &[("k-network-probe", "probe"), ("k-network-hash", "override")]).await;
    let seen = pod.last();
    assert_eq!(seen["k-network-probe"], "probe");
    assert_eq!(seen["k-network-hash"], fingerprint(&ingress.spec, "ns", "hello").as_str());
    drop(client);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_are_exact_and_go_on_while_pods_change() {
    let world = World::start().await;
    let (most, few) = (Pod::start("most").await, Pod::start("few").await);
    world.backend("ns", "most", &[&most]).await;
    world.backend("ns", "few", &[&few]).await;
    world.backend("ns", "none", &[&few]).await;
    let splits = [split("most", 93), split("few", 7), split("none", 0)];
    world.ingress("hello", json!([rule(HOST, &splits)])).await;
    let mut clients = [world.outside().await, world.outside().await];
    let mut counts: HashMap<String, usize> = HashMap::new();
    for turn in 0..200 {
        if turn == 150 {
            // Other changes leave the turns where they are.
            world.ingress("other", json!([rule("other.example.com", &[split("few", 100)])])).await;
        }
        let answer = clients[turn % 2].get(HOST, &[]).await;
        *counts.entry(answer.text).or_default() += 1;
    }
    assert_eq!(counts, HashMap::from([("most".to_owned(), 186), ("few".to_owned(), 14)]));
    assert!(few.seen.lock().iter().all(|seen| seen["knative-serving-revision"] == "few"));
    drop(clients);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_pods_come_and_go() {
    let world = World::start().await;
    let activator = Pod::start("activator").await;
    world.backend("knative-serving", "activator-service", &[&activator]).await;
    let mut pod = Pod::start("pod").await;
    world.backend("ns", "rev", &[&pod]).await;
    world.ingress("hello", json!([rule(HOST, &[split("rev", 100)])])).await;

    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (over, answered, addr) = (Arc::clone(&over), Arc::clone(&answered), world.external);
            tokio::spawn(async move {
                let mut client = Connection::open(addr).await;
                while !over.load(Ordering::SeqCst) {
                    let answer = client.get(HOST, &[]).await;
                    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let some_more = async || {
        let before = answered.load(Ordering::SeqCst);
        let alive = || clients.iter().all(|client| !client.is_finished());
        eventually("more answers", async || {
            (answered.load(Ordering::SeqCst) > before + 50 || !alive()).then_some(())
        })
        .await;
        assert!(alive(), "a request failed");
    };
    for turn in 0..6 {
        let next = Pod::start("pod").await;
        if turn % 2 == 0 {
            // The next one is known before the last one ends.
            world.backend("ns", "rev", &[&pod, &next]).await;
            some_more().await;
            world.backend("ns", "rev", &[&next]).await;
            pod.stop().await;
        } else {
            // It ends first, and the Endpoints follow: to none, to the next.
            pod.stop().await;
            some_more().await;
            world.backend("ns", "rev", &[]).await;
            some_more().await;
            world.backend("ns", "rev", &[&next]).await;
        }
        some_more().await;
        pod = next;
    }
    over.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    world.stop().await;
}

/// A pod that speaks HTTP/2 only and answers every request with its protocol and its authority.
async fn h2c_pod() -> Arc<Pod> {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (seen, stopped, tasks) = (Mutex::default(), CancellationToken::new(), TaskTracker::new());
    let pod = Arc::new(Pod { name: "h2c", addr, seen, stopped, tasks });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let text = format!("{:?} {}", request.version(), request.uri());
                Ok::<_, std::convert::Infallible>(Response::new(Full::<Bytes>::from(text)))
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    pod
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_of_a_service_says_what_its_pods_speak() {
    let world = World::start().await;
    let (h2c, http1) = (h2c_pod().await, Pod::start("http1").await);
    world.backend_at("ns", "named", json!({"name": "http2", "port": 80}), &[&h2c]).await;
    let port = json!({"name": "web", "port": 80, "appProtocol": "kubernetes.io/h2c"});
    world.backend_at("ns", "declared", port, &[&h2c]).await;
    world.backend("ns", "plain", &[&http1]).await;
    let rules = ["named", "declared", "plain"]
        .map(|service| rule(&format!("{service}.example.com"), &[split(service, 100)]));
    world.ingress("hello", json!(rules)).await;
    let stream = TcpStream::connect(world.external).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut client = world.outside().await;
    for (service, answer) in [("named", "HTTP/2.0 "), ("declared", "HTTP/2.0 "), ("plain", "http1")] {
        let host = format!("{service}.example.com");
        // Both kinds of clients reach both kinds of backends.
        let text = client.get(&host, &[]).await.text;
        assert!(text.starts_with(answer), "{service}: {text}");
        let request = Request::get(format!("http://{host}/")).body(Full::<Bytes>::default()).unwrap();
        let response = sender.clone().send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let other = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(other, text);
        assert!(service == "plain" || text.ends_with(&format!("http://{host}/")), "{text}");
    }
    drop((client, sender));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_address_a_revision_is_the_activators_and_anything_else_is_unavailable() {
    let world = World::start().await;
    let activator = Pod::start("activator").await;
    world.backend("knative-serving", "activator-service", &[&activator]).await;
    world.backend("ns", "rev", &[]).await;
    world.backend("ns", "plain", &[]).await;
    let mut plain = split("plain", 100);
    plain.as_object_mut().unwrap().remove("appendHeaders");
    world
        .ingress("hello", json!([rule(HOST, &[split("rev", 100)]), rule("plain.example.com", &[plain])]))
        .await;
    let mut client = world.outside().await;
    assert_eq!(client.get(HOST, &[]).await.text, "activator");
    let seen = activator.last();
    assert_eq!(
        (&seen["host"], &seen["knative-serving-revision"]),
        (&HOST.parse().unwrap(), &"rev".parse().unwrap())
    );
    assert_eq!(client.get("plain.example.com", &[]).await.status, StatusCode::SERVICE_UNAVAILABLE);

    // More dead addresses than attempts: the activator still has its turn.
    let pods = futures::future::join_all((0..12).map(|_| Pod::start("dead"))).await;
    for pod in &pods {
        pod.stop().await;
    }
    world.backend("ns", "rev", &pods.iter().map(|pod| &**pod).collect::<Vec<_>>()).await;
    for _ in 0..20 {
        assert_eq!(client.get(HOST, &[]).await.text, "activator");
    }
    drop(client);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_ingress_takes_its_new_host_and_the_younger_one_is_told() {
    let world = World::start().await;
    let (first, second) = (Pod::start("first").await, Pod::start("second").await);
    world.backend("ns", "first", &[&first]).await;
    world.backend("ns", "second", &[&second]).await;
    // Of one second, the name decides.
    world.ingress("a", json!([rule("a.example.com", &[split("first", 100)])])).await;
    world.ingress("b", json!([rule(HOST, &[split("second", 100)])])).await;
    let mut client = world.outside().await;
    assert_eq!(client.get(HOST, &[]).await.text, "second");

    let of_first = |host| rule(host, &[split("first", 100)]);
    world.ingress("a", json!([of_first("a.example.com"), of_first(HOST)])).await;
    assert_eq!(client.get(HOST, &[]).await.text, "first");
    let api: Api<Ingress> = Api::namespaced(world.client.clone(), "ns");
    eventually("the conflict", async || {
        let ready = api.get("b").await.unwrap();
        (ready.ready_condition()?.reason == "DomainConflict").then_some(())
    })
    .await;

    world.ingress("a", json!([of_first("a.example.com")])).await;
    eventually("the host to be free", async || api.get("b").await.unwrap().is_ready().then_some(())).await;
    assert_eq!(client.get(HOST, &[]).await.text, "second");
    drop(client);
    world.stop().await;
}
