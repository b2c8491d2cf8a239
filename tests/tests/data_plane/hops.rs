//! Activator → queue-proxy → app.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ember_api::serving::v1::Revision;
use ember_apiserver::ApiServer;
use ember_dataplane::io::{Io, Listener, Network, Stream, SystemClock, SystemNetwork};
use ember_dataplane::stat::{Stat, WireStatMessages};
use ember_dataplane::worker::Workers;
use ember_tests::soon;
use futures::StreamExt as _;
use futures::future::BoxFuture;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, oneshot, watch};
use tokio::task::JoinHandle;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

/// What the gateway says about the revision.
pub(crate) const REVISION: [(&str, &str); 2] =
    [("knative-serving-namespace", "ns"), ("knative-serving-revision", "rev")];
/// The host that clients ask for.
pub(crate) const HOST: &str = "hello.example.com";

/// The machine's network; tells where the activator listens.
struct Told(parking_lot::Mutex<Option<oneshot::Sender<SocketAddr>>>);

impl Network for Told {
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, std::io::Result<Listener>> {
        Box::pin(async move {
            let listener = SystemNetwork.listen(addr).await?;
            if let Some(tell) = self.0.lock().take() {
                tell.send(listener.local_addr()?).ok();
            }
            Ok(listener)
        })
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, std::io::Result<Stream>> {
        SystemNetwork.connect(host, port)
    }
}

/// Passes on what the activator reports: average and count.
async fn autoscaler(listener: TcpListener, reports: mpsc::UnboundedSender<(f64, f64)>) {
    let (stream, _) = listener.accept().await.unwrap();
    let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
    while let Some(Ok(message)) = socket.next().await {
        let Message::Binary(bytes) = message else { continue };
        for message in WireStatMessages::from_bytes(&bytes).unwrap().messages {
            assert_eq!((message.namespace.as_str(), message.name.as_str()), ("ns", "rev"));
            let stat = message.stat.unwrap();
            reports.send((stat.average_concurrent_requests, stat.request_count)).ok();
        }
    }
}

pub(crate) struct Hops {
    /// Where the activator listens.
    pub(crate) addr: SocketAddr,
    /// Averages and counts it reports.
    pub(crate) reports: mpsc::UnboundedReceiver<(f64, f64)>,
    pod: IpAddr,
    data_port: u16,
    client: Client,
    shutdown: CancellationToken,
    activator: JoinHandle<Result<(), ember_activator::Error>>,
    sidecar: JoinHandle<Result<(), ember_queue_proxy::Error>>,
    workers: Workers,
    server: ApiServer,
    _data: tempfile::TempDir,
}

impl Hops {
    /// A revision `rev` of one pod whose app listens on `app`, and which the activator has not heard of yet.
    pub(crate) async fn start(app: u16, h2c: bool) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ApiServer::open(ember_apiserver::Config::new(data.path())).unwrap();
        let client = server.client();
        for name in ["ns", "knative-serving"] {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        }
        let network: ConfigMap =
            serde_json::from_value(json!({"metadata": {"name": "config-network"}, "data": {}})).unwrap();
        let maps = Api::namespaced(client.clone(), "knative-serving");
        maps.create(&PostParams::default(), &network).await.unwrap();
        let ports = json!([{"name": if h2c { "h2c" } else { "http1" }, "containerPort": 8080}]);
        let revision: Revision = serde_json::from_value(json!({
            "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": {"name": "rev"},
            "spec": {"timeoutSeconds": 60, "containerConcurrency": 10, "containers": [
                {"name": "user-container", "image": "dev.local/host", "ports": ports}]},
        }))
        .unwrap();
        Api::namespaced(client.clone(), "ns").create(&PostParams::default(), &revision).await.unwrap();

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let config = ember_activator::Config {
            bind: [127, 0, 0, 1].into(),
            ports: vec![0],
            autoscaler: ("127.0.0.1".to_owned(), listener.local_addr().unwrap().port()),
            first_reconnect: Duration::from_millis(5),
            // None but those made at once.
            report_interval: Duration::from_secs(3600),
            drain_settle: Duration::ZERO,
            drain_timeout: Duration::from_secs(5),
            ..ember_activator::Config::default()
        };
        let (send, reports) = mpsc::unbounded_channel();
        tokio::spawn(autoscaler(listener, send));
        let (tell, told) = oneshot::channel();
        let network = Arc::new(Told(parking_lot::Mutex::new(Some(tell))));
        let io = Io { clock: Arc::new(SystemClock), network };
        let (workers, shutdown) = (Workers::start(2).unwrap(), CancellationToken::new());
        let activator =
            tokio::spawn(ember_activator::run(config, io, client.clone(), workers.clone(), shutdown.clone()));
        let addr = soon("the activator to listen", told).await.unwrap();

