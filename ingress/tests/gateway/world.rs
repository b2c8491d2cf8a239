//! A gateway over real sockets against an API server, and what is kept there.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ember_api::networking::v1alpha1::Ingress;
use ember_api::status::Conditioned;
use ember_apiserver::ApiServer;
use ember_dataplane::io::{Io, Listener, Network, Stream, SystemClock, SystemNetwork};
use ember_dataplane::worker::Workers;
use ember_ingress::Config;
use futures::future::BoxFuture;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Endpoints, Namespace, Service};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource};
use parking_lot::Mutex;
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::pod::Pod;

const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const HOST: &str = "hello.ns.example.com";

pub(crate) const LOCAL_HOST: &str = "hello.ns.svc.cluster.local";

pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
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

/// One client connection.
pub(crate) struct Connection(pub(crate) hyper::client::conn::http1::SendRequest<Full<Bytes>>);

pub(crate) struct Answer {
    pub(crate) status: StatusCode,
    pub(crate) text: String,
}

impl Connection {
    pub(crate) async fn open(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        let (sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Self(sender)
    }

    pub(crate) async fn get(&mut self, host: &str, headers: &[(&str, &str)]) -> Answer {
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

pub(crate) struct World {
    pub(crate) client: Client,
    pub(crate) external: SocketAddr,
    pub(crate) internal: SocketAddr,
    shutdown: CancellationToken,
    gateway: JoinHandle<Result<(), ember_ingress::Error>>,
    workers: Workers,
    server: ApiServer,
    _data: tempfile::TempDir,
}

impl World {
    pub(crate) async fn start() -> Self {
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
    pub(crate) async fn put<K>(&self, namespace: &str, name: &str, mut object: Value) -> K
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
    pub(crate) async fn backend(&self, namespace: &str, name: &str, pods: &[&Pod]) {
        self.backend_at(namespace, name, json!({"name": "http", "port": 80, "targetPort": 8012}), pods).await;
    }

    /// A Service with that port, and the pods behind it.
    pub(crate) async fn backend_at(&self, namespace: &str, name: &str, port: Value, pods: &[&Pod]) {
        let port_name = port["name"].clone();
        let service = json!({"spec": {"ports": [port]}});
        self.put::<Service>(namespace, name, service).await;
        let subset = |pod: &&Pod| json!({"addresses": [{"ip": pod.addr.ip()}], "ports": [{"name": port_name, "port": pod.addr.port()}]});
        let subsets: Vec<Value> = pods.iter().map(subset).collect();
        self.put::<Endpoints>(namespace, name, json!({"subsets": subsets})).await;
    }

    /// An Ingress, once the gateway has said that it serves it.
    pub(crate) async fn ingress(&self, name: &str, rules: Value) -> Ingress {
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

    pub(crate) async fn outside(&self) -> Connection {
        Connection::open(self.external).await
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(PATIENCE, self.gateway).await.unwrap().unwrap().unwrap();
        self.workers.shutdown().await;
        self.server.close();
    }
}

pub(crate) fn split(service: &str, percent: u32) -> Value {
    json!({
        "serviceNamespace": "ns", "serviceName": service, "servicePort": 80, "percent": percent,
        "appendHeaders": {"Knative-Serving-Revision": service, "Knative-Serving-Namespace": "ns"},
    })
}

pub(crate) fn rule(host: &str, splits: &[Value]) -> Value {
    json!({"hosts": [host], "visibility": "ExternalIP", "http": {"paths": [{"splits": splits}]}})
}
