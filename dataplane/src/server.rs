//! Serving: the accept loop, and what a connection carries to its requests.

mod h2c;
mod head;
mod http1;
mod stream;

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{HeaderValue, Request, Response, StatusCode, Version, header};
use hyper::body::Incoming;
use tokio::sync::Semaphore;
use tokio::time::{Instant, Sleep};

use crate::body::Body;
use crate::drain::Drain;
use crate::io::{Listener, Stream};
use crate::protocol::INLINE_HEADERS;
use crate::tls;
use crate::worker::Workers;
use stream::ServerStream;

/// Answers requests. Implemented for closures `Fn(Request<Body>, Arc<Conn>) -> impl Future<Output = Response<Body>>`.
///
/// The future is dropped when the client goes away, so everything a request holds has to be held by its future, or
/// by the response's body ([`Body::attach`]).
pub trait Handler: Send + Sync + 'static {
    /// Answers one request.
    fn handle(&self, request: Request<Body>, conn: &Arc<Conn>)
    -> impl Future<Output = Response<Body>> + Send;
}

impl<F, T> Handler for F
where
    F: Fn(Request<Body>, Arc<Conn>) -> T + Send + Sync + 'static,
    T: Future<Output = Response<Body>> + Send,
{
    fn handle(
        &self,
        request: Request<Body>,
        conn: &Arc<Conn>,
    ) -> impl Future<Output = Response<Body>> + Send {
        self(request, Arc::clone(conn))
    }
}

/// Limits of a server. The defaults are safe towards clients that mean harm.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Options {
    /// How long a request's head may take, from accept or from its first byte. 60 s. Idle connections stay open.
    pub header_read_timeout: Duration,
    /// Largest head, in bytes; 431 beyond. 256 KiB. It also bounds trailers, and what is buffered for a slow reader.
    pub max_header_bytes: usize,
    /// Most header lines; 431 beyond. 100.
    pub max_headers: usize,
    /// Connections served at a time; more wait in the listener's backlog. 65 536.
    pub max_connections: usize,
    /// How long an HTTP/1 connection is idle before it gives up its buffers, up to twice that. 100 ms.
    pub park_after: Duration,
    /// With more connections than this they give them up at once. 256.
    pub warm_connections: usize,
    /// Exchanges at a time on an HTTP/2 connection. 250.
    pub max_streams: u32,
    /// What a client may send ahead of who reads it, in bytes for each HTTP/2 stream. 256 KiB.
    pub stream_window: u32,
    /// What a client may send ahead on all streams of an HTTP/2 connection, in bytes. 62.5 MiB, enough for all of its
    /// streams: one that nobody reads does not hold up the others. Less bounds what one connection can make the server
    /// hold.
    pub connection_window: u32,
    /// What is buffered of a response for a slow reader, in bytes for each HTTP/2 stream. 64 KiB.
    pub send_buffer: usize,
    /// The memory of header fields an HTTP/2 client may use, in bytes. 4 KiB.
    pub header_table_size: u32,
    /// Streams of an HTTP/2 connection that the client has reset before they were looked at; more is an attack, and
    /// ends the connection. 20.
    pub max_pending_resets: usize,
    /// Streams that had to be reset for a client's errors during the life of an HTTP/2 connection; more is an attack,
    /// and ends the connection. 1024.
    pub max_error_resets: usize,
    /// How long a client may take nothing of what is sent to it; the connection or the HTTP/2 stream ends then. 10 min,
    /// which is as long as a request may take by Knative's defaults. A request's own timers come first. Of an HTTP/2
    /// stream nothing is taken until what was read from the backend in one go is.
    pub stall_timeout: Duration,
    /// How long an HTTP/1 client that has closed its side in one breath with its request may take nothing before the
    /// request is given up. 1 s. It has no more to say, and waits for the answer, or is gone. A request's own timers
    /// come first, and a reset ends it within a second.
    pub half_closed_timeout: Duration,
    /// What is one breath: from the last byte of what it had to say. 50 ms.
    pub half_close_within: Duration,
    /// As [`half_closed_timeout`](Self::half_closed_timeout), for a client that has closed its side later than that. 1 s.
    /// Most likely it has given up waiting, and nothing but a write could tell.
    pub abandoned_timeout: Duration,
    /// How long an HTTP/2 client may be silent before it is asked for a sign of life. 60 s.
    pub ping_interval: Duration,
    /// How long it may take to give one. 20 s.
    pub ping_timeout: Duration,
    /// Connections speak TLS. Off.
    pub tls: Option<tls::Server>,
    /// How long a TLS handshake may take. 10 s.
    pub handshake_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            header_read_timeout: Duration::from_secs(60),
            max_header_bytes: 256 << 10,
            max_headers: INLINE_HEADERS,
            max_connections: 65_536,
            park_after: Duration::from_millis(100),
            warm_connections: 256,
            max_streams: 250,
            stream_window: 256 << 10,
            connection_window: 250 * (256 << 10),
            send_buffer: 64 << 10,
            header_table_size: 4096,
            max_pending_resets: 20,
            max_error_resets: 1024,
            stall_timeout: Duration::from_secs(600),
            half_closed_timeout: Duration::from_secs(1),
            half_close_within: Duration::from_millis(50),
            abandoned_timeout: Duration::from_secs(1),
            ping_interval: Duration::from_secs(60),
            ping_timeout: Duration::from_secs(20),
            tls: None,
            handshake_timeout: Duration::from_secs(10),
        }
    }
}

