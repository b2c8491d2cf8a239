//! What the tests of the activator share: a running one over real sockets, against an API server. What others do, the
//! test does: the autoscaler's end of the websocket, the pods' queue-proxies, the Endpoints.

#![allow(dead_code, reason = "each test program uses a part")]
#![allow(unreachable_pub, missing_docs, reason = "for tests only")]

mod client;
mod pod;

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ember_activator::Config;
use ember_api::serving::v1::Revision;
use ember_apiserver::ApiServer;
use ember_dataplane::io::{Io, Listener, Network, Stream, SystemClock, SystemNetwork};
use ember_dataplane::stat::{WireStatMessage, WireStatMessages};
use ember_dataplane::worker::Workers;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::StatusCode;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Service};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::mpsc;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;

pub use client::*;
pub use pod::*;

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

/// Where metrics are served: another address, so that they are told from requests.
const METRICS: [u8; 4] = [127, 0, 0, 2];

/// The machine's network; remembers where the activator listens, by the address it asked for.
#[derive(Default)]
pub struct TestNetwork(Mutex<HashMap<IpAddr, Vec<SocketAddr>>>);

impl TestNetwork {
    /// Where the activator listens on that address, in the order of its ports.
    pub fn listening(&self, ip: IpAddr) -> Vec<SocketAddr> {
        self.0.lock().get(&ip).cloned().unwrap_or_default()
    }
}

impl Network for TestNetwork {
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, std::io::Result<Listener>> {
        Box::pin(async move {
            let listener = SystemNetwork.listen(addr).await?;
            self.0.lock().entry(addr.ip()).or_default().push(listener.local_addr()?);
            Ok(listener)
        })
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, std::io::Result<Stream>> {
        SystemNetwork.connect(host, port)
    }
}

/// The autoscaler's end: passes on what is reported.
pub async fn autoscaler(listener: TcpListener, reports: mpsc::UnboundedSender<WireStatMessage>) {
    // They end with this future.
    let mut links = JoinSet::new();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let reports = reports.clone();
        links.spawn(async move {
            let mut socket = tokio_tungstenite::accept_async(stream).await.unwrap();
            while let Some(Ok(message)) = socket.next().await {
                if let Message::Binary(bytes) = message {
                    for message in WireStatMessages::decode(bytes).unwrap().messages {
                        let _ = reports.send(message);
                    }
                }
            }
        });
    }
}

pub struct World {
    pub client: Client,
    /// The first of the ports that carry requests.
    pub addr: SocketAddr,
    pub network: Arc<TestNetwork>,
    pub metrics: SocketAddr,
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
    pub async fn start(spec: Value, adapt: impl FnOnce(&mut Config)) -> Self {
        Self::start_in(&json!({}), spec, adapt).await
    }

