//! gRPC, by the client most programs use.

use std::convert::Infallible;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt as _, StreamExt as _};
use http::uri::PathAndQuery;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::hops::{HOST, Hops, REVISION, soon};

#[derive(Clone, PartialEq, prost::Message)]
struct Word {
    #[prost(string, tag = "1")]
    text: String,
}

fn word(text: impl Into<String>) -> Word {
    Word { text: text.into() }
}

type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// Frames of an answer with this status at its end.
fn answer(
    frames: impl futures::Stream<Item = Result<Frame<Bytes>, hyper::Error>> + Send + 'static,
    status: &'static str,
) -> Answer {
    let trailers = HeaderMap::from_iter([
        ("grpc-status".parse().unwrap(), status.parse().unwrap()),
        ("x-total".parse().unwrap(), "7".parse().unwrap()),
    ]);
    let frames = frames.chain(futures::stream::iter([Ok(Frame::trailers(trailers))]));
    let mut response = Response::new(UnsyncBoxBody::new(StreamBody::new(frames)));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response.headers_mut().insert("x-answered", "yes".parse().unwrap());
    response
}

/// A gRPC app: `Talk` sends every message back as it comes, `Fail` answers with a status alone, `Break` with a
/// message and a status.
async fn serve(request: Request<Incoming>) -> Result<Answer, Infallible> {
    let head = request.headers();
    assert_eq!(
        (&head["te"], &head["content-type"]),
        (&"trailers".parse().unwrap(), &"application/grpc".parse().unwrap())
    );
    assert_eq!(head["x-asked"], "yes");
    assert_eq!(request.uri().authority().unwrap(), HOST);
    let path = request.uri().path().to_owned();
    let messages = Echo(request.into_body());
    Ok(match path.as_str() {
        "/echo.Echo/Talk" => answer(messages, "0"),
        "/echo.Echo/Break" => answer(messages, "10"),
        _ => {
            let mut response = answer(futures::stream::empty(), "0");
            *response.body_mut() = UnsyncBoxBody::default();
            response.headers_mut().insert("grpc-status", "5".parse().unwrap());
            response.headers_mut().insert("grpc-message", "no%20such%20word".parse().unwrap());
            response
        }
    })
}

/// The data of a request as frames of its answer.
struct Echo(Incoming);

impl futures::Stream for Echo {
    type Item = Result<Frame<Bytes>, hyper::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        hyper::body::Body::poll_frame(Pin::new(&mut self.0), cx)
    }
}

async fn app() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), hyper::service::service_fn(serve)));
        }
    });
    port
}

/// A client that asks for the host and reaches the activator.
async fn client(hops: &Hops) -> Grpc<Channel> {
    let endpoint: Endpoint = format!("http://{}", hops.addr).parse().unwrap();
    let origin: Uri = format!("http://{HOST}").parse().unwrap();
    Grpc::new(endpoint.origin(origin).connect().await.unwrap())
}

fn request<T>(message: T) -> tonic::Request<T> {
    let mut request = tonic::Request::new(message);
    for (name, value) in REVISION {
        request.metadata_mut().insert(name, value.parse().unwrap());
    }
    request.metadata_mut().insert("x-asked", "yes".parse().unwrap());
    request
}

fn path(method: &str) -> PathAndQuery {
    format!("/echo.Echo/{method}").parse().unwrap()
}

async fn unary(
    client: &mut Grpc<Channel>,
    method: &str,
    text: &str,
) -> Result<tonic::Response<Word>, Status> {
    client.ready().await.unwrap();
    client.unary(request(word(text)), path(method), ProstCodec::<Word, Word>::default()).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_calls_of_every_kind() {
    let mut hops = Hops::start(app().await, true).await;
    let mut grpc = client(&hops).await;
    // The first call wakes the revision.
    let first = tokio::spawn({
        let mut grpc = grpc.clone();
        async move { unary(&mut grpc, "Talk", "first").await }
    });
    assert_eq!(soon("the report", hops.reports.recv()).await, Some((1.0, 1.0)));
    hops.publish().await;
    let first = soon("the first answer", first).await.unwrap().unwrap();
    assert_eq!(
        (first.metadata().get("x-answered").unwrap(), first.get_ref()),
        (&"yes".parse().unwrap(), &word("first"))
    );

    // A status alone, and a status after a message.
    let status = unary(&mut grpc, "Fail", "x").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such word"));
    let status = unary(&mut grpc, "Break", "x").await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(status.metadata().get("x-total").unwrap(), "7");

    // A message larger than any window of the way.
    let large = "x".repeat(3 << 20);
    let answered = soon("a large answer", unary(&mut grpc, "Talk", &large)).await.unwrap();
    assert_eq!(answered.get_ref().text.len(), large.len());

    // Both sides talk in turn, on streams side by side.
    let talks = (0..10).map(|index| {
        let mut grpc = grpc.clone();
        tokio::spawn(async move {
            let (mut say, said) = mpsc::channel(1);
            grpc.ready().await.unwrap();
            let codec = ProstCodec::<Word, Word>::default();
            let talk = grpc.streaming(request(said), path("Talk"), codec).await.unwrap();
            let mut heard: Streaming<Word> = talk.into_inner();
            for round in 0..50 {
                let sent = word(format!("{index} {round}"));
                say.send(sent.clone()).await.unwrap();
                assert_eq!(heard.message().await.unwrap(), Some(sent));
            }
            drop(say);
            assert_eq!(heard.message().await.unwrap(), None);
            assert_eq!(heard.trailers().await.unwrap().unwrap().get("x-total").unwrap(), "7");
        })
    });
    for talk in talks.collect::<Vec<_>>() {
        soon("a talk", talk).await.unwrap();
    }
    hops.stop().await;
}
