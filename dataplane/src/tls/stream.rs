//! A TLS connection as the rest of the data plane sees it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::time::Sleep;

use crate::io::{Stream, shared};

/// How long a peer may take to accept what is left at the end. A socket would keep it by itself.
const LINGER: Duration = Duration::from_secs(60);

/// A connection whose handshake is done.
#[derive(Debug)]
pub struct TlsStream {
    session: tokio_rustls::TlsStream<Carrier>,
    closing: Option<Pin<Box<Sleep>>>,
}

/// What carries the records.
#[derive(Debug)]
pub(crate) enum Carrier {
    Own(Stream),
    /// A pool looks at the socket, too.
    Shared(Arc<TcpStream>),
}

impl From<Stream> for Carrier {
    fn from(stream: Stream) -> Self {
        Self::Own(stream)
    }
}

impl Carrier {
    /// A carrier whose socket, if it is one, can be looked at.
    pub(super) fn shared(stream: Stream) -> Self {
        match stream {
            Stream::Tcp(tcp) => Self::Shared(Arc::new(tcp)),
            other => Self::Own(other),
        }
    }
}

impl TlsStream {
    pub(super) fn new(session: tokio_rustls::TlsStream<Carrier>) -> Self {
        Self { session, closing: None }
    }

    /// The socket underneath, to look whether the peer has closed it.
    pub(crate) fn socket(&self) -> Option<&Arc<TcpStream>> {
        match self.session.get_ref().0 {
            Carrier::Shared(tcp) => Some(tcp),
            Carrier::Own(_) => None,
        }
    }

    /// The socket underneath, whoever has it.
    pub(crate) fn carrier(&self) -> Option<&TcpStream> {
        match self.session.get_ref().0 {
            Carrier::Shared(tcp) => Some(tcp),
            Carrier::Own(stream) => stream.socket(),
        }
    }

    /// The protocol agreed on by ALPN.
    #[must_use]
    pub fn protocol(&self) -> Option<&[u8]> {
        self.session.get_ref().1.alpn_protocol()
    }
}

impl AsyncRead for TlsStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().session).poll_read(cx, buf)
    }
}

impl AsyncWrite for TlsStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().session).poll_write(cx, buf)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().session).poll_write_vectored(cx, bufs)
    }

    fn is_write_vectored(&self) -> bool {
        self.session.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().session).poll_flush(cx)
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if let Poll::Ready(closed) = Pin::new(&mut this.session).poll_shutdown(cx) {
            return Poll::Ready(closed);
        }
        // What is left is kept here and not by the system, and so is the connection: not for ever.
        let closing = this.closing.get_or_insert_with(|| Box::pin(tokio::time::sleep(LINGER)));
        closing.as_mut().poll(cx).map(|()| Err(io::ErrorKind::TimedOut.into()))
    }
}

impl AsyncRead for Carrier {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Own(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Shared(tcp) => shared::poll_read(tcp, cx, buf),
        }
    }
}

impl AsyncWrite for Carrier {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Own(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Shared(tcp) => shared::poll_write(tcp, cx, |tcp| tcp.try_write(buf)),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Own(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Shared(tcp) => shared::poll_write(tcp, cx, |tcp| tcp.try_write_vectored(bufs)),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Own(stream) => stream.is_write_vectored(),
            Self::Shared(_) => true,
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Own(stream) => Pin::new(stream).poll_flush(cx),
            Self::Shared(_) => Poll::Ready(Ok(())),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Own(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Shared(tcp) => Poll::Ready(shared::shutdown(tcp)),
        }
    }
}
