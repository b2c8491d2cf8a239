//! gRPC, by the client most programs use.

use std::time::Duration;

use ember_tests::grpc::{COUNT, Client, word};
use ember_tests::http::host;
use ember_tests::instance::Ember;
use ember_tests::soon;
use tonic::Code;
use tonic::metadata::MetadataMap;

use crate::app::{asleep, noticed};

async fn client(ember: &Ember, service: &str) -> Client {
    Client::connect(ember.gateway, &host(service), MetadataMap::new()).await
}

#[tokio::test(flavor = "multi_thread")]
async fn grpc_calls_of_every_kind_from_zero_on() {
    let ember = asleep("words", true).await;
    let mut grpc = client(&ember, "words").await;
    let first = soon("a call", grpc.unary("Talk", "first")).await.unwrap();
    assert_eq!(first.get_ref(), &word("first"));

    // A status alone, and a status after a message, with what else its trailers say.
    let status = soon("a call", grpc.unary("Fail", "x")).await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such word"));
    let status = soon("a call", grpc.unary("Break", "x")).await.unwrap_err();
    assert_eq!(
        (status.code(), status.metadata().get("x-total").unwrap().as_bytes()),
        (Code::Aborted, &b"7"[..])
    );

    // Larger than any window of the way.
    let large = "x".repeat(3 << 20);
    let answered = soon("a call", grpc.unary("Talk", &large)).await.unwrap();
    assert!(answered.get_ref().text == large);

    // Only the server streams.
    let words = soon("a call", grpc.count()).await;
    assert_eq!((words.len(), &words[42]), (COUNT.into(), &word("2")));

    // Both sides talk in turn, on streams side by side.
    let talks = (0..10).map(|index| {
        let mut grpc = grpc.clone();
        tokio::spawn(async move { grpc.talk(&index.to_string()).await })
    });
    for talk in talks.collect::<Vec<_>>() {
        soon("a talk", talk).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deadline_ends_the_call_on_every_hop() {
    let ember = asleep("patient", true).await;
    let mut grpc = client(&ember, "patient").await;
    soon("a call", grpc.unary("Talk", "awake")).await.unwrap();
    let late = grpc.unary_within(Duration::from_millis(200), "Stay", "x");
    let status = soon("a call", late).await.unwrap_err();
    assert!(matches!(status.code(), Code::DeadlineExceeded | Code::Cancelled), "{status:?}");
    noticed(&ember, &host("patient"), "1 came, 1 left").await;
}
