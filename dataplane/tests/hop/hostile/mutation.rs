//! Requests that were in order once, with a few bytes changed, in memory: nothing panics, everything ends, and the
//! backend sees no more requests than anybody could read from them.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::address::Address;
use ember_dataplane::drain::{Drain, Quiet};
use ember_dataplane::io::{Io, Listener, Network, Stream, SystemClock};
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::protocol::Protocol;
use ember_dataplane::proxy::Proxy;
use ember_dataplane::server::{self, Conn, Options};
use ember_dataplane::timeout::Timeouts;
use futures::future::BoxFuture;
use proptest::prelude::*;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::recording::Recorded;
use crate::frames;
use crate::hop::Hop;

/// Every connection leads to the backend.
struct Memory(Recorded);

impl Network for Memory {
    fn listen<'a>(&'a self, _: SocketAddr) -> BoxFuture<'a, std::io::Result<Listener>> {
        Box::pin(async { Err(std::io::ErrorKind::Unsupported.into()) })
    }

    fn connect<'a>(&'a self, _: &'a str, _: u16) -> BoxFuture<'a, std::io::Result<Stream>> {
        let recorded = self.0.clone();
        Box::pin(async move {
            let (near, far) = tokio::io::duplex(64 << 10);
            tokio::spawn(async move { recorded.serve(far).await });
            Ok(Stream::Memory(near))
        })
    }
}

/// Requests to start from.
const SEEDS: [&str; 8] = [
    "GET /a?b=c HTTP/1.1\r\nhost: a.example\r\naccept: */*\r\n\r\n",
    "POST /a HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\nhello",
    "POST /b HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\ntrailer: x\r\n\r\n5;q\r\nhello\r\n0\r\nx: y\r\n\r\n",
    "PUT http://b.example:80/c HTTP/1.1\r\nHost: a\r\nConnection: x, close\r\nX: y\r\nContent-Length: 0\r\n\r\n",
    "GET / HTTP/1.0\r\nconnection: keep-alive\r\n\r\n",
    "OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n",
    "POST /d HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ncontent-length: 2\r\n\r\nhi",
    "GET /e HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\ncookie: a=b\r\n\r\n",
];

/// What is put into them.
const PIECES: [&[u8]; 20] = [
    b"\r\n",
    b"\n",
    b"\r",
    b"\0",
    b" ",
    b"\t",
    b":",
    b",",
    b"0",
    b"5\r\n",
    b"\r\n\r\n",
    b"-",
    b"\xff",
    b"content-length: 3\r\n",
    b"transfer-encoding: chunked\r\n",
    b"host: b\r\n",
    b"GET /f HTTP/1.1\r\n",
    b"chunked",
    b"0\r\n\r\n",
    b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
];

#[derive(Debug, Clone)]
enum Change {
    Set(usize, u8),
    Delete(usize, usize),
    Insert(usize, usize),
    Repeat(usize, usize),
}

fn change() -> impl Strategy<Value = Change> {
    prop_oneof![
        (any::<usize>(), any::<u8>()).prop_map(|(at, byte)| Change::Set(at, byte)),
        (any::<usize>(), 1..20usize).prop_map(|(at, length)| Change::Delete(at, length)),
        (any::<usize>(), 0..PIECES.len()).prop_map(|(at, piece)| Change::Insert(at, piece)),
        (any::<usize>(), 1..60usize).prop_map(|(at, length)| Change::Repeat(at, length)),
    ]
}

fn changed(seeds: &[usize], changes: &[Change]) -> Vec<u8> {
    let mut bytes: Vec<u8> = seeds.iter().flat_map(|seed| SEEDS[*seed].bytes()).collect();
    for change in changes {
        let end = |at: usize, length: usize, all: usize| (at + length).min(all);
        let place = |at: usize, all: usize| at % (all + 1);
        let all = bytes.len();
        match *change {
            Change::Set(at, byte) if all > 0 => bytes[at % all] = byte,
            Change::Set(..) => {}
            Change::Delete(at, length) => {
                let at = place(at, all);
                bytes.drain(at..end(at, length, all));
            }
            Change::Insert(at, piece) => {
                let at = place(at, all);
                bytes.splice(at..at, PIECES[piece].iter().copied());
            }
            Change::Repeat(at, length) => {
                let at = place(at, all);
                let part = bytes[at..end(at, length, all)].to_vec();
                bytes.splice(at..at, part);
            }
        }
    }
    bytes
}

/// How many requests a reader can find who minds nothing but where a head and its body end.
fn readable(mut bytes: &[u8]) -> usize {
    let mut count = 0;
    loop {
        while let Some(rest) = bytes.strip_prefix(b"\n").or_else(|| bytes.strip_prefix(b"\r")) {
            bytes = rest;
        }
        let mut lines = Vec::new();
        loop {
            let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return count };
            let line = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]);
            bytes = &bytes[end + 1..];
            if line.is_empty() {
                break;
            }
            lines.push(line.to_ascii_lowercase());
        }
        count += 1;
        let value = |name: &[u8]| -> Option<Vec<u8>> {
            lines.iter().skip(1).find_map(|line| {
                let value = line.strip_prefix(name)?.strip_prefix(b":")?;
                Some(value.trim_ascii().to_vec())
            })
        };
        if value(b"transfer-encoding").is_some() {
            loop {
                let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return count };
                let digits = bytes.iter().take_while(|byte| byte.is_ascii_hexdigit()).count();
                let size = std::str::from_utf8(&bytes[..digits]).unwrap();
                let Ok(size) = usize::from_str_radix(size, 16) else { return count };
                bytes = &bytes[end + 1..];
                if size == 0 {
                    break;
                }
                let Some(rest) = size.checked_add(2).and_then(|size| bytes.get(size..)) else { return count };
                bytes = rest;
            }
            loop {
                let Some(end) = bytes.iter().position(|byte| *byte == b'\n') else { return count };
                let last = bytes[..end].strip_suffix(b"\r").unwrap_or(&bytes[..end]).is_empty();
                bytes = &bytes[end + 1..];
                if last {
                    break;
                }
            }
        } else if let Some(length) = value(b"content-length") {
            let length = String::from_utf8_lossy(&length).parse().unwrap_or(usize::MAX);
            let Some(rest) = bytes.get(length..) else { return count };
            bytes = rest;
        }
    }
}

