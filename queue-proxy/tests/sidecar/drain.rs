//! SIGTERM and the hook before it.

use std::sync::Arc;

use ember_queue_proxy::Config;
use tokio::net::TcpStream;

use crate::pod::{ACTIVATOR, KUBELET, MS, OK, Sidecar, Wire, app, config, echo, soon};

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
    let mut sidecar = Sidecar::start(config(port, &[])).await;
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
    soon(sidecar.ready.wait_for(|ready| !ready)).await.unwrap();
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
    sidecar.ended().await;
    assert!(TcpStream::connect((ip, 8012)).await.is_err());
}

#[tokio::test]
async fn the_hook_without_sigterm_is_released_and_probes_recover() {
    let port = app(echo).await;
    let config = Config { drain_reset_after: 100 * MS, ..config(port, &[]) };
    let mut sidecar = Sidecar::start(config).await;
    sidecar.until_ready().await;
    let hook = sidecar.get(8022, "/wait-for-drain", "").await;
    assert!(hook.starts_with("HTTP/1.1 200"), "{hook}");
    assert!(sidecar.get(8012, "/", KUBELET).await.ends_with("queue"));
    assert!(sidecar.get(8022, "/other", "").await.starts_with("HTTP/1.1 404"));
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
    let config = Config { drain_upgraded_timeout: 500 * MS, ..config(port, &[]) };
    let mut sidecar = Sidecar::start(config).await;
    sidecar.until_ready().await;
    let mut client = sidecar.connect(8012).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    client.send("ping").await;
    client.until("pong").await;
    sidecar.shutdown.cancel();
    soon(sidecar.ready.wait_for(|ready| !ready)).await.unwrap();
    client.send("ping").await;
    client.until("pong").await;
    assert_eq!(client.rest().await, "");
    sidecar.ended().await;
}
