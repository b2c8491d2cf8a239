//! Streams that have left HTTP/1.1 for another protocol.

use std::time::Duration;

use ember_dataplane::protocol::Protocol;
use ember_dataplane::server::Options;
use ember_dataplane::timeout::Timeouts;
use tokio::io::AsyncWriteExt;

use crate::hop::{hop, hop_with, limited_hop};
use crate::wire::{Wire, backend, eventually};

#[tokio::test]
async fn an_upgraded_stream_is_joined_half_closed_and_held() {
    let addr = backend(|mut wire| async move {
        let head = wire.until("\r\n\r\n").await.to_lowercase();
        assert!(head.contains("upgrade: echo") && head.contains("connection: upgrade"), "{head}");
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: Echo\r\n\r\nhi").await;
        wire.until("ping").await;
        wire.send("pong").await;
        assert_eq!(wire.rest().await, "", "the client's end of stream arrives");
        wire.send("bye").await;
    })
    .await;
    let options = Options { header_read_timeout: Duration::from_millis(50), ..Options::default() };
    let hop = limited_hop(addr, options).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    let head = client.until("\r\n\r\nhi").await.to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: echo"), "{head}");
    // Longer than a head may take: the timer of heads is none of an upgraded stream's business.
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(hop.quiet.in_flight(), 1, "the guard lives as long as the stream");
    client.send("ping").await;
    client.until("pong").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.rest().await, "bye");
    eventually("the stream is over", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn an_upgrade_to_something_else_is_a_502() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n").await;
        wire.rest().await;
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    let head = client.until("was requested\n").await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
}

#[tokio::test]
async fn idle_upgraded_streams_end_by_the_idle_timer_active_ones_do_not() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
        while wire.try_until("ping").await.is_ok() {
            wire.send("pong").await;
        }
    })
    .await;
    let timeouts = Timeouts { idle: Some(Duration::from_millis(300)), ..Timeouts::default() };
    let hop = hop_with(addr, Protocol::Http1, timeouts, Options::default()).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(700) {
        client.send("ping").await;
        client.until("pong").await;
        // Shorter than the timer, which has to run out if it is not set again.
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(client.rest().await, "");
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
}
