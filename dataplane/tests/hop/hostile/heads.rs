//! Heads and bodies that are too large, too slow or without end.

use std::time::Duration;

use ember_dataplane::server::Options;
use tokio::io::AsyncReadExt;

use super::neighbours::{friendly, others_are_served};
use super::recording::recorder;
use crate::hop::{Running, brief_hop, hop, limited_hop};
use crate::wire::{Wire, backend, eventually};

/// Heads of 16 KiB and 64 lines at most, within 200 ms.
async fn narrow_hop() -> Running {
    let options = Options {
        header_read_timeout: Duration::from_millis(200),
        max_header_bytes: 16 << 10,
        max_headers: 64,
        ..Options::default()
    };
    limited_hop(friendly().await, options).await
}

#[tokio::test]
async fn large_heads_are_refused() {
    let hop = narrow_hop().await;
    let long = "x".repeat(20 << 10);
    let many = "x: y\r\n".repeat(65);
    for (head, status) in [
        (format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}\r\n\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{long}: x\r\n\r\n"), "431"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\nx: {long}"), "431"),
        (format!("GET / HTTP/1.1\r\nhost: a\r\n{many}\r\n"), "431"),
        (format!("GET /{long} HTTP/1.1\r\nhost: a\r\n\r\n"), "431"),
        (format!("GET /{long}"), "431"),
        (long.clone(), "431"),
    ] {
        let mut client = Wire::connect(hop.addr).await;
        client.send(&head).await;
        let answer = client.rest().await;
        assert!(answer.starts_with(&format!("HTTP/1.1 {status}")), "{}…: {answer}", &head[..40]);
        assert!(answer.contains("connection: close"), "{answer}");
    }
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn long_targets_are_refused_by_default() {
    let hop = hop(friendly().await).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send(format!("GET /{} HTTP/1.1\r\nhost: a\r\n\r\n", "x".repeat(70 << 10))).await;
    assert!(client.rest().await.starts_with("HTTP/1.1 414"));
}

#[tokio::test]
async fn a_head_without_end_is_taken_only_so_far() {
    let hop = narrow_hop().await;
    for part in ["x: y\r\n", "x", "\r\n"] {
        let mut client = Wire::connect(hop.addr).await;
        if part != "\r\n" {
            client.send("GET / HTTP/1.1\r\nhost: a\r\nx: y").await;
        }
        let taken = client.flood(part.repeat(1000).as_bytes(), 256 << 20).await;
        assert!(taken < 64 << 20, "{part:?}: {taken} bytes");
        client.rest().await;
    }
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn slow_heads_are_cut_off() {
    let hop = narrow_hop().await;
    for (first, more) in
        [("GET / HTTP/1.1\r\nhost: a\r\n", "x: y\r\n"), ("GET /", "x"), ("\r\n", "\r\n"), ("PRI", "")]
    {
        let mut client = Wire::connect(hop.addr).await;
        client.send(first).await;
        let mut pieces = 0;
        let mut byte = [0];
        // A piece now and then does not help.
        let ended = loop {
            let waited = tokio::time::timeout(Duration::from_millis(20), client.stream.peek(&mut byte)).await;
            match waited {
                Ok(ended) => break ended,
                Err(_) => client.send(more).await,
            }
            pieces += 1;
            assert!(pieces < 1000, "{first:?} goes on");
        };
        assert!(matches!(ended, Ok(0) | Err(_)), "{first:?}: {ended:?}");
    }
    // Nor does a first request that is in order.
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("\r\n\r\nok").await;
    client.send("GET / HT").await;
    assert_eq!(client.rest().await, "");
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn slow_bodies_end_with_the_request() {
    let (addr, recorded) = recorder().await;
    let hop = brief_hop(addr, Duration::from_millis(400)).await;
    for headers in ["content-length: 1000000\r\n", "transfer-encoding: chunked\r\n"] {
        let mut client = Wire::connect(hop.addr).await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
        let mut buffer = [0; 1024];
        let mut answer = Vec::new();
        loop {
            let read = tokio::time::timeout(Duration::from_millis(10), client.stream.read(&mut buffer));
            match read.await {
                Ok(Ok(0) | Err(_)) => break,
                Ok(Ok(read)) => answer.extend(&buffer[..read]),
                Err(_) => client.send("1\r\nx\r\n").await,
            }
        }
        let answer = String::from_utf8(answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("connection: close"), "{answer}");
    }
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    assert!(recorded.all().0.is_empty());
    assert_eq!(hop.pool.idle(), 0);
}

#[tokio::test]
async fn a_body_nobody_reads_is_taken_only_so_far() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        // Reads no further, and stays.
        std::future::pending::<()>().await;
    })
    .await;
    let hop = hop(addr).await;
    for headers in ["content-length: 1000000000000\r\n", "transfer-encoding: chunked\r\n"] {
        let mut client = Wire::connect(hop.addr).await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\n{headers}\r\n")).await;
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        // The rest is in the buffers of the system.
        let taken = client.flood(chunk.as_bytes(), 512 << 20).await;
        assert!(taken < 128 << 20, "{headers}: {taken} bytes");
    }
    others_cannot_be_served_here(&hop).await;
}

/// That backend answers nobody; the hop does.
async fn others_cannot_be_served_here(hop: &Running) {
    let mut client = Wire::connect(hop.addr).await;
    client.send("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));
}

#[tokio::test]
async fn what_surrounds_a_chunk_is_bounded() {
    let (addr, recorded) = recorder().await;
    let hop = hop(addr).await;
    for (begin, more, bounded) in [
        ("1;", "extension", true),
        ("0\r\nx: ", "trailer", true),
        ("0\r\n", "x: 0123456789abcdef\r\n", true),
        ("1;x\r\nx\r\n", "1;x\r\nx\r\n", true),
        // Read, and kept nowhere.
        ("1 ", " ", false),
        ("0", "0", false),
    ] {
        let mut client = Wire::connect(hop.addr).await;
        client.send(format!("POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n{begin}")).await;
        let limit = if bounded { 64 << 20 } else { 4 << 20 };
        let taken = client.flood(more.repeat(1000).as_bytes(), limit).await;
        if bounded {
            assert!(taken < limit, "{begin:?}: {taken} bytes");
            assert!(!client.rest().await.contains("HTTP/1.1 200"), "{begin:?}");
        }
        drop(client);
        eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    }
    assert!(recorded.bytes().len() < 1 << 20);
    assert!(recorded.all().0.is_empty(), "no body had an end");
    others_are_served(hop.addr).await;
}
