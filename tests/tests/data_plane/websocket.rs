//! WebSockets.

use ember_tests::soon;
use futures::{SinkExt as _, StreamExt as _};
use tokio::net::TcpListener;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::hops::{HOST, Hops, REVISION};

/// Sends back what it gets, and answers a close.
async fn app() -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                // The sidecar's readiness probe only connects.
                let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                while let Some(Ok(message)) = socket.next().await {
                    if message.is_text() || message.is_binary() {
                        socket.send(message).await.unwrap();
                    }
                }
            });
        }
    });
    port
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_websocket_wakes_a_revision_talks_and_closes() {
    let mut hops = Hops::start(app().await, false).await;
    let mut request = format!("ws://{HOST}/chat").into_client_request().unwrap();
    for (name, value) in REVISION {
        request.headers_mut().insert(name, value.parse().unwrap());
    }
    let stream = hops.connect().await;
    let opening = tokio::spawn(async move { tokio_tungstenite::client_async(request, stream).await });
    assert_eq!(soon("the report", hops.reports.recv()).await, Some((1.0, 1.0)));
    hops.publish().await;
    let (mut socket, response) = soon("the handshake", opening).await.unwrap().unwrap();
    assert_eq!(response.status(), 101);
    for size in [0, 1, 125, 126, 70_000, 1 << 20] {
        for message in [Message::text("x".repeat(size)), Message::binary(vec![7; size])] {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(soon("the echo", socket.next()).await.unwrap().unwrap(), message);
        }
    }
    socket.send(Message::Ping(vec![1, 2, 3].into())).await.unwrap();
    assert_eq!(soon("the pong", socket.next()).await.unwrap().unwrap(), Message::Pong(vec![1, 2, 3].into()));
    // It counts as concurrency as long as it is open.
    soon("a window of one", async { while hops.scrape().await.average_proxied_concurrent_requests < 1.0 {} })
        .await;
    let close = CloseFrame { code: CloseCode::Library(4000), reason: "enough".into() };
    socket.close(Some(close.clone())).await.unwrap();
    assert_eq!(soon("the close", socket.next()).await.unwrap().unwrap(), Message::Close(Some(close)));
    let end = soon("the end", socket.next()).await;
    assert!(matches!(end, None | Some(Err(Error::ConnectionClosed))), "{end:?}");
    drop(socket);
    soon("an idle window", async { while hops.scrape().await.average_concurrent_requests > 0.0 {} }).await;
    hops.stop().await;
}
