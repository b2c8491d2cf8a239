//! Backends that refuse a request, or do not speak HTTP/2: what may be tried again.

use std::net::SocketAddr;

use ember_dataplane::body::Body;
use ember_dataplane::drain::Drain;
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::proxy::{Failure, Proxy};
use http::{Request, Response};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{backend, direct};
use crate::frames::{DATA, END_STREAM, GOAWAY, HEADERS, RST_STREAM, frame};
use crate::wire::{self, closed_port, soon};

#[tokio::test]
async fn what_a_backend_has_refused_is_unsent_body_and_all() {
    // Takes the request whole, then says that it has not looked at it.
    let refusing = wire::backend(|mut wire| async move {
        wire.greet().await;
        loop {
            let (flags, stream, payload) = wire.frame_of(DATA).await;
            assert_eq!((flags & END_STREAM, payload.as_slice()), (END_STREAM, &b"body"[..]));
            wire.send(frame(RST_STREAM, 0, stream, &7_u32.to_be_bytes())).await;
        }
    })
    .await;
    let leaving = wire::backend(|mut wire| async move {
        wire.greet().await;
        wire.frame_of(DATA).await;
        // The last stream it took is none.
        wire.send(frame(GOAWAY, 0, 0, &[0; 8])).await;
        wire.frame_of(GOAWAY).await;
    })
    .await;
    // It has looked at the request, and does not want it.
    let resetting = wire::backend(|mut wire| async move {
        wire.greet().await;
        let (_, stream, _) = wire.frame_of(DATA).await;
        wire.send(frame(RST_STREAM, 0, stream, &2_u32.to_be_bytes())).await;
        wire.frame_of(GOAWAY).await;
    })
    .await;
    let vanishing = wire::backend(|mut wire| async move {
        wire.greet().await;
        wire.frame_of(HEADERS).await;
    })
    .await;
    let working = backend(100, |request: Request<Incoming>| async move {
        Response::new(Body::full(request.into_body().collect().await.unwrap().to_bytes()))
    })
    .await;
    let proxy = Proxy::new(Pool::new(Io::system(), pool::Options::default()), Drain::new());
    let forward = async |outbound, addr: SocketAddr| soon(proxy.forward(outbound, &addr.into(), None)).await;
    for addr in [refusing, leaving] {
        let Err(Failure::Unsent(intact, error)) = forward(direct("body".into()), addr).await else {
            panic!()
        };
        assert_eq!(error.status(), 502);
        let response = forward(intact, working).await.unwrap();
        assert_eq!(response.into_body().collect(10).await.unwrap(), "body");
    }
    assert!(matches!(forward(direct("body".into()), resetting).await, Err(Failure::Final(_))));
    assert!(matches!(forward(direct("body".into()), vanishing).await, Err(Failure::Final(_))));
    let mut keyed = direct(Body::empty());
    keyed.headers_mut().insert("idempotency-key", "1".parse().unwrap());
    assert!(matches!(forward(keyed, vanishing).await, Err(Failure::NoResponse(..))));
    let closed = closed_port().await;
    let Err(Failure::Unsent(_, error)) = forward(direct("body".into()), closed).await else { panic!() };
    assert!(error.to_string().ends_with("connect: connection refused"), "{error}");
}

#[tokio::test]
async fn a_backend_that_speaks_http1_only_has_seen_nothing() {
    let addr = wire::backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    })
    .await;
    let proxy = Proxy::new(Pool::new(Io::system(), pool::Options::default()), Drain::new());
    let forwarded = soon(proxy.forward(direct("body".into()), &addr.into(), None)).await;
    assert!(matches!(forwarded, Err(Failure::Unsent(..))), "{forwarded:?}");
    assert_eq!(proxy.pool().shared(), 0, "the connection is not kept");
}
