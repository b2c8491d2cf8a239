//! HTTP/2 without TLS, as far as the load generator has to speak it: one fixed request, answers of which only the status
//! and the end matter.

use std::collections::HashMap;
use std::io;
use std::time::Instant;

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// What has not been read of the answer's bodies at any time: as much as can be said, so that nothing has to be given
/// back to any peer during a run.
const WINDOW: u32 = (1 << 31) - 1;
const FIRST_WINDOW: u32 = 65_535;
/// Frames longer than that are not asked for.
const LONGEST_FRAME: usize = 16_384;
/// The last stream of a connection.
const LAST_STREAM: u32 = (1 << 31) - 1;

const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const PING: u8 = 6;
const GOAWAY: u8 = 7;
const WINDOW_UPDATE: u8 = 8;
const CONTINUATION: u8 = 9;

const END_STREAM: u8 = 0x1;
const ACK: u8 = 0x1;
const END_HEADERS: u8 = 0x4;
const PADDED: u8 = 0x8;
const PRIORITY: u8 = 0x20;

/// The fields of the request besides those that HTTP/2 has numbers for, with the number of their names in its static
/// table, or their names.
const FIELDS: [(Result<u8, &str>, &str); 5] = [
    // :authority, user-agent, accept.
    (Ok(1), "bench.default.example.com"),
    (Ok(58), "ember-bench"),
    (Ok(19), "*/*"),
    (Err("knative-serving-namespace"), "default"),
    (Err("knative-serving-revision"), "bench"),
];
/// `:method: GET`, `:scheme: http`, `:path: /`.
const NUMBERED: [u8; 3] = [0x82, 0x86, 0x84];
/// The first number of the table that a connection fills itself.
const FIRST_OWN: u8 = 62;
/// `:status: 200` of the static table.
const STATUS_200: u8 = 0x88;

/// An answer that is there to its end, or will never be.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Ended {
    /// When its request was sent, or should have been.
    pub(super) since: Instant,
    pub(super) ok: bool,
}

#[derive(Debug, Clone, Copy)]
struct Stream {
    since: Instant,
    ok: Option<bool>,
}

/// One connection: bytes to send pile up in `out`, bytes that arrive are taken by [`Session::take`].
#[derive(Debug)]
pub(super) struct Session {
    pub(super) out: Vec<u8>,
    input: Vec<u8>,
    streams: HashMap<u32, Stream>,
    next_stream: u32,
    /// The peer wants no more requests.
    going_away: bool,
    /// The stream whose head goes on in the next frame.
    head: Option<(u32, u8, Vec<u8>)>,
}

fn frame(out: &mut Vec<u8>, kind: u8, flags: u8, stream: u32, payload: &[u8]) {
    // Nothing this side sends is anywhere near as long.
    let length = u32::try_from(payload.len()).unwrap_or_default().to_be_bytes();
    out.extend_from_slice(&length[1..]);
    out.extend_from_slice(&[kind, flags]);
    out.extend_from_slice(&stream.to_be_bytes());
    out.extend_from_slice(payload);
}

fn text(out: &mut Vec<u8>, text: &str) {
    // Shorter than 127 bytes: the length is one byte, and the first bit says that it is not compressed.
    out.push(u8::try_from(text.len()).unwrap_or_default());
    out.extend_from_slice(text.as_bytes());
}

/// The head of the request. The first one of a connection has the peer remember the fields, later ones name them.
fn head(first: bool) -> Vec<u8> {
    let mut block = NUMBERED.to_vec();
    for (at, (name, value)) in (0_u8..).zip(FIELDS) {
        if first {
            match name {
                Ok(number) => block.push(0x40 | number),
                Err(name) => {
                    block.push(0x40);
                    text(&mut block, name);
                }
            }
            text(&mut block, value);
        } else {
            // The field remembered last has the lowest number.
            let last = u8::try_from(FIELDS.len()).unwrap_or_default() - 1;
            block.push(0x80 | (FIRST_OWN + last - at));
        }
    }
    block
}

