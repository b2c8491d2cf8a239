//! Requests and ports.

use ember_dataplane::io::Io;
use ember_dataplane::timeout::Timeouts;
use ember_queue_proxy::Config;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::pod::{LONG, MS, Sidecar, app, app_at, config, echo, eventually};

#[tokio::test]
async fn the_chain_shapes_the_request_for_the_app() {
    let port = app(echo).await;
    let sidecar = Sidecar::start(config(port, &[])).await;
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
        // Long enough for an answer to begin on a busy machine.
        timeouts: Timeouts { total: Some(500 * MS), response_start: None, idle: None },
        ..config(port, &[("CONTAINER_CONCURRENCY", "1")])
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
}

#[tokio::test]
async fn an_app_that_is_gone_is_a_502() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    drop(listener);
    let sidecar = Sidecar::start(config(port, &[])).await;
    let answer = sidecar.get(8012, "/", "").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(
        answer.ends_with(&format!("dial tcp 127.0.0.1:{port}: connect: connection refused\n")),
        "{answer}"
    );
}

#[tokio::test]
async fn a_request_waits_for_an_app_that_is_started_again() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let config = Config { app_absence: LONG, ..config(addr.port(), &[]) };
    let sidecar = Sidecar::start(config).await;
    let mut wire = sidecar.connect(8012).await;
    wire.send("POST / HTTP/1.1\r\nhost: app\r\nconnection: close\r\ncontent-length: 3\r\n\r\nabc").await;
    app_at(addr, echo).await;
    let answer = wire.rest().await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
}

#[tokio::test]
async fn a_request_that_can_be_returned_goes_back_at_once_when_the_app_is_away() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    drop(listener);
    let config = Config { app_absence: LONG, ..config(addr.port(), &[]) };
    let sidecar = Sidecar::start(config).await;
    for rest in [
        "\r\n",
        "content-length: 3\r\n\r\nabc",
        "content-length: 3\r\n\r\n",
        "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n",
    ] {
        let mut wire = sidecar.connect(8012).await;
        wire.send(&format!(
            "POST / HTTP/1.1\r\nhost: app\r\nember-returnable: true\r\nconnection: close\r\n{rest}"
        ))
        .await;
        let answer = wire.rest().await;
        assert!(answer.starts_with("HTTP/1.1 503"), "{rest:?}: {answer}");
        let patience = format!("\r\nember-app-away: {}\r\n", LONG.as_millis());
        assert!(answer.contains(&patience), "{rest:?}: {answer}");
    }
    // Of these the sender may have forgotten a part.
    let mut waiting = Vec::new();
    for rest in [
        format!("content-length: {0}\r\n\r\n{1}", (64 << 10) + 1, "a".repeat((64 << 10) + 1)),
        "transfer-encoding: chunked\r\n\r\n3\r\nabc\r\n".to_owned(),
    ] {
        let mut wire = sidecar.connect(8012).await;
        wire.send(&format!(
            "POST / HTTP/1.1\r\nhost: app\r\nember-returnable: true\r\nconnection: close\r\n{rest}"
        ))
        .await;
        waiting.push(wire);
    }
    app_at(addr, echo).await;
    waiting[1].send("0\r\n\r\n").await;
    for mut wire in waiting {
        let answer = wire.rest().await;
        assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
        assert!(!answer.contains("ember-returnable"), "the app sees nothing of it: {answer}");
    }
}

#[tokio::test]
async fn an_app_cannot_hand_a_request_back() {
    let port = app(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 200 OK\r\nember-app-away: 1\r\ncontent-length: 4\r\n\r\ndone").await;
    })
    .await;
    let sidecar = Sidecar::start(config(port, &[])).await;
    let answer = sidecar.get(8012, "/", "ember-returnable: true\r\n").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.ends_with("done"), "{answer}");
    assert!(!answer.contains("ember-app-away"), "{answer}");
}

#[tokio::test]
async fn a_taken_port_is_an_error_and_a_dropped_sidecar_frees_its_ports() {
    let port = app(echo).await;
    let first = Sidecar::start(config(port, &[])).await;
    let (readiness, _ready) = watch::channel(false);
    let second = Config { bind: first.ip, ..config(port, &[]) };
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
