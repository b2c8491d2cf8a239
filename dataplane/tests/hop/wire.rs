//! Both ends of a hop, in bytes.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use ember_dataplane::body::Body;
use http_body::Frame;
use http_body_util::StreamBody;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longer than anything takes that is going to happen.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// A backend that treats each connection with `serve`.
pub(crate) async fn backend<F, T>(serve: F) -> SocketAddr
where
    F: Fn(Wire) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            tokio::spawn(serve(Wire { stream, read: Vec::new() }));
        }
    });
    addr
}

/// An address where nobody listens.
pub(crate) async fn closed_port() -> SocketAddr {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    listener.local_addr().unwrap()
}

/// Either end of a connection, in bytes.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    pub(crate) read: Vec<u8>,
}

impl Wire {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    /// Sends what the other side still takes.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.ok();
    }

    /// Reads up to and including `text`, which has to come within the limit.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        self.try_until(text).await.unwrap_or_else(|seen| panic!("no {text:?} in {seen:?}"))
    }

    pub(crate) async fn try_until(&mut self, text: &str) -> Result<String, String> {
        loop {
            let seen = String::from_utf8_lossy(&self.read).into_owned();
            if let Some(at) = seen.find(text) {
                let rest = self.read.split_off(at + text.len());
                return Ok(String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap());
            }
            match tokio::time::timeout(LONG, self.stream.read_buf(&mut self.read)).await {
                Ok(Ok(read)) if read > 0 => {}
                _ => return Err(seen),
            }
        }
    }

    /// Everything up to the end of the stream, which has to come within the limit.
    pub(crate) async fn rest(&mut self) -> String {
        tokio::time::timeout(LONG, self.stream.read_to_end(&mut self.read)).await.unwrap().ok();
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }

    /// Sends `bytes` again and again until the other side has taken none for a while, has ended the connection, or has
    /// taken `limit`; says how much it took. Nothing is read meanwhile.
    pub(crate) async fn flood(&mut self, bytes: &[u8], limit: usize) -> usize {
        let mut taken = 0;
        while taken < limit {
            let at = taken % bytes.len();
            let written = tokio::time::timeout(Duration::from_millis(500), self.stream.write(&bytes[at..]));
            match written.await {
                Ok(Ok(written)) => taken += written,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        taken
    }
}

pub(crate) type Frames = futures::channel::mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// A body that is sent frame by frame.
pub(crate) fn channel() -> (Frames, Body) {
    let (sender, frames) = futures::channel::mpsc::channel(1);
    (sender, Body::stream(StreamBody::new(frames)))
}

pub(crate) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap()
}
