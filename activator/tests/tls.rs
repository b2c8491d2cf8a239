//! TLS inside the system, over real sockets: clients → activator → queue-proxies → apps, with what the API says of
//! certificates.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod world;

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ember_activator::{Config, Error};
use ember_apiserver::ApiServer;
use ember_dataplane::body::Body;
use ember_dataplane::io::Io;
use ember_dataplane::tls::Settings;
use ember_dataplane::worker::Workers;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use world::{eventually, soon};

const SYSTEM: &str = "knative-serving";
const SECRET: &str = "routing-serving-certs";
const ROUTING: &str = "kn-routing";
const DATA_PLANE: &str = "data-plane.knative.dev";

/// A certificate authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new(name: &str) -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, name);
        let key = KeyPair::generate().unwrap();
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    /// A certificate and its key.
    fn pair(&self, names: &[&str]) -> (String, String) {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        (certificate.pem(), key.serialize_pem())
    }

    /// What the Secret holds.
    fn secret(&self) -> Value {
        let (certificate, key) = self.pair(&[ROUTING]);
        secret(&certificate, &key, &self.pem)
    }

    /// An ingress connects to the activator.
    async fn connect(&self, addr: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let config = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let stream = TcpStream::connect(addr).await?;
        let name = ServerName::try_from(ROUTING).unwrap();
        soon("a handshake", TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }
}

fn secret(certificate: &str, key: &str, authority: &str) -> Value {
    let bytes = |text: &str| ByteString(text.as_bytes().to_vec());
    json!({"tls.crt": bytes(certificate), "tls.key": bytes(key), "ca.crt": bytes(authority)})
}

/// An address of this test's own, so that the contract's ports are free.
fn own_ip() -> IpAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (process, test) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    Ipv4Addr::new(127, 2 + (process >> 8 & 0x1f) as u8, process as u8, 1 + test as u8).into()
}

/// An app: HTTP/2 if `multiplexed`. Answers with what it is asked, and a trailer.
async fn app(multiplexed: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = service_fn(|request: Request<Incoming>| async move {
                let text = format!("{:?} {} ", request.version(), request.uri().path());
                assert_eq!(request.headers()["k-proxy-request"], "activator");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let mut trailers = HeaderMap::new();
                trailers.insert("grpc-status", "0".parse().unwrap());
                let frames = [Frame::data(text.into()), Frame::data(body), Frame::trailers(trailers)];
                let frames = futures::stream::iter(frames.map(Ok::<_, Infallible>));
                Ok::<_, Infallible>(Response::new(Body::stream(StreamBody::new(frames))))
            });
            let stream = TokioIo::new(stream);
            if multiplexed {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(stream, service));
            } else {
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
            }
        }
    });
    port
}

/// A pod: a queue-proxy with this certificate, or none, in front of an app.
struct Pod {
    ip: IpAddr,
    files: tempfile::TempDir,
    running: JoinHandle<Result<(), ember_queue_proxy::Error>>,
}

impl Pod {
    async fn start(multiplexed: bool, pair: Option<(String, String)>) -> Self {
        let (ip, files) = (own_ip(), tempfile::tempdir().unwrap());
        if let Some(pair) = pair {
            put(&files, &pair);
        }
        let (port, app) = (if multiplexed { "8013" } else { "8012" }, app(multiplexed).await.to_string());
        let env = [
            ("CONTAINER_CONCURRENCY", "0"),
            ("QUEUE_SERVING_PORT", port),
            ("QUEUE_SERVING_TLS_PORT", "8112"),
            ("USER_PORT", &app),
            ("REVISION_TIMEOUT_SECONDS", "300"),
            ("SERVING_LOGGING_CONFIG", ""),
            ("SERVING_LOGGING_LEVEL", ""),
            ("SERVING_NAMESPACE", "ns"),
            ("SERVING_CONFIGURATION", "app"),
            ("SERVING_REVISION", "rev"),
            ("SERVING_POD", "pod-1"),
            ("SERVING_POD_IP", "127.0.0.1"),
        ];
        let env = env.map(|(name, value)| (name.to_owned(), value.to_owned()));
        let config = ember_queue_proxy::Config {
            bind: ip,
            certificate_directory: Some(files.path().to_owned()),
            certificate_period: Duration::from_millis(10),
            ..ember_queue_proxy::Config::from_env(env).unwrap()
        };
        let run =
            ember_queue_proxy::run(config, Io::system(), watch::channel(false).0, CancellationToken::new());
        let pod = Self { ip, files, running: tokio::spawn(run) };
        eventually("the pod", async || TcpStream::connect((ip, 9090)).await.ok()).await;
        pod
    }
}

