//! The sidecar's request log, over real sockets: a line for each request, whatever becomes of it.

use std::io::Write;
use std::sync::{Arc, Mutex};

use ember_queue_proxy::Config;
use ember_telemetry::request_log::Output;
use serde_json::{Value, json};
use tokio::sync::mpsc;
use tokio::time::Instant;

use crate::pod::{LONG, MS, Sidecar, Wire, app, config};

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

/// A sidecar whose request log is kept.
struct Logged {
    sidecar: Sidecar,
    lines: Lines,
}

impl Logged {
    /// In front of an app on `user_port`. `log` is what the cluster has set.
    async fn start(user_port: u16, log: &Value, more: &[(&str, &str)]) -> Self {
        let log = log.to_string();
        let mut env = vec![
            ("SERVING_SERVICE", "shop"),
            ("SERVING_CONFIGURATION", "shop-cfg"),
            ("SERVING_REVISION", "shop-00001"),
            ("SERVING_POD_IP", "10.1.2.3"),
            ("OBSERVABILITY_CONFIG", &log),
        ];
        env.extend_from_slice(more);
        let lines = Lines::default();
        let request_log_output = Some(Output::new(lines.clone()));
        let sidecar = Sidecar::start(Config { request_log_output, ..config(user_port, &env) }).await;
        Self { sidecar, lines }
    }

    async fn connect(&self) -> Wire {
        self.sidecar.connect(8012).await
    }

    /// The answer to a request on a connection of its own; `rest` is more of the head, and the body.
    async fn request(&self, line: &str, rest: &str) -> String {
        let head = format!("{line} HTTP/1.1\r\nhost: app.example\r\nconnection: close\r\n{rest}");
        self.sidecar.send(8012, &head).await
    }
}

/// Answers by the path.
async fn by_path(mut wire: Wire) {
    while let Ok(head) = wire.try_until("\r\n\r\n").await {
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
    let sidecar = Logged::start(app(by_path).await, &json!({"enableRequestLog": true}), &[]).await;
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
    let sidecar = Logged::start(app(by_path).await, &short(), &[]).await;
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
        wire.until("ok").await;
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
    let sidecar = Logged::start(app(by_path).await, &short(), &env).await;
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
            while wire.try_until("\r\n\r\n").await.is_ok() {
                let _ = arrive.send(());
            }
        }
    })
    .await;
    let sidecar = Logged::start(port, &short(), &[("CONTAINER_CONCURRENCY", "1")]).await;
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
    let sidecar = Logged::start(app(by_path).await, &short(), &[]).await;
    let mut wire = sidecar.connect().await;
    wire.send("GET /stalled HTTP/1.1\r\nhost: app\r\n\r\n").await;
    wire.until("one").await;
    assert!(sidecar.lines.now().is_empty(), "it is not over");
    drop(wire);
    assert_eq!(sidecar.lines.sorted(1).await, ["/stalled 0 200 3\n"]);
}

#[tokio::test]
async fn an_upgraded_stream_is_logged_at_its_end() {
    let sidecar = Logged::start(app(by_path).await, &short(), &[]).await;
    let mut wire = sidecar.connect().await;
    wire.send("GET /socket HTTP/1.1\r\nhost: app\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
    wire.until("\r\n\r\n").await;
    assert!(sidecar.lines.now().is_empty(), "it is not over");
    wire.send("ping").await;
    assert_eq!(wire.until("pong").await, "pong");
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
    let quiet = Logged::start(port, &short(), &[]).await;
    let mut all = short();
    all["enableProbeRequestLog"] = true.into();
    let talkative = Logged::start(port, &all, &[]).await;
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
    let sidecar = Logged::start(app(by_path).await, &log, &[]).await;
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
        let sidecar = Logged::start(port, &log, &[]).await;
        assert!(sidecar.request("GET /", "\r\n").await.ends_with("ok"), "{log}");
        // The exchange is over when the connection is.
        assert!(sidecar.lines.now().is_empty(), "{log}");
    }
    let sidecar = Logged::start(port, &on("{{.Request.Nope}}"), &[]).await;
    sidecar.request("GET /a?b", "\r\n").await;
    let [line] = sidecar.lines.sorted(1).await.try_into().unwrap();
    assert!(
        line.starts_with("Invalid request log template: method: GET, response code: 200, latency: ")
            && line.ends_with(", url: /a?b\n"),
        "{line}"
    );
}
