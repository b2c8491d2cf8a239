//! The sidecar of a revision whose app speaks h2c: gRPC over real sockets, with HTTP/1.1 clients beside.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use ember_dataplane::body::Body;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request, Response, Version};
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::pod::{MS, Sidecar, config, soon};

/// In front of an app on `user_port`.
async fn start(user_port: u16, concurrency: &str) -> Sidecar {
    let more = [("CONTAINER_CONCURRENCY", concurrency), ("QUEUE_SERVING_PORT", "8013")];
    Sidecar::start(config(user_port, &more)).await
}

impl Sidecar {
    async fn client(&self) -> SendRequest<Body> {
        let stream = TcpStream::connect((self.ip, 8013)).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        sender
    }

    async fn http1(&self, headers: &str) -> String {
        self.get(8013, "/a", headers).await
    }
}

/// An app that speaks HTTP/2 only.
async fn app<F, T>(answer: F) -> u16
where
    F: Fn(Request<Incoming>) -> T + Clone + Send + Sync + 'static,
    T: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                assert_eq!(request.version(), Version::HTTP_2);
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    port
}

/// hyper's bodies are no `Sync`, ours have to be.
struct Locked(parking_lot::Mutex<futures::stream::BoxStream<'static, Result<Frame<Bytes>, hyper::Error>>>);

impl futures::Stream for Locked {
    type Item = Result<Frame<Bytes>, hyper::Error>;

    fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.0.lock().as_mut().poll_next(cx)
    }
}

/// Answers every message with itself, then with a status.
async fn grpc_echo(request: Request<Incoming>) -> Response<Body> {
    let frames = request.into_body().into_data_stream().map(|data| Ok(Frame::data(data?)));
    let status = HeaderMap::from_iter([("grpc-status".parse().unwrap(), "0".parse().unwrap())]);
    let frames = frames.chain(futures::stream::once(async move { Ok(Frame::trailers(status)) }));
    let mut response =
        Response::new(Body::stream(StreamBody::new(Locked(parking_lot::Mutex::new(Box::pin(frames))))));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}

fn grpc(body: Body) -> Request<Body> {
    Request::post("http://app.example/echo.Echo/Talk")
        .header("content-type", "application/grpc")
        .header("te", "trailers")
        .body(body)
        .unwrap()
}

/// A gRPC message: not compressed, its length, itself.
fn message(text: &str) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes.into()
}

type Frames = futures::channel::mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// A body that is sent frame by frame.
fn channel() -> (Frames, Body) {
    let (sender, frames) = futures::channel::mpsc::channel(1);
    (sender, Body::stream(StreamBody::new(frames)))
}

#[tokio::test]
async fn grpc_calls_and_http1_clients_reach_the_app_and_probes_do_not() {
    let sidecar = start(app(grpc_echo).await, "0").await;
    let mut client = sidecar.client().await;
    let unary = soon(client.send_request(grpc(Body::full(message("one"))))).await.unwrap();
    assert_eq!(unary.headers()["content-type"], "application/grpc");
    let unary = soon(unary.into_body().collect()).await.unwrap();
    assert_eq!(unary.trailers().unwrap()["grpc-status"], "0");
    assert_eq!(unary.to_bytes(), message("one"));

    let (mut frames, body) = channel();
    let mut talk = soon(client.send_request(grpc(body))).await.unwrap().into_body();
    for round in 0..100 {
        let sent = message(&round.to_string());
        frames.send(Ok(Frame::data(sent.clone()))).await.unwrap();
        let frame = soon(talk.frame()).await.unwrap().unwrap();
        assert_eq!(frame.into_data().unwrap(), sent);
    }
    drop(frames);
    let status = soon(talk.frame()).await.unwrap().unwrap().into_trailers().unwrap();
    assert_eq!(status["grpc-status"], "0");

    let answer = sidecar.http1("").await;
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("application/grpc"), "{answer}");
    let probe = sidecar.http1("user-agent: Knative-Activator-Probe\r\nk-network-probe: queue\r\n").await;
    assert!(probe.ends_with("\r\n\r\nqueue"), "{probe}");
    let probe = Request::get("http://app/healthz")
        .header("user-agent", "Knative-Activator-Probe")
        .header("k-network-probe", "queue")
        .body(Body::empty())
        .unwrap();
    let probe = soon(client.send_request(probe)).await.unwrap();
    assert_eq!(soon(probe.into_body().collect()).await.unwrap().to_bytes(), "queue");
}

#[tokio::test]
async fn a_stream_that_is_reset_gives_its_place_to_the_next() {
    let (arrive, mut arrived) = mpsc::unbounded_channel();
    let app = app(move |request| {
        arrive.send(request.uri().path().to_owned()).unwrap();
        std::future::pending::<Response<Body>>()
    });
    let sidecar = start(app.await, "1").await;
    let client = sidecar.client().await;
    let call = |path: &str| {
        let request = Request::get(format!("http://app{path}")).body(Body::empty()).unwrap();
        tokio::spawn(client.clone().send_request(request))
    };
    let first = call("/first");
    assert_eq!(soon(arrived.recv()).await.unwrap(), "/first");
    let second = call("/second");
    // One that waits and leaves does not run.
    let waiting = call("/waiting");
    // Nothing tells that a request does not come.
    tokio::time::sleep(20 * MS).await;
    assert!(arrived.try_recv().is_err(), "one at a time");
    waiting.abort();
    first.abort();
    assert_eq!(soon(arrived.recv()).await.unwrap(), "/second");
    second.abort();
    call("/third");
    assert_eq!(soon(arrived.recv()).await.unwrap(), "/third");
}

#[tokio::test]
async fn at_sigterm_streams_finish_and_clients_are_sent_away() {
    let sidecar = start(app(grpc_echo).await, "0").await;
    let mut client = sidecar.client().await;
    let (mut frames, body) = channel();
    frames.send(Ok(Frame::data(message("before")))).await.unwrap();
    let mut talk = soon(client.send_request(grpc(body))).await.unwrap().into_body();
    assert_eq!(soon(talk.frame()).await.unwrap().unwrap().into_data().unwrap(), message("before"));
    sidecar.shutdown.cancel();
    // New calls are served while routing lets go of the pod, and take their connection along.
    let late = soon(sidecar.client().await.send_request(grpc(Body::full(message("late"))))).await.unwrap();
    assert_eq!(soon(late.into_body().collect()).await.unwrap().to_bytes(), message("late"));
    // Longer than the quiet period: what runs is waited for.
    tokio::time::sleep(150 * MS).await;
    assert!(!sidecar.running.is_finished());
    frames.send(Ok(Frame::data(message("after")))).await.unwrap();
    assert_eq!(soon(talk.frame()).await.unwrap().unwrap().into_data().unwrap(), message("after"));
    drop(frames);
    assert!(soon(talk.frame()).await.unwrap().unwrap().is_trailers());
    sidecar.ended().await;
    soon(async {
        while client.ready().await.is_ok() && !client.is_closed() {
            tokio::task::yield_now().await;
        }
    })
    .await;
}
