//! The sidecar on its public ports, over real sockets, in front of a real app.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ember_dataplane::io::Io;
use ember_dataplane::stat::Stat;
use ember_queue_proxy::{Config, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(10);
const MS: Duration = Duration::from_millis(1);
const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An address of this test's own, so that the contract's ports are free.
fn own_ip() -> IpAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (process, test) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    Ipv4Addr::new(127, 100 + (process >> 8 & 0x3f) as u8, process as u8, 1 + test as u8).into()
}

fn config(ip: IpAddr, user_port: u16, more: &[(&str, &str)]) -> Config {
    let user_port = user_port.to_string();
    let mut env = vec![
        ("CONTAINER_CONCURRENCY", "0"),
        ("QUEUE_SERVING_PORT", "8012"),
        ("QUEUE_SERVING_TLS_PORT", "8112"),
        ("USER_PORT", &user_port),
        ("REVISION_TIMEOUT_SECONDS", "300"),
        ("SERVING_LOGGING_CONFIG", ""),
        ("SERVING_LOGGING_LEVEL", ""),
        ("SERVING_NAMESPACE", "default"),
        ("SERVING_CONFIGURATION", "app"),
        ("SERVING_REVISION", "app-00001"),
        ("SERVING_POD", "pod-1"),
        ("SERVING_POD_IP", "127.0.0.1"),
    ];
    env.retain(|(name, _)| !more.iter().any(|(other, _)| other == name));
    env.extend_from_slice(more);
    let env = env.into_iter().map(|(name, value)| (name.to_owned(), value.to_owned()));
    Config { bind: ip, drain_quiet_period: 50 * MS, ..Config::from_env(env).unwrap() }
}

struct Sidecar {
    ip: IpAddr,
    ready: watch::Receiver<bool>,
    shutdown: CancellationToken,
    running: JoinHandle<Result<(), Error>>,
}

impl Sidecar {
    async fn start(config: Config) -> Self {
        let ip = config.bind;
        let (readiness, ready) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(ember_queue_proxy::run(config, Io::system(), readiness, shutdown.clone()));
        let sidecar = Self { ip, ready, shutdown, running };
        // The ports open together, before anything is served.
        eventually("it listens", async || TcpStream::connect((ip, 9090)).await.is_ok()).await;
        sidecar
    }

    async fn until_ready(&mut self) {
        tokio::time::timeout(LONG, self.ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
    }

    async fn get(&self, port: u16, path: &str, headers: &str) -> String {
        let mut wire = self.connect(port).await;
        wire.send(&format!("GET {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n{headers}\r\n")).await;
        wire.rest().await
    }

    async fn connect(&self, port: u16) -> Wire {
        Wire::connect((self.ip, port).into()).await
    }
}

async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(MS).await;
    }
}

struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn until(&mut self, text: &str) -> String {
        self.try_until(text).await.unwrap_or_else(|seen| panic!("no {text:?} in {seen:?}"))
    }

    async fn try_until(&mut self, text: &str) -> Result<String, String> {
        loop {
            let seen = String::from_utf8_lossy(&self.read).into_owned();
            if let Some(at) = seen.find(text) {
                let rest = self.read.split_off(at + text.len());
                return Ok(String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap());
            }
            match tokio::time::timeout(LONG, self.stream.read_buf(&mut self.read)).await {
                Ok(Ok(read)) if read > 0 => {}
                _ => return Err(seen),
            }
        }
    }

    async fn rest(&mut self) -> String {
        tokio::time::timeout(LONG, self.stream.read_to_end(&mut self.read)).await.unwrap().ok();
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }
}

/// An app on `addr` (port 0: any) that treats each connection with `serve`.
async fn app_at<F, T>(addr: SocketAddr, serve: F) -> u16
where
    F: Fn(Wire) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(addr).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(Wire { stream, read: Vec::new() }));
        }
    });
    port
}

async fn app<F, T>(serve: F) -> u16
where
    F: Fn(Wire) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    app_at(([127, 0, 0, 1], 0).into(), serve).await
}

/// Answers every request with its own head.
async fn echo(mut wire: Wire) {
    while let Ok(head) = wire.try_until("\r\n\r\n").await {
        let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
        wire.send(&answer).await;
    }
}

