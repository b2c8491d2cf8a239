//! Either end of a connection, in bytes.

use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// Sockets, and pipes in memory.
pub(crate) trait Duplex: AsyncRead + AsyncWrite + Send + Unpin {}
impl<T: AsyncRead + AsyncWrite + Send + Unpin> Duplex for T {}

pub(crate) struct Wire {
    stream: Box<dyn Duplex>,
    read: Vec<u8>,
    patience: Duration,
}

impl Wire {
    /// In memory. Patient for longer than any timer of the contract: on a clock that jumps it costs nothing.
    pub(crate) fn new(stream: impl Duplex + 'static) -> Self {
        Self { stream: Box::new(stream), read: Vec::new(), patience: Duration::from_secs(10_000) }
    }

    pub(crate) fn of_socket(stream: TcpStream) -> Self {
        stream.set_nodelay(true).unwrap();
        Self { patience: Duration::from_secs(20), ..Self::new(stream) }
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Whether the other side still takes it.
    pub(crate) async fn try_send(&mut self, text: &str) -> bool {
        self.stream.write_all(text.as_bytes()).await.is_ok()
    }

    pub(crate) async fn shutdown(&mut self) {
        self.stream.shutdown().await.unwrap();
    }

    /// Reads up to and including `text`.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        self.try_until(text).await.unwrap_or_else(|seen| panic!("no {text:?} in {seen:?}"))
    }

    /// The same; what came instead if the other side ends, or nothing comes.
    pub(crate) async fn try_until(&mut self, text: &str) -> Result<String, String> {
        loop {
            let seen = String::from_utf8_lossy(&self.read).into_owned();
            if let Some(at) = seen.find(text) {
                let rest = self.read.split_off(at + text.len());
                return Ok(String::from_utf8_lossy(&std::mem::replace(&mut self.read, rest)).into_owned());
            }
            match tokio::time::timeout(self.patience, self.stream.read_buf(&mut self.read)).await {
                Ok(Ok(read)) if read > 0 => {}
                _ => return Err(seen),
            }
        }
    }

    /// So many bytes.
    pub(crate) async fn take(&mut self, length: usize) -> String {
        while self.read.len() < length {
            let read = tokio::time::timeout(self.patience, self.stream.read_buf(&mut self.read)).await;
            assert!(read.unwrap().unwrap() > 0, "only {:?}", String::from_utf8_lossy(&self.read));
        }
        let rest = self.read.split_off(length);
        String::from_utf8_lossy(&std::mem::replace(&mut self.read, rest)).into_owned()
    }

    /// The head of the next request, if there is one.
    pub(crate) async fn head(&mut self) -> Option<String> {
        self.try_until("\r\n\r\n").await.ok()
    }

    /// Everything up to the end of the stream.
    pub(crate) async fn bytes(&mut self) -> Vec<u8> {
        let ended = tokio::time::timeout(self.patience, self.stream.read_to_end(&mut self.read)).await;
        assert!(ended.is_ok(), "no end after {:?}", String::from_utf8_lossy(&self.read));
        std::mem::take(&mut self.read)
    }

    pub(crate) async fn rest(&mut self) -> String {
        String::from_utf8_lossy(&self.bytes().await).into_owned()
    }

    /// A whole exchange; the connection ends with it.
    pub(crate) async fn exchange(mut self, method: &str, path: &str, headers: &str) -> String {
        self.send(&format!("{method} {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n{headers}\r\n"))
            .await;
        self.rest().await
    }
}

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// An app that answers every request at once.
pub(crate) async fn ok(mut wire: Wire) {
    while wire.head().await.is_some() {
        wire.send(OK).await;
    }
}

/// An app that answers every request with its own head.
pub(crate) async fn echo(mut wire: Wire) {
    while let Some(head) = wire.head().await {
        wire.send(&format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len())).await;
    }
}

/// The status of an answer.
pub(crate) fn status(answer: &str) -> u16 {
    answer.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or_else(|| panic!("{answer:?}"))
}

/// The body of an answer whose head is followed by nothing else.
pub(crate) fn body(answer: &str) -> &str {
    answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("{answer:?}")).1
}
