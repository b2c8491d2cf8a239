//! QP-PRB: what is a probe, and what it is answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use ember_dataplane::body::Body;
use http::Request;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::network::{APP, Memory};
use crate::sidecar::{ACTIVATOR, AUTOSCALER, KUBELET, MS, Sidecar, app, config, eventually};
use crate::wire::{OK, body, echo, status};

const AGENTS: [&str; 3] = ["kube-probe/1.34", "Knative-Activator-Probe", "Knative-Autoscaling-Probe/2"];
const HASH: &str = "k-network-probe: probe\r\nk-network-hash: a1b2\r\n";

#[tokio::test]
async fn a_probers_question_gets_the_apps_readiness() {
    static STATUS: AtomicUsize = AtomicUsize::new(200);
    let port = app(|mut wire| async move {
        while wire.head().await.is_some() {
            let status = STATUS.load(Ordering::SeqCst);
            wire.send(&format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")).await;
        }
    })
    .await;
    let probe = format!(r#"{{"httpGet":{{"port":{port},"host":"127.0.0.1"}},"periodSeconds":1}}"#);
    let mut sidecar = Sidecar::start(config(port, &[("SERVING_READINESS_PROBE", &probe)])).await;
    sidecar.until_ready().await;
    for ready in [true, false, true] {
        STATUS.store(if ready { 200 } else { 500 }, Ordering::SeqCst);
        for agent in AGENTS {
            let headers = format!("user-agent: {agent}\r\nk-network-probe: queue\r\n");
            let answer = sidecar.get(8012, "/", &headers).await;
            let (head, text) = answer.split_once("\r\n\r\n").unwrap();
            if ready {
                assert_eq!((status(head), text), (200, "queue"), "{answer}");
            } else {
                assert_eq!((status(head), text), (503, ""), "{answer}");
                assert!(!head.contains("content-type"), "{answer}");
            }
        }
    }
}

#[tokio::test]
async fn a_prober_that_asks_for_anything_else_is_refused() {
    let sidecar = Sidecar::start(config(app(echo).await, &[])).await;
    for agent in AGENTS {
        for asked in ["", "probe", "activator", "Queue", "x y"] {
            let header =
                if asked.is_empty() { String::new() } else { format!("k-network-probe: {asked}\r\n") };
            let headers = format!("user-agent: {agent}\r\nk-network-hash: h\r\n{header}");
            let answer = sidecar.get(8012, "/", &headers).await;
            assert_eq!(status(&answer), 400, "{answer}");
            assert_eq!(body(&answer), format!("unexpected probe header value: {asked}\n"));
            assert!(answer.contains("content-type: text/plain; charset=utf-8\r\n"), "{answer}");
            assert!(answer.contains("x-content-type-options: nosniff\r\n"), "{answer}");
        }
    }
    // What the autoscaler asks to learn whether the activator is in the path.
    let kpa = "user-agent: Knative-Autoscaling-Probe\r\nk-network-probe: activator\r\n";
    assert_eq!(status(&sidecar.get(8012, "//healthz", kpa).await), 400);
}

#[tokio::test]
async fn who_asks_for_the_configuration_gets_its_hash_back() {
    let sidecar = Sidecar::start(config(app(echo).await, &[])).await;
    let agents = ["", "user-agent: Knative-Ingress-Probe\r\n", "user-agent: curl\r\n"];
    for agent in agents {
        let answer = sidecar.get(8012, "/healthz", &format!("{agent}{HASH}")).await;
        assert_eq!((status(&answer), body(&answer)), (200, ""));
        assert!(answer.contains("k-network-hash: a1b2\r\n"), "{answer}");
        for hash in ["", "k-network-hash: \r\n"] {
            let answer = sidecar.get(8012, "/", &format!("{agent}k-network-probe: probe\r\n{hash}")).await;
            assert_eq!(status(&answer), 400);
            assert_eq!(body(&answer), "a probe request must contain a non-empty \"K-Network-Hash\" header\n");
        }
    }
}

#[tokio::test]
async fn path_method_and_protocol_do_not_matter() {
    let sidecar = Sidecar::start(config(app(echo).await, &[])).await;
    let mut kept = sidecar.connect(8012).await;
    for path in ["/", "//healthz", "/a/b?c=d", "http://elsewhere/x"] {
        for method in ["GET", "PUT", "DELETE", "PATCH", "OPTIONS", "TRACE", "PROBE"] {
            kept.send(&format!("{method} {path} HTTP/1.1\r\nhost: a\r\n{ACTIVATOR}\r\n")).await;
            let answer = kept.until("\r\n\r\nqueue").await;
            assert_eq!(status(&answer), 200, "{method} {path}: {answer}");
        }
        kept.send(&format!("HEAD {path} HTTP/1.1\r\nhost: a\r\n{ACTIVATOR}\r\n")).await;
        assert_eq!(status(&kept.until("\r\n\r\n").await), 200);
    }
    kept.send(&format!(
        "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nconnection: close\r\n{ACTIVATOR}\r\nbody"
    ))
    .await;
    assert_eq!(body(&kept.rest().await), "queue");

    let stream = TcpStream::connect((sidecar.ip, 8012)).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let probe = |method: &str, name: &str, value: &str| {
        let request = Request::builder().method(method).uri("http://app/x").header(name, value);
        request.header("user-agent", if name == "k-network-hash" { "x" } else { AGENTS[1] })
    };
    for method in ["GET", "POST", "DELETE"] {
        let request = probe(method, "k-network-probe", "queue").body(Body::empty()).unwrap();
        let answer = client.send_request(request).await.unwrap();
        let answer = http_body_util::BodyExt::collect(answer).await.unwrap().to_bytes();
        assert_eq!(answer, "queue");
    }
    let request = probe("GET", "k-network-hash", "x").header("k-network-probe", "probe");
    let answer = client.send_request(request.body(Body::empty()).unwrap()).await.unwrap();
    assert_eq!(answer.headers()["k-network-hash"], "x");
}

#[tokio::test(start_paused = true)]
async fn while_draining_every_kind_is_told_so() {
    let memory = Memory::new();
    let _app = memory.app(echo);
    let mut sidecar = Sidecar::simulate(config(APP, &[]), &memory).await;
    sidecar.until_ready().await;
    let kinds =
        [KUBELET, ACTIVATOR, AUTOSCALER, HASH, "user-agent: kube-probe/1\r\n", "k-network-probe: probe\r\n"];
    // For the hook alone, while nobody knows yet whether the pod ends; then at SIGTERM.
    let hook = tokio::spawn(memory.connect(8022).exchange("GET", "/wait-for-drain", ""));
    eventually("it drains", async || status(&memory.get(8012, "/", KUBELET).await) == 503).await;
    for kind in kinds {
        assert_eq!(body(&memory.get(8012, "/x", kind).await), "shutting down\n");
    }
    hook.await.unwrap();
    assert_eq!(body(&memory.get(8012, "/", KUBELET).await), "queue", "the app alone was restarted");
    sidecar.shutdown.cancel();
    tokio::task::yield_now().await;
    for kind in kinds {
        let answer = memory.get(8012, "/x", kind).await;
        assert_eq!((status(&answer), body(&answer)), (503, "shutting down\n"), "{kind}");
    }
    assert!(memory.get(8012, "/served", "").await.contains("GET /served"));
    sidecar.end().await;
}

#[tokio::test]
async fn marked_as_probes_by_others_they_reach_the_app_past_the_limit_or_through_it() {
    let (arrive, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let release = Arc::new(Semaphore::new(0));
    let port = app({
        let release = Arc::clone(&release);
        move |mut wire| {
            let (arrive, release) = (arrive.clone(), Arc::clone(&release));
            async move {
                while let Some(head) = wire.head().await {
                    let hold = head.contains("/hold");
                    arrive.send(head).unwrap();
                    if hold {
                        release.acquire().await.unwrap().forget();
                    }
                    wire.send(OK).await;
                }
            }
        }
    })
    .await;
    let json = r#"{"requestMetrics":{"protocol":"prometheus"}}"#;
    let env = [("CONTAINER_CONCURRENCY", "1"), ("OBSERVABILITY_CONFIG", json)];
    let sidecar =
        Sidecar::start(ember_queue_proxy::Config { stat_period: 50 * MS, ..config(port, &env) }).await;
    let mut holder = sidecar.connect(8012).await;
    holder.send("GET /hold HTTP/1.1\r\nhost: a\r\n\r\n").await;
    arrived.recv().await.unwrap();
    // With K-Kubelet-Probe and an ordinary User-Agent: past the limit, the statistics and the Host.
    let marked = "k-kubelet-probe: x\r\nk-original-host: other\r\n";
    assert!(sidecar.get(8012, "/", marked).await.ends_with("ok"));
    let head = arrived.recv().await.unwrap();
    assert!(head.contains("host: app\r\n") && head.contains("k-original-host: other\r\n"), "{head}");
    // With K-Network-Probe: queue and an ordinary User-Agent: a request like others, but not in the metrics.
    let network =
        tokio::spawn(sidecar.connect(8012).await.exchange("GET", "/", "k-network-probe: queue\r\n"));
    eventually("two are counted", async || {
        let mut scrape = sidecar.connect(9090).await;
        scrape.send("GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
        let bytes = scrape.bytes().await;
        let at = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let stat = ember_dataplane::stat::Stat::from_bytes(&bytes[at..]).unwrap();
        assert!(stat.average_concurrent_requests <= 2.0, "{stat:?}");
        stat.average_concurrent_requests == 2.0
    })
    .await;
    assert!(arrived.try_recv().is_err(), "it waits");
    release.add_permits(1);
    holder.until("ok").await;
    assert!(network.await.unwrap().ends_with("ok"));
    // Of all of these the app's metrics know the one request that was no probe.
    let invocations = async || {
        let text = sidecar.get(9091, "/metrics", "").await;
        let counts =
            text.lines().filter(|line| line.starts_with("kn_serving_invocation_duration_seconds_count"));
        counts.map(|line| line.rsplit(' ').next().unwrap().parse::<f64>().unwrap()).sum::<f64>()
    };
    assert_eq!(invocations().await, 1.0);
    assert!(sidecar.get(8012, "/", "").await.ends_with("ok"));
    eventually("the next is measured", async || invocations().await == 2.0).await;
}
