//! Clients that connect and do nothing, or ask and do not listen: what they cost, and that others are served.

use std::time::Duration;

use ember_dataplane::server::Options;
use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream};

use super::neighbours::{endless, friendly, others_are_served, verbose};
use super::recording::recorder;
use crate::hop::{brief_hop, hop, limited_hop};
use crate::wire::{Wire, eventually, soon};

/// As many connections as the descriptors suffice for, with both ends in this process.
fn most_connections() -> usize {
    let limits = std::fs::read_to_string("/proc/self/limits").unwrap();
    let line = limits.lines().find(|line| line.starts_with("Max open files")).unwrap();
    let soft: usize = line.split_whitespace().nth(3).unwrap().parse().unwrap_or(usize::MAX);
    (soft.saturating_sub(400) / 2).min(2000)
}

#[tokio::test]
async fn idle_connections_are_no_burden() {
    let hop = hop(friendly().await).await;
    let mut clients = Vec::new();
    for index in 0..most_connections() {
        let mut client = Wire::connect(hop.addr).await;
        // Some have never asked, some have, some have begun to.
        match index % 3 {
            0 => {}
            1 => {
                client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
                client.until("\r\n\r\nok").await;
            }
            _ => client.send("GET / HTTP/1.1\r\nhost").await,
        }
        clients.push(client);
    }
    for _ in 0..20 {
        others_are_served(hop.addr).await;
    }
    // They are still there, and as good as any.
    for (index, client) in clients.iter_mut().enumerate() {
        client.send(if index % 3 == 2 { ": a\r\n\r\n" } else { "GET / HTTP/1.1\r\nhost: a\r\n\r\n" }).await;
        client.until("\r\n\r\nok").await;
    }
}

#[tokio::test]
async fn connections_beyond_the_limit_wait_for_others_to_end() {
    let options = Options { max_connections: 2, ..Options::default() };
    let hop = limited_hop(friendly().await, options).await;
    let first = Wire::connect(hop.addr).await;
    let mut second = Wire::connect(hop.addr).await;
    second.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    second.until("\r\n\r\nok").await;
    let mut third = Wire::connect(hop.addr).await;
    third.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let early = tokio::time::timeout(Duration::from_millis(100), third.stream.readable()).await;
    assert!(early.is_err(), "served beyond the limit");
    drop(first);
    third.until("\r\n\r\nok").await;
}

#[tokio::test]
async fn an_answer_nobody_reads_is_held_in_small_part_and_not_for_ever() {
    let (addr, mut taken) = endless().await;
    let hop = brief_hop(addr, Duration::from_millis(700)).await;
    let mut clients = Vec::new();
    for _ in 0..5 {
        let mut client = Wire::connect(hop.addr).await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.until("\r\n\r\n").await;
        clients.push(client);
    }
    others_are_served(hop.addr).await;
    for _ in &clients {
        // Most of this is in the buffers of the four sockets.
        let taken = soon(taken.recv()).await.unwrap();
        assert!(taken < 64 << 20, "{taken} bytes");
    }
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn who_takes_nothing_is_let_go_of_without_any_timer_of_the_request() {
    let (addr, mut taken) = endless().await;
    let options = Options { stall_timeout: Duration::from_millis(300), ..Options::default() };
    let hop = limited_hop(addr, options).await;
    let mut stalled = Wire::connect(hop.addr).await;
    stalled.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    stalled.until("\r\n\r\n").await;
    let mut slow = Wire::connect(hop.addr).await;
    slow.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    // This one reads, if not much at a time.
    let reading = tokio::spawn(async move {
        loop {
            slow.until("\r\n10000\r\n").await;
            slow.read.clear();
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    });
    soon(taken.recv()).await.unwrap();
    eventually("the stalled one is gone", || hop.quiet.in_flight() == 1).await;
    assert!(!reading.is_finished());
    reading.abort();
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn pipelined_requests_of_who_does_not_read_are_taken_only_so_far() {
    let addr = verbose().await;
    let options = Options { stall_timeout: Duration::from_secs(2), ..Options::default() };
    let hop = limited_hop(addr, options).await;
    let mut client = Wire::connect(hop.addr).await;
    let requests = "GET / HTTP/1.1\r\nhost: a\r\n\r\n".repeat(100);
    let flooding = tokio::spawn(async move {
        let taken = client.flood(requests.as_bytes(), 256 << 20).await;
        (taken, client)
    });
    others_are_served(hop.addr).await;
    let (taken, client) = flooding.await.unwrap();
    assert!(taken < 64 << 20, "{taken} bytes");
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    drop(client);
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn a_body_that_is_none_is_a_400() {
    let (addr, _recorded) = recorder().await;
    let hop = hop(addr).await;
    for chunks in [
        "zz\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "fffffffffffffffff\r\nhello",
        "5\nhello\n0\n\n",
        "5;a=\nb\r\nhello\r\n0\r\n\r\n",
        "5\r\nhello0\r\n\r\n",
    ] {
        // At once, and after the request has begun to be forwarded.
        for pieces in [[chunks, ""], ["3\r\nabc\r\n", chunks]] {
            let mut client = Wire::connect(hop.addr).await;
            let head = "POST / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n";
            client.send(format!("{head}{}", pieces.concat())).await;
            let answer = client.rest().await;
            assert!(answer.starts_with("HTTP/1.1 400 "), "{chunks:?}: {answer}");
            assert!(answer.contains("connection: close\r\n"), "{chunks:?}: {answer}");
        }
    }
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn half_open_connections_end() {
    let (addr, _recorded) = recorder().await;
    let hop = hop(addr).await;
    for sent in ["", "GET / HT", "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 10\r\n\r\nhalf", "PRI * HT"] {
        let mut client = Wire::connect(hop.addr).await;
        client.send(sent).await;
        client.stream.shutdown().await.unwrap();
        client.rest().await;
        // And with a reset in place of an end.
        let client = TcpStream::connect(hop.addr).await.unwrap();
        client.try_write(sent.as_bytes()).ok();
        client.set_zero_linger().unwrap();
        drop(client);
    }
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn upgraded_streams_of_who_does_not_read_end() {
    let (addr, mut ended) = {
        let (tell, told) = tokio::sync::mpsc::unbounded_channel();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let addr = listener.local_addr().unwrap();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let mut wire = Wire { stream, read: Vec::new() };
            wire.until("\r\n\r\n").await;
            wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
            tell.send(wire.flood(&[b'x'; 0x10000], 1 << 30).await).unwrap();
            assert_eq!(wire.rest().await, "");
            tell.send(0).unwrap();
        });
        (addr, told)
    };
    let options = Options { stall_timeout: Duration::from_secs(1), ..Options::default() };
    let hop = limited_hop(addr, options).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: x\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    let taken = ended.recv().await.unwrap();
    assert!(taken < 64 << 20, "{taken} bytes");
    soon(ended.recv()).await.unwrap();
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}
