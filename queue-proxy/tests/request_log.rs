//! The sidecar's request log, over real sockets: a line for each request, whatever becomes of it.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::io::Write;
use std::net::{IpAddr, Ipv4Addr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use ember_dataplane::io::Io;
use ember_queue_proxy::{Config, Error};
use ember_telemetry::request_log::Output;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(20);
const MS: Duration = Duration::from_millis(1);

/// What is written, write by write.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().unwrap().push(String::from_utf8(bytes.to_vec()).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    fn now(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    /// Waits for that many lines, which come in any order; there are no more.
    async fn sorted(&self, count: usize) -> Vec<String> {
        let begun = Instant::now();
        loop {
            let mut lines = self.now();
            if lines.len() >= count {
                lines.sort();
                assert_eq!(lines.len(), count, "{lines:?}");
                return lines;
            }
            assert!(begun.elapsed() < LONG, "{count} lines are wanted: {lines:?}");
            tokio::time::sleep(MS).await;
        }
    }
}

struct Sidecar {
    ip: IpAddr,
    lines: Lines,
    running: JoinHandle<Result<(), Error>>,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Sidecar {
    /// In front of an app on `user_port`, on an address of its own. `log` is what the cluster has set.
    async fn start(user_port: u16, log: &Value, more: &[(&str, &str)]) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let (process, test) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let ip: IpAddr =
            Ipv4Addr::new(127, 30 + (process >> 8 & 0x1f) as u8, process as u8, 1 + test as u8).into();
        let (user_port, log) = (user_port.to_string(), log.to_string());
        let mut env = vec![
            ("CONTAINER_CONCURRENCY", "0"),
            ("QUEUE_SERVING_PORT", "8012"),
            ("QUEUE_SERVING_TLS_PORT", "8112"),
            ("USER_PORT", &user_port),
            ("REVISION_TIMEOUT_SECONDS", "300"),
            ("SERVING_LOGGING_CONFIG", ""),
            ("SERVING_LOGGING_LEVEL", ""),
            ("SERVING_NAMESPACE", "default"),
            ("SERVING_SERVICE", "shop"),
            ("SERVING_CONFIGURATION", "shop-cfg"),
            ("SERVING_REVISION", "shop-00001"),
            ("SERVING_POD", "pod-1"),
            ("SERVING_POD_IP", "10.1.2.3"),
            ("OBSERVABILITY_CONFIG", &log),
        ];
        env.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
        env.extend_from_slice(more);
        let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
        let lines = Lines::default();
        let config = Config {
            bind: ip,
            request_log_output: Some(Output::new(lines.clone())),
            ..Config::from_env(env).unwrap()
        };
        let (readiness, _) = watch::channel(false);
        let running =
            tokio::spawn(ember_queue_proxy::run(config, Io::system(), readiness, CancellationToken::new()));
        let begun = Instant::now();
        while TcpStream::connect((ip, 9090)).await.is_err() {
            assert!(begun.elapsed() < LONG, "it does not listen");
            tokio::time::sleep(MS).await;
        }
        Self { ip, lines, running }
    }

    async fn connect(&self) -> Wire {
        let stream = TcpStream::connect((self.ip, 8012)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Wire { stream, read: Vec::new() }
    }

    /// The answer to a request on a connection of its own; `rest` is more of the head, and the body.
    async fn request(&self, line: &str, rest: &str) -> String {
        let mut wire = self.connect().await;
        wire.send(&format!("{line} HTTP/1.1\r\nhost: app.example\r\nconnection: close\r\n{rest}")).await;
        wire.rest().await
    }
}

struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// What there is up to `text`; `None` if the connection ends before.
    async fn until(&mut self, text: &str) -> Option<String> {
        loop {
            let seen = String::from_utf8_lossy(&self.read).into_owned();
            if let Some(at) = seen.find(text) {
                let rest = self.read.split_off(at + text.len());
                return Some(String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap());
            }
            match tokio::time::timeout(LONG, self.stream.read_buf(&mut self.read)).await.unwrap() {
                Ok(read) if read > 0 => {}
                _ => return None,
            }
        }
    }

    async fn rest(&mut self) -> String {
        tokio::time::timeout(LONG, self.stream.read_to_end(&mut self.read)).await.unwrap().ok();
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }
}

/// An app that treats each connection with `serve`.
async fn app<F, T>(serve: F) -> u16
where
    F: Fn(Wire) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(Wire { stream, read: Vec::new() }));
        }
    });
    port
}

/// Answers by the path.
async fn by_path(mut wire: Wire) {
    while let Some(head) = wire.until("\r\n\r\n").await {
        if head.to_lowercase().contains("transfer-encoding: chunked") {
            wire.until("0\r\n\r\n").await;
        }
        match head.split(' ').nth(1).unwrap() {
            "/missing" => wire.send("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\ngone").await,
            "/hinted" => {
                wire.send("HTTP/1.1 103 Early Hints\r\nlink: </a>\r\n\r\n").await;
                wire.send("HTTP/1.1 404 Not Found\r\ncontent-length: 4\r\n\r\ngone").await;
            }
            "/streamed" => {
                wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await;
                wire.send("3\r\ntwo\r\n0\r\n\r\n").await;
            }
            "/stalled" => {
                wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await;
                wire.rest().await;
            }
            "/silent" => drop(wire.rest().await),
            "/socket" => {
                wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n")
                    .await;
                wire.until("ping").await;
                wire.send("pong").await;
                return;
            }
            _ => wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await,
        }
    }
}

