//! Bodies that are large, unbounded, or said bit by bit, from HTTP/1.1 and HTTP/2 clients to apps of both kinds.

use bytes::Bytes;
use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;
use ember_tests::soon;
use futures::StreamExt as _;
use http::{Request, Response, Version};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Empty, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpStream;

use crate::app::{asleep, noticed};

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

const LARGE: usize = 48 << 20;

/// A connection of either version.
enum Connection {
    Http1(hyper::client::conn::http1::SendRequest<Body>),
    Http2(hyper::client::conn::http2::SendRequest<Body>),
}

impl Connection {
    async fn open(ember: &Ember, http2: bool) -> Self {
        let io = TokioIo::new(TcpStream::connect(ember.gateway).await.unwrap());
        if http2 {
            let (client, connection) =
                hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
            tokio::spawn(connection);
            Self::Http2(client)
        } else {
            let (client, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
            tokio::spawn(connection);
            Self::Http1(client)
        }
    }

    async fn send(&mut self, host: &str, path: &str, body: Body) -> Response<Incoming> {
        let answer = match self {
            Self::Http1(client) => {
                soon("a free connection", client.ready()).await.unwrap();
                let request = Request::post(path).header("host", host).body(body).unwrap();
                soon("an answer", client.send_request(request)).await.unwrap()
            }
            Self::Http2(client) => {
                soon("a free connection", client.ready()).await.unwrap();
                let request = Request::post(format!("http://{host}{path}")).body(body).unwrap();
                soon("an answer", client.send_request(request)).await.unwrap()
            }
        };
        assert_eq!(answer.status(), 200, "{path}");
        answer
    }
}

fn known(bytes: Bytes) -> Body {
    UnsyncBoxBody::new(Full::new(bytes))
}

/// Of no length that anybody was told.
fn pieces(bytes: &Bytes) -> Body {
    const PIECE: usize = 100_000;
    let bytes = bytes.clone();
    let pieces = (0..bytes.len())
        .step_by(PIECE)
        .map(move |at| Ok(Frame::data(bytes.slice(at..bytes.len().min(at + PIECE)))));
    UnsyncBoxBody::new(StreamBody::new(futures::stream::iter(pieces)))
}

async fn whole(answer: Response<Incoming>) -> Bytes {
    soon("the body", answer.into_body().collect()).await.unwrap().to_bytes()
}

#[tokio::test(flavor = "multi_thread")]
async fn large_bodies_pass_both_ways_whoever_speaks_what() {
    let sent: Bytes = (0..LARGE / 4).flat_map(|n| (n as u32).to_le_bytes()).collect::<Vec<u8>>().into();
    for h2c in [false, true] {
        let ember = asleep("large", h2c).await;
        for http2 in [false, true] {
            for body in [known(sent.clone()), pieces(&sent)] {
                // An answer that begins before the request has ended is the last one of an HTTP/1.1 connection.
                let mut client = Connection::open(&ember, http2).await;
                let answer = client.send(&host("large"), "/echo", body).await;
                let version = if http2 { Version::HTTP_2 } else { Version::HTTP_11 };
                assert_eq!(answer.version(), version);
                assert!(whole(answer).await == sent, "app h2c: {h2c}, client http2: {http2}");
            }
            let mut client = Connection::open(&ember, http2).await;
            let answer = client.send(&host("large"), &format!("/large?{LARGE}"), known(Bytes::new())).await;
            assert_eq!(whole(answer).await.len(), LARGE);
            let seen = whole(client.send(&host("large"), "/seen", known(Bytes::new())).await).await;
            let app = if h2c { "HTTP/2.0 POST " } else { "HTTP/1.1 POST " };
            assert!(seen.starts_with(app.as_bytes()), "{seen:?}");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn events_arrive_when_they_happen() {
    for (h2c, http2) in [(false, false), (false, true), (true, true)] {
        let ember = asleep("events", h2c).await;
        let mut client = Connection::open(&ember, http2).await;
        let asking = Client::new(ember.gateway);
        let answer = client.send(&host("events"), "/events", UnsyncBoxBody::new(Empty::new())).await;
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        let mut events = answer.into_body().into_data_stream();
        let mut read = String::new();
        for count in 0..5 {
            if count > 0 {
                // It is sent only now, so it was not waiting anywhere.
                asking.ok(&host("events"), "/events/next").await;
            }
            let end = format!("data: event {count}\n\n");
            while !read.ends_with(&end) {
                let more = soon(&end, events.next()).await.unwrap().unwrap();
                read += std::str::from_utf8(&more).unwrap();
            }
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_learns_of_a_client_that_left() {
    for (h2c, http2) in [(false, false), (false, true), (true, false), (true, true)] {
        let ember = asleep("left", h2c).await;
        let host = host("left");
        let mut client = Connection::open(&ember, http2).await;
        let host_of_request = host.clone();
        let waiting = tokio::spawn(async move {
            client.send(&host_of_request, "/stay", known(Bytes::new())).await;
        });
        noticed(&ember, &host, "1 came, 0 left").await;
        waiting.abort();
        noticed(&ember, &host, "1 came, 1 left").await;
    }
}
