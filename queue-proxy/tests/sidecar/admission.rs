//! Places, and the queue before them.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use crate::pod::{MS, OK, Sidecar, Wire, app, config, eventually};

#[tokio::test]
async fn one_at_a_time_ten_wait_the_rest_is_refused() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    let release = Arc::new(Semaphore::new(0));
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
    let sidecar = Sidecar::start(config(port, &[("CONTAINER_CONCURRENCY", "1")])).await;
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
}

#[tokio::test]
async fn a_waiting_client_that_leaves_frees_its_place() {
    let (arrive, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let release = Arc::new(Semaphore::new(0));
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
    let sidecar = Sidecar::start(config(port, &[("CONTAINER_CONCURRENCY", "1")])).await;
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
}
