//! A gRPC service, `echo.Echo`: as an app answers it, and as the client most programs use calls it.

use std::net::SocketAddr;
use std::pin::Pin;
use std::task::{Context, Poll};

use bytes::Bytes;
use futures::channel::mpsc;
use futures::{SinkExt as _, Stream, StreamExt as _};
use http::uri::PathAndQuery;
use http::{HeaderMap, HeaderName, HeaderValue, Response, Uri};
use http_body_util::StreamBody;
use http_body_util::combinators::UnsyncBoxBody;
use hyper::body::{Body as _, Frame, Incoming};
use tonic::client::Grpc;
use tonic::metadata::MetadataMap;
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Status, Streaming};
use tonic_prost::ProstCodec;

/// The only message.
#[derive(Clone, PartialEq, prost::Message)]
pub struct Word {
    /// What it says.
    #[prost(string, tag = "1")]
    pub text: String,
}

/// A message.
pub fn word(text: impl Into<String>) -> Word {
    Word { text: text.into() }
}

/// How many words `Count` answers with: each the last digit of its number.
pub const COUNT: u8 = 100;

/// An answer of the app.
pub type Answer = Response<UnsyncBoxBody<Bytes, hyper::Error>>;

/// What the app answers to a request at `path`: `Talk` sends every message back as it comes, `Break` does so and fails
/// in the end, `Fail` answers with a status alone, `Count` with [`COUNT`] messages.
/// `None` for any other path.
#[must_use]
pub fn answer(path: &str, body: Incoming) -> Option<Answer> {
    match path {
        "/echo.Echo/Talk" => Some(ending(Frames(body), "0")),
        "/echo.Echo/Break" => Some(ending(Frames(body), "10")),
        "/echo.Echo/Count" => {
            let words =
                (0..COUNT).map(|n| Ok(Frame::data(Bytes::from(vec![0, 0, 0, 0, 3, 10, 1, b'0' + n % 10]))));
            Some(ending(futures::stream::iter(words), "0"))
        }
        "/echo.Echo/Fail" => {
            let mut response = Response::new(UnsyncBoxBody::default());
            let headers = response.headers_mut();
            headers.insert("content-type", HeaderValue::from_static("application/grpc"));
            headers.insert("grpc-status", HeaderValue::from_static("5"));
            headers.insert("grpc-message", HeaderValue::from_static("no%20such%20word"));
            Some(response)
        }
        _ => None,
    }
}

/// An answer of those frames with this status at its end.
fn ending(
    frames: impl Stream<Item = Result<Frame<Bytes>, hyper::Error>> + Send + 'static,
    status: &'static str,
) -> Answer {
    let trailers = HeaderMap::from_iter([
        (HeaderName::from_static("grpc-status"), HeaderValue::from_static(status)),
        (HeaderName::from_static("x-total"), HeaderValue::from_static("7")),
    ]);
    let data = frames.filter(|frame| std::future::ready(frame.as_ref().is_ok_and(Frame::is_data)));
    let all = data.chain(futures::stream::iter([Ok(Frame::trailers(trailers))]));
    let mut response = Response::new(UnsyncBoxBody::new(StreamBody::new(all)));
    response.headers_mut().insert("content-type", HeaderValue::from_static("application/grpc"));
    response
}

/// The frames of a request as they come.
pub struct Frames(
    /// Its body.
    pub Incoming,
);

impl Stream for Frames {
    type Item = Result<Frame<Bytes>, hyper::Error>;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        Pin::new(&mut self.0).poll_frame(cx)
    }
}

/// A client that connects to `addr` and asks for `host`; each of its requests carries `metadata`.
#[derive(Debug, Clone)]
pub struct Client {
    grpc: Grpc<Channel>,
    metadata: MetadataMap,
}

impl Client {
    /// Connects.
    pub async fn connect(addr: SocketAddr, host: &str, metadata: MetadataMap) -> Self {
        let endpoint: Endpoint = format!("http://{addr}").parse().expect("an endpoint");
        let origin: Uri = format!("http://{host}").parse().expect("an origin");
        let channel = endpoint.origin(origin).connect().await.expect("a connection");
        Self { grpc: Grpc::new(channel), metadata }
    }

    fn request<T>(&self, message: T) -> Request<T> {
        let mut request = Request::new(message);
        *request.metadata_mut() = self.metadata.clone();
        request
    }

    /// Calls `method` with one message for one.
    ///
    /// # Errors
    /// The status, unless it is 0.
    pub async fn unary(&mut self, method: &str, text: &str) -> Result<tonic::Response<Word>, Status> {
        let request = self.request(word(text));
        self.call(method, request).await
    }

    /// The same with a deadline.
    ///
    /// # Errors
    /// The status, unless it is 0.
    pub async fn unary_within(
        &mut self,
        deadline: std::time::Duration,
        method: &str,
        text: &str,
    ) -> Result<tonic::Response<Word>, Status> {
        let mut request = self.request(word(text));
        request.set_timeout(deadline);
        self.call(method, request).await
    }

    async fn call(&mut self, method: &str, request: Request<Word>) -> Result<tonic::Response<Word>, Status> {
        self.grpc.ready().await.expect("a connection");
        self.grpc.unary(request, path(method), codec()).await
    }

    /// All that `Count` answers.
    pub async fn count(&mut self) -> Vec<Word> {
        let request = self.request(word("x"));
        self.grpc.ready().await.expect("a connection");
        let counted = self.grpc.server_streaming(request, path("Count"), codec()).await.expect("an answer");
        counted.into_inner().map(|word| word.expect("a word")).collect().await
    }

    /// Talks: 50 times a message is sent once the one before has come back, then the call ends in order.
    pub async fn talk(&mut self, about: &str) {
        let (mut say, said) = mpsc::channel(1);
        let request = self.request(said);
        self.grpc.ready().await.expect("a connection");
        let talk = self.grpc.streaming(request, path("Talk"), codec()).await.expect("an answer");
        let mut heard: Streaming<Word> = talk.into_inner();
        for round in 0..50 {
            let sent = word(format!("{about} {round}"));
            say.send(sent.clone()).await.expect("who listens");
            assert_eq!(heard.message().await.expect("a message"), Some(sent));
        }
        drop(say);
        assert_eq!(heard.message().await.expect("an end"), None);
        let trailers = heard.trailers().await.expect("an end").expect("trailers");
        assert_eq!(trailers.get("x-total").map(tonic::metadata::MetadataValue::as_bytes), Some(&b"7"[..]));
    }
}

fn codec() -> ProstCodec<Word, Word> {
    ProstCodec::default()
}

fn path(method: &str) -> PathAndQuery {
    format!("/echo.Echo/{method}").parse().expect("a path")
}