const ACTIVATOR: &str = "user-agent: Knative-Activator-Probe\r\nk-network-probe: queue\r\n";
const KUBELET: &str = "user-agent: kube-probe/1.34\r\nk-network-probe: queue\r\n";

#[tokio::test]
async fn the_chain_shapes_the_request_for_the_app() {
    let port = app(echo).await;
    let sidecar = Sidecar::start(config(own_ip(), port, &[])).await;
    let answer = sidecar
        .get(
            8012,
            "/a?b;c=%zz",
            "k-original-host: shop.example\r\nknative-serving-revision: r\r\nknative-serving-namespace: n\r\nk-proxy-request: activator\r\nx-forwarded-for: 1.1.1.1, ::1\r\nx-forwarded-proto: http\r\n",
        )
        .await
        .to_lowercase();
    assert!(answer.contains("get /a?b;c=%zz http/1.1"), "{answer}");
    assert!(answer.contains("host: shop.example\r\n"), "{answer}");
    assert!(answer.contains("forwarded: for=1.1.1.1;proto=http, for=\"[::1]\"\r\n"), "{answer}");
    assert!(answer.contains("x-forwarded-for: 1.1.1.1, ::1, 127."), "{answer}");
    assert!(answer.contains("k-proxy-request: activator\r\n"), "{answer}");
    for gone in ["k-original-host", "knative-serving"] {
        assert!(!answer.contains(gone), "{gone} in {answer}");
    }
    sidecar.running.abort();
}

#[tokio::test]
async fn probes_are_answered_on_every_path() {
    let port = app(echo).await;
    let probe = format!(r#"{{"tcpSocket":{{"port":{port},"host":"127.0.0.1"}},"successThreshold":1}}"#);
    let mut sidecar = Sidecar::start(config(own_ip(), port, &[("SERVING_READINESS_PROBE", &probe)])).await;
    sidecar.until_ready().await;
    for headers in [ACTIVATOR, KUBELET] {
        for path in ["/", "/healthz", "//healthz"] {
            let answer = sidecar.get(8012, path, headers).await;
            assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("\r\n\r\nqueue"), "{answer}");
        }
    }
    let hash = sidecar.get(8012, "/healthz", "k-network-probe: probe\r\nk-network-hash: abc\r\n").await;
    assert!(hash.starts_with("HTTP/1.1 200") && hash.contains("k-network-hash: abc"), "{hash}");
    let none = sidecar.get(8012, "/", "k-network-probe: probe\r\n").await;
    assert!(none.starts_with("HTTP/1.1 400") && none.contains("a probe request must contain"), "{none}");
    let wrong = sidecar
        .get(8012, "/", "user-agent: Knative-Autoscaling-Probe\r\nk-network-probe: activator\r\n")
        .await;
    assert!(wrong.starts_with("HTTP/1.1 400"), "{wrong}");
    assert!(wrong.ends_with("unexpected probe header value: activator\n"), "{wrong}");
    let ordinary = sidecar.get(8012, "/", "k-network-probe: queue\r\n").await;
    assert!(ordinary.contains("GET / HTTP/1.1"), "reaches the app: {ordinary}");
    sidecar.running.abort();
}

