//! gRPC, by the client most programs use.

use std::convert::Infallible;

use ember_tests::grpc::{Answer, Client, answer, word};
use ember_tests::soon;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;
use tonic::Code;
use tonic::metadata::MetadataMap;

use crate::hops::{HOST, Hops, REVISION};

/// The app, which is to be asked as the client asked.
async fn serve(request: Request<Incoming>) -> Result<Answer, Infallible> {
    let (head, body) = request.into_parts();
    assert_eq!(
        (&head.headers["te"], &head.headers["content-type"]),
        (&"trailers".parse().unwrap(), &"application/grpc".parse().unwrap())
    );
    assert_eq!(head.headers["x-asked"], "yes");
    assert_eq!(head.uri.authority().unwrap(), HOST);
    let mut response = answer(head.uri.path(), body).unwrap();
    response.headers_mut().insert("x-answered", "yes".parse().unwrap());
    Ok(response)
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
async fn client(hops: &Hops) -> Client {
    let mut metadata = MetadataMap::new();
    for (name, value) in REVISION {
        metadata.insert(name, value.parse().unwrap());
    }
    metadata.insert("x-asked", "yes".parse().unwrap());
    Client::connect(hops.addr, HOST, metadata).await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn grpc_calls_of_every_kind() {
    let mut hops = Hops::start(app().await, true).await;
    let mut grpc = client(&hops).await;
    // The first call wakes the revision.
    let first = tokio::spawn({
        let mut grpc = grpc.clone();
        async move { grpc.unary("Talk", "first").await }
    });
    assert_eq!(soon("the report", hops.reports.recv()).await, Some((1.0, 1.0)));
    hops.publish().await;
    let first = soon("the first answer", first).await.unwrap().unwrap();
    assert_eq!(
        (first.metadata().get("x-answered").unwrap(), first.get_ref()),
        (&"yes".parse().unwrap(), &word("first"))
    );

    // A status alone, and a status after a message.
    let status = grpc.unary("Fail", "x").await.unwrap_err();
    assert_eq!((status.code(), status.message()), (Code::NotFound, "no such word"));
    let status = grpc.unary("Break", "x").await.unwrap_err();
    assert_eq!(status.code(), Code::Aborted);
    assert_eq!(status.metadata().get("x-total").unwrap(), "7");

    // A message larger than any window of the way.
    let large = "x".repeat(3 << 20);
    let answered = soon("a large answer", grpc.unary("Talk", &large)).await.unwrap();
    assert_eq!(answered.get_ref().text.len(), large.len());

    // Both sides talk in turn, on streams side by side.
    let talks = (0..10).map(|index| {
        let mut grpc = grpc.clone();
        tokio::spawn(async move { grpc.talk(&index.to_string()).await })
    });
    for talk in talks.collect::<Vec<_>>() {
        soon("a talk", talk).await.unwrap();
    }
    hops.stop().await;
}