fn nonsense(why: &'static str) -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, why)
}

impl Session {
    pub(super) fn new() -> Self {
        let mut out = PREFACE.to_vec();
        // No pushes.
        frame(&mut out, SETTINGS, 0, 0, &[0, 2, 0, 0, 0, 0]);
        frame(&mut out, WINDOW_UPDATE, 0, 0, &(WINDOW - FIRST_WINDOW).to_be_bytes());
        Self {
            out,
            input: Vec::new(),
            streams: HashMap::new(),
            next_stream: 1,
            going_away: false,
            head: None,
        }
    }

    /// Adds a request to what is to be sent.
    pub(super) fn request(&mut self, since: Instant) {
        let stream = self.next_stream;
        self.next_stream += 2;
        frame(&mut self.out, HEADERS, END_HEADERS | END_STREAM, stream, &head(stream == 1));
        self.streams.insert(stream, Stream { since, ok: None });
    }

    /// Whether no more requests can be sent.
    pub(super) fn is_over(&self) -> bool {
        self.going_away || self.next_stream >= LAST_STREAM
    }

    /// The requests that have no answer.
    pub(super) fn open(&self) -> impl Iterator<Item = Instant> + '_ {
        self.streams.values().map(|stream| stream.since)
    }

    /// Takes bytes that arrived; adds the answers that end with them to `ended`.
    ///
    /// # Errors
    /// What arrives is not HTTP/2.
    pub(super) fn take(&mut self, bytes: &[u8], ended: &mut Vec<Ended>) -> io::Result<()> {
        let mut input = std::mem::take(&mut self.input);
        input.extend_from_slice(bytes);
        let mut rest = &input[..];
        while let Some((header, behind)) = rest.split_at_checked(9) {
            let length = usize::from(header[0]) << 16 | usize::from(header[1]) << 8 | usize::from(header[2]);
            if length > LONGEST_FRAME {
                return Err(nonsense("a frame longer than was asked for"));
            }
            let (kind, flags) = (header[3], header[4]);
            let stream = u32::from_be_bytes([header[5] & 0x7f, header[6], header[7], header[8]]);
            let Some((payload, behind)) = behind.split_at_checked(length) else { break };
            self.frame(kind, flags, stream, payload, ended)?;
            rest = behind;
        }
        let taken = input.len() - rest.len();
        input.drain(..taken);
        self.input = input;
        Ok(())
    }

    fn frame(
        &mut self,
        kind: u8,
        flags: u8,
        stream: u32,
        payload: &[u8],
        ended: &mut Vec<Ended>,
    ) -> io::Result<()> {
        match kind {
            SETTINGS if flags & ACK == 0 => frame(&mut self.out, SETTINGS, ACK, 0, &[]),
            PING if flags & ACK == 0 => frame(&mut self.out, PING, ACK, 0, payload),
            GOAWAY => self.going_away = true,
            RST_STREAM => self.end(stream, false, ended),
            DATA if flags & END_STREAM != 0 => self.end(stream, true, ended),
            HEADERS => {
                let block = without_padding(flags, payload).ok_or_else(|| nonsense("a head cut short"))?;
                self.head = Some((stream, flags, block.to_vec()));
                if flags & END_HEADERS != 0 {
                    self.head_ends(ended)?;
                }
            }
            CONTINUATION => {
                let Some((_, _, block)) = &mut self.head else {
                    return Err(nonsense("the rest of a head without its beginning"));
                };
                block.extend_from_slice(payload);
                if flags & END_HEADERS != 0 {
                    self.head_ends(ended)?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    fn head_ends(&mut self, ended: &mut Vec<Ended>) -> io::Result<()> {
        let Some((stream, flags, block)) = self.head.take() else { return Ok(()) };
        if let Some(open) = self.streams.get_mut(&stream) {
            // Trailers come second and say nothing about the status.
            open.ok = open.ok.or(Some(is_200(&block)));
        } else {
            return Err(nonsense("an answer nobody asked for"));
        }
        if flags & END_STREAM != 0 {
            self.end(stream, true, ended);
        }
        Ok(())
    }

    fn end(&mut self, stream: u32, whole: bool, ended: &mut Vec<Ended>) {
        if let Some(Stream { since, ok }) = self.streams.remove(&stream) {
            ended.push(Ended { since, ok: whole && ok == Some(true) });
        }
    }
}

/// A head's block of fields.
fn without_padding(flags: u8, payload: &[u8]) -> Option<&[u8]> {
    let (padding, rest) = if flags & PADDED == 0 {
        (0, payload)
    } else {
        let (padding, rest) = payload.split_first()?;
        (usize::from(*padding), rest)
    };
    let rest = if flags & PRIORITY == 0 { rest } else { rest.get(5..)? };
    rest.get(..rest.len().checked_sub(padding)?)
}

/// Whether the first field is `:status: 200`, as every server says it: by its number.
fn is_200(block: &[u8]) -> bool {
    // New sizes of the table may come first.
    block.iter().find(|byte| **byte & 0xe0 != 0x20) == Some(&STATUS_200)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn answered(session: &mut Session, bytes: &[u8]) -> Vec<bool> {
        let mut ended = Vec::new();
        session.take(bytes, &mut ended).unwrap();
        ended.into_iter().map(|ended| ended.ok).collect()
    }

    #[test]
    fn answers_end_where_their_streams_end() {
        let mut session = Session::new();
        for _ in 0..4 {
            session.request(Instant::now());
        }
        let mut bytes = Vec::new();
        frame(&mut bytes, SETTINGS, 0, 0, &[]);
        frame(&mut bytes, HEADERS, END_HEADERS, 1, &[0x20, STATUS_200, 0x61]);
        frame(&mut bytes, HEADERS, PADDED | PRIORITY, 3, &[1, 0, 0, 0, 0, 0, STATUS_200, 0]);
        frame(&mut bytes, CONTINUATION, END_HEADERS, 3, &[0x61]);
        frame(&mut bytes, DATA, 0, 1, b"hel");
        let mut whole = Vec::new();
        for byte in &bytes {
            whole.extend(answered(&mut session, &[*byte]));
        }
        assert!(whole.is_empty());
        bytes.clear();
        frame(&mut bytes, DATA, END_STREAM, 1, b"lo");
        frame(&mut bytes, HEADERS, END_HEADERS | END_STREAM, 3, &[0x40]);
        frame(&mut bytes, HEADERS, END_HEADERS | END_STREAM, 5, &[0x8d]);
        frame(&mut bytes, RST_STREAM, 0, 7, &[0, 0, 0, 2]);
        assert_eq!(answered(&mut session, &bytes), [true, true, false, false]);
        assert_eq!(session.open().count(), 0);
        assert!(!session.is_over());
        frame(&mut bytes, GOAWAY, 0, 0, &[0; 8]);
        session.take(&bytes[bytes.len() - 17..], &mut Vec::new()).unwrap();
        assert!(session.is_over());
    }

    #[test]
    fn later_heads_name_what_the_first_one_said() {
        // 62 is the last of five.
        assert_eq!(head(false), [0x82, 0x86, 0x84, 0x80 | 66, 0x80 | 65, 0x80 | 64, 0x80 | 63, 0x80 | 62]);
        let first = head(true);
        assert_eq!(first[3..6], [0x41, 25, b'b']);
        assert!(first.windows(9).any(|part| part == b"\x40\x19knative"));
    }

    #[test]
    fn what_is_not_http2_is_an_error() {
        let mut session = Session::new();
        assert!(session.take(b"HTTP/1.1 400 Bad Request\r\n\r\n", &mut Vec::new()).is_err());
        let mut bytes = Vec::new();
        frame(&mut bytes, HEADERS, END_HEADERS, 9, &[STATUS_200]);
        assert!(session.take(&bytes, &mut Vec::new()).is_err());
    }
}
