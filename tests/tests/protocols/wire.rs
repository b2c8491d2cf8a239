//! HTTP/1 by hand, for what client libraries do not do.

use std::net::SocketAddr;
use std::time::{Duration, Instant};

use ember_tests::http::host;
use ember_tests::soon;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::app::asleep;

/// A connection to the gateway.
pub(crate) struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub(crate) async fn open(gateway: SocketAddr) -> Self {
        Self { stream: TcpStream::connect(gateway).await.unwrap(), read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// The stream itself; nothing may be left of what was read from it.
    pub(crate) fn stream(&mut self) -> &mut TcpStream {
        assert_eq!(String::from_utf8_lossy(&self.read), "");
        &mut self.stream
    }

    /// Up to and with `end`.
    pub(crate) async fn until(&mut self, end: &str) -> String {
        loop {
            let found = self.read.windows(end.len()).position(|window| window == end.as_bytes());
            if let Some(at) = found {
                let rest = self.read.split_off(at + end.len());
                let text = std::mem::replace(&mut self.read, rest);
                return String::from_utf8(text).unwrap();
            }
            let mut more = [0; 4096];
            let count = soon(&format!("{end:?}"), self.stream.read(&mut more)).await.unwrap();
            assert!(
                count > 0,
                "the connection ended before {end:?}: {}",
                String::from_utf8_lossy(&self.read)
            );
            self.read.extend_from_slice(&more[..count]);
        }
    }

    /// The head of the next answer.
    pub(crate) async fn head(&mut self) -> String {
        self.until("\r\n\r\n").await
    }

    /// All until the server closes.
    pub(crate) async fn rest(&mut self) -> String {
        let mut text = std::mem::take(&mut self.read);
        soon("the end", self.stream.read_to_end(&mut text)).await.unwrap();
        String::from_utf8(text).unwrap()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_of_http_1_0_gets_a_body_it_understands() {
    let ember = asleep("old", false).await;
    let host = host("old");
    for round in 0..2 {
        let mut wire = Wire::open(ember.gateway).await;
        wire.send(&format!("GET /large?100000 HTTP/1.0\r\nhost: {host}\r\n\r\n")).await;
        let head = wire.head().await.to_ascii_lowercase();
        assert!(head.starts_with("http/1.0 200") || head.starts_with("http/1.1 200"), "{round}: {head}");
        assert!(!head.contains("transfer-encoding"), "{head}");
        assert_eq!(wire.rest().await.len(), 100_000);
    }
    // With a length and keep-alive the connection serves a second request.
    let mut wire = Wire::open(ember.gateway).await;
    for _ in 0..2 {
        wire.send(&format!(
            "POST /seen HTTP/1.0\r\nhost: {host}\r\nconnection: keep-alive\r\ncontent-length: 5\r\n\r\nhello"
        ))
        .await;
        let head = wire.head().await.to_ascii_lowercase();
        assert!(head.contains("content-length") && head.contains("connection: keep-alive"), "{head}");
        let seen = wire.until("bytes\n").await;
        assert!(seen.starts_with("HTTP/1.1 POST /seen\n") && seen.ends_with("\n5 bytes\n"), "{seen}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_expects_100_sends_its_body_when_it_is_asked_to() {
    let ember = asleep("asking", false).await;
    let host = host("asking");
    let mut wire = Wire::open(ember.gateway).await;
    for _ in 0..2 {
        wire.send(&format!(
            "POST /seen HTTP/1.1\r\nhost: {host}\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
        ))
        .await;
        assert_eq!(wire.head().await, "HTTP/1.1 100 Continue\r\n\r\n");
        wire.send("hello").await;
        let head = wire.head().await;
        assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
        assert!(wire.until("bytes\n").await.ends_with("\n5 bytes\n"));
    }
    // One that is refused is not asked, unless the machine keeps the refusal up for a second: no hop waits longer.
    loop {
        let begun = Instant::now();
        wire.send(&format!(
            "POST /early HTTP/1.1\r\nhost: {host}\r\nexpect: 100-continue\r\ncontent-length: 5\r\n\r\n"
        ))
        .await;
        let head = wire.head().await;
        if head.starts_with("HTTP/1.1 413 ") {
            break;
        }
        assert!(begun.elapsed() >= Duration::from_secs(1), "{head}");
        wire = Wire::open(ember.gateway).await;
    }
    wire.until("too long").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_client_that_has_no_more_to_say_is_still_answered() {
    let ember = asleep("half", false).await;
    let host = host("half");
    // The first one also while it waits for a pod.
    for _ in 0..3 {
        let mut wire = Wire::open(ember.gateway).await;
        wire.send(&format!("POST /seen HTTP/1.1\r\nhost: {host}\r\ncontent-length: 5\r\n\r\nhello")).await;
        wire.stream().shutdown().await.unwrap();
        let answer = wire.rest().await;
        assert!(answer.starts_with("HTTP/1.1 200 OK\r\n") && answer.ends_with("\n5 bytes\n"), "{answer}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_that_comes_before_the_end_of_the_request_arrives_whole() {
    let ember = asleep("hasty", false).await;
    let host = host("hasty");
    for round in 0..10 {
        let mut wire = Wire::open(ember.gateway).await;
        wire.send(&format!("POST /early HTTP/1.1\r\nhost: {host}\r\ncontent-length: 50000000\r\n\r\n")).await;
        // A client in mid upload, with more on its way than any hop keeps.
        let piece = vec![b'x'; 1 << 20];
        let stream = wire.stream();
        for _ in 0..round {
            if stream.write_all(&piece).await.is_err() {
                break;
            }
        }
        let head = wire.head().await;
        assert!(head.starts_with("HTTP/1.1 413 "), "{round}: {head}");
        wire.until("too long").await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn trailers_of_a_request_come_back_as_trailers() {
    let ember = asleep("trailing", false).await;
    let mut wire = Wire::open(ember.gateway).await;
    wire.send(&format!(
        "POST /echo HTTP/1.1\r\nhost: {}\r\nte: trailers\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n5\r\nhello\r\n0\r\nx-sum: 5\r\n\r\n",
        host("trailing")
    ))
    .await;
    let head = wire.head().await;
    assert!(head.starts_with("HTTP/1.1 200 OK\r\n"), "{head}");
    let body = wire.until("0\r\n").await;
    assert_eq!(body, "5\r\nhello\r\n0\r\n");
    let trailers = wire.head().await;
    assert_eq!(trailers, "x-sum: 5\r\n\r\n");
}
