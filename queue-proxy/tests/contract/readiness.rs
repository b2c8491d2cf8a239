//! QP-RDY: how the app's readiness is learned.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::network::{APP, Memory};
use crate::sidecar::{ACTIVATOR, KUBELET, MS, S, Sidecar, app, config, eventually};
use crate::wire::{Wire, body, ok, status};

/// A sidecar that probes the app as `probe` says.
async fn simulate(memory: &Arc<Memory>, probe: &str) -> Sidecar {
    Sidecar::simulate(config(APP, &[("SERVING_READINESS_PROBE", probe)]), memory).await
}

/// An HTTP app whose answers have the status told here; 0: none.
fn told(
    memory: &Arc<Memory>,
    status: &Arc<AtomicUsize>,
    seen: &Arc<Mutex<Vec<(Instant, String)>>>,
) -> crate::network::App {
    let (status, seen) = (Arc::clone(status), Arc::clone(seen));
    memory.app(move |mut wire: Wire| {
        let (status, seen) = (Arc::clone(&status), Arc::clone(&seen));
        async move {
            while let Some(head) = wire.head().await {
                seen.lock().push((Instant::now(), head));
                match status.load(Ordering::SeqCst) {
                    0 => std::future::pending().await,
                    status => wire.send(&format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")).await,
                }
            }
        }
    })
}

#[tokio::test(start_paused = true)]
async fn tcp_is_ready_when_the_port_opens_and_not_when_it_is_closed() {
    for period in [0, 1] {
        let memory = Memory::new();
        let probe =
            format!(r#"{{"tcpSocket":{{"port":{APP},"host":"127.0.0.1"}},"periodSeconds":{period}}}"#);
        let mut sidecar = simulate(&memory, &probe).await;
        let begun = Instant::now();
        let answer = memory.get(8012, "/", KUBELET).await;
        assert_eq!((status(&answer), body(&answer)), (503, ""));
        // As long as an aggressive probe is tried, or one attempt may take.
        assert_eq!(begun.elapsed(), if period == 0 { 10 * S } else { S });
        let app = memory.app(ok);
        sidecar.until_ready().await;
        assert_eq!(body(&memory.get(8012, "/", KUBELET).await), "queue");
        app.stop().await;
        assert_eq!(status(&memory.get(8012, "/", KUBELET).await), 503, "it was ready once and is no more");
        sidecar.ready.wait_for(|ready| !ready).await.unwrap();
        let _app = memory.app(ok);
        assert_eq!(body(&memory.get(8012, "/", KUBELET).await), "queue");
    }
}

#[tokio::test(start_paused = true)]
async fn http_is_ready_from_200_to_399_with_path_query_and_headers() {
    let (status_of, seen) = (Arc::new(AtomicUsize::new(200)), Arc::default());
    let memory = Memory::new();
    let _app = told(&memory, &status_of, &seen);
    let probe = r#"{"httpGet":{"path":"/deep/ready?a=1&b","port":8080,"host":"127.0.0.1","scheme":"HTTP","httpHeaders":[{"name":"X-One","value":"1"},{"name":"X-One","value":"2"}]},"periodSeconds":5,"timeoutSeconds":3}"#;
    let mut sidecar = simulate(&memory, probe).await;
    sidecar.until_ready().await;
    for (status_now, ready) in [
        (200, true),
        (204, true),
        (304, true),
        (399, true),
        (400, false),
        (404, false),
        (500, false),
        (503, false),
    ] {
        status_of.store(status_now, Ordering::SeqCst);
        let begun = Instant::now();
        seen.lock().clear();
        let answer = memory.get(8012, "/", KUBELET).await;
        assert_eq!(status(&answer), if ready { 200 } else { 503 }, "{status_now}");
        assert!(begun.elapsed() < S);
        let heads: Vec<_> = seen.lock().iter().map(|(_, head)| head.clone()).collect();
        assert_eq!(heads.len(), 1, "one look, one attempt: {heads:?}");
        let head = &heads[0];
        assert!(head.starts_with("GET /deep/ready?a=1&b HTTP/1.1\r\n"), "{head}");
        assert!(head.contains("x-one: 1\r\n") && head.contains("x-one: 2\r\n"), "{head}");
        assert!(head.contains("user-agent: kube-probe/"), "{head}");
    }
    // An app that does not answer has as long as the probe says.
    status_of.store(0, Ordering::SeqCst);
    let begun = Instant::now();
    assert_eq!(status(&memory.get(8012, "/", KUBELET).await), 503);
    assert_eq!(begun.elapsed(), 3 * S);
}

#[tokio::test(start_paused = true)]
async fn callers_share_one_look_and_the_next_one_looks_again() {
    let (status_of, seen) = (Arc::new(AtomicUsize::new(200)), Arc::default());
    let memory = Memory::new();
    let app = told(&memory, &status_of, &seen);
    let probe = r#"{"httpGet":{"port":8080},"periodSeconds":100,"timeoutSeconds":3}"#;
    let mut sidecar = simulate(&memory, probe).await;
    sidecar.until_ready().await;
    app.stop().await;
    // One that answers each probe after a second.
    let looks = Arc::new(AtomicUsize::new(0));
    let _app = memory.app({
        let looks = Arc::clone(&looks);
        move |mut wire: Wire| {
            let looks = Arc::clone(&looks);
            async move {
                while wire.head().await.is_some() {
                    looks.fetch_add(1, Ordering::SeqCst);
                    tokio::time::sleep(S).await;
                    wire.send("HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n").await;
                }
            }
        }
    });
    for round in 1..=2 {
        let callers: Vec<_> =
            (0..20).map(|_| tokio::spawn(memory.connect(8012).exchange("GET", "/", ACTIVATOR))).collect();
        // Another leaves; the look goes on for the others.
        let leaver = tokio::spawn(memory.connect(8012).exchange("GET", "/", ACTIVATOR));
        tokio::time::sleep(100 * MS).await;
        leaver.abort();
        for caller in callers {
            assert_eq!(body(&caller.await.unwrap()), "queue");
        }
        assert_eq!(looks.load(Ordering::SeqCst), round);
    }
}

/// As long as with a kubelet that asks every ten seconds: three failures, and what has passed of a look's patience.
#[tokio::test(start_paused = true)]
async fn unasked_an_app_that_fails_is_known_within_45_seconds() {
    let (status_of, seen) = (Arc::new(AtomicUsize::new(200)), Arc::default());
    let memory = Memory::new();
    let _app = told(&memory, &status_of, &seen);
    let mut sidecar = simulate(&memory, r#"{"httpGet":{"port":8080}}"#).await;
    sidecar.until_ready().await;
    status_of.store(500, Ordering::SeqCst);
    let begun = Instant::now();
    sidecar.ready.wait_for(|ready| !ready).await.unwrap();
    let took = begun.elapsed();
    assert!(40 * S < took && took < 46 * S, "{took:?}");
}

#[tokio::test(start_paused = true)]
async fn an_aggressive_probe_tries_often_for_ten_seconds_until_enough_successes_in_a_row() {
    let (status_of, seen) =
        (Arc::new(AtomicUsize::new(500)), Arc::<Mutex<Vec<(Instant, String)>>>::default());
    let memory = Memory::new();
    let app = told(&memory, &status_of, &seen);
    let probe = r#"{"httpGet":{"port":8080},"successThreshold":3}"#;
    let mut sidecar = simulate(&memory, probe).await;
    let begun = Instant::now();
    assert_eq!(status(&memory.get(8012, "/", KUBELET).await), 503);
    assert_eq!(begun.elapsed(), 10 * S);
    {
        let seen = seen.lock();
        let longest = seen.windows(2).map(|pair| pair[1].0 - pair[0].0).max().unwrap();
        assert!(longest <= 52 * MS, "{longest:?}");
        assert!(seen.len() > 10_000 / 52, "{}", seen.len());
    }
    app.stop().await;
    // Fails at every third attempt for a while: two successes in a row are not three.
    let attempts = Arc::new(AtomicUsize::new(0));
    let _app = memory.app({
        let attempts = Arc::clone(&attempts);
        move |mut wire: Wire| {
            let attempts = Arc::clone(&attempts);
            async move {
                while wire.head().await.is_some() {
                    let attempt = attempts.fetch_add(1, Ordering::SeqCst);
                    let status = if attempt < 30 && attempt.is_multiple_of(3) { 500 } else { 200 };
                    wire.send(&format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")).await;
                }
            }
        }
    });
    sidecar.until_ready().await;
    assert_eq!(attempts.load(Ordering::SeqCst), 31);
    assert_eq!(body(&memory.get(8012, "/", KUBELET).await), "queue");
    assert_eq!(attempts.load(Ordering::SeqCst), 34);
}

#[tokio::test(start_paused = true)]
async fn an_app_slower_than_the_first_attempts_becomes_ready_all_the_same() {
    let memory = Memory::new();
    let _app = memory.app(|mut wire: Wire| async move {
        while wire.head().await.is_some() {
            tokio::time::sleep(300 * MS).await;
            wire.try_send("HTTP/1.1 200 X\r\ncontent-length: 0\r\n\r\n").await;
        }
    });
    simulate(&memory, r#"{"httpGet":{"port":8080}}"#).await.until_ready().await;
}

#[tokio::test(start_paused = true)]
async fn exec_and_nothing_are_never_ready_and_of_several_all_have_to_be() {
    for probe in [r#"{"exec":{"command":["true"]},"periodSeconds":1}"#, r#"{"periodSeconds":1}"#] {
        let memory = Memory::new();
        let _app = memory.app(ok);
        let _sidecar = simulate(&memory, probe).await;
        assert_eq!(status(&memory.get(8012, "/", KUBELET).await), 503, "{probe}");
    }
    let memory = Memory::new();
    let _app = memory.app(|mut wire: Wire| async move {
        while let Some(head) = wire.head().await {
            let status = if head.starts_with("GET /side") { 500 } else { 200 };
            wire.send(&format!("HTTP/1.1 {status} X\r\ncontent-length: 0\r\n\r\n")).await;
        }
    });
    for (side, expected) in [("/side", 503), ("/well", 200)] {
        let memory = &memory;
        let probes = format!(
            r#"[{{"httpGet":{{"port":8080,"path":"/main"}},"periodSeconds":1}},null,{{"httpGet":{{"port":8080,"path":"{side}"}},"periodSeconds":1}}]"#
        );
        let env = [("SERVING_READINESS_PROBE", probes.as_str()), ("ENABLE_MULTI_CONTAINER_PROBES", "true")];
        let mut sidecar = Sidecar::simulate(config(APP, &env), memory).await;
        assert_eq!(status(&memory.get(8012, "/", KUBELET).await), expected, "{side}");
        sidecar.end().await;
    }
}

/// An app of hyper's on a real socket, which answers as told, HTTP/1.1 or HTTP/2.
async fn http_app<F, T>(multiplexed: bool, answer: F) -> u16
where
    F: Fn(Request<Incoming>) -> T + Clone + Send + Sync + 'static,
    T: Future<Output = Response<Full<Bytes>>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            let io = TokioIo::new(stream);
            tokio::spawn(async move {
                if multiplexed {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    server.serve_connection(io, service).await.ok();
                } else {
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service).await.ok();
                }
            });
        }
    });
    port
}

