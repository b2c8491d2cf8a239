//! The node with the embedded API server: what Deployments, Services and owners lead to.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::{Duration, Instant};

use ember_apiserver::ApiServer;
use ember_node::address::Block;
use ember_node::backoff::BackOffConfig;
use ember_node::{Config, LogOptions, Logs, Sidecar, SidecarHandle, SidecarSpec};
use futures::{FutureExt, StreamExt};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Pod, Service};
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, PropagationPolicy};
use kube::{Api, Client};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::processes::gone;

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
    block: Block,
    release: CancellationToken,
    sidecars: watch::Receiver<Vec<SidecarSpec>>,
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
    async fn start_with(release: CancellationToken) -> Self {
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

    async fn deploy(&self, name: &str, replicas: i32, app: Value) -> Deployment {
        let deployment = deployment(name, replicas, app);
        self.api().create(&PostParams::default(), &deployment).await.unwrap()
    }

    async fn scale(&self, name: &str, replicas: i32) {
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
    async fn condition(&self, name: &str, kind: &str, reason: &str) -> String {
        eventually(reason, async || {
            let status = self.api::<Deployment>().get(name).await.unwrap().status?;
            let found = status.conditions?.into_iter().find(|c| c.type_ == kind)?;
            (found.reason.as_deref() == Some(reason)).then_some(found.status)
        })
        .await
    }

    /// The pid of the test app in a pod, once it has told it.
    async fn pid(&self, pod: &Pod) -> i32 {
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

fn service(name: &str) -> Service {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"private": "yes"}},
        "spec": {"selector": {"app": name}, "ports": [
            {"name": "http", "port": 80, "targetPort": 8012},
            {"name": "http-autometric", "port": 9090, "targetPort": "http-autometric"}
        ]}
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

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|s| s.conditions.as_ref());
    conditions.into_iter().flatten().any(|c| c.type_ == "Ready" && c.status == "True")
}

pub(crate) fn app_status(pods: &[Pod]) -> Option<Value> {
    let statuses = pods.first()?.status.as_ref()?.container_statuses.as_ref()?;
    let found = statuses.iter().find(|c| c.name == "user-container")?;
    Some(serde_json::to_value(found).unwrap())
}

fn ips(endpoints: &Endpoints, ready: bool) -> Vec<String> {
    let subsets = endpoints.subsets.iter().flatten();
    let lists =
        subsets.filter_map(|s| if ready { s.addresses.as_ref() } else { s.not_ready_addresses.as_ref() });
    lists.flatten().map(|a| a.ip.clone()).collect()
}

