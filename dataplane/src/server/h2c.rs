//! Connections that speak HTTP/2 from their first byte.

use std::convert::Infallible;
use std::io;
use std::pin::{Pin, pin};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use http::{Request, StatusCode};
use http_body::{Frame, SizeHint};
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::io::AsyncReadExt as _;
use tokio::sync::Notify;
use tokio_util::task::TaskTracker;

use super::stream::{ServerStream, Stall};
use super::{Conn, Handler, MORE, NOTHING, Options, SAME, UPGRADED, answer};
use crate::body::{self, Body};
use crate::error;

/// What an HTTP/2 client says first.
const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
/// Enough for most heads: what was read to tell the protocol is copied, not read again.
const FIRST_READ: usize = 4 << 10;
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
    let streams = Streams {
        starting: Arc::default(),
        tasks: drain.tasks().clone(),
        stall_timeout: options.stall_timeout,
    };
    let leave = Arc::new(Notify::new());
    let service = service_fn(|request: Request<Incoming>| {
        let conn = Arc::new(conn.for_stream());
        *streams.starting.lock() = Some(Arc::clone(&conn));
        let (handler, leave) = (Arc::clone(&handler), Arc::clone(&leave));
        let max_headers = options.max_headers;
        async move {
            if request.headers().len() > max_headers {
                let refusal = error::status(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE);
                return Ok(refusal.map(|body| Sent { body, conn }));
            }
            let response = answer(request, &conn, &*handler).await;
            if conn.drain.is_announced() {
                leave.notify_one();
            }
            Ok::<_, Infallible>(response.map(|body| Sent { body, conn }))
        }
    });
    let serving = http2::Builder::new(streams.clone())
        .timer(TokioTimer::new())
        .max_concurrent_streams(options.max_streams)
        .initial_stream_window_size(options.stream_window)
        .initial_connection_window_size(options.connection_window.min(i32::MAX as u32))
        .header_table_size(options.header_table_size)
        .max_header_list_size(u32::try_from(options.max_header_bytes).unwrap_or(u32::MAX))
        .max_send_buf_size(options.send_buffer)
        .max_pending_accept_reset_streams(options.max_pending_resets)
        .max_local_error_reset_streams(options.max_error_resets)
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
    stall_timeout: Duration,
}

impl<F> hyper::rt::Executor<F> for Streams
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        let conn = self.starting.lock().take();
        let mut stall = Stall::new(self.stall_timeout);
        // They end with the connection, which tells them that their stream is gone.
        self.tasks.spawn(async move {
            let mut task = pin!(task);
            let mut cut = None;
            std::future::poll_fn(|cx| match (task.as_mut().poll(cx), &conn) {
                (Poll::Ready(_), _) => Poll::Ready(()),
                (Poll::Pending, Some(conn)) => {
                    let cut = conn.poll_cut(&mut cut, cx);
                    let owed = conn.owed.load(Ordering::Relaxed);
                    if owed != SAME {
                        stall.clear();
                    }
                    if owed == NOTHING || cut.is_ready() {
                        return cut;
                    }
                    conn.owed.store(SAME, Ordering::Relaxed);
                    stall.poll(cx)
                }
                (Poll::Pending, None) => Poll::Pending,
            })
            .await;
        });
    }
}

/// A response on its way. It is asked for more only when the client has room for it: from one part to the next it is
/// the client that is waited for.
struct Sent {
    body: Body,
    conn: Arc<Conn>,
}

impl http_body::Body for Sent {
    type Data = Bytes;
    type Error = body::Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, body::Error>>> {
        let polled = Pin::new(&mut self.body).poll_frame(cx);
        let owed = if polled.is_ready() { MORE } else { NOTHING };
        self.conn.owed.store(owed, Ordering::Relaxed);
        polled
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}