impl Drop for Pod {
    fn drop(&mut self) {
        self.running.abort();
    }
}

fn put(files: &tempfile::TempDir, (certificate, key): &(String, String)) {
    std::fs::write(files.path().join("tls.crt"), certificate).unwrap();
    std::fs::write(files.path().join("tls.key"), key).unwrap();
}

struct World {
    client: Client,
    ip: IpAddr,
    workers: Workers,
    shutdown: CancellationToken,
    activator: JoinHandle<Result<(), Error>>,
    server: ApiServer,
    _data: tempfile::TempDir,
}

impl World {
    /// An activator with TLS switched on, and that Secret.
    async fn start(secret: Option<Value>, adapt: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ApiServer::open(ember_apiserver::Config::new(data.path())).unwrap();
        let client = server.client();
        for name in ["ns", SYSTEM] {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        }
        let network: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": "config-network"}, "data": {"system-internal-tls": "enabled"},
        }))
        .unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(client.clone(), SYSTEM);
        maps.create(&PostParams::default(), &network).await.unwrap();
        if let Some(data) = secret {
            let secret: Secret =
                serde_json::from_value(json!({"metadata": {"name": SECRET}, "data": data})).unwrap();
            let secrets: Api<Secret> = Api::namespaced(client.clone(), SYSTEM);
            secrets.create(&PostParams::default(), &secret).await.unwrap();
        }
        let ip = own_ip();
        let mut config = Config {
            bind: ip,
            metrics: (ip, 9090).into(),
            // Nobody is there: requests do not wait for it.
            autoscaler: ("127.0.0.1".to_owned(), 1),
            drain_settle: Duration::ZERO,
            drain_timeout: Duration::from_secs(5),
            ..Config::default()
        };
        adapt(&mut config);
        let (workers, shutdown) = (Workers::start(2).unwrap(), CancellationToken::new());
        let run =
            ember_activator::run(config, Io::system(), client.clone(), workers.clone(), shutdown.clone());
        Self { client, ip, workers, shutdown, activator: tokio::spawn(run), server, _data: data }
    }

    /// The same, once it listens.
    async fn serving(secret: Value) -> Self {
        let world = Self::start(Some(secret), |_| {}).await;
        eventually("the activator", async || TcpStream::connect(world.tls()).await.ok()).await;
        world
    }

    fn tls(&self) -> SocketAddr {
        (self.ip, 8112).into()
    }

    async fn plain(&self) -> TcpStream {
        TcpStream::connect((self.ip, 8012)).await.unwrap()
    }

    /// Makes a revision `rev`; `pod` is ready by Kubernetes' word.
    async fn revision(&self, multiplexed: bool, pods: &[&Pod]) {
        let mut container = json!({"name": "user-container", "image": "dev.local/host"});
        let (name, port) = if multiplexed { ("http2", 8013) } else { ("http", 8012) };
        if multiplexed {
            container["ports"] = json!([{"name": "h2c", "containerPort": 8080}]);
        }
        let revision: ember_api::serving::v1::Revision = serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": "rev"}, "spec": {"containers": [container], "timeoutSeconds": 300},
        }))
        .unwrap();
        let revision = Api::namespaced(self.client.clone(), "ns")
            .create(&PostParams::default(), &revision)
            .await
            .unwrap();
        let addresses: Vec<_> = pods.iter().map(|pod| json!({"ip": pod.ip})).collect();
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "rev-private", "labels": {
                "serving.knative.dev/revision": "rev",
                "serving.knative.dev/revisionUID": revision.uid().unwrap(),
                "networking.internal.knative.dev/serviceType": "Private",
            }},
            "subsets": [{"addresses": addresses, "ports": [{"name": name, "port": port}]}],
        }))
        .unwrap();
        let api = Api::namespaced(self.client.clone(), "ns");
        api.create(&PostParams::default(), &endpoints).await.unwrap();
        // Known once it is no longer answered with 404.
        eventually("the revision", async || (self.ask("/known").await.0 != 404).then_some(())).await;
    }

    /// Asks in clear text; status and answer.
    async fn ask(&self, path: &str) -> (u16, String) {
        let response = http1(self.plain().await, path).await;
        (response.status().as_u16(), text(response).await)
    }

    async fn edit_secret(&self, data: Value) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM);
        let patch = Patch::Merge(json!({"data": data}));
        secrets.patch(SECRET, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn bundle(&self, name: &str, data: Value) {
        let bundle: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"networking.knative.dev/trust-bundle": "true"}},
            "data": data,
        }))
        .unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
        maps.create(&PostParams::default(), &bundle).await.unwrap();
    }

    /// Waits for its end, which is an error.
    async fn failed(self) -> String {
        let error = soon("the activator's end", self.activator).await.unwrap().unwrap_err();
        self.workers.shutdown().await;
        self.server.close();
        error.to_string()
    }

    async fn stop(self) {
        self.shutdown.cancel();
        soon("the activator's end", self.activator).await.unwrap().unwrap();
        self.workers.shutdown().await;
        self.server.close();
    }
}