        let data_port = if h2c { 8013 } else { 8012 };
        let (pod, sidecar) = sidecar(app, data_port, shutdown.clone());
        let hops = Self {
            addr,
            reports,
            pod,
            data_port,
            client,
            shutdown,
            activator,
            sidecar,
            workers,
            server,
            _data: data,
        };
        soon("the link to the autoscaler", async {
            while !get(hops.addr, "/", "user-agent: kube-probe/1.34\r\n").await.starts_with(b"HTTP/1.1 200") {
                tokio::time::sleep(Duration::from_millis(2)).await;
            }
        })
        .await;
        hops
    }

    /// The pod appears: not ready yet, by Kubernetes' word.
    pub(crate) async fn publish(&self) {
        let revisions: Api<Revision> = Api::namespaced(self.client.clone(), "ns");
        let uid = revisions.get("rev").await.unwrap().uid().unwrap();
        let name = if self.data_port == 8013 { "http2" } else { "http" };
        let endpoints: Endpoints = serde_json::from_value(json!({
            "metadata": {"name": "rev-private", "labels": {
                "serving.knative.dev/revision": "rev",
                "serving.knative.dev/revisionUID": uid,
                "networking.internal.knative.dev/serviceType": "Private",
            }},
            "subsets": [{
                "notReadyAddresses": [{"ip": self.pod}],
                "ports": [{"name": "http-autometric", "port": 9090}, {"name": name, "port": self.data_port}],
            }],
        }))
        .unwrap();
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), "ns");
        api.create(&PostParams::default(), &endpoints).await.unwrap();
    }

    /// The pod's statistics, as the autoscaler reads them.
    pub(crate) async fn scrape(&self) -> Stat {
        let answer = get((self.pod, 9090).into(), "/metrics", "accept: application/protobuf\r\n").await;
        let at = answer.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&answer[..at]).into_owned();
        assert!(head.contains("content-type: application/protobuf\r\n"), "{head}");
        Stat::from_bytes(&answer[at..]).unwrap()
    }

    pub(crate) async fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(self.addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    }

    /// SIGTERM for both: they end by themselves.
    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        soon("the activator to end", self.activator).await.unwrap().unwrap();
        soon("the sidecar to end", self.sidecar).await.unwrap().unwrap();
        self.workers.shutdown().await;
        self.server.close();
    }
}

/// A sidecar on an address of its own.
fn sidecar(
    app: u16,
    data_port: u16,
    shutdown: CancellationToken,
) -> (IpAddr, JoinHandle<Result<(), ember_queue_proxy::Error>>) {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (process, test) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    let pod = Ipv4Addr::new(127, 20 + (process >> 8 & 0x3f) as u8, process as u8, 1 + test as u8);
    let probe = json!({"tcpSocket": {"port": app, "host": "127.0.0.1"}, "successThreshold": 1});
    let env = [
        ("CONTAINER_CONCURRENCY", "10".to_owned()),
        ("QUEUE_SERVING_PORT", data_port.to_string()),
        ("QUEUE_SERVING_TLS_PORT", "8112".to_owned()),
        ("USER_PORT", app.to_string()),
        ("REVISION_TIMEOUT_SECONDS", "60".to_owned()),
        ("SERVING_READINESS_PROBE", probe.to_string()),
        ("SERVING_LOGGING_CONFIG", String::new()),
        ("SERVING_LOGGING_LEVEL", String::new()),
        ("SERVING_NAMESPACE", "ns".to_owned()),
        ("SERVING_CONFIGURATION", "rev".to_owned()),
        ("SERVING_REVISION", "rev".to_owned()),
        ("SERVING_POD", "rev-1".to_owned()),
        ("SERVING_POD_IP", pod.to_string()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value));
    let config = ember_queue_proxy::Config {
        bind: pod.into(),
        stat_period: Duration::from_millis(20),
        drain_quiet_period: Duration::ZERO,
        ..ember_queue_proxy::Config::from_env(env).unwrap()
    };
    let (readiness, _) = watch::channel(false);
    let running = tokio::spawn(ember_queue_proxy::run(config, Io::system(), readiness, shutdown));
    (pod.into(), running)
}

/// One GET in bytes.
async fn get(addr: SocketAddr, path: &str, headers: &str) -> Vec<u8> {
    let mut stream = TcpStream::connect(addr).await.unwrap();
    let request = format!("GET {path} HTTP/1.1\r\nhost: a\r\nconnection: close\r\n{headers}\r\n");
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    stream.read_to_end(&mut answer).await.unwrap();
    answer
}