/// Sends the bytes to a server, in pieces, and waits for all to end. Returns how many requests its backend has seen.
fn served(bytes: &[u8], piece: usize) -> usize {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
    runtime.block_on(async {
        let recorded = Recorded::default();
        let io = Io { clock: Arc::new(SystemClock), network: Arc::new(Memory(recorded.clone())) };
        let drain = Drain::new();
        let quiet = Quiet::new(Duration::ZERO);
        let hop = Arc::new(Hop {
            proxy: Proxy::new(Pool::new(io, pool::Options::default()), drain.clone()),
            backend: Address::new("app", 80),
            protocol: Protocol::Http1,
            timeouts: Timeouts { total: Some(Duration::from_secs(30)), ..Timeouts::default() },
            quiet: quiet.clone(),
        });
        let conn = Arc::new(Conn::new(([10, 0, 0, 1], 1234).into(), 0, drain));
        let (client, server) = tokio::io::duplex(64 << 10);
        let options = Options::default();
        let serving = tokio::spawn(async move {
            server::connection(Stream::Memory(server), conn, hop, &options).await;
        });
        let (mut reading, mut writing) = tokio::io::split(client);
        let answers = tokio::spawn(async move {
            let mut answers = Vec::new();
            reading.read_to_end(&mut answers).await.ok();
            answers
        });
        for part in bytes.chunks(piece.max(1)) {
            if writing.write_all(part).await.is_err() {
                break;
            }
            tokio::task::yield_now().await;
        }
        // Whatever is not idle ends by itself, and what is idle with the client.
        tokio::time::sleep(Duration::from_secs(200)).await;
        assert_eq!(quiet.in_flight(), 0);
        writing.shutdown().await.ok();
        tokio::time::timeout(Duration::from_secs(200), serving).await.unwrap().unwrap();
        let answers = answers.await.unwrap();
        let (seen, _) = recorded.all();
        if !answers.is_empty() && !answers.starts_with(&[0]) {
            let after = answers.iter().position(|byte| *byte == b' ').unwrap();
            assert!(answers.starts_with(b"HTTP/1.") && answers[after + 1..].len() > 3);
        }
        seen.len()
    })
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn changed_requests_are_no_more_than_they_look(
        seeds in prop::collection::vec(0..SEEDS.len(), 1..4),
        changes in prop::collection::vec(change(), 0..6),
        piece in prop_oneof![Just(1usize), 2..40usize, Just(1 << 20)],
    ) {
        let bytes = changed(&seeds, &changes);
        let (seen, most) = (served(&bytes, piece), readable(&bytes));
        prop_assert!(seen <= most, "{seen} of {most} in {:?}", String::from_utf8_lossy(&bytes));
    }

    #[test]
    fn changed_frames_end(
        changes in prop::collection::vec(change(), 0..6),
        piece in prop_oneof![Just(1usize), 2..40usize, Just(1 << 20)],
    ) {
        let mut bytes = [frames::PREFACE, &frames::frame(frames::SETTINGS, 0, 0, &[])].concat();
        let preface = bytes.len();
        let post = frames::fields("POST", "/", &[("content-length", "2"), ("x", "y")]);
        bytes.extend(frames::frame(frames::HEADERS, frames::END_HEADERS, 1, &post));
        bytes.extend(frames::frame(frames::DATA, frames::END_STREAM, 1, b"hi"));
        bytes.extend(frames::get(3, "/"));
        bytes.extend(frames::frame(frames::PING, 0, 0, &[0; 8]));
        bytes.extend(frames::frame(frames::WINDOW_UPDATE, 0, 0, &[0, 0, 0, 9]));
        for change in &changes {
            // The preface stays, or it is HTTP/1 that is tried.
            let room = bytes.len() - preface;
            match *change {
                Change::Set(at, byte) => bytes[preface + at % room] = byte,
                Change::Delete(at, length) if room > length + 10 => {
                    let at = preface + at % (room - length);
                    bytes.drain(at..at + length);
                }
                Change::Insert(at, piece) => {
                    let at = preface + at % room;
                    bytes.splice(at..at, PIECES[piece].iter().copied());
                }
                Change::Repeat(..) | Change::Delete(..) => {}
            }
        }
        prop_assert!(served(&bytes, piece) <= bytes.len() / 9);
    }
}

#[test]
fn requests_that_are_in_order_are_all_seen() {
    for (seed, count) in SEEDS.iter().zip([1, 1, 1, 1, 1, 0, 1, 1]) {
        assert_eq!((served(seed.as_bytes(), 1 << 20), readable(seed.as_bytes())), (count, 1), "{seed:?}");
    }
    let all: String = [0, 1, 2, 6].map(|seed| SEEDS[seed]).concat();
    assert_eq!((served(all.as_bytes(), 7), readable(all.as_bytes())), (4, 4));
}