trait Wire: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static> Wire for T {}

fn post(uri: &str) -> Request<Body> {
    Request::post(uri)
        .header("host", "hello.example.com")
        .header("te", "trailers")
        .header("knative-serving-namespace", "ns")
        .header("knative-serving-revision", "rev")
        .body(Body::full("body"))
        .unwrap()
}

async fn http1(stream: impl Wire, path: &str) -> Response<Incoming> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    soon("an answer", sender.send_request(post(path))).await.unwrap()
}

async fn http2(stream: impl Wire, path: &str) -> Response<Incoming> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = post(&format!("https://hello.example.com{path}"));
    soon("an answer", sender.send_request(request)).await.unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    let body = soon("the answer's end", response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}

const OF_NS: [&str; 2] = ["kn-user-ns", DATA_PLANE];

#[tokio::test]
async fn http1_requests_go_by_tls_from_end_to_end() {
    let authority = Authority::new("one");
    let world = World::serving(authority.secret()).await;
    let pod = Pod::start(false, Some(authority.pair(&OF_NS))).await;
    world.revision(false, &[&pod]).await;
    assert_eq!(world.ask("/plain").await, (200, "HTTP/1.1 /plain body".to_owned()));
    let response = http1(authority.connect(world.tls()).await.unwrap(), "/a").await;
    assert_eq!(text(response).await, "HTTP/1.1 /a body");
    let response = http2(authority.connect(world.tls()).await.unwrap(), "/b").await;
    assert_eq!(text(response).await, "HTTP/1.1 /b body");
    // Its own probes are answered there, too.
    let stream = authority.connect(world.tls()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let probe = Request::get("/healthz")
        .header("host", "a")
        .header("k-network-probe", "probe")
        .header("k-network-hash", "abc")
        .body(Body::empty())
        .unwrap();
    let answer = soon("an answer", sender.send_request(probe)).await.unwrap();
    assert_eq!(answer.headers()["k-network-hash"], "abc");
    world.stop().await;
}

#[tokio::test]
async fn http2_requests_keep_their_trailers() {
    let authority = Authority::new("one");
    let world = World::serving(authority.secret()).await;
    let pod = Pod::start(true, Some(authority.pair(&OF_NS))).await;
    world.revision(true, &[&pod]).await;
    for round in 0..10 {
        let stream = authority.connect(world.tls()).await.unwrap();
        let response = http2(stream, "/echo.Echo/Talk").await;
        assert_eq!(response.status(), 200, "{round}");
        let collected = soon("the answer's end", response.into_body().collect()).await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "HTTP/2.0 /echo.Echo/Talk body");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_pod_of_another_namespace_is_told_nothing() {
    let authority = Authority::new("one");
    let world = World::serving(authority.secret()).await;
    let pod = Pod::start(false, Some(authority.pair(&["kn-user-other", DATA_PLANE]))).await;
    world.revision(false, &[&pod]).await;
    let refused =
        "san \"kn-user-ns\" does not have a matching name in [kn-user-other data-plane.knative.dev]\n";
    assert_eq!(world.ask("/").await, (502, refused.to_owned()));
    // Nothing but its certificate was wrong.
    put(&pod.files, &authority.pair(&OF_NS));
    eventually("the right certificate", async || (world.ask("/").await.0 == 200).then_some(())).await;
    world.stop().await;
}

#[tokio::test]
async fn a_pod_that_speaks_no_tls_is_not_tried_for_ever() {
    let authority = Authority::new("one");
    let world = World::serving(authority.secret()).await;
    let (one, two) = (Pod::start(false, None).await, Pod::start(false, None).await);
    world.revision(false, &[&one, &two]).await;
    let (status, answer) = world.ask("/").await;
    assert_eq!(status, 502, "{answer}");
    assert!(answer.ends_with(":8112: connect: connection refused\n"), "{answer}");
    world.stop().await;
}

#[tokio::test]
async fn certificate_and_authorities_follow_the_api() {
    let (one, two, three) = (Authority::new("one"), Authority::new("two"), Authority::new("three"));
    let world = World::serving(one.secret()).await;
    let pod = Pod::start(false, Some(one.pair(&OF_NS))).await;
    world.revision(false, &[&pod]).await;
    assert_eq!(world.ask("/").await.0, 200);
    let stream = one.connect(world.tls()).await.unwrap();
    let (mut open, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);

    // Another certificate for the activator; the authority of the pods, among others, in the same text as before.
    let (certificate, key) = two.pair(&[ROUTING]);
    let authorities = format!("{}\n-----BEGIN CERTIFICATE-----\nAAAA\n{}", two.pem, one.pem);
    world.edit_secret(secret(&certificate, &key, &authorities)).await;
    eventually("the new certificate", async || two.connect(world.tls()).await.ok()).await;
    assert!(one.connect(world.tls()).await.is_err());
    let response = soon("an answer", open.send_request(post("/open"))).await.unwrap();
    assert_eq!(text(response).await, "HTTP/1.1 /open body");
    assert_eq!(world.ask("/").await.0, 200);

    // One that cannot be used is not.
    world.edit_secret(json!({"tls.crt": ByteString(b"garbage".to_vec())})).await;
    world.bundle("garbage", json!({"a": "garbage", "b": "-----BEGIN CERTIFICATE-----\nAAAA"})).await;
    // Whatever comes later has been seen by then.
    let stranger = Pod::start(false, Some(three.pair(&OF_NS))).await;
    let endpoints: Api<Endpoints> = Api::namespaced(world.client.clone(), "ns");
    let moved = json!({"subsets": [
        {"addresses": [{"ip": stranger.ip}], "ports": [{"name": "http", "port": 8012}]},
    ]});
    endpoints.patch("rev-private", &PatchParams::default(), &Patch::Merge(&moved)).await.unwrap();
    eventually("the stranger", async || {
        let (status, answer) = world.ask("/").await;
        (status == 502 && answer.contains("invalid peer certificate")).then_some(())
    })
    .await;
    world.bundle("more", json!({"any": format!("{}{}", one.pem, three.pem)})).await;
    eventually("trust in the stranger", async || (world.ask("/").await.0 == 200).then_some(())).await;
    assert!(two.connect(world.tls()).await.is_ok());

    // A good one is taken again.
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), SYSTEM);
    world.edit_secret(three.secret()).await;
    eventually("the last certificate", async || three.connect(world.tls()).await.ok()).await;
    maps.delete("more", &kube::api::DeleteParams::default()).await.unwrap();
    assert_eq!(world.ask("/").await.0, 200);
    world.stop().await;
}

