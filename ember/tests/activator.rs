//! `ember activator` as a process: configured by its environment, talking to an API server, ended by signals.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::net::{IpAddr, SocketAddr};
use std::process::{ExitStatus, Stdio};
use std::time::Duration;

use ember_apiserver::ApiServer;
use ember_node::address::{Block, BlockClaim};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

/// An API server, and an address of its own to listen on.
struct World {
    server: ApiServer,
    data: tempfile::TempDir,
    claim: BlockClaim,
    stop: CancellationToken,
}

impl World {
    async fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let server = ApiServer::open(ember_apiserver::Config::new(data.path())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        server.write_kubeconfig(&data.path().join("config"), listener.local_addr().unwrap()).unwrap();
        let stop = CancellationToken::new();
        let (serving, stopped) = (server.clone(), stop.clone());
        tokio::spawn(async move { serving.serve(listener, stopped).await });
        let system: Namespace =
            serde_json::from_value(json!({"metadata": {"name": "knative-serving"}})).unwrap();
        Api::all(server.client()).create(&PostParams::default(), &system).await.unwrap();
        Self { server, data, claim: Block::claim().unwrap(), stop }
    }

    async fn config_map(&self, name: &str) {
        let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        let maps = Api::namespaced(self.server.client(), "knative-serving");
        maps.create(&PostParams::default(), &map).await.unwrap();
    }

    fn address(&self) -> IpAddr {
        IpAddr::V4(self.claim.block().address(1))
    }

    fn spawn(&self, arguments: &[&str], without: Option<&str>) -> Child {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ember"));
        command
            .arg("activator")
            .arg("--kubeconfig")
            .arg(self.data.path().join("config"))
            .arg("--bind")
            .arg(self.address().to_string())
            .args(arguments)
            .env("POD_NAME", "activator-0")
            .env("POD_IP", self.address().to_string())
            .env("SYSTEM_NAMESPACE", "knative-serving")
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        if let Some(name) = without {
            command.env_remove(name);
        }
        command.spawn().unwrap()
    }

    async fn is_terminating(&self) -> bool {
        let answer = ask((self.address(), 8012).into(), "/").await;
        answer.is_ok_and(|answer| answer.contains("received SIGTERM"))
    }

    /// The status of the answer to a kubelet's probe, once there is one.
    async fn probe(&self, path: &str) -> u16 {
        let deadline = Instant::now() + PATIENCE;
        loop {
            if let Ok(answer) = ask((self.address(), 8012).into(), path).await {
                return answer.split(' ').nth(1).unwrap().parse().unwrap();
            }
            assert!(Instant::now() < deadline, "the activator does not listen");
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn close(&self) {
        self.stop.cancel();
        self.server.close();
    }
}

async fn ask(addr: SocketAddr, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect(addr).await?;
    let head =
        format!("GET {path} HTTP/1.1\r\nHost: a\r\nUser-Agent: kube-probe/1\r\nConnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

fn signal(child: &Child, signal: Signal) {
    let pid = i32::try_from(child.id().unwrap()).unwrap();
    kill(Pid::from_raw(pid), signal).unwrap();
}

/// How it ended, and what it said.
async fn end(child: Child) -> (ExitStatus, String) {
    let output = tokio::time::timeout(PATIENCE, child.wait_with_output()).await.expect("it ends").unwrap();
    (output.status, String::from_utf8_lossy(&output.stderr).into_owned())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_serves_until_a_signal_and_drains() {
    let world = World::start().await;
    world.config_map("config-network").await;
    let child = world.spawn(&["--drain-settle", "1ms"], None);
    // There is no autoscaler, which is no reason to restart it.
    assert_eq!(world.probe("/").await, 500);
    assert_eq!(world.probe("/livez").await, 200);
    // Its port is taken.
    let (status, said) = end(world.spawn(&[], None)).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("cannot listen on") && said.contains("8012"), "{said}");
    signal(&child, Signal::SIGTERM);
    let (status, said) = end(child).await;
    assert_eq!(status.code(), Some(0), "{said}");
    world.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_second_signal_ends_it_at_once() {
    let world = World::start().await;
    world.config_map("config-network").await;
    let child = world.spawn(&["--drain-settle", "1h"], None);
    assert_eq!(world.probe("/").await, 500);
    signal(&child, Signal::SIGTERM);
    // The first is known to have been heard, so that the second is one.
    tokio::time::timeout(PATIENCE, async {
        while !world.is_terminating().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    })
    .await
    .expect("it hears the signal");
    signal(&child, Signal::SIGTERM);
    let (status, said) = end(child).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("second signal"), "{said}");
    world.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_is_missing_is_named() {
    let world = World::start().await;
    let (status, said) = end(world.spawn(&[], None)).await;
    assert_eq!(status.code(), Some(1), "{said}");
    assert!(said.contains("ConfigMap knative-serving/config-network"), "{said}");
    for name in ["POD_NAME", "POD_IP", "SYSTEM_NAMESPACE"] {
        let (status, said) = end(world.spawn(&[], Some(name))).await;
        assert_eq!(status.code(), Some(1), "{said}");
        assert!(said.contains(&format!("required key {name}")), "{said}");
    }
    world.close();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_level_follows_the_configmap() {
    let world = World::start().await;
    world.config_map("config-network").await;
    world.config_map("config-logging").await;
    let mut child = world.spawn(&["--drain-settle", "1ms"], None);
    let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
    let maps: Api<ConfigMap> = Api::namespaced(world.server.client(), "knative-serving");
    let set = async |level: &str| {
        let patch = Patch::Merge(json!({"data": {"loglevel.activator": level}}));
        maps.patch("config-logging", &PatchParams::default(), &patch).await.unwrap();
    };
    // Without an autoscaler each attempt at it is a line of debugging, and nothing else is said for long.
    let is_debug = |line: &str| line.contains(r#""level":"DEBUG""#);
    assert_eq!(world.probe("/").await, 500);
    set("debug").await;
    let mut debugged = 0;
    while debugged < 3 {
        let line = tokio::time::timeout(PATIENCE, lines.next_line()).await.expect("a line").unwrap().unwrap();
        debugged += usize::from(is_debug(&line));
    }
    set("error").await;
    // Attempts go on at most some seconds apart: silence for longer than that is silence.
    let silence = Duration::from_secs(9);
    let deadline = Instant::now() + PATIENCE;
    while let Ok(line) = tokio::time::timeout(silence, lines.next_line()).await {
        assert!(Instant::now() < deadline, "still speaking: {line:?}");
    }
    signal(&child, Signal::SIGTERM);
    assert!(child.wait().await.unwrap().success());
    world.close();
}