fn short() -> Value {
    json!({
        "enableRequestLog": true,
        "requestLogTemplate": "{{.Request.RequestURI}} {{.Request.ContentLength}} {{.Response.Code}} {{.Response.Size}}",
    })
}

#[tokio::test]
async fn the_default_line_tells_of_a_request() {
    let sidecar = Sidecar::start(app(by_path).await, &json!({"enableRequestLog": true}), &[]).await;
    let rest = "user-agent: <me>\r\ntraceparent: 00-0123456789abcdef-01-01\r\ncontent-length: 3\r\n\r\nabc";
    assert!(sidecar.request("PUT /a?b=1", rest).await.ends_with("ok"));
    let [line] = sidecar.lines.sorted(1).await.try_into().unwrap();
    assert!(
        line.starts_with(r#"{"httpRequest": {"requestMethod": "PUT", "requestUrl": "/a?b\u003D1", "#),
        "{line}"
    );
    let line: Value = serde_json::from_str(&line).unwrap();
    let request = &line["httpRequest"];
    for (key, value) in [
        ("requestSize", json!("3")),
        ("status", json!(200)),
        ("responseSize", json!("2")),
        ("userAgent", json!("<me>")),
        ("serverIp", json!("10.1.2.3")),
        ("referer", json!("")),
        ("protocol", json!("HTTP/1.1")),
    ] {
        assert_eq!(request[key], value, "{key}");
    }
    let remote = request["remoteIp"].as_str().unwrap();
    assert!(remote.starts_with("127.0.0.1:"), "{remote}");
    let latency = request["latency"].as_str().unwrap().strip_suffix('s').unwrap();
    assert!(latency.parse::<f64>().unwrap() > 0.0, "{latency}");
    assert_eq!(line["traceId"], "0123456789abcdef");
}

#[tokio::test]
async fn every_request_has_its_line_with_what_it_came_to() {
    let sidecar = Sidecar::start(app(by_path).await, &short(), &[]).await;
    sidecar.request("GET /fine", "\r\n").await;
    sidecar.request("GET /missing", "\r\n").await;
    sidecar.request("GET /hinted", "\r\n").await;
    sidecar.request("GET /streamed", "\r\n").await;
    sidecar.request("HEAD /head", "\r\n").await;
    sidecar.request("POST /upload", "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n").await;
    // Two of one connection are two.
    let mut wire = sidecar.connect().await;
    for _ in 0..2 {
        wire.send("GET /again HTTP/1.1\r\nhost: app\r\n\r\n").await;
        wire.until("ok").await.unwrap();
    }
    let lines = sidecar.lines.sorted(8).await;
    assert_eq!(
        lines,
        [
            "/again 0 200 2\n",
            "/again 0 200 2\n",
            "/fine 0 200 2\n",
            "/head 0 200 0\n",
            "/hinted 0 404 4\n",
            "/missing 0 404 4\n",
            "/streamed 0 200 6\n",
            "/upload -1 200 2\n"
        ]
    );
}

#[tokio::test]
async fn timers_that_cut_are_told() {
    let env = [("REVISION_TIMEOUT_SECONDS", "1")];
    let sidecar = Sidecar::start(app(by_path).await, &short(), &env).await;
    let (silent, stalled) =
        tokio::join!(sidecar.request("GET /silent", "\r\n"), sidecar.request("GET /stalled", "\r\n"));
    assert!(silent.starts_with("HTTP/1.1 504"), "{silent}");
    assert!(stalled.contains("request timeout"), "{stalled}");
    // What is appended is sent, and counts.
    assert_eq!(sidecar.lines.sorted(2).await, ["/silent 0 504 15\n", "/stalled 0 200 18\n"]);
}

#[tokio::test]
async fn who_is_refused_and_who_leaves_is_told() {
    let (arrive, mut arrived) = mpsc::unbounded_channel();
    let port = app(move |mut wire| {
        let arrive = arrive.clone();
        async move {
            while wire.until("\r\n\r\n").await.is_some() {
                let _ = arrive.send(());
            }
        }
    })
    .await;
    let sidecar = Sidecar::start(port, &short(), &[("CONTAINER_CONCURRENCY", "1")]).await;
    let mut running = sidecar.connect().await;
    running.send("GET /running HTTP/1.1\r\nhost: app\r\n\r\n").await;
    arrived.recv().await.unwrap();
    // Ten of twelve may wait. Who is refused is told and logged at once.
    let mut waiting = Vec::new();
    for _ in 0..12 {
        let mut wire = sidecar.connect().await;
        wire.send("GET /waiting HTTP/1.1\r\nhost: app\r\n\r\n").await;
        waiting.push(wire);
    }
    let refused = format!("/waiting 0 503 {}\n", "pending request queue full\n".len());
    assert_eq!(sidecar.lines.sorted(2).await, [refused.clone(), refused.clone()]);
    drop((running, waiting));
    let lines = sidecar.lines.sorted(13).await;
    assert_eq!(lines.iter().filter(|line| *line == "/waiting 0 499 0\n").count(), 10, "{lines:?}");
    assert!(lines.contains(&"/running 0 499 0\n".to_owned()), "{lines:?}");
}

#[tokio::test]
async fn a_client_that_leaves_in_the_middle_has_what_it_was_sent() {
    let sidecar = Sidecar::start(app(by_path).await, &short(), &[]).await;
    let mut wire = sidecar.connect().await;
    wire.send("GET /stalled HTTP/1.1\r\nhost: app\r\n\r\n").await;
    wire.until("one").await.unwrap();
    assert!(sidecar.lines.now().is_empty(), "it is not over");
    drop(wire);
    assert_eq!(sidecar.lines.sorted(1).await, ["/stalled 0 200 3\n"]);
}

#[tokio::test]
async fn an_upgraded_stream_is_logged_at_its_end() {
    let sidecar = Sidecar::start(app(by_path).await, &short(), &[]).await;
    let mut wire = sidecar.connect().await;
    wire.send("GET /socket HTTP/1.1\r\nhost: app\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    wire.until("\r\n\r\n").await.unwrap();
    assert!(sidecar.lines.now().is_empty(), "it is not over");
    wire.send("ping").await;
    assert_eq!(wire.until("pong").await.unwrap(), "pong");
    drop(wire);
    assert_eq!(sidecar.lines.sorted(1).await, ["/socket 0 101 4\n"]);
}

#[tokio::test]
async fn probes_are_logged_only_where_that_is_asked_for() {
    let port = app(by_path).await;
    let probes = [
        "user-agent: kube-probe/1.34\r\nk-network-probe: queue\r\n\r\n",
        "user-agent: Knative-Activator-Probe\r\nk-network-probe: queue\r\n\r\n",
        "k-network-probe: probe\r\nk-network-hash: h\r\n\r\n",
        // These two reach the app.
        "k-kubelet-probe: x\r\n\r\n",
        "k-network-probe: queue\r\n\r\n",
    ];
    let quiet = Sidecar::start(port, &short(), &[]).await;
    let mut all = short();
    all["enableProbeRequestLog"] = true.into();
    let talkative = Sidecar::start(port, &all, &[]).await;
    for (i, probe) in probes.into_iter().enumerate() {
        let line = format!("GET /{i}");
        assert!(quiet.request(&line, probe).await.starts_with("HTTP/1.1 200"), "{probe}");
        talkative.request(&line, probe).await;
    }
    quiet.request("GET /fine", "\r\n").await;
    assert_eq!(quiet.lines.sorted(1).await, ["/fine 0 200 2\n"]);
    assert_eq!(
        talkative.lines.sorted(5).await,
        ["/0 0 200 5\n", "/1 0 200 5\n", "/2 0 200 0\n", "/3 0 200 2\n", "/4 0 200 2\n"]
    );
}

#[tokio::test]
async fn the_template_sees_the_headers_as_they_leave_and_the_host_as_it_came() {
    let template = "{{.Request.Host}} {{.Request.Header.Get \"K-Original-Host\"}}|{{.Request.Header.Get \"Forwarded\"}} \
                    {{with .Revision}}{{.Name}} {{.Namespace}} {{.Service}} {{.Configuration}} {{.PodName}}{{end}}";
    let log = json!({"enableRequestLog": true, "requestLogTemplate": template});
    let sidecar = Sidecar::start(app(by_path).await, &log, &[]).await;
    sidecar.request("GET /", "k-original-host: shop.example\r\nx-forwarded-for: 1.1.1.1\r\n\r\n").await;
    assert_eq!(
        sidecar.lines.sorted(1).await,
        ["app.example |for=1.1.1.1 shop-00001 default shop shop-cfg pod-1\n"]
    );
}

#[tokio::test]
async fn a_log_that_cannot_be_is_none_and_requests_are_served() {
    let port = app(by_path).await;
    let on = |template: &str| json!({"enableRequestLog": true, "requestLogTemplate": template});
    for log in
        [json!({}), json!({"requestLogTemplate": "x"}), on(""), on("{{.Request.Method"), on("{{nope}}")]
    {
        let sidecar = Sidecar::start(port, &log, &[]).await;
        assert!(sidecar.request("GET /", "\r\n").await.ends_with("ok"), "{log}");
        // The exchange is over when the connection is.
        assert!(sidecar.lines.now().is_empty(), "{log}");
    }
    let sidecar = Sidecar::start(port, &on("{{.Request.Nope}}"), &[]).await;
    sidecar.request("GET /a?b", "\r\n").await;
    let [line] = sidecar.lines.sorted(1).await.try_into().unwrap();
    assert!(
        line.starts_with("Invalid request log template: method: GET, response code: 200, latency: ")
            && line.ends_with(", url: /a?b\n"),
        "{line}"
    );
}