#[tokio::test]
async fn what_cannot_be_served_with_is_fatal() {
    let world = World::start(None, |_| {}).await;
    let missing =
        "system-internal-tls is enabled, but Secret knative-serving/routing-serving-certs is missing";
    assert_eq!(world.failed().await, missing);

    let authority = Authority::new("one");
    let (certificate, _) = authority.pair(&[ROUTING]);
    let world = World::start(Some(secret(&certificate, "", &authority.pem)), |_| {}).await;
    let said = world.failed().await;
    assert!(said.contains("routing-serving-certs cannot be used: private key"), "{said}");

    let wrong = Settings::from_env("ACTIVATOR_", |name| name.ends_with("MIN_VERSION").then_some("1.1"));
    let world = World::start(Some(authority.secret()), |config| config.tls_settings = wrong).await;
    assert_eq!(world.failed().await, "invalid ACTIVATOR_TLS_MIN_VERSION \"1.1\": must be 1.2 or 1.3");
}

#[tokio::test]
async fn where_there_is_no_tls_requests_go_in_clear_text() {
    let world = World::start(None, |config| config.tls_port = None).await;
    eventually("the activator", async || TcpStream::connect((world.ip, 8012)).await.ok()).await;
    let pod = Pod::start(false, None).await;
    world.revision(false, &[&pod]).await;
    assert_eq!(world.ask("/").await.0, 200);
    assert!(TcpStream::connect(world.tls()).await.is_err());
    world.stop().await;
}
