//! What passes through a hop of HTTP/1.1, both ways.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use ember_dataplane::body::Body;
use ember_dataplane::drain::{Drain, Outcome};
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::proxy::{Outbound, Proxy};
use ember_dataplane::server::{self, Conn, Options};
use ember_dataplane::worker::Workers;
use http::Request;

use crate::hop::hop;
use crate::wire::{LONG, OK, Wire, backend, eventually};

#[tokio::test]
async fn headers_follow_the_rules_of_a_proxy_hop() {
    let addr = backend(|mut wire| async move {
        let head = wire.until("\r\n\r\n").await;
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: x-mine\r\nx-mine: 1\r\nkeep-alive: 5\r\nx-kept: 1\r\n\r\n{head}",
            head.len()
        );
        wire.send(&answer).await;
        wire.rest().await;
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client
        .send(
            "GET /a?b=%zz;c HTTP/1.1\r\nHost: app.example\r\nConnection: x-hop, keep-alive\r\nX-Hop: 1\r\nTE: gzip, trailers\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\nProxy-Authorization: x\r\nX-End: 1\r\n\r\n",
        )
        .await;
    let head = client.until("\r\n\r\n").await.to_lowercase();
    let sent = client.until("\r\n\r\n").await.to_lowercase();
    assert!(head.contains("x-kept: 1") && !head.contains("x-mine") && !head.contains("keep-alive"), "{head}");
    assert!(sent.starts_with("get /a?b=%zz;c http/1.1\r\n"), "{sent}");
    assert!(sent.contains("x-forwarded-for: 1.1.1.1, 2.2.2.2, 127.0.0.1\r\n"), "{sent}");
    assert!(sent.contains("te: trailers\r\n") && sent.contains("host: app.example\r\n"), "{sent}");
    for gone in ["x-hop", "proxy-authorization", "connection:", "user-agent"] {
        assert!(!sent.contains(gone), "{gone} in {sent}");
    }
}

#[tokio::test]
async fn both_bodies_stream_and_trailers_pass() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.until("first").await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\none\r\n")
            .await;
        let rest = wire.until("x-up: 7\r\n\r\n").await;
        assert!(rest.contains("second"), "{rest}");
        wire.send("3\r\ntwo\r\n0\r\nx-sum: 42\r\n\r\n").await;
        wire.rest().await;
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntrailer: x-up\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        .await;
    client.until("one\r\n").await;
    client.send("6\r\nsecond\r\n0\r\nx-up: 7\r\n\r\n").await;
    let rest = client.until("x-sum: 42\r\n\r\n").await;
    assert!(rest.contains("two"), "{rest}");
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    eventually("the connection is back in the pool", || hop.pool.idle() == 1).await;
}

