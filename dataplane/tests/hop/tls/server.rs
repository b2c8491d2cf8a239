//! What a server shows and asks of its clients.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ember_dataplane::body::Body;
use ember_dataplane::drain::{Drain, Outcome};
use ember_dataplane::io::Io;
use ember_dataplane::server::{self, Conn, Options};
use ember_dataplane::timeout::Timeouts;
use ember_dataplane::tls::{Server, Settings};
use ember_dataplane::worker::Workers;
use http::{Request, Response};
use http_body::Frame;
use http_body_util::StreamBody;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::SupportedProtocolVersion;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

use super::{Authority, NAME, V1_3, handshake, serve, settings, text};
use crate::wire::{LONG, channel, eventually, soon};

const V1_2: &SupportedProtocolVersion = &rustls::version::TLS12;

async fn http1_over(stream: TlsStream<TcpStream>) -> String {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("/one").header("host", "app").body(Body::full("body")).unwrap();
    text(soon(sender.send_request(request)).await.unwrap()).await
}

async fn http2_over(stream: TlsStream<TcpStream>) -> String {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("https://app/two").body(Body::full("body")).unwrap();
    text(soon(sender.send_request(request)).await.unwrap()).await
}

#[tokio::test]
async fn tls_1_3_unless_the_environment_says_otherwise() {
    let authority = Authority::new();
    let server = |settings| Server::new(authority.pair(&[NAME]), &settings).unwrap();
    let modern = serve(server(settings(&[])), Options::default()).await;
    let refused = handshake(&authority.client(&[V1_2], &[]), modern.addr).await.unwrap_err();
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
    assert!(
        http1_over(handshake(&authority.client(&[V1_3], &[]), modern.addr).await.unwrap()).await.len() > 4
    );

    let both = serve(server(settings(&[("TLS_MIN_VERSION", "1.2")])), Options::default()).await;
    for version in [V1_2, V1_3] {
        let stream = handshake(&authority.client(&[version], &[]), both.addr).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        assert_eq!(http1_over(stream).await, "HTTP/1.1 /one body status none");
    }

    let old =
        [("TLS_MIN_VERSION", "1.2"), ("TLS_MAX_VERSION", "1.2"), ("TLS_CURVE_PREFERENCES", "CurveP384")];
    let old = serve(server(settings(&old)), Options::default()).await;
    assert!(handshake(&authority.client(&[V1_3], &[]), old.addr).await.is_err());
    let stream = handshake(&authority.client(&[V1_2], &[]), old.addr).await.unwrap();
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::secp384r1);
}

#[tokio::test]
async fn the_first_bytes_tell_the_protocol_whatever_was_agreed_on() {
    let authority = Authority::new();
    let server = Server::new(authority.pair(&[NAME]), &Settings::default()).unwrap();
    let server = serve(server, Options::default()).await;
    for (offered, agreed) in [
        (&[][..], None),
        (&["h2"][..], Some("h2")),
        (&["http/1.1"][..], Some("http/1.1")),
        (&["http/1.1", "h2"][..], Some("h2")),
    ] {
        let client = authority.client(&[V1_3], offered);
        let connect = async || {
            let stream = handshake(&client, server.addr).await.unwrap();
            let protocol = stream.get_ref().1.alpn_protocol();
            assert_eq!(protocol, agreed.map(str::as_bytes), "{offered:?}");
            stream
        };
        assert_eq!(http2_over(connect().await).await, "HTTP/2.0 /two body status 0", "{offered:?}");
        assert_eq!(http1_over(connect().await).await, "HTTP/1.1 /one body status none", "{offered:?}");
    }
}

#[tokio::test]
async fn a_certificate_is_exchanged_under_open_connections() {
    let (before, after) = (Authority::new(), Authority::new());
    let server = Server::new(before.pair(&[NAME]), &Settings::default()).unwrap();
    let server = serve(server, Options::default()).await;
    let stream = handshake(&before.client(&[V1_3], &[]), server.addr).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let request = Request::get("/").header("host", "app").body(Body::empty()).unwrap();
        text(soon(sender.send_request(request)).await.unwrap()).await
    };
    assert_eq!(ask().await, "HTTP/1.1 /  status none");
    server.tls.exchange(after.pair(&[NAME]));
    assert_eq!(ask().await, "HTTP/1.1 /  status none");
    let refused = handshake(&before.client(&[V1_3], &[]), server.addr).await.unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
    http1_over(handshake(&after.client(&[V1_3], &[]), server.addr).await.unwrap()).await;
    assert_eq!(ask().await, "HTTP/1.1 /  status none");
}

