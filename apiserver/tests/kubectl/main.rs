//! The server as people meet it: over TLS, with the real kubectl, where there is one.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::print_stdout,
    reason = "a panic is how a test fails, and a skip is told"
)]

mod client;
mod creating;
mod showing;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ember_apiserver::{ApiServer, Config, LogError, LogOptions, LogStream, PodLogs};
use futures::StreamExt;
use futures::future::BoxFuture;
use tempfile::TempDir;
use tokio::io::{AsyncBufReadExt, BufReader};
use tokio::net::TcpListener;
use tokio::process::Command;
use tokio_util::sync::CancellationToken;

const LIMIT: Duration = Duration::from_secs(60);

const SERVICE: &str = r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata: { name: hello, labels: { app: hello } }
spec:
  template:
    spec:
      containers:
      - { name: c, image: dev.local/host, env: [{ name: A, value: "1" }], ports: [{ containerPort: 8080 }] }
"#;

struct Lines;

impl PodLogs for Lines {
    fn logs(
        &self,
        _namespace: &str,
        pod: &str,
        container: &str,
        options: LogOptions,
    ) -> BoxFuture<'static, Result<LogStream, LogError>> {
        let text = format!("{pod}/{container} tail={:?}\n", options.tail_lines);
        Box::pin(async move { Ok(futures::stream::iter([Bytes::from(text)]).boxed()) })
    }
}

struct Cluster {
    server: ApiServer,
    folder: TempDir,
    address: SocketAddr,
    shutdown: CancellationToken,
    task: tokio::task::JoinHandle<()>,
}

struct Output {
    ok: bool,
    out: String,
    err: String,
}

impl Cluster {
    async fn start() -> Self {
        Self::start_with(|_| {}).await
    }

    async fn start_with(change: impl FnOnce(&mut Config)) -> Self {
        let folder = tempfile::tempdir().unwrap();
        let mut config = Config::new(folder.path().join("data"));
        change(&mut config);
        let server = ApiServer::open(config).unwrap();
        server.set_pod_logs(Arc::new(Lines));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        server.write_kubeconfig(&folder.path().join("kubeconfig"), address).unwrap();
        let shutdown = CancellationToken::new();
        let task = tokio::spawn({
            let (server, shutdown) = (server.clone(), shutdown.clone());
            async move { server.serve(listener, shutdown).await }
        });
        Self { server, folder, address, shutdown, task }
    }

    fn file(&self, name: &str, content: &str) -> PathBuf {
        let path = self.folder.path().join(name);
        std::fs::write(&path, content).unwrap();
        path
    }

    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        command
            .args(arguments)
            .env("HOME", self.folder.path())
            .env("KUBECONFIG", self.folder.path().join("kubeconfig"))
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    async fn kubectl(&self, arguments: &[&str]) -> Output {
        let output = tokio::time::timeout(LIMIT, self.command(arguments).output()).await.unwrap().unwrap();
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap();
        Output { ok: output.status.success(), out: text(output.stdout), err: text(output.stderr) }
    }

    async fn works(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments).await;
        assert!(output.ok, "kubectl {arguments:?}: {}{}", output.out, output.err);
        output.out
    }

    async fn fails(&self, arguments: &[&str]) -> String {
        let output = self.kubectl(arguments).await;
        assert!(!output.ok, "kubectl {arguments:?} worked: {}", output.out);
        output.err
    }

    async fn stop(self) {
        self.shutdown.cancel();
        tokio::time::timeout(LIMIT, self.task).await.expect("stops in time").unwrap();
    }
}

fn kubectl_is_here() -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|folder| folder.join("kubectl").is_file()));
    if !found {
        println!("SKIPPED: there is no kubectl on PATH");
    }
    found
}