    /// The same where `config-network` says that.
    pub async fn start_in(network: &Value, mut spec: Value, adapt: impl FnOnce(&mut Config)) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ApiServer::open(ember_apiserver::Config::new(data.path())).unwrap();
        let client = server.client();
        for name in ["ns", "knative-serving"] {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
            Api::all(client.clone()).create(&PostParams::default(), &namespace).await.unwrap();
        }
        let observability = json!({
            "metrics-protocol": "prometheus", "activator-server-timing": "true",
        });
        for (name, data) in [("config-network", network), ("config-observability", &observability)] {
            let map: ConfigMap =
                serde_json::from_value(json!({"metadata": {"name": name}, "data": data})).unwrap();
            let maps = Api::namespaced(client.clone(), "knative-serving");
            maps.create(&PostParams::default(), &map).await.unwrap();
        }
        spec["containers"] = json!([{"name": "user-container", "image": "dev.local/host"}]);
        create_revision(&client, &spec).await;

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let autoscaler_addr = listener.local_addr().unwrap();
        let mut config = Config {
            bind: [127, 0, 0, 1].into(),
            ports: vec![0],
            metrics: (METRICS, 0).into(),
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
        let listening = |ip: IpAddr| {
            let network = Arc::clone(&network);
            async move {
                eventually("the activator to listen", async || network.listening(ip).first().copied()).await
            }
        };
        let addr = listening([127, 0, 0, 1].into()).await;
        let metrics = listening(METRICS.into()).await;
        let world = Self {
            client,
            addr,
            network,
            metrics,
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

    /// Changes a ConfigMap of the system namespace.
    pub async fn configure(&self, name: &str, data: &Value) {
        let maps: Api<ConfigMap> = Api::namespaced(self.client.clone(), "knative-serving");
        let patch = Patch::Merge(json!({"data": data}));
        maps.patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// The revision's public Endpoints: that these addresses answer for it, on a port of that name.
    pub async fn public(&self, ips: &[&str], port_name: &str) {
        let addresses: Vec<Value> = ips.iter().map(|ip| json!({"ip": ip})).collect();
        let object = json!({
            "apiVersion": "v1", "kind": "Endpoints",
            "metadata": {"name": "rev", "labels": {
                "serving.knative.dev/revision": "rev",
                "networking.internal.knative.dev/serviceType": "Public",
            }},
            "subsets": [{"addresses": addresses, "ports": [{"name": port_name, "port": 8012}]}],
        });
        let api: Api<Endpoints> = Api::namespaced(self.client.clone(), "ns");
        let object: Endpoints = serde_json::from_value(object).unwrap();
        match api.get_opt("rev").await.unwrap() {
            None => drop(api.create(&PostParams::default(), &object).await.unwrap()),
            Some(old) => {
                let mut next = object;
                next.metadata.resource_version = old.resource_version();
                api.replace("rev", &PostParams::default(), &next).await.unwrap();
            }
        }
    }

    /// The revision's private Service, with the address of what stands for it.
    pub async fn service(&self, to: SocketAddr) {
        let service: Service = serde_json::from_value(json!({
            "metadata": {"name": "rev-private", "labels": {
                "serving.knative.dev/revision": "rev",
                "networking.internal.knative.dev/serviceType": "Private",
            }},
            "spec": {"clusterIP": to.ip(), "ports": [
                {"name": "other", "port": 1}, {"name": "http", "port": to.port()},
            ]},
        }))
        .unwrap();
        Api::namespaced(self.client.clone(), "ns").create(&PostParams::default(), &service).await.unwrap();
    }

    /// What Prometheus would read.
    pub async fn scrape(&self) -> String {
        let (status, text) = exchange(self.metrics, "/metrics", &[], "").await;
        assert_eq!(status, StatusCode::OK);
        text
    }

    /// The value of the series of that name whose labels include these, if there is one.
    pub async fn sample(&self, name: &str, labels: &[&str]) -> Option<f64> {
        let text = self.scrape().await;
        let line = text.lines().find(|line| {
            line.strip_prefix(name).is_some_and(|rest| rest.starts_with('{'))
                && labels.iter().all(|label| line.contains(label))
        })?;
        Some(line.rsplit(' ').next().unwrap().parse().unwrap())
    }

    /// How many requests are queued and active, once there are figures.
    pub async fn held(&self) -> Option<(f64, f64)> {
        let revision = [r#"kn_revision_name="rev""#];
        let queued = self.sample("kn_revision_request_queued", &revision).await?;
        Some((queued, self.sample("kn_revision_request_active", &revision).await?))
    }

    /// Waits until so many requests are queued and active.
    pub async fn until_held(&self, queued: f64, active: f64) {
        eventually("the counts of queued and active requests", async || {
            (self.held().await == Some((queued, active))).then_some(())
        })
        .await;
    }

    /// Waits until a request finds no pod, which is returned.
    pub async fn until_cold(&self) -> JoinHandle<(StatusCode, String)> {
        eventually("no pod to be in use", async || {
            let request = self.spawn("/", "");
            let held = async {
                loop {
                    let queued = self.sample("kn_revision_request_queued", &[r#"kn_revision_name="rev""#]);
                    if queued.await == Some(1.0) {
                        return;
                    }
                }
            };
            let cold = tokio::select! {
                () = held => true,
                () = async { while !request.is_finished() { tokio::task::yield_now().await } } => false,
            };
            cold.then_some(request)
        })
        .await
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

pub async fn create_revision(client: &Client, spec: &Value) {
    create_revision_named(client, "rev", spec).await;
}

pub async fn create_revision_named(client: &Client, name: &str, spec: &Value) {
    let revision: Revision = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": {"name": name}, "spec": spec,
    }))
    .unwrap();
    Api::namespaced(client.clone(), "ns").create(&PostParams::default(), &revision).await.unwrap();
}
