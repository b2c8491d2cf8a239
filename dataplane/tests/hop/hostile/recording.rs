//! What gets through to a backend, read by the letter.

use std::net::SocketAddr;
use std::sync::Arc;

use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::wire::{OK, backend};

/// A request as a backend has seen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Seen {
    pub(super) head: String,
    pub(super) body: Vec<u8>,
}

impl Seen {
    /// Method and target.
    pub(super) fn target(&self) -> &str {
        self.head.lines().next().unwrap().strip_suffix(" HTTP/1.1").unwrap()
    }

    pub(super) fn header(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| *found == name).map(|(_, value)| value).collect()
    }
}

/// The requests in what a backend has received, and what is left. Read by the letter: what leaves room for another
/// reading fails the test.
pub(super) fn requests(mut bytes: &[u8]) -> (Vec<Seen>, &[u8]) {
    let mut seen = Vec::new();
    while let Some(end) = find(bytes, b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        for line in head.split("\r\n") {
            assert!(!line.contains(['\r', '\n', '\0']) && !line.starts_with([' ', '\t']), "{head:?}");
        }
        let request = Seen { head, body: Vec::new() };
        let mut line = request.head.lines().next().unwrap().split(' ');
        assert!(line.clone().count() == 3 && line.next_back() == Some("HTTP/1.1"), "{request:?}");
        assert_eq!(request.header("host").len(), 1, "{request:?}");
        let (length, coding) = (request.header("content-length"), request.header("transfer-encoding"));
        assert!(length.len() + coding.len() <= 1, "{request:?}");
        let rest = &bytes[end + 4..];
        let (body, rest) = if !coding.is_empty() {
            assert_eq!(coding, ["chunked"]);
            let Some(read) = chunked(rest) else { break };
            read
        } else {
            let length = length.first().map_or(0, |length| {
                assert_eq!(length.parse::<usize>().unwrap().to_string(), *length, "{request:?}");
                length.parse().unwrap()
            });
            if rest.len() < length {
                break;
            }
            (rest[..length].to_vec(), &rest[length..])
        };
        seen.push(Seen { body, ..request });
        bytes = rest;
    }
    (seen, bytes)
}

fn chunked(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let end = find(bytes, b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        bytes = &bytes[end + 2..];
        if size == 0 {
            while find(bytes, b"\r\n")? != 0 {
                bytes = &bytes[find(bytes, b"\r\n")? + 2..];
            }
            return Some((body, &bytes[2..]));
        }
        body.extend(bytes.get(..size)?);
        assert_eq!(bytes.get(size..size + 2)?, b"\r\n");
        bytes = &bytes[size + 2..];
    }
}

pub(super) fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

/// What a backend receives, by connection.
#[derive(Clone, Default)]
pub(super) struct Recorded(Arc<Mutex<Vec<Vec<u8>>>>);

impl Recorded {
    /// Records one connection and answers each request in it.
    pub(super) async fn serve(&self, mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) {
        let index = {
            let mut connections = self.0.lock();
            connections.push(Vec::new());
            connections.len() - 1
        };
        let mut answered = 0;
        let mut buffer = vec![0; 16 << 10];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let complete = {
                let mut connections = self.0.lock();
                connections[index].extend(&buffer[..read]);
                requests(&connections[index]).0.len()
            };
            for _ in answered..complete {
                if stream.write_all(OK.as_bytes()).await.is_err() {
                    return;
                }
            }
            answered = complete;
        }
    }

    /// All bytes.
    pub(super) fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().concat()).into_owned()
    }

    /// All complete requests, and what was left of each connection.
    pub(super) fn all(&self) -> (Vec<Seen>, Vec<Vec<u8>>) {
        let (mut seen, mut rests) = (Vec::new(), Vec::new());
        for connection in &*self.0.lock() {
            let (requests, rest) = requests(connection);
            seen.extend(requests);
            rests.push(rest.to_vec());
        }
        (seen, rests)
    }
}

/// A backend that records what it is sent and answers each request.
pub(super) async fn recorder() -> (SocketAddr, Recorded) {
    let recorded = Recorded::default();
    let serving = recorded.clone();
    let addr = backend(move |wire| {
        let recorded = serving.clone();
        async move { recorded.serve(wire.stream).await }
    })
    .await;
    (addr, recorded)
}
