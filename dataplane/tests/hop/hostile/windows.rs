//! HTTP/2 clients and their windows: those they overrun, and those they never open.

use std::time::Duration;

use ember_dataplane::server::Options;

use super::neighbours::{endless, others_are_served};
use crate::frames::{
    Client, DATA, END_HEADERS, FLOW_CONTROL_ERROR, HEADERS, MAX_FRAME, Said, WINDOW_UPDATE, fields, frame,
    get, setting,
};
use crate::hop::{brief_hop, limited_hop};
use crate::wire::{OK, backend, eventually, soon};

#[tokio::test]
async fn windows_are_kept_to() {
    let addr = backend(|mut wire| async move {
        let head = wire.until("\r\n\r\n").await;
        if head.starts_with("GET /other") {
            wire.send(OK).await;
        }
        std::future::pending::<()>().await;
    })
    .await;
    let options = Options { stream_window: 64 << 10, connection_window: 256 << 10, ..Options::default() };
    let hop = limited_hop(addr, options).await;
    // One stream beyond its window; the backend does not read, and buffers are large.
    let mut client = Client::connect(hop.addr).await;
    client.send(frame(HEADERS, END_HEADERS, 1, &fields("POST", "/", &[]))).await;
    let data = frame(DATA, 0, 1, &[b'x'; MAX_FRAME]);
    let taken = client.0.flood(&data, 256 << 20).await;
    assert!(taken < 64 << 20, "{taken} bytes");
    let said = client.said(1).await;
    assert!(
        matches!(said, Said::Reset(FLOW_CONTROL_ERROR) | Said::GoAway(FLOW_CONTROL_ERROR) | Said::End),
        "{said:?}"
    );
    // All streams together beyond that of the connection.
    let mut client = Client::connect(hop.addr).await;
    for stream in (1..200).step_by(2) {
        client.send(frame(HEADERS, END_HEADERS, stream, &fields("POST", "/", &[]))).await;
        client.send(frame(DATA, 0, stream, &[b'x'; MAX_FRAME]).repeat(4)).await;
    }
    let end = client.end().await;
    assert!(matches!(end, Said::GoAway(FLOW_CONTROL_ERROR) | Said::End), "{end:?}");
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    // And what the client allows cannot be more than there is.
    let mut client = Client::connect(hop.addr).await;
    client.send(frame(HEADERS, END_HEADERS, 1, &fields("POST", "/", &[]))).await;
    client.send(frame(WINDOW_UPDATE, 0, 1, &0x7fff_ffff_u32.to_be_bytes())).await;
    assert_eq!(client.said(1).await, Said::Reset(FLOW_CONTROL_ERROR));
    others_are_served(hop.addr).await;
}

#[tokio::test]
async fn answers_to_who_has_no_window_end_with_the_request() {
    let (addr, mut taken) = endless().await;
    let hop = brief_hop(addr, Duration::from_millis(700)).await;
    let mut client = Client::with(hop.addr, &setting(4, 0)).await;
    for stream in (1..20).step_by(2) {
        client.send(get(stream, "/")).await;
    }
    assert_eq!(client.said(19).await, Said::Status(200));
    others_are_served(hop.addr).await;
    for _ in 0..10 {
        let taken = soon(taken.recv()).await.unwrap();
        assert!(taken < 64 << 20, "{taken} bytes");
    }
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn a_stream_that_takes_nothing_is_let_go_of_without_any_timer_of_the_request() {
    let (addr, mut taken) = endless().await;
    let options = Options { stall_timeout: Duration::from_millis(300), ..Options::default() };
    let hop = limited_hop(addr, options).await;
    let mut client = Client::with(hop.addr, &setting(4, 1000)).await;
    client.send([get(1, "/"), get(3, "/")].concat()).await;
    assert_eq!(client.said(3).await, Said::Status(200));
    // One stream goes on, a little at a time.
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_secs(1) {
        for stream in [0, 3] {
            client.send(frame(WINDOW_UPDATE, 0, stream, &(64u32 << 10).to_be_bytes())).await;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    soon(taken.recv()).await.unwrap();
    assert_eq!(hop.quiet.in_flight(), 1);
    drop(client);
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}