fn words(line: &str) -> Vec<&str> {
    line.split_whitespace().collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_reads_changes_and_deletes() {
    if !kubectl_is_here() {
        return;
    }
    let c = Cluster::start().await;
    let file = c.file("hello.yaml", SERVICE);
    let file = file.to_str().unwrap();
    assert_eq!(c.works(&["apply", "-f", file]).await, "service.serving.knative.dev/hello created\n");
    // The schema's defaults inside lists make kubectl send a patch, as on a cluster; it changes nothing.
    let version = "-o=jsonpath={.metadata.resourceVersion}";
    let before = c.works(&["get", "ksvc", "hello", version]).await;
    c.works(&["apply", "-f", file]).await;
    assert_eq!(c.works(&["get", "ksvc", "hello", version]).await, before);
    c.file("hello.yaml", &SERVICE.replace("\"1\"", "\"2\""));
    assert_eq!(c.works(&["apply", "-f", file]).await, "service.serving.knative.dev/hello configured\n");
    let value = "-o=jsonpath={.spec.template.spec.containers[0].env[0].value} {.metadata.generation}";
    assert_eq!(c.works(&["get", "ksvc", "hello", value]).await, "2 2");

    let table = c.works(&["get", "ksvc"]).await;
    let lines: Vec<&str> = table.lines().collect();
    assert_eq!(words(lines[0]), ["NAME", "URL", "LATESTCREATED", "LATESTREADY", "READY", "REASON"]);
    assert!(lines[1].starts_with("hello"));
    assert!(c.works(&["get", "all"]).await.contains("service.serving.knative.dev/hello"));
    assert!(c.works(&["get", "ksvc", "-A", "-l", "app=hello"]).await.contains("hello"));
    assert!(c.works(&["get", "ksvc", "hello", "-o", "yaml"]).await.contains("image: dev.local/host"));
    c.works(&["label", "ksvc", "hello", "tier=web"]).await;
    c.works(&["annotate", "ksvc", "hello", "a=b"]).await;
    assert!(c.works(&["get", "ksvc", "-l", "tier in (web)"]).await.contains("hello"));
    assert!(c.works(&["describe", "ksvc", "hello"]).await.contains("tier=web"));
    assert!(c.works(&["explain", "ksvc.spec.template"]).await.contains("template"));
    c.works(&["patch", "ksvc", "hello", "--type=merge", "-p", r#"{"metadata":{"labels":{"x":"y"}}}"#]).await;
    let strategic = c.fails(&["patch", "ksvc", "hello", "-p", r#"{"metadata":{"labels":{"x":"z"}}}"#]).await;
    assert!(strategic.contains("application/merge-patch+json"), "{strategic}");

    let dry = c.file("dry.yaml", &SERVICE.replace("name: hello", "name: dry"));
    c.works(&["apply", "--dry-run=server", "-f", dry.to_str().unwrap()]).await;
    assert!(
        c.fails(&["get", "ksvc", "dry"]).await.contains("services.serving.knative.dev \"dry\" not found")
    );

    assert_eq!(
        c.works(&["delete", "ksvc", "hello"]).await,
        "service.serving.knative.dev \"hello\" deleted\n"
    );
    assert!(c.fails(&["get", "ksvc", "hello"]).await.contains("NotFound"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_shows_what_is_wrong_with_a_manifest() {
    if !kubectl_is_here() {
        return;
    }
    let c = Cluster::start().await;
    let odd = c.file("odd.yaml", &SERVICE.replace("spec:\n  template:", "spec:\n  foo: 1\n  template:"));
    let odd = odd.to_str().unwrap();
    let error = c.fails(&["apply", "-f", odd]).await;
    assert!(error.contains("strict decoding error: unknown field \"spec.foo\""), "{error}");
    let warned = c.kubectl(&["apply", "--validate=warn", "-f", odd]).await;
    assert!(warned.ok && warned.err.contains("Warning: unknown field \"spec.foo\""), "{}", warned.err);
    assert!(!c.works(&["get", "ksvc", "hello", "-o", "yaml"]).await.contains("foo: 1\n  template"));

    let wrong = "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: { name: wrong }\nspec: { template: { \
                 spec: { timeoutSeconds: 3 } } }\n";
    let wrong = c.file("wrong.yaml", wrong);
    let error = c.fails(&["apply", "-f", wrong.to_str().unwrap()]).await;
    assert!(error.contains("is invalid: spec.template.spec.containers: Required value"), "{error}");
    let wrong = c.file("wrong.yaml", &SERVICE.replace("containerPort: 8080", "containerPort: 99999"));
    let error = c.fails(&["apply", "-f", wrong.to_str().unwrap()]).await;
    assert!(error.contains("denied the request: validation failed: expected 0 <= 99999 <= 65535"), "{error}");
    let map = "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: m }\ndta: { a: b }\n";
    let map = c.file("map.yaml", map);
    let error = c.fails(&["apply", "-f", map.to_str().unwrap()]).await;
    assert!(error.contains("unknown field \"dta\""), "{error}");
    let error = c.fails(&["create", "deployment", "d", "--image=i"]).await;
    assert!(error.contains("a Deployment of apps/v1 is not read from protobuf"), "{error}");
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_works_with_builtin_kinds() {
    if !kubectl_is_here() {
        return;
    }
    let c = Cluster::start().await;
    let manifest = r#"
apiVersion: v1
kind: Namespace
metadata: { name: team }
---
apiVersion: v1
kind: ConfigMap
metadata: { name: m, namespace: team }
data: { a: "1" }
---
apiVersion: apps/v1
kind: Deployment
metadata: { name: d, namespace: team }
spec:
  selector: { matchLabels: { app: d } }
  template:
    metadata: { labels: { app: d } }
    spec: { containers: [{ name: c, image: i }] }
---
apiVersion: v1
kind: Pod
metadata: { name: p, namespace: team }
spec: { nodeName: node-1, containers: [{ name: c, image: i }] }
"#;
    let file = c.file("all.yaml", manifest);
    let file = file.to_str().unwrap();
    c.works(&["apply", "-f", file]).await;
    let again = c.works(&["apply", "-f", file]).await;
    for line in again.lines() {
        assert!(line.ends_with("unchanged"), "{again}");
    }
    c.file("all.yaml", &manifest.replace("a: \"1\"", "a: \"2\""));
    assert!(c.works(&["apply", "-f", file]).await.contains("configmap/m configured"));
    assert_eq!(c.works(&["get", "cm", "m", "-n", "team", "-o=jsonpath={.data.a}"]).await, "2");
    c.works(&["scale", "deploy", "d", "-n", "team", "--replicas=3"]).await;
    let deployments = c.works(&["get", "deploy", "-n", "team"]).await;
    assert!(deployments.contains("0/3"), "{deployments}");
    let pods = c.works(&["get", "pods", "-n", "team", "-o", "wide"]).await;
    assert_eq!(
        words(pods.lines().next().unwrap()),
        ["NAME", "READY", "STATUS", "RESTARTS", "AGE", "IP", "NODE"]
    );
    assert_eq!(c.works(&["logs", "p", "-n", "team", "--tail=2"]).await, "p/c tail=Some(2)\n");
    assert!(c.works(&["get", "ns"]).await.contains("Active"));
    assert!(c.works(&["api-resources"]).await.contains("podautoscalers"));
    c.works(&["version"]).await;

    let mut watch = c.command(&["get", "cm", "-n", "team", "-w", "--no-headers"]).spawn().unwrap();
    let mut lines = BufReader::new(watch.stdout.take().unwrap()).lines();
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert!(line.starts_with('m'), "{line}");
    c.works(&["patch", "cm", "m", "-n", "team", "-p", r#"{"data":{"b":"3"}}"#]).await;
    let line = tokio::time::timeout(LIMIT, lines.next_line()).await.unwrap().unwrap().unwrap();
    assert_eq!(words(&line)[..2], ["m", "2"]);
    // Shutting down ends the watch.
    let Cluster { shutdown, task, server: _server, folder: _folder, .. } = c;
    shutdown.cancel();
    tokio::time::timeout(LIMIT, task).await.expect("stops in time").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn only_the_token_opens_the_door() {
    let c = Cluster::start().await;
    let config = kube::Config::from_custom_kubeconfig(
        kube::config::Kubeconfig::read_from(c.folder.path().join("kubeconfig")).unwrap(),
        &kube::config::KubeConfigOptions::default(),
    )
    .await
    .unwrap();
    let _ = rustls::crypto::ring::default_provider().install_default();
    let client = kube::Client::try_from(config.clone()).unwrap();
    client.apiserver_version().await.unwrap();
    assert_eq!(config.cluster_url.authority().unwrap().as_str(), c.address.to_string());
    for auth in [None, Some("wrong")] {
        let mut config = config.clone();
        config.auth_info.token = auth.map(|text| text.to_owned().into());
        let client = kube::Client::try_from(config).unwrap();
        let Err(kube::Error::Api(status)) = client.apiserver_version().await else { panic!("let in") };
        assert_eq!((status.code, status.reason.as_str()), (401, "Unauthorized"));
    }
    // A body over the limit.
    let big = "x".repeat(4 << 20);
    let body = serde_json::json!({ "metadata": { "name": "big" }, "data": { "a": big } }).to_string();
    let request = http::Request::post("/api/v1/namespaces/default/configmaps")
        .header("content-type", "application/json")
        .body(body.into_bytes())
        .unwrap();
    let Err(kube::Error::Api(status)) = client.request_text(request).await else { panic!("accepted") };
    assert_eq!(status.code, 413);
    for name in ["pki/token", "pki/server.key", "pki/ca.key", "store.redb"] {
        use std::os::unix::fs::PermissionsExt;
        let mode = std::fs::metadata(c.folder.path().join("data").join(name)).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600, "{name}");
    }
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn kubectl_applies_on_the_server() {
    if !kubectl_is_here() {
        return;
    }
    let c = Cluster::start().await;
    let map = |value: &str| {
        let text = format!(
            "apiVersion: v1\nkind: ConfigMap\nmetadata: {{ name: m }}\ndata: {{ a: \"{value}\", b: \"1\" }}\n"
        );
        c.file("map.yaml", &text)
    };
    let file = map("1");
    let file = file.to_str().unwrap();
    let managers = "-o=jsonpath={.metadata.managedFields[*].manager}";
    let on_server = ["apply", "--server-side", "-f", file];
    // What was applied from the client before is kubectl's own, also with another value.
    c.works(&["apply", "-f", file]).await;
    assert_eq!(c.works(&["get", "cm", "m", managers]).await, "kubectl-client-side-apply");
    map("2");
    assert_eq!(c.works(&on_server).await, "configmap/m serverside-applied\n");
    let after = c.works(&["get", "cm", "m", managers]).await;
    assert!(!after.contains("client-side") && words(&after).contains(&"kubectl"), "{after}");
    let version = "-o=jsonpath={.metadata.resourceVersion}";
    let before = c.works(&["get", "cm", "m", version]).await;
    c.works(&on_server).await;
    assert_eq!(c.works(&["get", "cm", "m", version]).await, before, "nothing changed");
    c.works(&["diff", "--server-side", "-f", file]).await;

    map("3");
    let diff = c.kubectl(&["diff", "--server-side", "-f", file]).await;
    assert!(!diff.ok && diff.out.contains("+  a: \"3\""), "{}{}", diff.out, diff.err);
    let dry =
        c.works(&["apply", "--server-side", "--dry-run=server", "-f", file, "-o=jsonpath={.data.a}"]).await;
    assert_eq!(dry, "3");
    assert_eq!(c.works(&["get", "cm", "m", "-o=jsonpath={.data.a}"]).await, "2");

    c.works(&["patch", "cm", "m", "-p", r#"{"data":{"a":"9"}}"#]).await;
    let conflict = c.fails(&on_server).await;
    let text = "Apply failed with 1 conflict: conflict with \"kubectl-patch\" using v1: .data.a";
    assert!(conflict.contains(text), "{conflict}");
    c.works(&["apply", "--server-side", "--force-conflicts", "-f", file]).await;
    assert_eq!(c.works(&["get", "cm", "m", "-o=jsonpath={.data}"]).await, r#"{"a":"3","b":"1"}"#);
    // What is no longer applied goes.
    c.file("map.yaml", "apiVersion: v1\nkind: ConfigMap\nmetadata: { name: m }\ndata: { a: \"3\" }\n");
    c.works(&on_server).await;
    assert_eq!(c.works(&["get", "cm", "m", "-o=jsonpath={.data}"]).await, r#"{"a":"3"}"#);

    let hello = c.file("hello.yaml", SERVICE);
    let hello = ["apply", "--server-side", "-f", hello.to_str().unwrap()];
    assert_eq!(c.works(&hello).await, "service.serving.knative.dev/hello serverside-applied\n");
    c.works(&hello).await;
    assert!(
        c.works(&["get", "ksvc", "hello", "--show-managed-fields", "-o", "yaml"])
            .await
            .contains("f:template")
    );
    c.stop().await;
}