pub(crate) async fn a_deployment_becomes_ready_endpoints_and_goes() {
    let cluster = Cluster::start().await;
    cluster.api().create(&PostParams::default(), &service("hello")).await.unwrap();
    cluster.deploy("hello", 0, json!({})).await;
    cluster.condition("hello", "Progressing", "NewReplicaSetAvailable").await;
    let began = Instant::now();
    cluster.scale("hello", 2).await;
    let pods = cluster.pods("two ready pods", |pods| pods.len() == 2 && pods.iter().all(is_ready)).await;
    println!("scale to 2 → ready: {:?}", began.elapsed());
    let endpoints = eventually("endpoints", async || {
        let endpoints = cluster.api::<Endpoints>().get("hello").await.ok()?;
        (ips(&endpoints, true).len() == 2).then_some(endpoints)
    })
    .await;
    assert_eq!(endpoints.metadata.labels.as_ref().unwrap()["private"], "yes");
    let mut addresses: Vec<String> =
        pods.iter().map(|p| p.status.as_ref().unwrap().pod_ip.clone().unwrap()).collect();
    addresses.sort();
    assert_eq!(ips(&endpoints, true), addresses);
    for address in &addresses {
        assert_eq!(Block::containing(address.parse().unwrap()), Some(cluster.block));
        assert_ne!(address.parse::<IpAddr>().unwrap(), IpAddr::V4(cluster.block.address(1)));
    }
    let specs = cluster.sidecars.borrow().clone();
    let env = |spec: &SidecarSpec, name: &str| spec.env.iter().find(|(n, _)| n == name).unwrap().1.clone();
    assert_ne!(env(&specs[0], "USER_PORT"), env(&specs[1], "USER_PORT"));
    assert!(
        specs
            .iter()
            .all(|s| env(s, "SERVING_POD") == s.pod && env(s, "SERVING_POD_IP") == s.pod_ip.to_string())
    );
    let declared = pods[0].spec.as_ref().unwrap().containers[0].ports.as_ref().unwrap()[0].container_port;
    assert_eq!(declared, 8080, "the Pod object keeps what was declared");
    let status = cluster.api::<Deployment>().get("hello").await.unwrap().status.unwrap();
    assert!(status.conditions.unwrap().iter().any(|c| c.type_ == "Available"));

    let pid = cluster.pid(&pods[0]).await;
    cluster.scale("hello", 0).await;
    cluster.pods("no pods", <[Pod]>::is_empty).await;
    gone(pid).await;
    eventually("no endpoints", async || {
        cluster.api::<Endpoints>().get("hello").await.unwrap().subsets.is_none().then_some(())
    })
    .await;
    let deployment = eventually("zero in status", async || {
        let deployment = cluster.api::<Deployment>().get("hello").await.unwrap();
        deployment.status.as_ref().unwrap().replicas.is_none().then_some(deployment)
    })
    .await;
    assert_eq!(deployment.status.unwrap().ready_replicas, None);
    cluster.api::<Service>().delete("hello", &DeleteParams::default()).await.unwrap();
    eventually("endpoints deleted", async || {
        cluster.api::<Endpoints>().get_opt("hello").await.unwrap().is_none().then_some(())
    })
    .await;
    cluster.stop().await;
}

pub(crate) async fn a_crash_loop_is_told_as_kubernetes_does() {
    let cluster = Cluster::start().await;
    let app = json!({"command": ["sh", "-c", "echo the reason is $REASON; exit 5"], "args": [],
        "env": [{"name": "PORT", "value": "8080"}, {"name": "REASON", "value": "port $(PORT)"}]});
    cluster.deploy("crash", 1, app).await;
    let pods = cluster
        .pods("a crash loop", |pods| {
            app_status(pods).is_some_and(|s| {
                s["state"]["waiting"]["reason"] == "CrashLoopBackOff" && s["restartCount"].as_i64() >= Some(2)
            })
        })
        .await;
    let status = app_status(&pods).unwrap();
    let last = &status["lastState"]["terminated"];
    assert_eq!((&last["exitCode"], &last["reason"]), (&json!(5), &json!("Error")), "{status}");
    let message = last["message"].as_str().unwrap();
    assert!(message.starts_with("the reason is port 2"), "{message}: the picked port");
    let waiting = status["state"]["waiting"]["message"].as_str().unwrap();
    assert!(waiting.contains("restarting failed container=user-container pod=crash-"), "{waiting}");
    assert_eq!(cluster.condition("crash", "Progressing", "ProgressDeadlineExceeded").await, "False");
    cluster.stop().await;
}

pub(crate) async fn what_cannot_run_says_why() {
    let cluster = Cluster::start().await;
    let expect = async |name: &str, app: Value, reason: &str, part: &str| {
        cluster.deploy(name, 1, app).await;
        let message = eventually(reason, async || {
            let pods = cluster.api::<Pod>().list(&Default::default()).await.unwrap().items;
            let own: Vec<Pod> =
                pods.into_iter().filter(|p| p.metadata.name.as_ref().unwrap().starts_with(name)).collect();
            let status = app_status(&own)?;
            let all = [
                &status["state"]["waiting"],
                &status["state"]["terminated"],
                &status["lastState"]["terminated"],
            ];
            all.into_iter().find(|s| s["reason"] == reason).map(|s| s["message"].as_str().unwrap().to_owned())
        })
        .await;
        assert!(message.contains(part), "{name}: {message}");
        cluster.api::<Deployment>().delete(name, &DeleteParams::default()).await.unwrap();
    };
    let image = json!({"image": "docker.io/library/nginx"});
    expect("image", image.clone(), "ErrImagePull", "\"docker.io/library/nginx\"").await;
    expect("image2", image, "ImagePullBackOff", "dev.local/host").await;
    let missing = json!({"command": ["nope"]});
    expect("missing", missing, "StartError", "exec: \"nope\": executable file not found in $PATH").await;
    expect("command", json!({"command": []}), "CreateContainerConfigError", "command").await;
    let env = json!({"env": [{"name": "A", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}}]});
    expect("env", env, "CreateContainerConfigError", "configmap \"cm\" not found").await;
    let mounts = json!({"volumeMounts": [{"name": "v", "mountPath": "/data"}]});
    expect("mounts", mounts, "CreateContainerConfigError", "there is no volume \"v\"").await;
    cluster.stop().await;
}