/// What a request may know of the connection it came by.
#[derive(Debug)]
pub struct Conn {
    peer: SocketAddr,
    peer_ip: HeaderValue,
    worker: usize,
    drain: Drain,
    tls: AtomicBool,
    phase: AtomicU8,
    /// Somebody waits for more of the request's body.
    receiving: AtomicBool,
    /// Part of the request's body has not been read.
    unread: AtomicBool,
    /// What came as the request's body is none.
    malformed: AtomicBool,
    /// All that was to be written has been.
    flushed: AtomicBool,
    /// Requests so far.
    served: AtomicU64,
    /// How often it has been parked.
    parked: AtomicU64,
    base: Instant,
    /// When writing gives up, in nanoseconds after `base`; 0: never.
    cut_at: AtomicU64,
    /// Whether the client has yet to take a part of the answer (HTTP/2).
    owed: AtomicU8,
}

/// The client has taken all there is.
const NOTHING: u8 = 0;
/// Another part is on its way.
const MORE: u8 = 1;
/// It still is.
const SAME: u8 = 2;

/// Reading the first head, or a later one of which a byte has arrived.
const HEAD: u8 = 0;
/// Between requests.
const IDLE: u8 = 1;
/// A request is being served.
const BUSY: u8 = 2;
/// No longer HTTP/1.
const UPGRADED: u8 = 3;

impl Conn {
    /// A connection of `peer`, as the accept loop makes them; for tests and other servers.
    #[must_use]
    pub fn new(peer: SocketAddr, worker: usize, drain: Drain) -> Self {
        let ip = peer.ip().to_canonical().to_string();
        let peer_ip = HeaderValue::from_str(&ip).unwrap_or_else(|_| HeaderValue::from_static("unknown"));
        Self::begin(peer, peer_ip, worker, drain, false, HEAD)
    }

    /// The same connection for another request, of which it may carry several at a time.
    fn for_stream(&self) -> Self {
        let drain = self.drain.clone();
        Self::begin(self.peer, self.peer_ip.clone(), self.worker, drain, self.is_tls(), BUSY)
    }

    fn begin(
        peer: SocketAddr,
        peer_ip: HeaderValue,
        worker: usize,
        drain: Drain,
        tls: bool,
        phase: u8,
    ) -> Self {
        Self {
            peer,
            peer_ip,
            worker,
            drain,
            tls: AtomicBool::new(tls),
            phase: AtomicU8::new(phase),
            receiving: AtomicBool::new(false),
            unread: AtomicBool::new(false),
            malformed: AtomicBool::new(false),
            flushed: AtomicBool::new(true),
            served: AtomicU64::new(0),
            parked: AtomicU64::new(0),
            base: Instant::now(),
            cut_at: AtomicU64::new(0),
            owed: AtomicU8::new(NOTHING),
        }
    }

    /// The client.
    #[must_use]
    pub fn peer(&self) -> SocketAddr {
        self.peer
    }