#[tokio::test]
async fn connections_are_reused_on_both_sides() {
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    let addr = backend(|mut wire| async move {
        CONNECTIONS.fetch_add(1, Ordering::SeqCst);
        while wire.try_until("\r\n\r\n").await.is_ok() {
            wire.send(OK).await;
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    for _ in 0..20 {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.until("ok").await;
    }
    assert_eq!(CONNECTIONS.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_get_of_unknown_length_keeps_its_body() {
    let addr = backend(|mut wire| async move {
        let seen = wire.until("0\r\n\r\n").await;
        assert!(seen.contains("hello"), "{seen}");
        wire.send(OK).await;
        wire.rest().await;
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client
        .send("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .await;
    client.until("ok").await;
}

#[tokio::test]
async fn the_body_is_asked_for_when_the_backend_agrees() {
    let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let addr = backend(move |mut wire| {
        let ask = ask.clone();
        async move {
            let head = wire.until("\r\n\r\n").await.to_lowercase();
            assert!(head.contains("expect: 100-continue"), "{head}");
            ask.send(()).unwrap();
            wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            wire.until("data").await;
            wire.send(OK).await;
            wire.rest().await;
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n").await;
    client.until("100 Continue\r\n\r\n").await;
    asked.try_recv().unwrap();
    client.send("data").await;
    client.until("ok").await;
}

#[tokio::test]
async fn a_body_that_the_backend_does_not_want_is_not_asked_for() {
    let addr = backend(|mut wire| async move {
        while let Ok(head) = wire.try_until("\r\n\r\n").await {
            let refused = head.starts_with("POST");
            wire.send(if refused {
                "HTTP/1.1 413 Content Too Large\r\ncontent-length: 3\r\n\r\nbig"
            } else {
                OK
            })
            .await;
        }
    })
    .await;
    let hop = hop(addr).await;
    for _ in 0..100 {
        let begun = Instant::now();
        let mut client = Wire::connect(hop.addr).await;
        // So that there is a connection to the backend.
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.until("ok").await;
        client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n").await;
        let head = client.until("\r\n\r\n").await;
        // After a second it is asked for, whatever the backend is about to say.
        let late = head.contains("100 Continue") && begun.elapsed() >= Duration::from_secs(1);
        assert!(head.starts_with("HTTP/1.1 413") || late, "{head}");
    }
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_exchange() {
    let (gone, mut left) = tokio::sync::mpsc::unbounded_channel();
    let addr = backend(move |mut wire| {
        let gone = gone.clone();
        async move {
            wire.until("\r\n\r\n").await;
            // One leaves before the head of the response, the other in the middle of the body.
            if wire.read.is_empty() {
                gone.send(()).unwrap();
            }
            wire.rest().await;
            gone.send(()).unwrap();
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    left.recv().await.unwrap();
    assert_eq!(hop.quiet.in_flight(), 1);
    drop(client);
    tokio::time::timeout(LONG, left.recv()).await.unwrap().unwrap();
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_body_ends_the_exchange() {
    let (gone, mut left) = tokio::sync::mpsc::unbounded_channel();
    let addr = backend(move |mut wire| {
        let gone = gone.clone();
        async move {
            wire.until("\r\n\r\n").await;
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart").await;
            wire.rest().await;
            gone.send(()).unwrap();
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("part").await;
    drop(client);
    tokio::time::timeout(LONG, left.recv()).await.unwrap().unwrap();
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn the_server_settles_targets_and_hosts() {
    let addr = backend(|mut wire| async move {
        while let Ok(head) = wire.try_until("\r\n\r\n").await {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
            wire.send(&answer).await;
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET http://other.example/x?y HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    let sent = client.until("\r\n\r\n").await;
    assert!(sent.starts_with("GET /x?y HTTP/1.1") && sent.contains("host: other.example"), "{sent}");
    client.send("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    client.send("GET / HTTP/1.1\r\n\r\n").await;
    assert!(client.until("\n").await.starts_with("HTTP/1.1 400"));
    let mut connect = Wire::connect(hop.addr).await;
    connect.send("CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(connect.until("unsupported CONNECT request\n").await.starts_with("HTTP/1.1 502"));
    let mut old = Wire::connect(hop.addr).await;
    old.send("GET / HTTP/1.0\r\n\r\n").await;
    let answer = old.rest().await;
    assert!(answer.contains("GET / HTTP/1.1") && answer.contains(&format!("host: {addr}")), "{answer}");
}

#[tokio::test]
async fn workers_share_the_connections() {
    let addr = backend(|mut wire| async move {
        while wire.try_until("\r\n\r\n").await.is_ok() {
            wire.send(OK).await;
        }
    })
    .await;
    let io = Io::system();
    let drain = Drain::new();
    let workers = Workers::start(2).unwrap();
    let listener = io.network.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let server = listener.local_addr().unwrap();
    let served: Arc<[AtomicUsize; 2]> = Arc::default();
    let serving = tokio::spawn({
        let (drain, workers, served) = (drain.clone(), workers.clone(), Arc::clone(&served));
        async move {
            server::serve(listener, &workers, &Options::default(), &drain, |_| {
                let proxy = Proxy::new(Pool::new(io.clone(), pool::Options::default()), drain.clone());
                let served = Arc::clone(&served);
                Arc::new(move |request: Request<Body>, conn: Arc<Conn>| {
                    let (proxy, served) = (proxy.clone(), Arc::clone(&served));
                    async move {
                        served[conn.worker()].fetch_add(1, Ordering::SeqCst);
                        let outbound = Outbound::new(request, &conn).unwrap();
                        proxy.forward(outbound, &addr.into(), None).await.unwrap()
                    }
                })
            })
            .await;
        }
    });
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Wire::connect(server).await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.until("ok").await;
        clients.push(client);
    }
    assert_eq!([0, 1].map(|worker| served[worker].load(Ordering::SeqCst)), [2, 2]);
    assert_eq!(drain.finish(LONG).await, Outcome::Drained);
    serving.await.unwrap();
    workers.shutdown().await;
}
