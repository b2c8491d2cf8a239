//! WebSockets, and upgrades to other protocols.

use ember_tests::http::host;
use ember_tests::soon;
use futures::{SinkExt as _, StreamExt as _};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_tungstenite::tungstenite::client::IntoClientRequest as _;
use tokio_tungstenite::tungstenite::protocol::CloseFrame;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::{Error, Message};

use crate::app::asleep;
use crate::wire::Wire;

#[tokio::test(flavor = "multi_thread")]
async fn a_websocket_wakes_its_service_talks_and_closes() {
    let ember = asleep("chatty", false).await;
    let request = format!("ws://{}/chat", host("chatty")).into_client_request().unwrap();
    let stream = TcpStream::connect(ember.gateway).await.unwrap();
    let opening = tokio_tungstenite::client_async(request, stream);
    let (mut socket, response) = soon("the handshake", opening).await.unwrap();
    assert_eq!(response.status(), 101);
    for size in [0, 1, 125, 126, 70_000, 1 << 20] {
        for message in [Message::text("x".repeat(size)), Message::binary(vec![7; size])] {
            socket.send(message.clone()).await.unwrap();
            assert_eq!(soon("the echo", socket.next()).await.unwrap().unwrap(), message);
        }
    }
    socket.send(Message::Ping(vec![1, 2, 3].into())).await.unwrap();
    assert_eq!(soon("the pong", socket.next()).await.unwrap().unwrap(), Message::Pong(vec![1, 2, 3].into()));
    let close = CloseFrame { code: CloseCode::Library(4000), reason: "enough".into() };
    socket.close(Some(close.clone())).await.unwrap();
    assert_eq!(soon("the close", socket.next()).await.unwrap().unwrap(), Message::Close(Some(close)));
    let end = soon("the end", socket.next()).await;
    assert!(matches!(end, None | Some(Err(Error::ConnectionClosed))), "{end:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_side_of_an_upgraded_stream_may_end_before_the_other() {
    let ember = asleep("raw", false).await;
    let mut wire = Wire::open(ember.gateway).await;
    wire.send(&format!(
        "GET /raw HTTP/1.1\r\nhost: {}\r\nconnection: upgrade\r\nupgrade: raw\r\n\r\n",
        host("raw")
    ))
    .await;
    let head = wire.head().await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    let stream = wire.stream();
    stream.write_all(&[b'x'; 100_000]).await.unwrap();
    stream.shutdown().await.unwrap();
    let mut answer = String::new();
    soon("the answer", stream.read_to_string(&mut answer)).await.unwrap();
    assert_eq!(answer, "100000 bytes");
}
