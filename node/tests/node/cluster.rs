//! A node with the embedded API server, the app its pods run, and the sidecar beside it.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use ember_apiserver::ApiServer;
use ember_node::address::Block;
use ember_node::backoff::BackOffConfig;
use ember_node::{Config, LogOptions, Logs, Sidecar, SidecarHandle, SidecarSpec};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Event, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// What `command: ["ember", TEST_APP]` runs: an app that answers on `PORT`.
pub(crate) const TEST_APP: &str = "test-app";

pub(crate) fn test_app() {
    let port: u16 = std::env::var("PORT").expect("PORT").parse().expect("a port");
    let listener = std::net::TcpListener::bind(("127.0.0.1", port)).expect("the port is free");
    println!("pid {} port {port}", std::process::id());
    for stream in listener.incoming().flatten() {
        use std::io::{Read, Write};
        let mut stream = stream;
        let mut buffer = [0; 1024];
        let _ = stream.read(&mut buffer);
        let status =
            if std::path::Path::new(&std::env::var("SICK").unwrap_or_default()).exists() { 500 } else { 200 };
        let _ = stream.write_all(
            format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").as_bytes(),
        );
    }
}

/// Ready when the app's port accepts; drains until `release`.
struct TestSidecar {
    release: CancellationToken,
    started: watch::Sender<Vec<SidecarSpec>>,
}

impl Sidecar for TestSidecar {
    fn start(&self, spec: SidecarSpec) -> Result<SidecarHandle, String> {
        let port: u16 = spec
            .env
            .iter()
            .find(|(n, _)| n == "USER_PORT")
            .ok_or("no USER_PORT")?
            .1
            .parse()
            .map_err(|_| "USER_PORT")?;
        let ip = spec.pod_ip;
        self.started.send_modify(|started| started.push(spec));
        let (sender, readiness) = watch::channel(false);
        let (drain, kill) = (CancellationToken::new(), CancellationToken::new());
        let (draining, killed, release) = (drain.clone(), kill.clone(), self.release.clone());
        let task = tokio::spawn(async move {
            let _own_address =
                std::net::TcpListener::bind(SocketAddr::new(ip, 8012)).map_err(|e| e.to_string())?;
            let ready = async {
                while TcpStream::connect(("127.0.0.1", port)).await.is_err() {
                    tokio::time::sleep(Duration::from_millis(1)).await;
                }
                sender.send_replace(true);
                std::future::pending::<()>().await;
            };
            tokio::select! { () = draining.cancelled() => {}, () = ready => {} }
            sender.send_replace(false);
            tokio::select! { () = release.cancelled() => Ok(()), () = killed.cancelled() => Err("killed".to_owned()) }
        });
        let stopped = async { task.await.map_err(|e| e.to_string())? }.boxed();
        Ok(SidecarHandle { readiness, drain, kill, stopped })
    }
}

pub(crate) struct Cluster {
    pub(crate) client: Client,
    logs: Logs,
    pub(crate) block: Block,
    pub(crate) release: CancellationToken,
    pub(crate) sidecars: watch::Receiver<Vec<SidecarSpec>>,
    shutdown: CancellationToken,
    node: tokio::task::JoinHandle<Result<(), ember_node::Error>>,
    server: ApiServer,
    _claim: ember_node::address::BlockClaim,
    _data: tempfile::TempDir,
}

impl Cluster {
    pub(crate) async fn start() -> Self {
        let released = CancellationToken::new();
        released.cancel();
        Self::start_with(released).await
    }

