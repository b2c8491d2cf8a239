//! Backends that are not there, or break off: what the client is told, and what may be tried again.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicUsize, Ordering};

use ember_dataplane::body::Body;
use ember_dataplane::drain::Drain;
use ember_dataplane::error::ProxyError;
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::proxy::{Failure, Outbound, Proxy};
use http::Request;
use http_body::Frame;
use http_body_util::StreamBody;

use crate::hop::hop;
use crate::wire::{OK, Wire, backend, closed_port};

#[tokio::test]
async fn a_refused_connection_is_a_502_in_gos_words() {
    let addr = closed_port().await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await;
    let answer = client.until("connection refused\n").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.ends_with(&format!("dial tcp {addr}: connect: connection refused\n")), "{answer}");
}

fn post(body: &'static str) -> Outbound {
    let mut request = Request::new(Body::full(body));
    *request.method_mut() = http::Method::POST;
    Outbound::direct(request)
}

fn get() -> Outbound {
    Outbound::direct(Request::new(Body::empty()))
}

#[tokio::test]
async fn what_may_be_repeated_comes_back() {
    // Reads the request and closes without a word.
    let silent = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
    })
    .await;
    let closed = closed_port().await;
    // Breaks off within the head of the response.
    let torn = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 200").await;
    })
    .await;
    let proxy = Proxy::new(Pool::new(Io::system(), pool::Options::default()), Drain::new());
    let forward = async |outbound, addr: SocketAddr| proxy.forward(outbound, &addr.into(), None).await;

    let Err(Failure::Unsent(mut intact, error)) = forward(post("body"), closed).await else { panic!() };
    assert_eq!(error.status(), 502);
    // The very same request, body and all, reaches a backend that works.
    intact.headers_mut().insert("x-try", "2".parse().unwrap());
    let echo = backend(|mut wire| async move {
        wire.until("x-try: 2").await;
        wire.until("body").await;
        wire.send(OK).await;
        wire.rest().await;
    })
    .await;
    assert_eq!(forward(intact, echo).await.unwrap().status(), 200);

    assert!(matches!(forward(get(), silent).await, Err(Failure::NoResponse(..))));
    assert!(matches!(forward(post("body"), silent).await, Err(Failure::Final(_))));
    assert!(matches!(forward(post(""), silent).await, Err(Failure::Final(_))), "the method is not safe");
    let mut keyed = post("");
    keyed.headers_mut().insert("idempotency-key", "1".parse().unwrap());
    assert!(matches!(forward(keyed, silent).await, Err(Failure::NoResponse(..))));
    let mut keyed = post("body");
    keyed.headers_mut().insert("idempotency-key", "1".parse().unwrap());
    assert!(matches!(forward(keyed, silent).await, Err(Failure::Final(_))), "the body is gone");
    assert!(matches!(forward(get(), torn).await, Err(Failure::Final(_))), "an answer had begun");
}

#[tokio::test]
async fn stale_connections_are_noticed_whatever_the_method() {
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    // Serves one request a connection and closes without announcing it.
    let addr = backend(|mut wire| async move {
        CONNECTIONS.fetch_add(1, Ordering::SeqCst);
        wire.until("body").await;
        wire.send(OK).await;
    })
    .await;
    let pool = Pool::new(Io::system(), pool::Options::default());
    let proxy = Proxy::new(pool.clone(), Drain::new());
    for round in 1..=50 {
        let response = proxy.forward(post("body"), &addr.into(), None).await.unwrap();
        response.into_body().collect(100).await.unwrap();
        assert_eq!(CONNECTIONS.load(Ordering::SeqCst), round);
    }
}

#[tokio::test]
async fn what_a_sidecar_hands_back_is_intact_where_that_was_allowed() {
    const AWAY: &str = "HTTP/1.1 503 Service Unavailable\r\nember-app-away: 7\r\ncontent-length: 0\r\n\r\n";
    let away = backend(|mut wire| async move {
        while wire.try_until("\r\n\r\n").await.is_ok() {
            wire.send(AWAY).await;
        }
    })
    .await;
    let echo = backend(|mut wire| async move {
        wire.until("ember-returnable: true").await;
        wire.until("body").await;
        wire.send(OK).await;
        wire.rest().await;
    })
    .await;
    let proxy = Proxy::new(Pool::new(Io::system(), pool::Options::default()), Drain::new());
    let forward = async |outbound, addr: SocketAddr| proxy.forward(outbound, &addr.into(), None).await;
    let returnable = |mut outbound: Outbound| {
        outbound.allow_return();
        outbound
    };
    let stream = || {
        let frames = futures::stream::iter([Ok::<_, std::convert::Infallible>(Frame::data("body".into()))]);
        let mut request = Request::new(Body::stream(StreamBody::new(frames)));
        *request.method_mut() = http::Method::POST;
        Outbound::direct(request)
    };
    for outbound in [post("body"), stream()] {
        let Err(Failure::Refused(intact, error)) = forward(returnable(outbound), away).await else {
            panic!()
        };
        let ProxyError::AppAway { address, patience } = &error else { panic!("{error}") };
        assert_eq!((address, *patience), (&away.into(), std::time::Duration::from_millis(7)));
        assert_eq!(forward(intact, echo).await.unwrap().status(), 200);
    }
    let Err(Failure::Refused(intact, _)) = forward(returnable(get()), away).await else { panic!() };
    assert!(matches!(forward(intact, away).await, Err(Failure::Refused(..))));
    // To who has not allowed it, it is an answer as any other.
    assert_eq!(forward(post("body"), away).await.unwrap().status(), 503);
    let long: &'static str = "x".repeat((64 << 10) + 1).leak();
    let outbound = returnable(post(long));
    assert!(!outbound.headers().contains_key("ember-returnable"), "it could not be had back");
    assert_eq!(forward(outbound, away).await.unwrap().status(), 503);
}