#[tokio::test]
async fn grpc_is_ready_when_it_says_serving() {
    static SAYS: AtomicUsize = AtomicUsize::new(1);
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let answer = |request: Request<Incoming>| async move {
        assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
        assert_eq!(request.headers()["content-type"], "application/grpc");
        assert!(request.headers()["user-agent"].to_str().unwrap().starts_with("kube-probe/"));
        let asked = request.into_body().collect().await.unwrap().to_bytes();
        // HealthCheckRequest { service: "db" } in a message of its own.
        assert_eq!(&asked[..], b"\0\0\0\0\x04\x0a\x02db");
        let says = SAYS.load(Ordering::SeqCst) as u8;
        let (message, status) = match says {
            // UNIMPLEMENTED: there is no health service.
            9 => (Bytes::new(), "12"),
            0 => (Bytes::from_static(&[0, 0, 0, 0, 0]), "0"),
            says => (Bytes::copy_from_slice(&[0, 0, 0, 0, 2, 8, says]), "0"),
        };
        let trailers = HeaderMap::from_iter([("grpc-status".parse().unwrap(), status.parse().unwrap())]);
        let frames = [Ok::<_, Infallible>(Frame::data(message)), Ok(Frame::trailers(trailers))];
        let mut response = Response::new(StreamBody::new(futures::stream::iter(frames)));
        response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
        Ok::<_, Infallible>(response)
    };
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), hyper::service::service_fn(answer)));
        }
    });
    let probe =
        format!(r#"{{"grpc":{{"port":{port},"service":"db"}},"periodSeconds":1,"timeoutSeconds":20}}"#);
    let mut sidecar = Sidecar::start(config(port, &[("SERVING_READINESS_PROBE", &probe)])).await;
    sidecar.until_ready().await;
    // SERVING; UNKNOWN, NOT_SERVING and SERVICE_UNKNOWN; no service.
    for (says, expected) in [(1, 200), (0, 503), (2, 503), (3, 503), (9, 503), (1, 200)] {
        SAYS.store(says, Ordering::SeqCst);
        assert_eq!(status(&sidecar.get(8012, "/", KUBELET).await), expected, "{says}");
    }
}

