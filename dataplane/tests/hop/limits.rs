//! Limits of time and size.

use std::time::Duration;

use ember_dataplane::protocol::Protocol;
use ember_dataplane::server::Options;
use ember_dataplane::timeout::Timeouts;
use tokio::io::AsyncWriteExt;

use crate::hop::{hop_with, limited_hop};
use crate::wire::{LONG, OK, Wire, backend, eventually, soon};

#[tokio::test]
async fn timers_answer_504_or_end_the_body() {
    let addr = backend(|mut wire| async move {
        while let Ok(head) = wire.try_until("\r\n\r\n").await {
            if head.contains("/chunked") {
                wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await;
            } else if head.contains("/sized") {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart").await;
            }
        }
    })
    .await;
    // Long enough for an answer to begin on a busy machine.
    let timeouts = Timeouts { total: Some(Duration::from_millis(500)), ..Timeouts::default() };
    let hop = hop_with(addr, Protocol::Http1, timeouts, Options::default()).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET /silent HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let answer = client.until("request timeout").await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("content-length: 15"), "{answer}");

    client.send("GET /chunked HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let answer = client.until("0\r\n\r\n").await;
    assert!(answer.ends_with("3\r\none\r\nF\r\nrequest timeout\r\n0\r\n\r\n"), "{answer}");

    client.send("GET /sized HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(client.rest().await.ends_with("\r\n\r\npart"));
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_in_time() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        while wire.stream.write_all(chunk.as_bytes()).await.is_ok() {}
    })
    .await;
    let timeouts = Timeouts { total: Some(Duration::from_millis(200)), ..Timeouts::default() };
    let hop = hop_with(addr, Protocol::Http1, timeouts, Options::default()).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn heads_are_bounded_in_time_and_size_and_idle_connections_are_not() {
    let addr = backend(|mut wire| async move {
        while wire.try_until("\r\n\r\n").await.is_ok() {
            wire.send(OK).await;
        }
    })
    .await;
    let options = Options {
        header_read_timeout: Duration::from_millis(100),
        max_header_bytes: 16 << 10,
        ..Options::default()
    };
    let hop = limited_hop(addr, options).await;
    let mut idle = Wire::connect(hop.addr).await;
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    idle.until("ok").await;
    let mut silent = Wire::connect(hop.addr).await;
    assert_eq!(silent.rest().await, "", "a connection that never asks is closed");
    let mut slow = Wire::connect(hop.addr).await;
    slow.send("GET / HT").await;
    assert_eq!(slow.rest().await, "", "half a head is closed");
    let mut large = Wire::connect(hop.addr).await;
    let filler = "x".repeat(20 << 10);
    large.stream.write_all(format!("GET / HTTP/1.1\r\nhost: a\r\nx: {filler}\r\n\r\n").as_bytes()).await.ok();
    assert!(large.rest().await.starts_with("HTTP/1.1 431"));
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    idle.until("ok").await;
    idle.send("GET / HT").await;
    assert_eq!(idle.rest().await, "", "later heads are timed from their first byte");
}

#[tokio::test]
async fn who_has_no_more_to_say_is_answered_and_who_gives_up_is_not_waited_for() {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let answer = std::sync::Arc::new(tokio::sync::Semaphore::new(0));
    let permits = std::sync::Arc::clone(&answer);
    let addr = backend(move |mut wire| {
        let (tell, permits) = (tell.clone(), std::sync::Arc::clone(&permits));
        async move {
            wire.until("\r\n\r\n").await;
            tell.send("asked").unwrap();
            tokio::select! {
                permit = permits.acquire() => {
                    permit.unwrap().forget();
                    wire.send(OK).await;
                    return;
                }
                _ = wire.rest() => {}
            }
            tell.send("cut").unwrap();
        }
    })
    .await;
    let request = "GET / HTTP/1.1\r\nhost: a\r\n\r\n";
    let options = |within| Options {
        half_closed_timeout: LONG,
        half_close_within: within,
        abandoned_timeout: Duration::from_millis(1),
        ..Options::default()
    };

    let patient = limited_hop(addr, options(LONG)).await;
    let mut client = Wire::connect(patient.addr).await;
    client.send(request).await;
    assert_eq!(soon(told.recv()).await, Some("asked"));
    client.stream.shutdown().await.unwrap();
    // Longer than anybody would be waited for who had given up.
    assert!(tokio::time::timeout(Duration::from_millis(200), told.recv()).await.is_err());
    answer.add_permits(1);
    assert!(client.rest().await.ends_with("ok"));

    // A reset is noticed all the same.
    let mut client = Wire::connect(patient.addr).await;
    client.send(request).await;
    assert_eq!(soon(told.recv()).await, Some("asked"));
    client.stream.shutdown().await.unwrap();
    client.stream.set_zero_linger().unwrap();
    drop(client);
    assert_eq!(soon(told.recv()).await, Some("cut"));

    // What is said later than in one breath is that nobody waits any more.
    let hasty = limited_hop(addr, options(Duration::ZERO)).await;
    let mut client = Wire::connect(hasty.addr).await;
    client.send(request).await;
    assert_eq!(soon(told.recv()).await, Some("asked"));
    drop(client);
    assert_eq!(soon(told.recv()).await, Some("cut"));

    // A request that will never be complete is not waited for, whenever it ends.
    let mut client = Wire::connect(patient.addr).await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhe").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(soon(told.recv()).await, Some("asked"));
    assert_eq!(soon(told.recv()).await, Some("cut"));
    eventually("nothing is in flight", || patient.quiet.in_flight() + hasty.quiet.in_flight() == 0).await;
}
