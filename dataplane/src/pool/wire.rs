//! What hyper reads from and writes to, and what the pool sees of it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;

use crate::io::{Stream, shared};

/// Byte counts of a connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Traffic {
    pub(crate) read: u64,
    pub(crate) written: u64,
}

#[derive(Debug, Default)]
pub(crate) struct Meter {
    read: AtomicU64,
    written: AtomicU64,
}

impl Meter {
    pub(crate) fn traffic(&self) -> Traffic {
        Traffic { read: self.read.load(Ordering::Relaxed), written: self.written.load(Ordering::Relaxed) }
    }
}

/// The part of a connection that pool and connection share: the socket, to look whether the peer has closed it.
#[derive(Debug)]
pub(super) struct Wire {
    socket: Socket,
    pub(super) meter: Arc<Meter>,
}

#[derive(Debug)]
enum Socket {
    Own(TcpStream),
    /// Of a TLS connection, which reads and writes it.
    Shared(Arc<TcpStream>),
    /// In memory.
    Absent,
}

impl Wire {
    fn tcp(&self) -> Option<&TcpStream> {
        match &self.socket {
            Socket::Own(tcp) => Some(tcp),
            Socket::Shared(tcp) => Some(tcp),
            Socket::Absent => None,
        }
    }

    /// Whether reading would not block: end of stream, an error, or bytes that belong to no response.
    pub(super) fn has_input(&self) -> bool {
        let Some(tcp) = self.tcp() else { return false };
        let mut byte = [std::mem::MaybeUninit::uninit()];
        match socket2::SockRef::from(tcp).peek(&mut byte) {
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
            Ok(_) => true,
        }
    }
}

/// What hyper reads from and writes to.
pub(super) struct ClientStream {
    wire: Arc<Wire>,
    /// Anything but a socket of the wire's own.
    other: Option<Box<Stream>>,
    /// Told when something was read.
    first: Option<oneshot::Sender<()>>,
    /// The backend reads no more. It may have answered before, so that what is still to be written is let go of and
    /// reading alone says how the exchange ended: with the answer, or with the error.
    unheard: bool,
}

impl ClientStream {
    pub(super) fn new(stream: Stream) -> (Self, Arc<Wire>) {
        let (socket, other) = match stream {
            Stream::Tcp(tcp) => (Socket::Own(tcp), None),
            Stream::Tls(tls) => {
                let socket = tls.socket().cloned().map_or(Socket::Absent, Socket::Shared);
                (socket, Some(Box::new(Stream::Tls(tls))))
            }
            memory @ Stream::Memory(_) => (Socket::Absent, Some(Box::new(memory))),
        };
        let wire = Arc::new(Wire { socket, meter: Arc::default() });
        (Self { wire: Arc::clone(&wire), other, first: None, unheard: false }, wire)
    }

    /// Resolves when the backend has said something, or with an error when it never will.
    pub(super) fn first_bytes(&mut self) -> oneshot::Receiver<()> {
        let (first, heard) = oneshot::channel();
        self.first = Some(first);
        heard
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = match (&mut this.other, this.wire.tcp()) {
            (Some(other), _) => Pin::new(other.as_mut()).poll_read(cx, buf),
            (None, Some(tcp)) => shared::poll_read(tcp, cx, buf),
            (None, None) => Poll::Ready(Ok(())),
        };
        let read = buf.filled().len() - before;
        if read > 0 {
            this.wire.meter.read.fetch_add(read as u64, Ordering::Relaxed);
            if let Some(first) = this.first.take() {
                // Who waited may be gone.
                let _ = first.send(());
            }
        }
        polled
    }
}

impl ClientStream {
    fn poll_write_with(
        &mut self,
        cx: &mut Context<'_>,
        length: usize,
        to_tcp: impl Fn(&TcpStream) -> io::Result<usize>,
        to_other: impl FnOnce(Pin<&mut Stream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.unheard {
            return Poll::Ready(Ok(length));
        }
        let polled = match (&mut self.other, self.wire.tcp()) {
            (Some(other), _) => to_other(Pin::new(other.as_mut()), cx),
            (None, Some(tcp)) => shared::poll_write(tcp, cx, to_tcp),
            (None, None) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        match polled {
            Poll::Ready(Ok(written)) => {
                self.wire.meter.written.fetch_add(written as u64, Ordering::Relaxed);
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Err(error)) if is_unheard(&error) => {
                self.unheard = true;
                Poll::Ready(Ok(length))
            }
            other => other,
        }
    }
}

/// Whether a write failed because the other side reads no more.
fn is_unheard(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset | io::ErrorKind::ConnectionAborted
    )
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(
            cx,
            buf.len(),
            |tcp| tcp.try_write(buf),
            |other, cx| other.poll_write(cx, buf),
        )
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(
            cx,
            bufs.iter().map(|buf| buf.len()).sum(),
            |tcp| tcp.try_write_vectored(bufs),
            |other, cx| other.poll_write_vectored(cx, bufs),
        )
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match &mut this.other {
            Some(other) if !this.unheard => match Pin::new(other.as_mut()).poll_flush(cx) {
                Poll::Ready(Err(error)) if is_unheard(&error) => {
                    this.unheard = true;
                    Poll::Ready(Ok(()))
                }
                polled => polled,
            },
            // A socket does not buffer on this side.
            _ => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match (&mut this.other, this.wire.tcp()) {
            (Some(other), _) => Pin::new(other.as_mut()).poll_shutdown(cx),
            (None, Some(tcp)) => Poll::Ready(shared::shutdown(tcp)),
            (None, None) => Poll::Ready(Ok(())),
        }
    }
}