#[tokio::test]
async fn with_auto_detection_http2_is_tried_first_and_http1_decides_where_it_is_not_spoken() {
    for multiplexed in [true, false] {
        for code in [200, 503] {
            let versions: Arc<Mutex<Vec<(Version, bool)>>> = Arc::default();
            let port = http_app(multiplexed, {
                let versions = Arc::clone(&versions);
                move |request: Request<Incoming>| {
                    versions.lock().push((request.version(), request.headers().contains_key("x-probe")));
                    let mut response = Response::new(Full::default());
                    *response.status_mut() = http::StatusCode::from_u16(code).unwrap();
                    async move { response }
                }
            })
            .await;
            let probe = format!(
                r#"{{"httpGet":{{"port":{port},"host":"127.0.0.1","path":"/x","httpHeaders":[{{"name":"X-Probe","value":"1"}}]}},"periodSeconds":1,"timeoutSeconds":1}}"#
            );
            let env = [("SERVING_READINESS_PROBE", probe.as_str()), ("ENABLE_HTTP2_AUTO_DETECTION", "true")];
            let sidecar = Sidecar::start(config(port, &env)).await;
            let answer = sidecar.get(8012, "/", KUBELET).await;
            assert_eq!(status(&answer), code, "{multiplexed} {code}: {answer}");
            let version = if multiplexed { Version::HTTP_2 } else { Version::HTTP_11 };
            eventually("a probe with the probe's headers", async || {
                versions.lock().contains(&(version, true))
            })
            .await;
        }
    }
    // Without it an app that speaks HTTP/2 only is not ready.
    let port = http_app(true, |_| async { Response::new(Full::default()) }).await;
    let probe = format!(r#"{{"httpGet":{{"port":{port}}},"periodSeconds":1,"timeoutSeconds":1}}"#);
    let sidecar = Sidecar::start(config(port, &[("SERVING_READINESS_PROBE", &probe)])).await;
    assert_eq!(status(&sidecar.get(8012, "/", KUBELET).await), 503);
}

#[tokio::test]
async fn a_port_written_as_a_text_serves_as_well() {
    let port = app(ok).await;
    let probe = format!(r#"{{"tcpSocket":{{"port":"{port}","host":"127.0.0.1"}},"successThreshold":1}}"#);
    let mut sidecar = Sidecar::start(config(port, &[("SERVING_READINESS_PROBE", &probe)])).await;
    sidecar.until_ready().await;
    assert_eq!(body(&sidecar.get(8012, "/", ACTIVATOR).await), "queue");
}
