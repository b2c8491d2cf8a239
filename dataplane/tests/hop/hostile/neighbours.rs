//! Backends behind the clients of these tests, and the client that is served whatever others do.

use std::net::SocketAddr;

use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;

use crate::wire::{LONG, OK, Wire, backend};

/// A backend that answers every request with [`OK`].
pub(super) async fn friendly() -> SocketAddr {
    backend(|mut wire| async move {
        while wire.try_until("\r\n\r\n").await.is_ok() {
            if wire.stream.write_all(OK.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// A backend whose answers soon fill all buffers on their way.
pub(super) async fn verbose() -> SocketAddr {
    backend(|mut wire| async move {
        let body = "x".repeat(100_000);
        let long = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        while let Ok(head) = wire.try_until("\r\n\r\n").await {
            wire.send(if head.starts_with("GET /other") { OK } else { &long }).await;
        }
    })
    .await
}

/// A backend that sends without end, and tells how much of it was taken when that ends.
pub(super) async fn endless() -> (SocketAddr, mpsc::UnboundedReceiver<usize>) {
    let (tell, told) = mpsc::unbounded_channel();
    let addr = backend(move |mut wire| {
        let tell = tell.clone();
        async move {
            let head = wire.until("\r\n\r\n").await;
            if head.starts_with("GET /other") {
                wire.send(OK).await;
                return;
            }
            wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
            let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
            let mut taken = 0;
            while let Ok(Ok(())) = tokio::time::timeout(LONG, wire.stream.write_all(chunk.as_bytes())).await {
                taken += chunk.len();
            }
            tell.send(taken).unwrap();
        }
    })
    .await;
    (addr, told)
}

/// Another client, on a connection of its own, is answered.
pub(super) async fn others_are_served(addr: SocketAddr) {
    let mut client = Wire::connect(addr).await;
    client.send("GET /other HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("\r\n\r\nok").await;
}
