//! Probes, and the app that they are about.

use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::pod::{ACTIVATOR, KUBELET, MS, Sidecar, Wire, app, app_at, config, echo, soon};

#[tokio::test]
async fn probes_are_answered_on_every_path() {
    let port = app(echo).await;
    let probe = format!(r#"{{"tcpSocket":{{"port":{port},"host":"127.0.0.1"}},"successThreshold":1}}"#);
    let mut sidecar = Sidecar::start(config(port, &[("SERVING_READINESS_PROBE", &probe)])).await;
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
}

#[tokio::test]
async fn a_probe_before_readiness_is_held_until_the_app_answers() {
    let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = reserved.local_addr().unwrap();
    drop(reserved);
    let probe =
        format!(r#"{{"tcpSocket":{{"port":{},"host":"127.0.0.1"}},"successThreshold":1}}"#, addr.port());
    let mut sidecar = Sidecar::start(config(addr.port(), &[("SERVING_READINESS_PROBE", &probe)])).await;
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
    // Many times the pause between two looks at the app: nothing tells that there is no answer.
    tokio::time::sleep(200 * MS).await;
    assert!(!held.is_finished() && !*sidecar.ready.borrow());
    app_at(addr, echo).await;
    let opened = Instant::now();
    sidecar.until_ready().await;
    let (answer, at) = held.await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    assert!(at.duration_since(opened) < 500 * MS, "pauses are at most 50 ms");
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
    let mut sidecar = Sidecar::start(config(port, &[("SERVING_READINESS_PROBE", &probe)])).await;
    let answer = sidecar.get(8012, "/", KUBELET).await;
    assert!(answer.starts_with("HTTP/1.1 503") && !answer.contains("content-type"), "{answer}");
    STATUS.store(204, Ordering::SeqCst);
    sidecar.until_ready().await;
    assert!(sidecar.get(8012, "/", KUBELET).await.ends_with("queue"));
    STATUS.store(500, Ordering::SeqCst);
    assert!(sidecar.get(8012, "/", KUBELET).await.starts_with("HTTP/1.1 503"));
    soon(sidecar.ready.wait_for(|ready| !ready)).await.unwrap();
    // Nobody asks: the sidecar looks by itself.
    STATUS.store(200, Ordering::SeqCst);
    sidecar.until_ready().await;
}

#[tokio::test]
async fn exec_probes_are_never_ready_and_no_probe_always_is() {
    let port = app(echo).await;
    let exec = r#"{"exec":{"command":["true"]},"periodSeconds":1}"#;
    let sidecar = Sidecar::start(config(port, &[("SERVING_READINESS_PROBE", exec)])).await;
    assert!(sidecar.get(8012, "/", KUBELET).await.starts_with("HTTP/1.1 503"));
    sidecar.running.abort();
    let mut sidecar = Sidecar::start(config(port, &[])).await;
    sidecar.until_ready().await;
    assert!(sidecar.get(8012, "/", KUBELET).await.ends_with("queue"));
}
