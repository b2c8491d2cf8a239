//! HTTP/1 connections, and how little is kept of them between requests.
//!
//! A connection that carries requests has buffers and a state of some 30 KiB. One that has been idle for a moment
//! gives all of it up and waits for its socket alone.

use std::future::poll_fn;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};

use bytes::Bytes;
use http::Request;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::time::{Instant, Sleep};

use crate::protocol::INLINE_HEADERS;

use super::stream::ServerStream;
use super::{BUSY, Conn, HEAD, Handler, IDLE, Options, answer};

/// Serves a connection to its end.
pub(super) async fn serve<H: Handler>(
    mut stream: ServerStream,
    conn: Arc<Conn>,
    handler: Arc<H>,
    options: &Options,
) {
    while let Some(mut parked) = requests(stream, &conn, &handler, options).await {
        // Readable first, so that a request that has already arrived is served before the stop is seen.
        let readable = tokio::select! {
            biased;
            readable = parked.readable() => readable,
            () = conn.drain.stopped().cancelled() => return,
        };
        if let Err(error) = readable {
            tracing::debug!(%error, peer = %conn.peer, "connection ended");
            return;
        }
        stream = parked;
    }
}

/// Serves requests until the connection ends, or gives it back once it is idle.
async fn requests<H: Handler>(
    stream: ServerStream,
    conn: &Arc<Conn>,
    handler: &Arc<H>,
    options: &Options,
) -> Option<ServerStream> {
    let service = service_fn(|request: Request<Incoming>| {
        let (conn, handler) = (Arc::clone(conn), Arc::clone(handler));
        // At once: hyper looks whether the client is still there before it polls what is returned here.
        conn.phase.store(BUSY, Ordering::Relaxed);
        async move { Ok::<_, std::convert::Infallible>(answer(request, &conn, &*handler).await) }
    });
    let mut builder = http1::Builder::new();
    // The stream times heads itself: hyper's timer also runs on idle connections, which have to stay open.
    let most = options.max_header_bytes;
    builder.header_read_timeout(None).max_buf_size(most.max(8192)).max_header_size(most);
    if options.max_headers != INLINE_HEADERS {
        builder.max_headers(options.max_headers);
    }
    let mut idle = stream.can_park().then(|| Idle::new(conn, options));
    // Boxed, so that a parked connection does not carry its size.
    let mut serving = Box::new(builder.serve_connection(TokioIo::new(stream), service).with_upgrades());
    // The connection is polled first, so that a request that has already arrived is served before the stop is seen.
    let ended = tokio::select! {
        biased;
        ended = &mut serving => ended,
        () = conn.drain.stopped().cancelled() => {
            Pin::new(&mut *serving).graceful_shutdown();
            tokio::select! {
                biased;
                ended = serving => ended,
                () = conn.drain.aborted().cancelled() => Ok(()),
            }
        }
        () = poll_fn(|cx| idle.as_mut().map_or(Poll::Pending, |idle| idle.poll(cx))) => {
            let parts = serving.into_parts()?;
            conn.parked.fetch_add(1, Ordering::Relaxed);
            let mut stream = parts.io.into_inner();
            stream.unread(parts.read_buf);
            return Some(stream);
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, peer = %conn.peer, "connection ended");
    }
    None
}

/// Notices that a connection has nothing to do. It is looked at whenever the connection was, and a timer runs no more
/// often than once in a while: a busy connection pays next to nothing.
struct Idle<'a> {
    conn: &'a Conn,
    options: &'a Options,
    /// Runs from when the connection was first found idle, with the number of requests it had served by then.
    timer: Option<(Pin<Box<Sleep>>, u64)>,
}

impl<'a> Idle<'a> {
    fn new(conn: &'a Conn, options: &'a Options) -> Self {
        Self { conn, options, timer: None }
    }

    fn poll(&mut self, cx: &mut Context<'_>) -> Poll<()> {
        if !self.conn.is_idle() {
            return Poll::Pending;
        }
        // Where there are many, all would be warm at once: memory that was needed once is seldom given back.
        if self.conn.drain.tasks().len() > self.options.warm_connections {
            return Poll::Ready(());
        }
        let served = self.conn.served.load(Ordering::Relaxed);
        let after = self.options.park_after;
        let (sleep, since) = self.timer.get_or_insert_with(|| (Box::pin(tokio::time::sleep(after)), served));
        while sleep.as_mut().poll(cx).is_ready() {
            if *since == served {
                return Poll::Ready(());
            }
            *since = served;
            sleep.as_mut().reset(Instant::now() + after);
        }
        Poll::Pending
    }
}

impl Conn {
    /// Whether the connection is between two requests, with all of the first one read and all of its answer written.
    fn is_idle(&self) -> bool {
        self.phase.load(Ordering::Relaxed) == IDLE
            && !self.unread.load(Ordering::Relaxed)
            && self.flushed.load(Ordering::Relaxed)
    }
}

impl ServerStream {
    /// Whether it can be told without a buffer that the client has said something.
    fn can_park(&self) -> bool {
        self.inner.socket().is_some()
    }

    /// What was read is to be read once more.
    fn unread(&mut self, read: Bytes) {
        if !read.is_empty() {
            // The next head has begun.
            self.conn.phase.store(HEAD, Ordering::Relaxed);
            self.seen = read;
        }
    }

    /// Resolves when there is something to read, or the connection has ended.
    async fn readable(&mut self) -> std::io::Result<()> {
        match self.inner.socket() {
            Some(socket) if self.seen.is_empty() => socket.readable().await,
            _ => Ok(()),
        }
    }
}