    /// With sidecars that drain until `release`.
    pub(crate) async fn start_with(release: CancellationToken) -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ApiServer::open(ember_apiserver::Config::new(data.path())).unwrap();
        let client = server.client();
        let claim = Block::claim().unwrap();
        let mut config = Config::new(claim.block()).unwrap();
        config.reserved = vec![claim.block().address(1)];
        config.back_off = BackOffConfig { initial: Duration::from_millis(100), ..BackOffConfig::default() };
        config.shutdown_grace = Duration::from_secs(1);
        config.volumes = data.path().join("pods");
        let logs = config.logs.clone();
        let shutdown = CancellationToken::new();
        let started = watch::Sender::new(Vec::new());
        let sidecars = started.subscribe();
        let sidecar = TestSidecar { release: release.clone(), started };
        let node = tokio::spawn(ember_node::run(config, client.clone(), Arc::new(sidecar), shutdown.clone()));
        let block = claim.block();
        Self { client, logs, block, release, sidecars, shutdown, node, server, _claim: claim, _data: data }
    }

    pub(crate) fn api<K>(&self) -> Api<K>
    where
        K: kube::Resource<Scope = kube::core::NamespaceResourceScope, DynamicType = ()>,
    {
        Api::namespaced(self.client.clone(), "default")
    }

    pub(crate) async fn deploy(&self, name: &str, replicas: i32, app: Value) -> Deployment {
        let deployment = deployment(name, replicas, app);
        self.api().create(&PostParams::default(), &deployment).await.unwrap()
    }

    pub(crate) async fn scale(&self, name: &str, replicas: i32) {
        let patch = Patch::Merge(json!({"spec": {"replicas": replicas}}));
        self.api::<Deployment>().patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    /// The Deployment's pods, when `wanted` says yes.
    pub(crate) async fn pods(&self, what: &str, wanted: impl Fn(&[Pod]) -> bool) -> Vec<Pod> {
        eventually(what, async || {
            let pods = self.api::<Pod>().list(&Default::default()).await.unwrap().items;
            wanted(&pods).then_some(pods)
        })
        .await
    }

    /// The condition's status and reason, when the reason is `reason`.
    pub(crate) async fn condition(&self, name: &str, kind: &str, reason: &str) -> String {
        eventually(reason, async || {
            let status = self.api::<Deployment>().get(name).await.unwrap().status?;
            let found = status.conditions?.into_iter().find(|c| c.type_ == kind)?;
            (found.reason.as_deref() == Some(reason)).then_some(found.status)
        })
        .await
    }

    /// The first Event with this reason whose message has `part`, and which `wanted` likes.
    pub(crate) async fn event(&self, reason: &str, part: &str, wanted: impl Fn(&Event) -> bool) -> Event {
        eventually(part, async || {
            let events = self.api::<Event>().list(&Default::default()).await.unwrap().items;
            let tells = |event: &Event| event.message.as_ref().is_some_and(|text| text.contains(part));
            events.into_iter().find(|e| e.reason.as_deref() == Some(reason) && tells(e) && wanted(e))
        })
        .await
    }

    /// The pid of the test app in a pod, once it has told it.
    pub(crate) async fn pid(&self, pod: &Pod) -> i32 {
        let name = pod.metadata.name.as_deref().unwrap();
        let options = LogOptions { follow: true, ..LogOptions::default() };
        let mut lines = Box::pin(self.logs.get("default", name, "user-container", options).unwrap());
        let line = String::from_utf8(lines.next().await.unwrap().to_vec()).unwrap();
        line.split_ascii_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub(crate) async fn stop(self) {
        self.shutdown.cancel();
        self.node.await.unwrap().unwrap();
        self.server.close();
    }
}

pub(crate) fn deployment(name: &str, replicas: i32, app: Value) -> Deployment {
    let mut container = json!({
        "name": "user-container", "image": "dev.local/host@sha256:0000", "command": ["ember"], "args": [TEST_APP],
        "ports": [{"name": "user-port", "containerPort": 8080}],
        "env": [{"name": "PORT", "value": "8080"}],
        "terminationMessagePolicy": "FallbackToLogsOnError",
        "lifecycle": {"preStop": {"httpGet": {"path": "/wait-for-drain", "port": 8022}}}
    });
    for (key, value) in app.as_object().unwrap() {
        container[key] = value.clone();
    }
    serde_json::from_value(json!({
        "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
        "spec": {
            "replicas": replicas, "selector": {"matchLabels": {"app": name}}, "progressDeadlineSeconds": 1,
            "strategy": {"type": "RollingUpdate", "rollingUpdate": {"maxUnavailable": 0}},
            "template": {"metadata": {"labels": {"app": name}}, "spec": {
                "terminationGracePeriodSeconds": 10,
                "containers": [container, {
                    "name": "queue-proxy", "image": "queue",
                    "ports": [{"name": "http-autometric", "containerPort": 9090}, {"name": "queue-port", "containerPort": 8012}],
                    "env": [
                        {"name": "USER_PORT", "value": "8080"},
                        {"name": "SERVING_POD", "valueFrom": {"fieldRef": {"fieldPath": "metadata.name"}}},
                        {"name": "SERVING_POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}}
                    ]
                }]
            }}
        }
    }))
    .unwrap()
}

pub(crate) async fn eventually<T>(what: &str, mut attempt: impl AsyncFnMut() -> Option<T>) -> T {
    let until = Instant::now() + Duration::from_secs(15);
    loop {
        if let Some(value) = attempt().await {
            return value;
        }
        assert!(Instant::now() < until, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

pub(crate) fn app_status(pods: &[Pod]) -> Option<Value> {
    let statuses = pods.first()?.status.as_ref()?.container_statuses.as_ref()?;
    let found = statuses.iter().find(|c| c.name == "user-container")?;
    Some(serde_json::to_value(found).unwrap())
}
