//! gRPC, by the client most programs use.

use std::time::Duration;

use ember_tests::http::host;
use ember_tests::instance::Ember;
use futures::channel::mpsc;
use futures::{SinkExt as _, StreamExt as _};
use http::Uri;
use http::uri::PathAndQuery;
use tonic::client::Grpc;
use tonic::transport::{Channel, Endpoint};
use tonic::{Code, Request, Status, Streaming};
use tonic_prost::ProstCodec;

use crate::app::{asleep, noticed, soon};

#[derive(Clone, PartialEq, prost::Message)]
struct Word {
    #[prost(string, tag = "1")]
    text: String,
}

fn word(text: impl Into<String>) -> Word {
    Word { text: text.into() }
}

fn codec() -> ProstCodec<Word, Word> {
    ProstCodec::default()
}

fn path(method: &str) -> PathAndQuery {
    format!("/echo.Echo/{method}").parse().unwrap()
}

async fn client(ember: &Ember, service: &str) -> Grpc<Channel> {
    let endpoint: Endpoint = format!("http://{}", ember.gateway).parse().unwrap();
    let origin: Uri = format!("http://{}", host(service)).parse().unwrap();
    Grpc::new(endpoint.origin(origin).connect().await.unwrap())
}

async fn unary(
    client: &mut Grpc<Channel>,
    method: &str,
    request: Request<Word>,
) -> Result<tonic::Response<Word>, Status> {
    client.ready().await.unwrap();
    soon("a call", client.unary(request, path(method), codec())).await
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_calls_of_every_kind_from_zero_on() {
    let ember = asleep("words", true).await;
    let mut grpc = client(&ember, "words").await;
    let first = unary(&mut grpc, "Talk", Request::new(word("first"))).await.unwrap();
    assert_eq!(first.get_ref(), &word("first"));

    // A status alone, and a status after a message, with what else its trailers say.
    let status = unary(&mut grpc, "Fail", Request::new(word("x"))).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such word"));
    let status = unary(&mut grpc, "Break", Request::new(word("x"))).await.unwrap_err();
    assert_eq!(
        (status.code(), status.metadata().get("x-total").unwrap().as_bytes()),
        (Code::Aborted, &b"7"[..])
    );

    // Larger than any window of the way.
    let large = "x".repeat(3 << 20);
    let answered = unary(&mut grpc, "Talk", Request::new(word(large.clone()))).await.unwrap();
    assert!(answered.get_ref().text == large);

    // Only the server streams.
    grpc.ready().await.unwrap();
    let counted = grpc.server_streaming(Request::new(word("x")), path("Count"), codec()).await.unwrap();
    let words: Vec<Word> = counted.into_inner().map(Result::unwrap).collect().await;
    assert_eq!((words.len(), &words[42]), (100, &word("2")));

    // Both sides talk in turn, on streams side by side.
    let talks = (0..10).map(|index| {
        let mut grpc = grpc.clone();
        tokio::spawn(async move {
            let (mut say, said) = mpsc::channel(1);
            grpc.ready().await.unwrap();
            let talk = grpc.streaming(Request::new(said), path("Talk"), codec()).await.unwrap();
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
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_the_call_on_every_hop() {
    let ember = asleep("patient", true).await;
    let mut grpc = client(&ember, "patient").await;
    unary(&mut grpc, "Talk", Request::new(word("awake"))).await.unwrap();
    let mut request = Request::new(word("x"));
    request.set_timeout(Duration::from_millis(200));
    let status = unary(&mut grpc, "Stay", request).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    noticed(&ember, &host("patient"), "1 came, 1 left").await;
}
