//! An activator with TLS, queue-proxies with certificates, and the API that tells of them.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ember_activator::{Config, Error};
use ember_apiserver::ApiServer;
use ember_dataplane::body::Body;
use ember_dataplane::io::Io;
use ember_dataplane::worker::Workers;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Secret};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::world::{eventually, soon};

pub(super) const SYSTEM: &str = "knative-serving";

const SECRET: &str = "routing-serving-certs";

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
pub(super) struct Pod {
    pub(super) ip: IpAddr,
    pub(super) files: tempfile::TempDir,
    running: JoinHandle<Result<(), ember_queue_proxy::Error>>,
}

impl Pod {
    pub(super) async fn start(multiplexed: bool, pair: Option<(String, String)>) -> Self {
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

pub(super) fn put(files: &tempfile::TempDir, (certificate, key): &(String, String)) {
    std::fs::write(files.path().join("tls.crt"), certificate).unwrap();
    std::fs::write(files.path().join("tls.key"), key).unwrap();
}

pub(super) struct World {
    pub(super) client: Client,
    pub(super) ip: IpAddr,
    workers: Workers,
    shutdown: CancellationToken,
    activator: JoinHandle<Result<(), Error>>,
    server: ApiServer,
    _data: tempfile::TempDir,
}

impl World {
    /// An activator with TLS switched on, and that Secret.
    pub(super) async fn start(secret: Option<Value>, adapt: impl FnOnce(&mut Config)) -> Self {
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
    pub(super) async fn serving(secret: Value) -> Self {
        let world = Self::start(Some(secret), |_| {}).await;
        eventually("the activator", async || TcpStream::connect(world.tls()).await.ok()).await;
        world
    }

    pub(super) fn tls(&self) -> SocketAddr {
        (self.ip, 8112).into()
    }

    pub(super) async fn plain(&self) -> TcpStream {
        TcpStream::connect((self.ip, 8012)).await.unwrap()
    }

    /// Makes a revision `rev`; `pod` is ready by Kubernetes' word.
    pub(super) async fn revision(&self, multiplexed: bool, pods: &[&Pod]) {
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
    pub(super) async fn ask(&self, path: &str) -> (u16, String) {
        let response = http1(self.plain().await, path).await;
        (response.status().as_u16(), text(response).await)
    }

    pub(super) async fn edit_secret(&self, data: Value) {
        let secrets: Api<Secret> = Api::namespaced(self.client.clone(), SYSTEM);
        let patch = Patch::Merge(json!({"data": data}));
        secrets.patch(SECRET, &PatchParams::default(), &patch).await.unwrap();
    }

    pub(super) async fn bundle(&self, name: &str, data: Value) {
        let bundle: ConfigMap = serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"networking.knative.dev/trust-bundle": "true"}},
            "data": data,
        }))
        .unwrap();
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), SYSTEM);
        maps.create(&PostParams::default(), &bundle).await.unwrap();
    }

    /// Waits for its end, which is an error.
    pub(super) async fn failed(self) -> String {
        let error = soon("the activator's end", self.activator).await.unwrap().unwrap_err();
        self.workers.shutdown().await;
        self.server.close();
        error.to_string()
    }

    pub(super) async fn stop(self) {
        self.shutdown.cancel();
        soon("the activator's end", self.activator).await.unwrap().unwrap();
        self.workers.shutdown().await;
        self.server.close();
    }
}

pub(super) trait Wire: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static> Wire for T {}

pub(super) fn post(uri: &str) -> Request<Body> {
    Request::post(uri)
        .header("host", "hello.example.com")
        .header("te", "trailers")
        .header("knative-serving-namespace", "ns")
        .header("knative-serving-revision", "rev")
        .body(Body::full("body"))
        .unwrap()
}

pub(super) async fn http1(stream: impl Wire, path: &str) -> Response<Incoming> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    soon("an answer", sender.send_request(post(path))).await.unwrap()
}

pub(super) async fn http2(stream: impl Wire, path: &str) -> Response<Incoming> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = post(&format!("https://hello.example.com{path}"));
    soon("an answer", sender.send_request(request)).await.unwrap()
}

pub(super) async fn text(response: Response<Incoming>) -> String {
    let body = soon("the answer's end", response.into_body().collect()).await.unwrap().to_bytes();
    String::from_utf8(body.to_vec()).unwrap()
}
