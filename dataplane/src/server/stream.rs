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
    half_close_within: Duration,
    abandoned_timeout: Duration,
    /// Since when the client has said nothing while its request is being served.
    silent_since: Option<Instant>,
    half_closed: Option<Box<HalfClosed>>,
}

/// How often it is looked whether a client that has closed its side has reset the connection: nothing tells by itself.
const LOOK: Duration = Duration::from_secs(1);

/// A client that has closed its side, and may take the answer all the same.
struct HalfClosed {
    /// In one breath with its request.
    at_once: bool,
    patience: Duration,
    until: Instant,
    sleep: Pin<Box<Sleep>>,
}

impl HalfClosed {
    fn new(at_once: bool, patience: Duration) -> Box<Self> {
        let until = Instant::now() + patience;
        let sleep = Box::pin(tokio::time::sleep(patience.min(LOOK)));
        Box::new(Self { at_once, patience, until, sleep })
    }

    /// Its request is complete: it may have as much patience.
    fn wait_for(&mut self, patience: Duration) {
        if self.patience < patience {
            self.patience = patience;
            self.until = Instant::now() + patience;
        }
    }

    /// It has taken something.
    fn taken(&mut self) {
        self.until = Instant::now() + self.patience;
    }

    /// Ready when the patience is over, or the client has reset the connection.
    fn poll(&mut self, inner: &Stream, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.sleep.as_mut().poll(cx).is_ready() {
            if let Some(error) = inner.socket().and_then(|socket| socket.take_error().ok().flatten()) {
                return Poll::Ready(Err(error));
            }
            let now = Instant::now();
            if self.until <= now {
                return Poll::Ready(Ok(()));
            }
            self.sleep.as_mut().reset(self.until.min(now + LOOK));
        }
        Poll::Pending
    }
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
            // The client may be gone, or have no more to say; the rest of its request may still wait in a buffer. Who
            // has no more to say says so at once, who gives up has waited.
            let within = this.half_close_within;
            let at_once = this.silent_since.is_none_or(|since| since.elapsed() <= within);
            let abandoned = this.abandoned_timeout;
            let half_closed = this.half_closed.get_or_insert_with(|| HalfClosed::new(at_once, abandoned));
            if half_closed.at_once && !this.conn.unread.load(Ordering::Relaxed) {
                half_closed.wait_for(this.half_closed_timeout);
            }
            return half_closed.poll(&this.inner, cx);
        }
        if polled.is_ready() || phase != BUSY {
            this.silent_since = None;
        } else if this.silent_since.is_none() {
            this.silent_since = Some(Instant::now());
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
            half_close_within: options.half_close_within,
            abandoned_timeout: options.abandoned_timeout,
            silent_since: None,
            half_closed: None,
        }
    }

    /// What became of a write: one the client does not take is waited for only so long.
    fn written(&mut self, polled: Poll<io::Result<usize>>, cx: &mut Context<'_>) -> Poll<io::Result<usize>> {
        if polled.is_ready() {
            self.stall.clear();
            if let Some(half_closed) = &mut self.half_closed {
                half_closed.taken();
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
