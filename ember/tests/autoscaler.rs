//! `ember autoscaler` as a process: configured by its environment, one of several, ended by a signal.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

use std::net::IpAddr;
use std::process::Stdio;
use std::time::Duration;

use ember_apiserver::ApiServer;
use ember_node::address::Block;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::Api;
use kube::api::PostParams;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::process::Command;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const PATIENCE: Duration = Duration::from_secs(60);

async fn ask(address: IpAddr, port: u16, path: &str) -> std::io::Result<String> {
    let mut stream = TcpStream::connect((address, port)).await?;
    let request = format!(
        "GET {path} HTTP/1.1\r\nHost: autoscaler\r\nUser-Agent: kube-probe/1.34\r\nConnection: close\r\n\r\n"
    );
    stream.write_all(request.as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    Ok(answer)
}

async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "still waiting for {what}");
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
}

fn command() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ember"));
    command.arg("autoscaler").stderr(Stdio::piped()).stdout(Stdio::null()).kill_on_drop(true);
    for name in ["POD_NAME", "POD_IP", "SYSTEM_NAMESPACE"] {
        command.env_remove(name);
    }
    command
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_takes_its_lease_serves_probes_and_metrics_and_gives_the_lease_up() {
    let data = tempfile::tempdir().unwrap();
    let server = ApiServer::open(ember_apiserver::Config::new(data.path())).unwrap();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let kubeconfig = data.path().join("config");
    server.write_kubeconfig(&kubeconfig, listener.local_addr().unwrap()).unwrap();
    let stop = CancellationToken::new();
    let (serving, stopped) = (server.clone(), stop.clone());
    tokio::spawn(async move { serving.serve(listener, stopped).await });
    let system: Namespace = serde_json::from_value(json!({"metadata": {"name": "knative-serving"}})).unwrap();
    Api::all(server.client()).create(&PostParams::default(), &system).await.unwrap();
    let map: ConfigMap = serde_json::from_value(json!({
        "metadata": {"name": "config-observability"}, "data": {"metrics-protocol": "prometheus"},
    }))
    .unwrap();
    let maps = Api::namespaced(server.client(), "knative-serving");
    maps.create(&PostParams::default(), &map).await.unwrap();

    let claim = Block::claim().unwrap();
    let address = IpAddr::V4(claim.block().address(1));
    let mut child = command()
        .arg("--kubeconfig")
        .arg(&kubeconfig)
        .arg("--bind")
        .arg(address.to_string())
        .arg("--without-hpa")
        .env("POD_NAME", "autoscaler-0")
        .env("POD_IP", address.to_string())
        .env("SYSTEM_NAMESPACE", "knative-serving")
        .spawn()
        .unwrap();
    let leases = Api::<Lease>::namespaced(server.client(), "knative-serving");
    let holder = async || {
        let lease = leases.get_opt("autoscaler-bucket-00-of-01").await.unwrap()?;
        lease.spec?.holder_identity
    };
    let held = eventually("the Lease", async || holder().await.filter(|holder| !holder.is_empty())).await;
    assert_eq!(held, format!("autoscaler-0_{address}"));
    let probe = eventually("a probe's answer", async || ask(address, 8080, "/any").await.ok()).await;
    assert!(probe.starts_with("HTTP/1.1 200"), "{probe}");
    let metrics = eventually("metrics", async || ask(address, 9090, "/metrics").await.ok()).await;
    // There are no revisions to tell of.
    assert!(metrics.starts_with("HTTP/1.1 200") && metrics.ends_with("# EOF\n"), "{metrics}");

    let pid = Pid::from_raw(i32::try_from(child.id().unwrap()).unwrap());
    kill(pid, Signal::SIGTERM).unwrap();
    let status = tokio::time::timeout(PATIENCE, child.wait()).await.unwrap().unwrap();
    assert_eq!(status.code(), Some(0));
    assert_eq!(holder().await.as_deref(), Some(""), "the next one has not to wait");
    stop.cancel();
    server.close();
}

#[tokio::test]
async fn without_an_identity_it_does_not_start() {
    let output = command().env("POD_NAME", "autoscaler-0").output().await.unwrap();
    assert_eq!(output.status.code(), Some(1));
    let said = String::from_utf8(output.stderr).unwrap();
    assert!(said.contains("POD_IP environment variable not set"), "{said}");
}
