//! HTTP/2 by the frame: either end, and a client that can say anything.

use std::net::SocketAddr;

use tokio::io::AsyncReadExt as _;

use crate::wire::{LONG, Wire};

pub(crate) const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";

pub(crate) const DATA: u8 = 0;
pub(crate) const HEADERS: u8 = 1;
pub(crate) const PRIORITY: u8 = 2;
pub(crate) const RST_STREAM: u8 = 3;
pub(crate) const SETTINGS: u8 = 4;
pub(crate) const PUSH_PROMISE: u8 = 5;
pub(crate) const PING: u8 = 6;
pub(crate) const GOAWAY: u8 = 7;
pub(crate) const WINDOW_UPDATE: u8 = 8;
pub(crate) const CONTINUATION: u8 = 9;

/// The largest payload unless settings say otherwise.
pub(crate) const MAX_FRAME: usize = 16 << 10;

pub(crate) const END_STREAM: u8 = 1;
pub(crate) const END_HEADERS: u8 = 4;
pub(crate) const PADDED: u8 = 8;

pub(crate) const PROTOCOL_ERROR: u32 = 1;
pub(crate) const FLOW_CONTROL_ERROR: u32 = 3;
pub(crate) const REFUSED_STREAM: u32 = 7;
pub(crate) const ENHANCE_YOUR_CALM: u32 = 11;

pub(crate) fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

/// One setting.
pub(crate) fn setting(id: u16, value: u32) -> Vec<u8> {
    [&id.to_be_bytes()[..], &value.to_be_bytes()].concat()
}

/// A field that is kept nowhere, in plain text.
pub(crate) fn field(name: &str, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = vec![0];
    for text in [name.as_bytes(), value.as_ref()] {
        integer(&mut bytes, 0, 7, text.len());
        bytes.extend(text);
    }
    bytes
}

/// An integer of HPACK with a prefix of `bits`.
pub(crate) fn integer(bytes: &mut Vec<u8>, first: u8, bits: u8, mut value: usize) {
    let most = (1 << bits) - 1;
    if value < most {
        bytes.push(first | u8::try_from(value).unwrap());
        return;
    }
    bytes.push(first | u8::try_from(most).unwrap());
    value -= most;
    while value >= 128 {
        bytes.push(u8::try_from(value % 128).unwrap() | 128);
        value /= 128;
    }
    bytes.push(u8::try_from(value).unwrap());
}

/// The fields of a request that is in order, with more of them.
pub(crate) fn fields(method: &str, path: &str, more: &[(&str, &str)]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let usual = [(":method", method), (":scheme", "http"), (":authority", "a"), (":path", path)];
    for (name, value) in usual.iter().chain(more) {
        bytes.extend(field(name, value));
    }
    bytes
}

/// A GET.
pub(crate) fn get(stream: u32, path: &str) -> Vec<u8> {
    frame(HEADERS, END_HEADERS | END_STREAM, stream, &fields("GET", path, &[]))
}

impl Wire {
    /// The next frame: type, flags, stream, payload; `None` at the end.
    pub(crate) async fn frame(&mut self) -> Option<(u8, u8, u32, Vec<u8>)> {
        let head = self.take(9).await?;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        Some((head[3], head[4], stream, self.take(length as usize).await?))
    }

    /// Flags, stream and payload of the next frame of that type, which has to come.
    pub(crate) async fn frame_of(&mut self, kind: u8) -> (u8, u32, Vec<u8>) {
        loop {
            let (found, flags, stream, payload) = self.frame().await.expect("ended without the frame");
            if found == kind {
                return (flags, stream, payload);
            }
        }
    }

    /// The server's side of the beginning.
    pub(crate) async fn greet(&mut self) {
        assert_eq!(self.take(PREFACE.len()).await.as_deref(), Some(PREFACE));
        self.send(frame(SETTINGS, 0, 0, &[])).await;
    }

    /// So many bytes; `None` at the end.
    async fn take(&mut self, length: usize) -> Option<Vec<u8>> {
        while self.read.len() < length {
            match tokio::time::timeout(LONG, self.stream.read_buf(&mut self.read)).await.unwrap() {
                Ok(1..) => {}
                _ => return None,
            }
        }
        let rest = self.read.split_off(length);
        Some(std::mem::replace(&mut self.read, rest))
    }
}

/// What a server has said of a stream, or of all.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Said {
    Status(u16),
    Reset(u32),
    GoAway(u32),
    /// The connection ended.
    End,
}

/// A client that has sent nothing but its preface and empty settings.
pub(crate) struct Client(pub(crate) Wire);

impl Client {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        Self::with(addr, &[]).await
    }

    pub(crate) async fn with(addr: SocketAddr, settings: &[u8]) -> Self {
        let mut wire = Wire::connect(addr).await;
        wire.send([PREFACE, &frame(SETTINGS, 0, 0, settings)].concat()).await;
        Self(wire)
    }

    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.0.send(bytes).await;
    }

    /// What is said next about `stream`: the head of its answer, its reset, or the end of everything.
    pub(crate) async fn said(&mut self, stream: u32) -> Said {
        while let Some((kind, _, of, payload)) = self.0.frame().await {
            let code = |at: usize| u32::from_be_bytes(payload[at..at + 4].try_into().unwrap());
            match kind {
                GOAWAY if code(4) != 0 => return Said::GoAway(code(4)),
                RST_STREAM if of == stream => return Said::Reset(code(0)),
                HEADERS if of == stream => return Said::Status(status(&payload)),
                _ => {}
            }
        }
        Said::End
    }

    /// How the connection ends.
    pub(crate) async fn end(&mut self) -> Said {
        loop {
            match self.said(0).await {
                Said::Status(_) | Said::Reset(_) => {}
                end => return end,
            }
        }
    }
}

/// The status in the first field of an answer.
fn status(block: &[u8]) -> u16 {
    if block[0] & 0x80 != 0 {
        return [200, 204, 206, 304, 400, 404, 500][usize::from(block[0] & 0x7f) - 8];
    }
    assert_eq!(block[0] & 0x0f, 8, "{block:?}");
    let length = usize::from(block[1] & 0x7f);
    let text = &block[2..2 + length];
    if block[1] & 0x80 == 0 {
        return std::str::from_utf8(text).unwrap().parse().unwrap();
    }
    // Digits are five bits up to 2, and six from there on.
    let bits: String = text.iter().map(|byte| format!("{byte:08b}")).collect();
    let (mut at, mut status) = (0, 0);
    for _ in 0..3 {
        let low = u16::from_str_radix(&bits[at..at + 5], 2).unwrap();
        let (digit, length) = if low <= 2 {
            (low, 5)
        } else {
            (u16::from_str_radix(&bits[at..at + 6], 2).unwrap() - 0b01_0110, 6)
        };
        status = status * 10 + digit;
        at += length;
    }
    status
}
