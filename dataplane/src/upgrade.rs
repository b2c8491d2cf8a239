//! Upgraded connections (WebSocket and the like): both ends joined until one of them, or time, is over.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::time::Instant;

use crate::body::Guard;
use crate::drain::Drain;
use crate::timeout::Deadlines;

/// Buffer per direction.
const BUFFER: usize = 16 << 10;

/// What an upgraded stream holds on to. The 101 response's body and the stream's task share it.
#[derive(Default)]
pub(crate) struct Tunnel {
    guards: Mutex<Vec<Guard>>,
    deadlines: Mutex<Option<Deadlines>>,
    /// Bytes written to the client.
    count: Arc<AtomicU64>,
}

impl Tunnel {
    pub(crate) fn count(&self) -> Arc<AtomicU64> {
        Arc::clone(&self.count)
    }

    pub(crate) fn attach(&self, guard: Guard) {
        self.guards.lock().push(guard);
    }

    pub(crate) fn limit(&self, deadlines: Deadlines) {
        *self.deadlines.lock() = Some(deadlines);
    }
}

/// Joins client and backend once both have switched protocols. End of stream on one side half-closes the other; the
/// stream ends when both directions have, when one fails, when a timer runs out or when `drain` is aborted.
pub(crate) fn join(drain: &Drain, tunnel: Arc<Tunnel>, client: OnUpgrade, backend: OnUpgrade) {
    let aborted = drain.aborted().clone();
    drain.tasks().spawn(async move {
        let splice = async {
            let (client, backend) = tokio::try_join!(client, backend).map_err(io::Error::other)?;
            let deadlines = *tunnel.deadlines.lock();
            let written =
                Arc::new(Written { base: Instant::now(), nanos: AtomicU64::new(0), bytes: tunnel.count() });
            let mut client = Watched {
                inner: TokioIo::new(client),
                written: Arc::clone(&written),
                timed: deadlines.is_some(),
            };
            let mut backend = TokioIo::new(backend);
            match deadlines {
                None => copy(&mut client, &mut backend).await,
                Some(deadlines) => tokio::select! {
                    copied = copy(&mut client, &mut backend) => copied,
                    error = expire(deadlines, &written) => Err(error),
                },
            }
        };
        let ended = tokio::select! {
            ended = splice => ended,
            () = aborted.cancelled() => Ok(()),
        };
        if let Err(error) = ended {
            tracing::debug!(%error, "upgraded stream ended");
        }
        // The guards go last: the exchange is over only now.
        tunnel.guards.lock().clear();
    });
}

async fn copy<A, B>(a: &mut A, b: &mut B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Unpin,
    B: AsyncRead + AsyncWrite + Unpin,
{
    tokio::io::copy_bidirectional_with_sizes(a, b, BUFFER, BUFFER).await.map(|_| ())
}

/// Resolves when one of the request's timers has run out.
async fn expire(deadlines: Deadlines, written: &Written) -> io::Error {
    loop {
        match deadlines.next(written.last()) {
            None => std::future::pending().await,
            Some((at, expired)) if at <= Instant::now() => {
                return io::Error::new(io::ErrorKind::TimedOut, expired);
            }
            Some((at, _)) => tokio::time::sleep_until(at).await,
        }
    }
}

/// What was written to the client.
struct Written {
    base: Instant,
    /// When something last was, after `base`; 0: never.
    nanos: AtomicU64,
    bytes: Arc<AtomicU64>,
}

impl Written {
    fn last(&self) -> Option<Instant> {
        match self.nanos.load(Ordering::Relaxed) {
            0 => None,
            nanos => Some(self.base + Duration::from_nanos(nanos)),
        }
    }
}

/// The client's side, its writes noted.
struct Watched<T> {
    inner: T,
    written: Arc<Written>,
    /// Whether it matters when.
    timed: bool,
}

impl<T: AsyncRead + Unpin> AsyncRead for Watched<T> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buf: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_read(cx, buf)
    }
}

impl<T: AsyncWrite + Unpin> AsyncWrite for Watched<T> {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let polled = Pin::new(&mut self.inner).poll_write(cx, buf);
        let Poll::Ready(Ok(length @ 1..)) = polled else { return polled };
        self.written.bytes.fetch_add(length as u64, Ordering::Relaxed);
        if self.timed {
            let nanos = u64::try_from(self.written.base.elapsed().as_nanos()).unwrap_or(u64::MAX);
            self.written.nanos.store(nanos.max(1), Ordering::Relaxed);
        }
        polled
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.inner).poll_shutdown(cx)
    }
}
