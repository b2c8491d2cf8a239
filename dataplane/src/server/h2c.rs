//! Connections that speak HTTP/2 from their first byte.

use std::convert::Infallible;
use std::io;
use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::Poll;

use bytes::BytesMut;
use http::{Request, StatusCode};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::{Conn, Handler, Options, ServerStream, UPGRADED, answer};
use crate::error;

/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Enough for most heads: what was read to tell the protocol is copied, not read again.
const FIRST_READ: usize = 4 << 10;
/// What is buffered of a response for a slow client, in bytes.
const SEND_BUFFER: usize = 64 << 10;
/// Streams that clients have reset before they were looked at; more is an attack.
const MAX_PENDING_RESETS: usize = 20;
/// Streams that had to be reset for a client's errors; more is an attack.
const MAX_ERROR_RESETS: usize = 1024;

/// Whether the client speaks HTTP/2. What was read stays to be read.
pub(super) async fn detect(stream: &mut ServerStream) -> io::Result<bool> {
    let mut seen = BytesMut::with_capacity(FIRST_READ);
    let multiplexed = loop {
        let read = stream.read_buf(&mut seen).await?;
        let length = seen.len().min(PREFACE.len());
        if read == 0 || seen[..length] != PREFACE[..length] {
            break false;
        }
        if length == PREFACE.len() {
            break true;
        }
    };
    stream.seen = seen.freeze();
    Ok(multiplexed)
}

pub(super) async fn serve<H: Handler>(
    stream: ServerStream,
    conn: Arc<Conn>,
    handler: Arc<H>,
    options: &Options,
) {
    // Heads are not timed any more: what is between them is none of the stream's business.
    conn.phase.store(UPGRADED, Ordering::Relaxed);
    let drain = conn.drain.clone();
    let streams = Streams { starting: Arc::default(), tasks: drain.tasks().clone() };
    let leave = Arc::new(Notify::new());
    let service = service_fn(|request: Request<Incoming>| {
        let conn = Arc::new(conn.for_stream());
        *streams.starting.lock() = Some(Arc::clone(&conn));
        let (handler, leave) = (Arc::clone(&handler), Arc::clone(&leave));
        let max_headers = options.max_headers;
        async move {
            if request.headers().len() > max_headers {
                return Ok(error::status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE));
            }
            let response = answer(request, &conn, &*handler).await;
            if conn.drain.is_announced() {
                leave.notify_one();
            }
            Ok::<_, Infallible>(response)
        }
    });
    let serving = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.max_streams)
        .initial_stream_window_size(options.stream_window)
        .initial_connection_window_size(
            options.stream_window.saturating_mul(options.max_streams).min(i32::MAX as u32),
        )
        .max_header_list_size(u32::try_from(options.max_header_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(SEND_BUFFER)
        .max_pending_accept_reset_streams(MAX_PENDING_RESETS)
        .max_local_error_reset_streams(MAX_ERROR_RESETS)
        .keep_alive_interval(options.ping_interval)
        .keep_alive_timeout(options.ping_timeout)
        .serve_connection(TokioIo::new(stream), service);
    let mut serving = pin!(serving);
    // As with HTTP/1: who announces the end says so with an answer, who stops says so to everybody. The client opens no
    // more streams then; those it has opened meanwhile are served.
    let ended = tokio::select! {
        biased;
        ended = serving.as_mut() => Some(ended),
        () = drain.stopped().cancelled() => None,
        () = leave.notified() => None,
    };
    let ended = match ended {
        Some(ended) => ended,
        None => {
            serving.as_mut().graceful_shutdown();
            tokio::select! {
                biased;
                ended = serving => ended,
                () = drain.aborted().cancelled() => Ok(()),
            }
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, peer = %conn.peer, "connection ended");
    }
}

/// Runs the streams of one connection, each no longer than its client takes what it is sent.
#[derive(Clone)]
struct Streams {
    /// The stream whose task comes next.
    starting: Arc<Mutex<Option<Arc<Conn>>>>,
    tasks: TaskTracker,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let conn = self.starting.lock().take();
        // They end with the connection, which tells them that their stream is gone.
        self.tasks.spawn(async move {
            let mut task = pin!(task);
            let mut cut = None;
            std::future::poll_fn(|cx| match (task.as_mut().poll(cx), &conn) {
                (Poll::Ready(_), _) => Poll::Ready(()),
                (Poll::Pending, Some(conn)) => conn.poll_cut(&mut cut, cx),
                (Poll::Pending, None) => Poll::Pending,
            })
            .await;
        });
    }
}