#[tokio::test]
async fn a_silent_handshake_is_cut_and_holds_nobody_up() {
    let authority = Authority::new();
    let server = || Server::new(authority.pair(&[NAME]), &Settings::default()).unwrap();
    let options = Options { handshake_timeout: Duration::from_millis(100), ..Options::default() };
    let short = serve(server(), options).await;
    let mut silent = TcpStream::connect(short.addr).await.unwrap();
    // The beginning of a record that never ends.
    silent.write_all(&[22, 3, 1, 0, 200, 1]).await.unwrap();
    let mut nothing = [0];
    assert_eq!(soon(silent.read(&mut nothing)).await.unwrap_or(0), 0);

    let patient = serve(server(), Options::default()).await;
    let silent = TcpStream::connect(patient.addr).await.unwrap();
    http1_over(handshake(&authority.client(&[V1_3], &[]), patient.addr).await.unwrap()).await;
    // Who has only just knocked is not waited for.
    assert_eq!(soon(patient.drain.finish(LONG)).await, Outcome::Drained);
    drop(silent);

    // In clear text there is nothing to be had.
    let mut plain = TcpStream::connect(short.addr).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn idle_connections_give_up_their_buffers_and_miss_nothing() {
    let authority = Authority::new();
    let server = Server::new(authority.pair(&[NAME]), &Settings::default()).unwrap();
    let server = serve(server, Options { warm_connections: 0, ..Options::default() }).await;
    let mut stream = handshake(&authority.client(&[V1_3], &[]), server.addr).await.unwrap();
    let mut answers = String::new();
    for round in 0.. {
        assert!(round < 10_000, "never parked");
        // Two at a time, in one record and in several.
        let ask = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
        let (begin, rest) = ask.split_at(if round % 2 == 0 { ask.len() } else { 1 + round % 40 });
        for part in [begin, rest] {
            stream.write_all(part.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
        answers.clear();
        while answers.matches("0\r\n\r\n").count() < 2 {
            let mut bytes = vec![0; 4096];
            let read = soon(stream.read(&mut bytes)).await.unwrap();
            assert!(read > 0, "ended after {answers:?}");
            answers.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        if answers.contains("x-parked: 5\r\n") {
            break;
        }
        // Time for it to be idle.
        tokio::task::yield_now().await;
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_drain_lets_tls_connections_finish() {
    let authority = Authority::new();
    let server = Server::new(authority.pair(&[NAME]), &Settings::default()).unwrap();
    let server = serve(server, Options::default()).await;
    let stream = handshake(&authority.client(&[V1_3], &[]), server.addr).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (mut frames, body) = channel();
    let request = Request::post("/slow").header("host", "app").body(body).unwrap();
    let response = soon(sender.send_request(request)).await.unwrap();
    let finishing = tokio::spawn({
        let drain = server.drain.clone();
        async move { drain.finish(LONG).await }
    });
    eventually("the drain has begun", || server.drain.stopped().is_cancelled()).await;
    futures::SinkExt::send(&mut frames, Ok(Frame::data(Bytes::from("late")))).await.unwrap();
    drop(frames);
    assert_eq!(text(response).await, "HTTP/1.1 /slow late status none");
    assert_eq!(soon(finishing).await.unwrap(), Outcome::Drained);
}

#[tokio::test]
async fn a_client_that_reads_no_more_is_cut_at_the_end_of_the_request() {
    let authority = Authority::new();
    let tls = Server::new(authority.pair(&[NAME]), &Settings::default()).unwrap();
    let listener = Io::system().network.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (drain, over) = (Drain::new(), CancellationToken::new());
    let handler = Arc::new({
        let over = over.clone();
        move |_: Request<Body>, conn: Arc<Conn>| {
            let over = over.clone().drop_guard();
            async move {
                let endless = futures::stream::repeat_with(|| {
                    Ok::<_, ember_dataplane::body::Error>(Frame::data(Bytes::from(vec![b'x'; 16 << 10])))
                });
                let mut response = Response::new(Body::stream(StreamBody::new(endless)));
                let total = Some(Duration::from_millis(200));
                let deadlines = Timeouts { total, ..Timeouts::default() }.start();
                response.body_mut().limit(deadlines, "over", Some(&conn));
                response.body_mut().attach(over);
                response
            }
        }
    });
    tokio::spawn({
        let (drain, options) = (drain.clone(), Options { tls: Some(tls), ..Options::default() });
        async move {
            server::serve(listener, &Workers::current(), &options, &drain, |_| Arc::clone(&handler)).await;
        }
    });
    let mut stream = handshake(&authority.client(&[V1_3], &[]), addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n").await.unwrap();
    soon(over.cancelled()).await;
    assert_eq!(soon(drain.finish(LONG)).await, Outcome::Drained);
    drop(stream);
}
