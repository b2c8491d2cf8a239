//! gRPC, of which the hop knows nothing.

use bytes::Bytes;
use ember_dataplane::body::Body;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;

use super::{backend, client, hop, request};
use crate::wire::{channel, eventually, soon};

/// A gRPC message: not compressed, its length, itself.
pub(super) fn message(text: &str) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes.into()
}

fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// Answers every message with itself, then with a status.
pub(super) async fn grpc_echo(request: Request<Incoming>) -> Response<Body> {
    assert_eq!(request.version(), Version::HTTP_2);
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.headers()["grpc-timeout"], "5S");
    assert_eq!(request.uri().authority().unwrap(), "app.example");
    let frames = request.into_body().into_data_stream().map(|data| Ok::<_, hyper::Error>(Frame::data(data?)));
    let status = trailers(&[("grpc-status", "0"), ("grpc-message", "fine")]);
    let status = futures::stream::once(async move { Ok(Frame::trailers(status)) });
    let mut response = Response::new(Body::stream(StreamBody::new(Locked::new(frames.chain(status)))));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}

use locked::Locked;

/// hyper's bodies are no `Sync`, ours have to be.
mod locked {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures::Stream;
    use futures::stream::BoxStream;
    use parking_lot::Mutex;

    pub(crate) struct Locked<T>(Mutex<BoxStream<'static, T>>);

    impl<T> Locked<T> {
        pub(crate) fn new(stream: impl Stream<Item = T> + Send + 'static) -> Self {
            Self(Mutex::new(Box::pin(stream)))
        }
    }

    impl<T> Stream for Locked<T> {
        type Item = T;

        fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
            self.0.lock().as_mut().poll_next(cx)
        }
    }
}

pub(super) fn grpc(body: Body) -> Request<Body> {
    let mut request = request("/echo.Echo/Talk", body);
    let headers = request.headers_mut();
    headers.insert("content-type", "application/grpc".parse().unwrap());
    headers.insert("te", "trailers".parse().unwrap());
    headers.insert("grpc-timeout", "5S".parse().unwrap());
    request
}

#[tokio::test]
async fn grpc_unary() {
    let hop = hop(backend(100, grpc_echo).await).await;
    let mut client = client(hop.addr).await;
    for round in 0..20 {
        let text = format!("round {round}");
        let response = soon(client.send_request(grpc(Body::full(message(&text))))).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let collected = soon(response.into_body().collect()).await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.trailers().unwrap()["grpc-message"], "fine");
        assert_eq!(collected.to_bytes(), message(&text));
    }
    assert_eq!((hop.pool.shared(), hop.pool.idle()), (1, 0), "one connection for all");
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn grpc_bidirectional_streams_run_side_by_side() {
    let hop = hop(backend(100, grpc_echo).await).await;
    let client = client(hop.addr).await;
    let mut calls = Vec::new();
    for call in 0..30 {
        let mut client = client.clone();
        calls.push(tokio::spawn(async move {
            let (mut frames, body) = channel();
            let response = soon(client.send_request(grpc(body))).await.unwrap();
            let mut body = response.into_body();
            for round in 0..20 {
                let sent = message(&format!("{call} {round}"));
                frames.send(Ok(Frame::data(sent.clone()))).await.unwrap();
                // The answer to each comes before the next is sent.
                let frame = soon(body.frame()).await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), sent);
            }
            drop(frames);
            let frame = soon(body.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_trailers().unwrap()["grpc-status"], "0");
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(hop.pool.shared(), 1);
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}
