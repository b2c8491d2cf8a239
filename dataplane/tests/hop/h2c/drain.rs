//! Connections with streams on them when the server is told to finish.

use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::body::Body;
use ember_dataplane::drain::Outcome;
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;
use tokio::sync::{Notify, mpsc};

use super::{backend, client, hop, request};
use crate::frames::{GOAWAY, PREFACE, SETTINGS, frame};
use crate::wire::{LONG, Wire, eventually, soon};

#[tokio::test]
async fn a_drain_with_goaway_loses_nothing() {
    // Two of our own servers in a row: the first drains while requests keep coming, and says so to its client.
    let release = Arc::new(Notify::new());
    let (arrive, mut arrived) = mpsc::unbounded_channel();
    let addr = backend(250, {
        let release = Arc::clone(&release);
        move |request: Request<Incoming>| {
            let (release, arrive) = (Arc::clone(&release), arrive.clone());
            async move {
                if request.uri().path() == "/slow" {
                    arrive.send(()).unwrap();
                    release.notified().await;
                }
                Response::new(Body::full(request.into_body().collect().await.unwrap().to_bytes()))
            }
        }
    })
    .await;
    let first = hop(addr).await;
    let outer = hop(first.addr).await;
    let outer_client = client(outer.addr).await;
    let slow = tokio::spawn(outer_client.clone().send_request(request("/slow", "slow".into())));
    soon(arrived.recv()).await.unwrap();
    let load = tokio::spawn(async move {
        for round in 0..400 {
            let calls = (0..5).map(|_| {
                let mut client = outer_client.clone();
                async move {
                    let response = client.send_request(request("/", "body".into())).await.unwrap();
                    assert_eq!(response.status(), 200, "round {round}");
                    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
                }
            });
            futures::future::join_all(calls).await;
        }
    });
    // Each answer from now on takes its connection along; new ones are accepted.
    eventually("requests flow", || first.quiet.in_flight() > 1).await;
    first.drain.announce();
    soon(load).await.unwrap();
    assert!(!slow.is_finished());
    let finishing = tokio::spawn({
        let drain = first.drain.clone();
        async move { drain.finish(LONG).await }
    });
    // Nothing tells that it goes on waiting.
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!finishing.is_finished(), "the slow one is waited for");
    release.notify_one();
    let response = soon(slow).await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "slow");
    assert_eq!(soon(finishing).await.unwrap(), Outcome::Drained);
    assert!(TcpStream::connect(first.addr).await.is_err());
}

#[tokio::test]
async fn idle_connections_are_told_to_go_and_busy_ones_are_cut_in_the_end() {
    let addr = backend(100, |_| std::future::pending::<Response<Body>>()).await;
    let hop = hop(addr).await;
    let mut silent = Wire::connect(hop.addr).await;
    let mut idle = Wire::connect(hop.addr).await;
    idle.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    idle.frame_of(SETTINGS).await;
    let mut busy = client(hop.addr).await;
    let answer = tokio::spawn(busy.send_request(request("/", Body::empty())));
    eventually("it has arrived", || hop.quiet.in_flight() == 1).await;
    let finishing = tokio::spawn({
        let drain = hop.drain.clone();
        async move { drain.finish(Duration::from_millis(100)).await }
    });
    let (_, _, payload) = idle.frame_of(GOAWAY).await;
    assert_eq!(payload[4..8], [0; 4], "without an error");
    assert_eq!(
        soon(silent.stream.read_buf(&mut silent.read)).await.unwrap(),
        0,
        "who said nothing is closed"
    );
    assert_eq!(soon(finishing).await.unwrap(), Outcome::Forced);
    assert!(soon(answer).await.unwrap().is_err());
    assert_eq!(hop.quiet.in_flight(), 0);
}
