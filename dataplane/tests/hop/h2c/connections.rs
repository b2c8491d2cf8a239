//! The connections to a backend that many requests share.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ember_dataplane::body::Body;
use ember_dataplane::drain::Drain;
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::proxy::{Failure, Proxy};
use futures::SinkExt as _;
use http::Response;
use http_body::Frame;
use http_body_util::BodyExt as _;

use super::grpc::{grpc, grpc_echo, message};
use super::{backend, client, direct, hop};
use crate::frames::{DATA, END_HEADERS, END_STREAM, GOAWAY, HEADERS, frame};
use crate::wire::{self, channel, eventually, soon};

#[tokio::test]
async fn another_connection_is_opened_when_the_streams_are_in_use() {
    let addr = backend(2, grpc_echo).await;
    let hop = hop(addr).await;
    let client = client(hop.addr).await;
    let mut calls = Vec::new();
    for _ in 0..7 {
        let (mut frames, body) = channel();
        frames.send(Ok(Frame::data(message("x")))).await.unwrap();
        let mut client = client.clone();
        let response = soon(client.send_request(grpc(body))).await.unwrap();
        calls.push((frames, response));
    }
    assert_eq!(hop.pool.shared(), 4, "two streams on each, all at a time");
    for (frames, response) in calls {
        drop(frames);
        assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), message("x"));
    }
}

#[tokio::test]
async fn a_burst_opens_one_connection() {
    let hop = hop(backend(250, grpc_echo).await).await;
    let client = client(hop.addr).await;
    let calls = (0..80).map(|_| {
        let mut client = client.clone();
        async move { client.send_request(grpc(Body::full(message("x")))).await.unwrap().status() }
    });
    assert!(soon(futures::future::join_all(calls)).await.iter().all(|status| *status == 200));
    assert_eq!(hop.pool.shared(), 1);
}

#[tokio::test]
async fn connections_that_a_backend_has_closed_are_replaced_whatever_the_method() {
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    // One exchange on each connection, and then no word of leaving.
    let addr = wire::backend(|mut wire| async move {
        CONNECTIONS.fetch_add(1, Ordering::SeqCst);
        wire.greet().await;
        let (_, stream, _) = wire.frame_of(DATA).await;
        // `:status: 200` of the static table.
        wire.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &[0x88])).await;
    })
    .await;
    let pool = Pool::new(Io::system(), pool::Options::default());
    let proxy = Proxy::new(pool, Drain::new());
    for round in 1..=50 {
        let response = soon(proxy.forward(direct("body".into()), &addr.into(), None)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(CONNECTIONS.load(Ordering::SeqCst), round);
        eventually("the close is seen", || proxy.pool().shared() == 0).await;
    }
}

#[tokio::test]
async fn a_backend_that_gives_no_sign_of_life_is_given_up() {
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    // The first connection goes silent, as if its machine had gone; the second works.
    let addr = wire::backend(|mut wire| async move {
        let silent = CONNECTIONS.fetch_add(1, Ordering::SeqCst) == 0;
        wire.greet().await;
        let (_, stream, _) = wire.frame_of(HEADERS).await;
        if silent {
            std::future::pending::<()>().await;
        }
        wire.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &[0x88])).await;
        wire.frame_of(GOAWAY).await;
    })
    .await;
    let ping = Duration::from_millis(50);
    let options = pool::Options { ping_interval: Some(ping), ping_timeout: ping, ..pool::Options::default() };
    let proxy = Proxy::new(Pool::new(Io::system(), options), Drain::new());
    let mut keyed = direct(Body::empty());
    keyed.headers_mut().insert("idempotency-key", "1".parse().unwrap());
    let forward = async |outbound| soon(proxy.forward(outbound, &addr.into(), None)).await;
    let Err(Failure::NoResponse(again, _)) = forward(keyed).await else { panic!() };
    assert_eq!(forward(again).await.unwrap().status(), 200);
}

#[tokio::test]
async fn idle_shared_connections_are_closed() {
    let addr = backend(100, |_| async { Response::new("ok".into()) }).await;
    let options = pool::Options { idle_timeout: Duration::from_millis(100), ..pool::Options::default() };
    let proxy = Proxy::new(Pool::new(Io::system(), options), Drain::new());
    for _ in 0..2 {
        let response = soon(proxy.forward(direct(Body::empty()), &addr.into(), None)).await.unwrap();
        assert_eq!(response.into_body().collect(10).await.unwrap(), "ok");
        assert_eq!(proxy.pool().shared(), 1);
        eventually("it is closed", || proxy.pool().shared() == 0).await;
    }
}
