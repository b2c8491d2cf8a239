//! Clients and backends that speak different versions of HTTP.

use ember_dataplane::body::Body;
use futures::SinkExt as _;
use http::{Request, Response, Version};
use http_body::Frame;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;

use super::{backend, client, hop, request};
use crate::wire::{self, Wire, channel, soon};

#[tokio::test]
async fn an_http1_client_reaches_an_h2c_backend() {
    let addr = backend(100, |request: Request<Incoming>| async move {
        assert_eq!(request.version(), Version::HTTP_2);
        let head = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
        let collected = request.into_body().collect().await.unwrap();
        let sum = collected.trailers().map(|trailers| trailers["x-sum"].to_str().unwrap().to_owned());
        let body = String::from_utf8(collected.to_bytes().to_vec()).unwrap();
        Response::new(Body::full(format!("{head} body {body:?} {sum:?}.")))
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET /a?b=%zz;c HTTP/1.1\r\nhost: shop.example:8080\r\nkeep-alive: 1\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length"), "{head}");
    let seen = client.until(".").await;
    assert!(seen.starts_with("GET http://shop."), "{seen}");
    let seen = client.until("None.").await;
    assert!(seen.starts_with("example:8080/a?b=%zz;c"), "{seen}");
    assert!(!seen.contains("keep-alive") && !seen.contains("\"host\""), "{seen}");
    // The body is asked for at once, and its trailers pass.
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    client.until("100 Continue\r\n\r\n").await;
    client.send("5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n").await;
    client.until("body \"hello\" Some(\"7\").").await;
    assert_eq!(hop.pool.shared(), 1);
}

#[tokio::test]
async fn an_h2c_client_reaches_an_http1_backend() {
    let addr = wire::backend(|mut wire| async move {
        let head = wire.until("\r\n\r\n").await.to_lowercase();
        assert!(head.starts_with("post /a http/1.1\r\n"), "{head}");
        assert!(head.contains("host: app.example\r\n") && head.contains("te: trailers\r\n"), "{head}");
        assert!(head.contains("cookie: a=1; b=2\r\n"), "{head}");
        wire.until("hello").await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nkeep-alive: 5\r\n\r\n")
            .await;
        wire.send("3\r\none\r\n").await;
        wire.until("0\r\n\r\n").await;
        wire.send("3\r\ntwo\r\n0\r\nx-sum: 42\r\n\r\n").await;
    })
    .await;
    let hop = crate::hop::hop(addr).await;
    let mut client = client(hop.addr).await;
    let (mut frames, body) = channel();
    let mut request = request("/a", body);
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    request.headers_mut().append("cookie", "a=1".parse().unwrap());
    request.headers_mut().append("cookie", "b=2".parse().unwrap());
    frames.send(Ok(Frame::data("hello".into()))).await.unwrap();
    let response = soon(client.send_request(request)).await.unwrap();
    assert!(!response.headers().contains_key("keep-alive"));
    let mut body = response.into_body();
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "one");
    drop(frames);
    let collected = soon(body.collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "42");
    assert_eq!(collected.to_bytes(), "two");
}

#[tokio::test]
async fn upgrades_stay_on_http1() {
    let addr = wire::backend(|mut wire| async move {
        let head = wire.until("\r\n\r\n").await.to_lowercase();
        assert!(head.contains("http/1.1") && head.contains("upgrade: websocket"), "{head}");
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
        wire.until("ping").await;
        wire.send("pong").await;
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    client.send("ping").await;
    client.until("pong").await;
}