pub(crate) async fn an_unhealthy_container_is_restarted() {
    let cluster = Cluster::start().await;
    // The app runs as a user of its own, who has to see the file.
    let folder = tempfile::tempdir().unwrap();
    std::fs::set_permissions(folder.path(), std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let sick = folder.path().join("sick");
    let app = json!({
        "env": [{"name": "PORT", "value": "8080"}, {"name": "SICK", "value": sick}],
        "startupProbe": {"tcpSocket": {"port": 8080}, "periodSeconds": 1},
        "livenessProbe": {"httpGet": {"port": 8080}, "periodSeconds": 1, "failureThreshold": 1}
    });
    cluster.deploy("sick", 1, app).await;
    let pods = cluster.pods("ready", |pods| pods.iter().any(is_ready)).await;
    let first = cluster.pid(&pods[0]).await;
    std::fs::write(&sick, "").unwrap();
    cluster.pods("a restart", |pods| app_status(pods).is_some_and(|s| s["restartCount"] == 1)).await;
    gone(first).await;
    std::fs::remove_file(&sick).unwrap();
    cluster.pods("ready again", |pods| pods.iter().any(is_ready)).await;
    cluster.stop().await;
}

pub(crate) async fn termination_waits_for_the_sidecar() {
    let cluster = Cluster::start_with(CancellationToken::new()).await;
    cluster.api().create(&PostParams::default(), &service("drain")).await.unwrap();
    cluster.deploy("drain", 1, json!({})).await;
    let pods = cluster.pods("ready", |pods| pods.iter().any(is_ready)).await;
    let pid = cluster.pid(&pods[0]).await;
    cluster.scale("drain", 0).await;
    eventually("no endpoints while it drains", async || {
        let endpoints = cluster.api::<Endpoints>().get("drain").await.unwrap();
        endpoints.subsets.is_none().then_some(())
    })
    .await;
    let draining = cluster.api::<Pod>().list(&Default::default()).await.unwrap().items;
    assert!(draining[0].metadata.deletion_timestamp.is_some());
    assert!(
        std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "the app serves until the sidecar has drained"
    );
    // A new pod does not take the draining one's name.
    cluster.scale("drain", 1).await;
    let both = cluster.pods("another pod", |pods| pods.len() == 2 && pods.iter().any(is_ready)).await;
    assert_ne!(both[0].metadata.name, both[1].metadata.name);
    cluster.release.cancel();
    gone(pid).await;
    cluster.pods("one pod", |pods| pods.len() == 1).await;
    cluster.stop().await;
}

pub(crate) async fn a_new_template_replaces_the_old_one() {
    let cluster = Cluster::start().await;
    cluster.deploy("roll", 2, json!({})).await;
    let old = cluster.pods("two ready pods", |pods| pods.len() == 2 && pods.iter().all(is_ready)).await;
    let mut next = deployment("roll", 2, json!({"args": [TEST_APP, "again"]}));
    next.metadata.resource_version =
        cluster.api::<Deployment>().get("roll").await.unwrap().metadata.resource_version;
    cluster.api::<Deployment>().replace("roll", &PostParams::default(), &next).await.unwrap();
    let label = |pod: &Pod| pod.metadata.labels.as_ref().unwrap()["pod-template-hash"].clone();
    let hash = label(&old[0]);
    let mut fewest = usize::MAX;
    eventually("two new ready pods", async || {
        let pods = cluster.api::<Pod>().list(&Default::default()).await.unwrap().items;
        fewest = fewest
            .min(pods.iter().filter(|p| is_ready(p) && p.metadata.deletion_timestamp.is_none()).count());
        (pods.len() == 2 && pods.iter().all(|p| is_ready(p) && label(p) != hash)).then_some(())
    })
    .await;
    assert!(fewest >= 2, "availability was kept: {fewest}");
    cluster.condition("roll", "Progressing", "NewReplicaSetAvailable").await;
    cluster.stop().await;
}

pub(crate) async fn dependents_follow_their_owner_and_namespaces_empty() {
    let cluster = Cluster::start().await;
    let created = cluster.deploy("owner", 1, json!({})).await;
    let map = |name: &str, uid: &str| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "owner", "uid": uid, "blockOwnerDeletion": true}
        ]}}))
        .unwrap()
    };
    let maps = cluster.api::<ConfigMap>();
    maps.create(&PostParams::default(), &map("child", created.metadata.uid.as_deref().unwrap()))
        .await
        .unwrap();
    maps.create(&PostParams::default(), &map("stray", "another-uid")).await.unwrap();
    let absent = async |name: &str| {
        eventually(name, async || maps.get_opt(name).await.unwrap().is_none().then_some(())).await;
    };
    absent("stray").await;
    cluster.pods("ready", |pods| pods.iter().any(is_ready)).await;
    assert!(maps.get_opt("child").await.unwrap().is_some());
    cluster.api::<Deployment>().delete("owner", &DeleteParams::default()).await.unwrap();
    absent("child").await;
    cluster.pods("no pods", <[Pod]>::is_empty).await;

    let created = cluster.deploy("owner", 1, json!({})).await;
    maps.create(&PostParams::default(), &map("child", created.metadata.uid.as_deref().unwrap()))
        .await
        .unwrap();
    cluster.pods("ready", |pods| pods.iter().any(is_ready)).await;
    let foreground =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
    cluster.api::<Deployment>().delete("owner", &foreground).await.unwrap();
    eventually("the owner goes last", async || {
        cluster.api::<Deployment>().get_opt("owner").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(maps.get_opt("child").await.unwrap().is_none());
    assert!(cluster.api::<Pod>().list(&Default::default()).await.unwrap().items.is_empty());

    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let team = Api::<ConfigMap>::namespaced(cluster.client.clone(), "team");
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "m"}})).unwrap();
    team.create(&PostParams::default(), &map).await.unwrap();
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    eventually("the namespace goes", async || {
        namespaces.get_opt("team").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(team.list(&Default::default()).await.unwrap().items.is_empty());
    cluster.stop().await;
}

pub(crate) async fn shutdown_ends_every_process() {
    let cluster = Cluster::start().await;
    cluster.deploy("a", 2, json!({})).await;
    let deaf = json!({"command": ["sh", "-c", "trap '' TERM; echo pid $$$$; while :; do sleep 0.05; done"], "args": []});
    cluster.deploy("deaf", 1, deaf).await;
    let pods = cluster
        .pods("running", |pods| {
            let running = |p: &Pod| p.status.as_ref().and_then(|s| s.phase.as_deref()) == Some("Running");
            pods.len() == 3 && pods.iter().all(running)
        })
        .await;
    let mut pids = Vec::new();
    for pod in &pods {
        pids.push(cluster.pid(pod).await);
    }
    let began = Instant::now();
    cluster.stop().await;
    assert!(began.elapsed() < Duration::from_secs(8), "{:?}", began.elapsed());
    for pid in pids {
        gone(pid).await;
    }
}

pub(crate) async fn two_nodes_run_side_by_side() {
    let (one, two) = (Cluster::start().await, Cluster::start().await);
    assert_ne!(one.block, two.block);
    for cluster in [&one, &two] {
        cluster.deploy("same", 3, json!({})).await;
    }
    for cluster in [&one, &two] {
        cluster.pods("three ready pods", |pods| pods.len() == 3 && pods.iter().all(is_ready)).await;
    }
    one.stop().await;
    assert_eq!(
        two.api::<Pod>()
            .list(&Default::default())
            .await
            .unwrap()
            .items
            .iter()
            .filter(|p| is_ready(p))
            .count(),
        3
    );
    two.stop().await;
}
