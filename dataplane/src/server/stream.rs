//! A client's connection as the server reads and writes it: every wait for the client has a bound.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::{Instant, Sleep};

use super::{BUSY, Conn, HEAD, IDLE, Options};
use crate::io::Stream;

/// How long a client has taken nothing.
pub(super) struct Stall {
    timeout: Duration,
    sleep: Option<Pin<Box<Sleep>>>,
}

impl Stall {
    pub(super) fn new(timeout: Duration) -> Self {
        Self { timeout, sleep: None }
    }

    /// The client has taken something, or owes nothing.
    pub(super) fn clear(&mut self) {
        self.sleep = None;
    }

    /// Whether it has been too long.
    pub(super) fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        let timeout = self.timeout;
        self.sleep.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout))).as_mut().poll(cx)
    }
}

/// A client's connection: bounds the time a head takes, and the time an answer nobody reads is kept.
pub(super) struct ServerStream {
    pub(super) inner: Stream,
    /// Read already, to tell the protocol.
    pub(super) seen: Bytes,
    pub(super) conn: Arc<Conn>,
    header_read_timeout: Duration,
    head: Option<Pin<Box<Sleep>>>,
    cut: Option<Pin<Box<Sleep>>>,
    stall: Stall,
    half_closed_timeout: Duration,
    /// Runs from when the client closed its side, or took something after that.
    half_closed: Option<Pin<Box<Sleep>>>,
}

impl AsyncRead for ServerStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        if !this.seen.is_empty() {
            let length = this.seen.len().min(buf.remaining());
            buf.put_slice(&this.seen[..length]);
            this.seen.advance(length);
            if this.seen.is_empty() {
                // Not even an empty rest is to keep what it was cut from.
                this.seen = Bytes::new();
            }
            return Poll::Ready(Ok(()));
        }
        let before = buf.filled().len();
        let polled = Pin::new(&mut this.inner).poll_read(cx, buf);
        let phase = this.conn.phase.load(Ordering::Relaxed);
        let ended =
            matches!(polled, Poll::Ready(Ok(()))) && buf.filled().len() == before && buf.remaining() > 0;
        if ended && phase == BUSY {
            // The client may be gone, or have no more to say; the rest of its request may still wait in a buffer.
            let timeout = this.half_closed_timeout;
            let patience = this.half_closed.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
            return patience.as_mut().poll(cx).map(Ok);
        }
        if polled.is_ready() && phase == IDLE && buf.filled().len() > before {
            this.conn.phase.store(HEAD, Ordering::Relaxed);
        }
        if polled.is_ready() || phase != HEAD {
            // Lazily, so that a head that arrives in one piece costs no timer.
            if phase != HEAD {
                this.head = None;
            }
            return polled;
        }
        let timeout = this.header_read_timeout;
        let head = this.head.get_or_insert_with(|| Box::pin(tokio::time::sleep(timeout)));
        match head.as_mut().poll(cx) {
            Poll::Ready(()) => Poll::Ready(Err(io::ErrorKind::TimedOut.into())),
            Poll::Pending => Poll::Pending,
        }
    }
}

impl ServerStream {
    pub(super) fn new(inner: Stream, conn: Arc<Conn>, options: &Options) -> Self {
        Self {
            inner,
            seen: Bytes::new(),
            conn,
            header_read_timeout: options.header_read_timeout,
            head: Some(Box::pin(tokio::time::sleep(options.header_read_timeout))),
            cut: None,
            stall: Stall::new(options.stall_timeout),
            half_closed_timeout: options.half_closed_timeout,
            half_closed: None,
        }
    }

    /// What became of a write: one the client does not take is waited for only so long.
    fn written(&mut self, polled: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if polled.is_ready() {
            self.stall.clear();
            if let Some(half_closed) = &mut self.half_closed {
                half_closed.as_mut().reset(Instant::now() + self.half_closed_timeout);
            }
            return polled;
        }
        if self.conn.poll_cut(&mut self.cut, cx).is_ready() || self.stall.poll(cx).is_ready() {
            return Poll::Ready(Err(io::ErrorKind::TimedOut.into()));
        }
        Poll::Pending
    }
}

impl AsyncWrite for ServerStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.conn.flushed.store(false, Ordering::Relaxed);
        let polled = Pin::new(&mut this.inner).poll_write(cx, buf);
        this.written(polled, cx)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let this = self.get_mut();
        this.conn.flushed.store(false, Ordering::Relaxed);
        let polled = Pin::new(&mut this.inner).poll_write_vectored(cx, bufs);
        this.written(polled, cx)
    }

    fn is_write_vectored(&self) -> bool {
        self.inner.is_write_vectored()
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match Pin::new(&mut this.inner).poll_flush(cx) {
            // TLS keeps what the client does not take.
            Poll::Pending => this.written(Poll::Pending, cx).map(|written| written.map(drop)),
            Poll::Ready(flushed) => {
                // Asked for only once all that was buffered has been written.
                this.conn.flushed.store(flushed.is_ok(), Ordering::Relaxed);
                Poll::Ready(flushed)
            }
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().inner).poll_shutdown(cx)
    }
}