    /// The client's address as `X-Forwarded-For` has it.
    #[must_use]
    pub fn peer_ip(&self) -> &HeaderValue {
        &self.peer_ip
    }

    /// Whether it speaks TLS.
    #[must_use]
    pub fn is_tls(&self) -> bool {
        self.tls.load(Ordering::Relaxed)
    }

    /// How often the connection has given up its buffers so far, because it was idle.
    #[must_use]
    pub fn parked(&self) -> u64 {
        self.parked.load(Ordering::Relaxed)
    }

    /// The worker that serves the connection.
    #[must_use]
    pub fn worker(&self) -> usize {
        self.worker
    }

    /// The drain of the server.
    #[must_use]
    pub fn drain(&self) -> &Drain {
        &self.drain
    }

    /// A request has arrived, with or without more of its body to come.
    pub(crate) fn begin_receiving(&self, more: bool) {
        self.receiving.store(more, Ordering::Relaxed);
        self.unread.store(more, Ordering::Relaxed);
        self.malformed.store(false, Ordering::Relaxed);
    }

    /// The request's body cannot be read for the client's fault: whatever comes of the request, that is the answer.
    pub(crate) fn receive_garbage(&self) {
        self.malformed.store(true, Ordering::Relaxed);
    }

    /// Nobody waits for more of the request's body.
    pub(crate) fn stop_receiving(&self) {
        self.receiving.store(false, Ordering::Relaxed);
    }

    /// All of the request's body has been read.
    pub(crate) fn received_all(&self) {
        self.stop_receiving();
        self.unread.store(false, Ordering::Relaxed);
    }

    /// From `at` on a write the client does not take breaks the connection; `None` waits for ever.
    pub(crate) fn cut_writes_at(&self, at: Option<Instant>) {
        let nanos = at.map_or(0, |at| {
            let after = at.saturating_duration_since(self.base).as_nanos();
            u64::try_from(after).unwrap_or(u64::MAX).max(1)
        });
        self.cut_at.store(nanos, Ordering::Relaxed);
    }

    /// Whether writing has to give up.
    fn poll_cut(&self, cut: &mut Option<Pin<Box<Sleep>>>, cx: &mut Context<'_>) -> Poll<()> {
        let nanos = self.cut_at.load(Ordering::Relaxed);
        if nanos == 0 {
            *cut = None;
            return Poll::Pending;
        }
        let at = self.base + Duration::from_nanos(nanos);
        let cut = cut.get_or_insert_with(|| Box::pin(tokio::time::sleep_until(at)));
        if cut.deadline() != at {
            cut.as_mut().reset(at);
        }
        cut.as_mut().poll(cx)
    }
}

/// A request is being served as long as this lives.
struct Busy(Arc<Conn>);

