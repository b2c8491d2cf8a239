//! A connection of the load generator, in either protocol.

use std::io::{self, Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use super::answer::{Progress, progress};
use super::h2::{Ended, Session};

/// What every target is sent over HTTP/1.1: what the gateway sends on, in the main.
pub(super) const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: bench.default.example.com\r\n\
    User-Agent: ember-bench\r\nAccept: */*\r\n\
    Knative-Serving-Namespace: default\r\nKnative-Serving-Revision: bench\r\n\r\n";
/// The longest answer over HTTP/1.1 that is understood, and what is read at a time otherwise.
const LONGEST_ANSWER: usize = 4096;
const LONGEST_READ: usize = 16_384;
/// How long connecting may take, and a single answer.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is spoken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Protocol {
    Http1,
    /// HTTP/2 without TLS, known beforehand.
    H2c,
}

#[derive(Debug)]
enum Wire {
    Http1 {
        received: Vec<u8>,
        /// When the request under way was sent, or should have been.
        since: Option<Instant>,
        unsent: bool,
    },
    H2c(Session),
}

/// A connection, and its requests under way.
#[derive(Debug)]
pub(super) struct Connection {
    stream: TcpStream,
    wire: Wire,
    /// Between two uses.
    buffer: Box<[u8]>,
}

fn connect(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect_timeout(&address, PATIENCE)?;
    stream.set_nodelay(true)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    Ok(stream)
}

/// One request over a connection of its own, which comes back. Whether it was answered with 200.
pub(super) fn exchange(address: SocketAddr, protocol: Protocol) -> io::Result<(bool, TcpStream)> {
    let mut connection = Connection::new(connect(address)?, protocol);
    connection.request(Instant::now());
    let mut ended = Vec::new();
    loop {
        connection.flush()?;
        // Beyond what the protocol says a connection that ends is an error.
        connection.read(&mut ended)?;
        if let Some(Ended { ok, .. }) = ended.first() {
            return Ok((*ok, connection.stream));
        }
    }
}

impl Wire {
    fn new(protocol: Protocol) -> Self {
        match protocol {
            Protocol::Http1 => Self::Http1 { received: Vec::new(), since: None, unsent: false },
            Protocol::H2c => Self::H2c(Session::new()),
        }
    }
}

impl Connection {
    /// Connects; reading does not wait from then on.
    pub(super) fn open(address: SocketAddr, protocol: Protocol) -> io::Result<Self> {
        let stream = connect(address)?;
        stream.set_nonblocking(true)?;
        Ok(Self::new(stream, protocol))
    }

    fn new(stream: TcpStream, protocol: Protocol) -> Self {
        Self { stream, wire: Wire::new(protocol), buffer: vec![0; LONGEST_READ].into() }
    }

    pub(super) fn stream(&self) -> &TcpStream {
        &self.stream
    }

    /// A request, sent with the next [`flush`](Self::flush). The caller sees to it that there is room for one.
    pub(super) fn request(&mut self, at: Instant) {
        match &mut self.wire {
            Wire::Http1 { since, unsent, .. } => (*since, *unsent) = (Some(at), true),
            Wire::H2c(session) => session.request(at),
        }
    }

    /// Sends what there is to send. What is under way is little: there is room for it.
    pub(super) fn flush(&mut self) -> io::Result<()> {
        match &mut self.wire {
            Wire::Http1 { unsent, .. } => {
                if std::mem::take(unsent) {
                    (&self.stream).write_all(REQUEST)?;
                }
                Ok(())
            }
            Wire::H2c(session) => {
                if session.out.is_empty() {
                    return Ok(());
                }
                let sent = (&self.stream).write_all(&session.out);
                session.out.clear();
                sent
            }
        }
    }

    /// Reads what has arrived; adds the answers that end with it to `ended`. Whether the connection is of no more use.
    pub(super) fn receive(&mut self, ended: &mut Vec<Ended>) -> bool {
        match self.read(ended) {
            Ok(over) => over,
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
        }
    }

    /// Adds the requests without an answer to `ended`, as failed.
    pub(super) fn give_up(&mut self, ended: &mut Vec<Ended>) {
        let failed = |since| Ended { since, ok: false };
        match &mut self.wire {
            Wire::Http1 { since, .. } => ended.extend(since.take().map(failed)),
            Wire::H2c(session) => ended.extend(session.open().map(failed)),
        }
    }

    /// Reads once.
    fn read(&mut self, ended: &mut Vec<Ended>) -> io::Result<bool> {
        let bytes = &mut self.buffer;
        let read = (&self.stream).read(bytes)?;
        if read == 0 {
            return Err(io::ErrorKind::UnexpectedEof.into());
        }
        match &mut self.wire {
            Wire::Http1 { received, since, .. } => {
                received.extend_from_slice(&bytes[..read]);
                match progress(received) {
                    Progress::Partial if received.len() < LONGEST_ANSWER => Ok(false),
                    Progress::Whole { ok, close } => {
                        received.clear();
                        ended.extend(since.take().map(|since| Ended { since, ok }));
                        Ok(close)
                    }
                    Progress::Partial | Progress::Nonsense => Err(io::ErrorKind::InvalidData.into()),
                }
            }
            Wire::H2c(session) => {
                session.take(&bytes[..read], ended)?;
                Ok(session.is_over())
            }
        }
    }
}
