//! One stream among others: it ends alone, and the others are served.

use std::convert::Infallible;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ember_dataplane::body::Body;
use ember_dataplane::protocol::Protocol;
use ember_dataplane::server::Options;
use ember_dataplane::timeout::Timeouts;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::mpsc;

use super::{backend, client, hop, request};
use crate::frames::{CONTINUATION, END_STREAM, HEADERS, PREFACE, RST_STREAM, SETTINGS, frame, get};
use crate::hop::hop_with;
use crate::wire::{Wire, channel, eventually, soon};

#[tokio::test]
async fn a_client_that_resets_its_stream_ends_the_exchange_and_nothing_else() {
    let (arrive, mut arrived) = mpsc::unbounded_channel();
    let (gone, mut left) = mpsc::unbounded_channel();
    let addr = backend(100, move |request: Request<Incoming>| {
        let (arrive, gone) = (arrive.clone(), gone.clone());
        async move {
            struct Told(mpsc::UnboundedSender<()>);
            impl Drop for Told {
                fn drop(&mut self) {
                    // The test may be over.
                    let _ = self.0.send(());
                }
            }
            let told = Told(gone);
            arrive.send(()).unwrap();
            match request.uri().path() {
                "/silent" => std::future::pending().await,
                "/started" => {
                    let endless = futures::stream::pending::<Result<Frame<Bytes>, Infallible>>();
                    let mut body = Body::stream(StreamBody::new(endless));
                    body.attach(told);
                    Response::new(body)
                }
                _ => Response::new("ok".into()),
            }
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = client(hop.addr).await;
    // Before the head of the response, with a body that is still being sent.
    let (_frames, body) = channel();
    let silent = tokio::spawn(client.send_request(request("/silent", body)));
    soon(arrived.recv()).await.unwrap();
    assert_eq!(hop.quiet.in_flight(), 1);
    silent.abort();
    soon(left.recv()).await.unwrap();
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
    // In the middle of the response's body.
    let (_frames, body) = channel();
    let started = soon(client.send_request(request("/started", body))).await.unwrap();
    soon(arrived.recv()).await.unwrap();
    assert_eq!(hop.quiet.in_flight(), 1);
    drop((started, _frames));
    soon(left.recv()).await.unwrap();
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
    // Both connections are as good as before.
    assert_eq!(soon(client.send_request(request("/", Body::empty()))).await.unwrap().status(), 200);
    assert_eq!(hop.pool.shared(), 1);
}

#[tokio::test]
async fn a_timer_ends_one_stream_and_a_client_that_does_not_read_holds_nobody_up() {
    let addr = backend(100, |request: Request<Incoming>| async move {
        if request.uri().path() == "/quick" {
            return Response::new("ok".into());
        }
        let chunk = Bytes::from(vec![b'x'; 16 << 10]);
        let flood = futures::stream::repeat_with(move || Ok::<_, Infallible>(Frame::data(chunk.clone())));
        Response::new(Body::stream(StreamBody::new(flood)))
    })
    .await;
    let timeouts = Timeouts { total: Some(Duration::from_secs(2)), ..Timeouts::default() };
    let hop = hop_with(addr, Protocol::H2c, timeouts, Options::default()).await;
    let mut client = client(hop.addr).await;
    let mut unread = Vec::new();
    for _ in 0..5 {
        unread.push(soon(client.send_request(request("/flood", Body::empty()))).await.unwrap());
    }
    assert_eq!(hop.quiet.in_flight(), 5);
    let quick = soon(client.send_request(request("/quick", Body::empty()))).await.unwrap();
    assert_eq!(soon(quick.into_body().collect()).await.unwrap().to_bytes(), "ok");
    eventually("the guards are gone", || hop.quiet.in_flight() == 0).await;
    let quick = soon(client.send_request(request("/quick", Body::empty()))).await.unwrap();
    assert_eq!(quick.status(), 200);
}

#[tokio::test]
async fn a_flood_of_resets_is_ended_and_others_are_served() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let addr = backend(250, |request: Request<Incoming>| async move {
        if request.uri().path() == "/other" {
            return Response::new("ok".into());
        }
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                RUNNING.fetch_sub(1, Ordering::SeqCst);
            }
        }
        MOST.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let _leave = Leave;
        std::future::pending().await
    })
    .await;
    let hop = hop(addr).await;
    let mut other = client(hop.addr).await;
    let attack = tokio::spawn(async move {
        let mut ended = 0;
        for _ in 0..5 {
            let mut wire = Wire::connect(hop.addr).await;
            wire.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
            let mut flood = Vec::new();
            for index in 0..20_000_u32 {
                flood.extend(get(2 * index + 1, "/"));
                flood.extend(frame(RST_STREAM, 0, 2 * index + 1, &8_u32.to_be_bytes()));
            }
            // The server hangs up in the middle of it.
            let _ = wire.stream.write_all(&flood).await;
            let mut rest = Vec::new();
            let _ = soon(wire.stream.read_to_end(&mut rest)).await;
            ended += 1;
        }
        ended
    });
    let mut served = 0;
    while !attack.is_finished() || served < 10 {
        let response = soon(other.send_request(request("/other", Body::empty()))).await.unwrap();
        assert_eq!(response.status(), 200);
        served += 1;
    }
    assert_eq!(attack.await.unwrap(), 5, "every flood has come to its end");
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    eventually("nothing runs", || RUNNING.load(Ordering::SeqCst) == 0).await;
    assert!(MOST.load(Ordering::SeqCst) <= 250, "{MOST:?} ran at a time");
}

#[tokio::test]
async fn streams_heads_and_continuations_are_bounded() {
    let addr = backend(1000, |_| std::future::pending::<Response<Body>>()).await;
    let hop = hop(addr).await;
    let mut greedy = Wire::connect(hop.addr).await;
    greedy.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    for index in 0..251_u32 {
        greedy.send(get(2 * index + 1, "/")).await;
    }
    let (_, stream, payload) = greedy.frame_of(RST_STREAM).await;
    assert_eq!((stream, payload), (501, 7_u32.to_be_bytes().to_vec()), "the 251st is refused");
    eventually("250 are served", || hop.quiet.in_flight() == 250).await;
    drop(greedy);
    eventually("they are gone with their client", || hop.quiet.in_flight() == 0).await;

    let mut endless = Wire::connect(hop.addr).await;
    endless.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    endless.send(frame(HEADERS, END_STREAM, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'a'])).await;
    let part = frame(CONTINUATION, 0, 1, &[0x82; 1000]);
    let flood = async {
        for _ in 0..10_000 {
            if endless.stream.write_all(&part).await.is_err() {
                return;
            }
        }
        panic!("a head of 10 MB is read");
    };
    soon(flood).await;

    let mut large = client(hop.addr).await;
    let mut request = request("/", Body::empty());
    for index in 0..300 {
        request.headers_mut().append("x-line", index.to_string().parse().unwrap());
    }
    assert_eq!(soon(large.send_request(request)).await.unwrap().status(), 431);
}