#[tokio::test]
async fn a_probe_before_readiness_is_held_until_the_app_answers() {
    let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = reserved.local_addr().unwrap();
    drop(reserved);
    let probe =
        format!(r#"{{"tcpSocket":{{"port":{},"host":"127.0.0.1"}},"successThreshold":1}}"#, addr.port());
    let mut sidecar =
        Sidecar::start(config(own_ip(), addr.port(), &[("SERVING_READINESS_PROBE", &probe)])).await;
    let ip = sidecar.ip;
    let held = tokio::spawn(async move {
        let mut wire = Wire::connect((ip, 8012).into()).await;
        wire.send(&format!("GET / HTTP/1.1\r\nhost: a\r\n{ACTIVATOR}\r\n")).await;
        (wire.until("\r\n\r\nqueue").await, Instant::now())
    });
    // One who leaves meanwhile takes nothing with it.
    let mut gone = sidecar.connect(8012).await;
    gone.send(&format!("GET / HTTP/1.1\r\nhost: a\r\n{ACTIVATOR}\r\n")).await;
    drop(gone);
    tokio::time::sleep(200 * MS).await;
    assert!(!held.is_finished() && !*sidecar.ready.borrow());
    app_at(addr, echo).await;
    let opened = Instant::now();
    sidecar.until_ready().await;
    let (answer, at) = held.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(at.duration_since(opened) < 500 * MS, "pauses are at most 50 ms");
    sidecar.running.abort();
}

#[tokio::test]
async fn an_http_probe_decides_by_status_and_follows_the_app_afterwards() {
    static STATUS: AtomicUsize = AtomicUsize::new(503);
    let port = app(|mut wire| async move {
        while let Ok(head) = wire.try_until("\r\n\r\n").await {
            let head = head.to_lowercase();
            assert!(head.starts_with("get /ready?deep=1 ") && head.contains("x-probe: yes"), "{head}");
            assert!(head.contains("user-agent: kube-probe//"), "{head}");
            let status = STATUS.load(Ordering::SeqCst);
            wire.send(&format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")).await;
        }
    })
    .await;
    let probe = format!(
        r#"{{"httpGet":{{"path":"/ready?deep=1","port":{port},"host":"127.0.0.1","scheme":"HTTP","httpHeaders":[{{"name":"X-Probe","value":"yes"}}]}},"periodSeconds":1,"timeoutSeconds":1,"failureThreshold":1}}"#
    );
    let mut sidecar = Sidecar::start(config(own_ip(), port, &[("SERVING_READINESS_PROBE", &probe)])).await;
    let answer = sidecar.get(8012, "/", KUBELET).await;
    assert!(answer.starts_with("HTTP/1.1 503") && !answer.contains("content-type"), "{answer}");
    STATUS.store(204, Ordering::SeqCst);
    sidecar.until_ready().await;
    assert!(sidecar.get(8012, "/", KUBELET).await.ends_with("queue"));
    STATUS.store(500, Ordering::SeqCst);
    assert!(sidecar.get(8012, "/", KUBELET).await.starts_with("HTTP/1.1 503"));
    tokio::time::timeout(LONG, sidecar.ready.wait_for(|ready| !ready)).await.unwrap().unwrap();
    // Nobody asks: the sidecar looks by itself.
    STATUS.store(200, Ordering::SeqCst);
    sidecar.until_ready().await;
    sidecar.running.abort();
}

#[tokio::test]
async fn exec_probes_are_never_ready_and_no_probe_always_is() {
    let port = app(echo).await;
    let exec = r#"{"exec":{"command":["true"]},"periodSeconds":1}"#;
    let sidecar = Sidecar::start(config(own_ip(), port, &[("SERVING_READINESS_PROBE", exec)])).await;
    assert!(sidecar.get(8012, "/", KUBELET).await.starts_with("HTTP/1.1 503"));
    sidecar.running.abort();
    let mut sidecar = Sidecar::start(config(own_ip(), port, &[])).await;
    sidecar.until_ready().await;
    assert!(sidecar.get(8012, "/", KUBELET).await.ends_with("queue"));
    sidecar.running.abort();
}

#[tokio::test]
async fn one_at_a_time_ten_wait_the_rest_is_refused() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let port = app({
        let release = Arc::clone(&release);
        move |mut wire| {
            let release = Arc::clone(&release);
            async move {
                while wire.try_until("\r\n\r\n").await.is_ok() {
                    assert_eq!(RUNNING.fetch_add(1, Ordering::SeqCst), 0, "two requests overlap");
                    release.acquire().await.unwrap().forget();
                    RUNNING.fetch_sub(1, Ordering::SeqCst);
                    wire.send(OK).await;
                }
            }
        }
    })
    .await;
    let sidecar = Sidecar::start(config(own_ip(), port, &[("CONTAINER_CONCURRENCY", "1")])).await;
    let mut clients = Vec::new();
    for _ in 0..14 {
        let ip = sidecar.ip;
        clients.push(tokio::spawn(async move {
            let mut wire = Wire::connect((ip, 8012).into()).await;
            wire.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            wire.rest().await
        }));
    }
    eventually("three are refused", async || {
        clients.iter().filter(|client| client.is_finished()).count() == 3
    })
    .await;
    // One that waits leaves: its place is free again.
    release.add_permits(11);
    let mut served = 0;
    for client in clients {
        let answer = client.await.unwrap();
        if answer.ends_with("ok") {
            served += 1;
        } else {
            assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
            assert!(answer.ends_with("\r\n\r\npending request queue full\n"), "{answer}");
        }
    }
    assert_eq!(served, 11);
    sidecar.running.abort();
}

#[tokio::test]
async fn a_waiting_client_that_leaves_frees_its_place() {
    let (arrive, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let release = Arc::new(tokio::sync::Semaphore::new(0));
    let port = app({
        let release = Arc::clone(&release);
        move |mut wire| {
            let (arrive, release) = (arrive.clone(), Arc::clone(&release));
            async move {
                while let Ok(head) = wire.try_until("\r\n\r\n").await {
                    arrive.send(head).unwrap();
                    release.acquire().await.unwrap().forget();
                    wire.send(OK).await;
                }
            }
        }
    })
    .await;
    let sidecar = Sidecar::start(config(own_ip(), port, &[("CONTAINER_CONCURRENCY", "1")])).await;
    let mut first = sidecar.connect(8012).await;
    first.send("GET /1 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    arrived.recv().await.unwrap();
    let mut leaving = Vec::new();
    for _ in 0..10 {
        let mut wire = sidecar.connect(8012).await;
        wire.send("GET /leaving HTTP/1.1\r\nhost: a\r\n\r\n").await;
        leaving.push(wire);
    }
    // The queue is full once an eleventh is refused.
    eventually("the queue is full", async || {
        sidecar.get(8012, "/probe", "k-network-probe: x\r\n").await.contains("queue full")
    })
    .await;
    drop(leaving);
    let mut last = sidecar.connect(8012).await;
    // The places are free as soon as the departures are seen.
    eventually("a place is free", async || {
        last.send("GET /last HTTP/1.1\r\nhost: a\r\n\r\n").await;
        match tokio::time::timeout(50 * MS, last.try_until("queue full\n")).await {
            Err(_) => true,
            Ok(refused) => {
                refused.unwrap();
                false
            }
        }
    })
    .await;
    release.add_permits(2);
    first.until("ok").await;
    last.until("ok").await;
    assert!(arrived.recv().await.unwrap().starts_with("GET /last"), "none of those who left ran");
    sidecar.running.abort();
}

#[tokio::test]
async fn timeouts_have_their_exact_answers() {
    let port = app(|mut wire| async move {
        while let Ok(head) = wire.try_until("\r\n\r\n").await {
            if head.contains("/started") {
                wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await;
            }
        }
    })
    .await;
    let config = Config {
        timeouts: ember_dataplane::timeout::Timeouts {
            total: Some(100 * MS),
            response_start: None,
            idle: None,
        },
        ..config(own_ip(), port, &[("CONTAINER_CONCURRENCY", "1")])
    };
    let sidecar = Sidecar::start(config).await;
    let mut running = sidecar.connect(8012).await;
    running.send("GET /silent HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    // The timers run while waiting for a place too.
    let waiting = sidecar.get(8012, "/waiting", "").await;
    let answer = running.rest().await;
    for answer in [answer, waiting] {
        assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
        assert!(answer.ends_with("\r\n\r\nrequest timeout"), "{answer}");
    }
    let answer = sidecar.get(8012, "/started", "").await;
    assert!(answer.ends_with("3\r\none\r\nF\r\nrequest timeout\r\n0\r\n\r\n"), "{answer}");
    sidecar.running.abort();
}

#[tokio::test]
async fn statistics_are_protobuf_by_the_second() {
    let release = Arc::new(tokio::sync::Notify::new());
    let port = app({
        let release = Arc::clone(&release);
        move |mut wire| {
            let release = Arc::clone(&release);
            async move {
                wire.until("\r\n\r\n").await;
                release.notified().await;
                wire.send(OK).await;
                wire.rest().await;
            }
        }
    })
    .await;
    let config = Config { stat_period: 200 * MS, ..config(own_ip(), port, &[]) };
    let sidecar = Sidecar::start(config).await;
    let scrape = async || {
        let mut wire = sidecar.connect(9090).await;
        wire.send("GET /metrics HTTP/1.1\r\nhost: a\r\naccept: text/plain\r\nconnection: close\r\n\r\n")
            .await;
        let mut bytes = Vec::new();
        wire.stream.read_to_end(&mut bytes).await.unwrap();
        let at = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let body = bytes.split_off(at);
        (String::from_utf8(bytes).unwrap(), body)
    };
    let (head, body) = scrape().await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("content-type: application/protobuf\r\n"),
        "{head}"
    );
    assert_eq!(body, b"\x0a\x05pod-1", "before the first tick there is only the name");
    let ip = sidecar.ip;
    let request = tokio::spawn(async move {
        let mut wire = Wire::connect((ip, 8012).into()).await;
        wire.send("GET / HTTP/1.1\r\nhost: a\r\nk-proxy-request: activator\r\n\r\n").await;
        wire.until("ok").await
    });
    let mut counted = 0.0;
    let mut seen = 0.0;
    eventually("a whole window of one request", async || {
        let stat = Stat::from_bytes(&scrape().await.1).unwrap();
        if stat.process_uptime != seen {
            seen = stat.process_uptime;
            counted += stat.request_count;
            assert_eq!(stat.request_count, stat.proxied_request_count);
        }
        assert_eq!((stat.pod_name.as_str(), stat.timestamp), ("pod-1", 0));
        stat.average_concurrent_requests == 1.0 && stat.average_proxied_concurrent_requests == 1.0
    })
    .await;
    assert_eq!(counted, 5.0, "one arrival in a fifth of a second");
    release.notify_one();
    request.await.unwrap();
    eventually("an idle window", async || {
        Stat::from_bytes(&scrape().await.1).unwrap().average_concurrent_requests == 0.0
    })
    .await;
    assert!(sidecar.get(9090, "/other", "").await.starts_with("HTTP/1.1 404"));
    sidecar.running.abort();
}

#[tokio::test]
async fn prometheus_where_the_cluster_asks_for_it() {
    let port = app(echo).await;
    let json = r#"{"requestMetrics":{"protocol":"prometheus"}}"#;
    let env = [("OBSERVABILITY_CONFIG", json), ("CONTAINER_CONCURRENCY", "3")];
    let sidecar = Sidecar::start(config(own_ip(), port, &env)).await;
    sidecar.get(8012, "/", "").await;
    let metrics = sidecar.get(9091, "/metrics", "").await;
    let scope =
        r#"otel_scope_name="knative.dev/serving/pkg/queue",otel_scope_schema_url="",otel_scope_version="""#;
    let count = format!(
        r#"kn_serving_invocation_duration_seconds_count{{http_response_status_code="200",{scope}}} 1"#
    );
    assert!(metrics.contains(&count), "{metrics}");
    assert!(metrics.contains(&format!("kn_serving_queue_depth{{{scope}}} 0")), "{metrics}");
    sidecar.running.abort();
    let sidecar = Sidecar::start(config(own_ip(), port, &[])).await;
    assert!(TcpStream::connect((sidecar.ip, 9091)).await.is_err());
    sidecar.running.abort();
}

#[tokio::test]
async fn at_sigterm_probes_fail_requests_finish_and_the_hook_returns_last() {
    let (arrive, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let release = Arc::new(tokio::sync::Notify::new());
    let port = app({
        let release = Arc::clone(&release);
        move |mut wire| {
            let (arrive, release) = (arrive.clone(), Arc::clone(&release));
            async move {
                while let Ok(head) = wire.try_until("\r\n\r\n").await {
                    if head.contains("/slow") {
                        arrive.send(()).unwrap();
                        release.notified().await;
                    }
                    wire.send(OK).await;
                }
            }
        }
    })
    .await;
    let mut sidecar = Sidecar::start(config(own_ip(), port, &[])).await;
    sidecar.until_ready().await;
    let mut slow = sidecar.connect(8012).await;
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    arrived.recv().await.unwrap();
    sidecar.shutdown.cancel();
    let ip = sidecar.ip;
    let hook = tokio::spawn(async move {
        let mut wire = Wire::connect((ip, 8022).into()).await;
        wire.send("GET /wait-for-drain HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        wire.rest().await
    });
    tokio::time::timeout(LONG, sidecar.ready.wait_for(|ready| !ready)).await.unwrap().unwrap();
    for headers in [KUBELET, ACTIVATOR, "k-network-probe: probe\r\nk-network-hash: x\r\n"] {
        let answer = sidecar.get(8012, "/", headers).await;
        assert!(answer.starts_with("HTTP/1.1 503") && answer.ends_with("shutting down\n"), "{answer}");
    }
    let late = sidecar.get(8012, "/late", "").await;
    assert!(late.ends_with("ok") && late.contains("connection: close"), "{late}");
    // Longer than the quiet period: what runs is waited for.
    tokio::time::sleep(150 * MS).await;
    assert!(!hook.is_finished() && !sidecar.running.is_finished());
    assert!(sidecar.get(9090, "/metrics", "").await.starts_with("HTTP/1.1 200"), "still scrapable");
    release.notify_one();
    assert!(slow.rest().await.ends_with("ok"));
    assert!(hook.await.unwrap().starts_with("HTTP/1.1 200"));
    tokio::time::timeout(LONG, sidecar.running).await.unwrap().unwrap().unwrap();
    assert!(TcpStream::connect((ip, 8012)).await.is_err());
}

#[tokio::test]
async fn the_hook_without_sigterm_is_released_and_probes_recover() {
    let port = app(echo).await;
    let config = Config { drain_reset_after: 100 * MS, ..config(own_ip(), port, &[]) };
    let mut sidecar = Sidecar::start(config).await;
    sidecar.until_ready().await;
    let hook = sidecar.get(8022, "/wait-for-drain", "").await;
    assert!(hook.starts_with("HTTP/1.1 200"), "{hook}");
    assert!(sidecar.get(8012, "/", KUBELET).await.ends_with("queue"));
    assert!(sidecar.get(8022, "/other", "").await.starts_with("HTTP/1.1 404"));
    sidecar.running.abort();
}

#[tokio::test]
async fn an_upgraded_stream_counts_drains_and_is_cut_in_the_end() {
    let port = app(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
        while wire.try_until("ping").await.is_ok() {
            wire.send("pong").await;
        }
    })
    .await;
    let config = Config { drain_upgraded_timeout: 200 * MS, ..config(own_ip(), port, &[]) };
    let sidecar = Sidecar::start(config).await;
    let mut client = sidecar.connect(8012).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    client.send("ping").await;
    client.until("pong").await;
    sidecar.shutdown.cancel();
    tokio::time::sleep(100 * MS).await;
    client.send("ping").await;
    client.until("pong").await;
    assert_eq!(client.rest().await, "");
    tokio::time::timeout(LONG, sidecar.running).await.unwrap().unwrap().unwrap();
}

#[tokio::test]
async fn a_taken_port_is_an_error_and_a_dropped_sidecar_frees_its_ports() {
    let port = app(echo).await;
    let first = Sidecar::start(config(own_ip(), port, &[])).await;
    let (readiness, _ready) = watch::channel(false);
    let second = config(first.ip, port, &[]);
    let error =
        ember_queue_proxy::run(second, Io::system(), readiness, CancellationToken::new()).await.unwrap_err();
    assert!(error.to_string().starts_with(&format!("listening on {}:8012: ", first.ip)), "{error}");
    first.running.abort();
    eventually("the ports are free", async || {
        let mut free = true;
        for port in [8012, 8022, 9090] {
            free &= TcpListener::bind((first.ip, port)).await.is_ok();
        }
        free
    })
    .await;
}

#[tokio::test]
async fn an_app_that_is_gone_is_a_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let sidecar = Sidecar::start(config(own_ip(), port, &[])).await;
    let answer = sidecar.get(8012, "/", "").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(
        answer.ends_with(&format!("dial tcp 127.0.0.1:{port}: connect: connection refused\n")),
        "{answer}"
    );
    sidecar.running.abort();
}

#[tokio::test]
async fn a_request_waits_for_an_app_that_is_started_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let config = Config { app_absence: LONG, ..config(own_ip(), addr.port(), &[]) };
    let sidecar = Sidecar::start(config).await;
    let mut wire = sidecar.connect(8012).await;
    wire.send("POST / HTTP/1.1\r\nhost: app\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc").await;
    app_at(addr, echo).await;
    let answer = wire.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    sidecar.running.abort();
}