impl Drop for Busy {
    fn drop(&mut self) {
        let _ = self.0.phase.compare_exchange(BUSY, IDLE, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// Accepts connections and deals them to the workers in turn, until `drain` is stopped. `handler` makes the handler
/// of a worker, once for each. Connections are tasks of `drain`: see [`Drain::finish`].
pub async fn serve<H: Handler>(
    mut listener: Listener,
    workers: &Workers,
    options: &Options,
    drain: &Drain,
    mut handler: impl FnMut(usize) -> Arc<H>,
) {
    let options = Arc::new(options.clone());
    let handlers: Vec<Arc<H>> = (0..workers.len()).map(&mut handler).collect();
    let places = Arc::new(Semaphore::new(options.max_connections.min(Semaphore::MAX_PERMITS)));
    loop {
        let accepted = tokio::select! {
            biased;
            () = drain.stopped().cancelled() => return,
            accepted = async {
                let place = Arc::clone(&places).acquire_owned().await;
                (place, listener.accept().await)
            } => accepted,
        };
        let (Ok(place), accepted) = accepted else { return };
        let (stream, peer) = match accepted {
            Ok(accepted) => accepted,
            Err(error) if is_of_one_connection(&error) => continue,
            Err(error) if matches!(listener, Listener::Memory(..)) => {
                tracing::debug!(%error, "listener ended");
                return;
            }
            Err(error) => {
                // Out of descriptors or memory: wait for connections to end.
                tracing::warn!(%error, "cannot accept");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let worker = workers.next();
        let stream = match workers.detach(stream) {
            Ok(stream) => stream,
            Err(error) => {
                tracing::debug!(%error, "connection lost");
                continue;
            }
        };
        let handler = Arc::clone(&handlers[worker]);
        let conn = Arc::new(Conn::new(peer, worker, drain.clone()));
        let options = Arc::clone(&options);
        // Counted here and not on the worker, so that a drain cannot slip in between.
        let token = drain.tasks().token();
        workers.spawn(worker, move || async move {
            match stream.attach() {
                Ok(stream) => connection(stream, conn, handler, &options).await,
                Err(error) => tracing::debug!(%error, "connection lost"),
            }
            drop((token, place));
        });
    }
}

/// Whether an accept error concerns one client only.
fn is_of_one_connection(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionAborted | io::ErrorKind::ConnectionReset | io::ErrorKind::Interrupted
    ) || error.kind() == io::ErrorKind::InvalidInput
}

/// Serves one connection to its end, HTTP/1 or HTTP/2, as its first bytes say, over TLS or in clear text.
pub async fn connection<H: Handler>(stream: Stream, conn: Arc<Conn>, handler: Arc<H>, options: &Options) {
    let stream = match &options.tls {
        None => stream,
        // Boxed: a connection in clear text is not to carry its size.
        Some(server) => match Box::pin(shake_hands(server, stream, &conn, options)).await {
            Some(stream) => stream,
            None => return,
        },
    };
    let mut stream = ServerStream::new(stream, Arc::clone(&conn), options);
    let multiplexed = tokio::select! {
        biased;
        multiplexed = h2c::detect(&mut stream) => multiplexed,
        () = conn.drain.stopped().cancelled() => return,
    };
    match multiplexed {
        Ok(false) => http1::serve(stream, conn, handler, options).await,
        // Boxed: HTTP/1 connections are not to carry its size.
        Ok(true) => Box::pin(h2c::serve(stream, conn, handler, options)).await,
        Err(error) => tracing::debug!(%error, peer = %conn.peer, "connection ended"),
    }
}

/// What is said over TLS; `None` when there is nobody to talk to.
async fn shake_hands(server: &tls::Server, stream: Stream, conn: &Conn, options: &Options) -> Option<Stream> {
    let accepted = tokio::select! {
        biased;
        accepted = tokio::time::timeout(options.handshake_timeout, server.accept(stream)) => accepted,
        () = conn.drain.stopped().cancelled() => return None,
    };
    let error = match accepted {
        Ok(Ok(stream)) => {
            conn.tls.store(true, Ordering::Relaxed);
            return Some(stream);
        }
        Ok(Err(error)) => error,
        Err(_) => io::ErrorKind::TimedOut.into(),
    };
    tracing::debug!(%error, peer = %conn.peer, "no TLS handshake");
    None
}

async fn answer<H: Handler>(request: Request<Incoming>, conn: &Arc<Conn>, handler: &H) -> Response<Body> {
    conn.phase.store(BUSY, Ordering::Relaxed);
    conn.served.fetch_add(1, Ordering::Relaxed);
    // Of the request before.
    conn.cut_writes_at(None);
    let multiplexed = request.version() == Version::HTTP_2;
    let busy = Busy(Arc::clone(conn));
    let mut request = request.map(|body| Body::received(body, conn));
    let mut response = match head::settle(&mut request) {
        Ok(()) => handler.handle(request, conn).await,
        Err(response) => *response,
    };
    let malformed = conn.malformed.load(Ordering::Relaxed);
    if malformed {
        // What came of the exchange is nobody's fault but the client's.
        response = crate::error::status(StatusCode::BAD_REQUEST);
    }
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        conn.phase.store(UPGRADED, Ordering::Relaxed);
    } else {
        // Answered before the whole request was taken: the client may have sent all of it, and its next request would
        // wait behind what nobody reads.
        let early = conn.receiving.load(Ordering::Relaxed);
        if multiplexed {
            response.headers_mut().remove(header::CONNECTION);
        } else if early || malformed || conn.drain.is_announced() {
            response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
        }
        response.body_mut().attach(busy);
    }
    response
}
