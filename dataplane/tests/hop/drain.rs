//! A server that is told to finish.

use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::drain::Outcome;
use tokio::net::TcpStream;

use crate::hop::hop;
use crate::wire::{LONG, OK, Wire, backend};

#[tokio::test]
async fn a_draining_server_says_so_finishes_and_stops() {
    let (arrive, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let release = Arc::new(tokio::sync::Notify::new());
    let addr = backend({
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
    let hop = hop(addr).await;
    let mut slow = Wire::connect(hop.addr).await;
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    arrived.recv().await.unwrap();
    let mut idle = Wire::connect(hop.addr).await;
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    idle.until("ok").await;
    hop.drain.announce();
    let mut late = Wire::connect(hop.addr).await;
    late.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(late.rest().await.contains("connection: close"), "accepted, answered, closed");
    let finishing = tokio::spawn({
        let drain = hop.drain.clone();
        async move { drain.finish(LONG).await }
    });
    assert_eq!(idle.rest().await, "", "idle connections close");
    assert!(!finishing.is_finished());
    release.notify_one();
    let answer = slow.rest().await;
    assert!(answer.ends_with("ok") && answer.contains("connection: close"), "{answer}");
    assert_eq!(finishing.await.unwrap(), Outcome::Drained);
    assert!(TcpStream::connect(hop.addr).await.is_err(), "no longer listening");
}

#[tokio::test]
async fn an_aborted_drain_cuts_upgraded_streams() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
        wire.rest().await;
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    assert_eq!(hop.drain.finish(Duration::from_millis(50)).await, Outcome::Forced);
    assert_eq!(client.rest().await, "");
    assert_eq!(hop.quiet.in_flight(), 0);
}
