//! Client connections of one worker, kept per backend.
//!
//! An HTTP/1.1 connection is idle here or leased to exactly one exchange. It comes back only after the response was
//! read to its end; a lease that is dropped earlier closes it, which tells the backend that the client is gone.
//! HTTP/2 connections are [shared](multiplexed).

mod multiplexed;

use std::collections::HashMap;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Weak};
use std::task::{Context, Poll};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::address::Address;
use crate::body::Body;
use crate::dial::Dial;
use crate::error::ProxyError;
use crate::io::{self as network, Io};

use multiplexed::Links;
pub(crate) use multiplexed::Stream;

/// Limits of a [`Pool`].
#[derive(Debug, Clone)]
pub struct Options {
    /// Idle connections kept to one backend; more are closed. 1000.
    pub max_idle_per_address: usize,
    /// Idle connections kept in all. 1000.
    pub max_idle: usize,
    /// How long a connection may stay idle. 90 s.
    pub idle_timeout: Duration,
    /// How to connect.
    pub dial: Dial,
    /// Largest head of a response, in bytes; it fails beyond. 256 KiB.
    pub max_header_bytes: usize,
    /// Most header lines of a response; it fails beyond. 256.
    pub max_headers: usize,
    /// How long an HTTP/2 backend may be silent during an exchange before it is asked for a sign of life. Off: some
    /// servers do not like to be asked.
    pub ping_interval: Option<Duration>,
    /// How long it may take to give one. 5 s.
    pub ping_timeout: Duration,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_idle_per_address: 1000,
            max_idle: 1000,
            idle_timeout: Duration::from_secs(90),
            dial: Dial::default(),
            max_header_bytes: 256 << 10,
            max_headers: 256,
            ping_interval: None,
            ping_timeout: Duration::from_secs(5),
        }
    }
}

/// Client connections. Cheap to clone; all clones are one. Use one pool per worker, on that worker only.
#[derive(Debug, Clone)]
pub struct Pool(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    io: Io,
    options: Options,
    idle: Mutex<Idle>,
    links: Mutex<Links>,
}

#[derive(Debug, Default)]
struct Idle {
    by_address: HashMap<Address, Vec<Parked>>,
    total: usize,
    sweeping: bool,
}

#[derive(Debug)]
struct Parked {
    connection: Connection,
    since: Instant,
}

#[derive(Debug)]
struct Connection {
    sender: SendRequest<Body>,
    wire: Weak<Wire>,
    task: Option<AbortHandle>,
}

impl Drop for Connection {
    fn drop(&mut self) {
        if let Some(task) = &self.task {
            task.abort();
        }
    }
}

impl Connection {
    /// Whether the peer has closed, or said something nobody asked for.
    fn is_stale(&self) -> bool {
        self.sender.is_closed() || self.wire.upgrade().is_none_or(|wire| wire.has_input())
    }
}

impl Pool {
    /// An empty pool.
    #[must_use]
    pub fn new(io: Io, options: Options) -> Self {
        Self(Arc::new(Inner { io, options, idle: Mutex::default(), links: Mutex::default() }))
    }

    /// An idle connection to `address`, or a new one, no later than `deadline`.
    ///
    /// # Errors
    /// [`ProxyError::Connect`], [`ProxyError::ConnectTimeout`].
    pub async fn acquire(&self, address: &Address, deadline: Option<Instant>) -> Result<Lease, ProxyError> {
        match self.reuse(address) {
            Some(lease) => Ok(lease),
            None => self.connect(address, deadline).await,
        }
    }

    /// The idle connection used last, if one is alive.
    pub(crate) fn reuse(&self, address: &Address) -> Option<Lease> {
        let mut idle = self.0.idle.lock();
        let parked = idle.by_address.get_mut(address)?;
        let mut popped = 0;
        let mut found = None;
        while let Some(Parked { connection, since }) = parked.pop() {
            popped += 1;
            if since.elapsed() < self.0.options.idle_timeout && !connection.is_stale() {
                found = Some(connection);
                break;
            }
        }
        idle.total -= popped;
        drop(idle);
        found.map(|connection| self.lease(address, connection, true))
    }

    /// A new connection.
    pub(crate) async fn connect(
        &self,
        address: &Address,
        deadline: Option<Instant>,
    ) -> Result<Lease, ProxyError> {
        let stream = self.0.options.dial.connect(&self.0.io, address, deadline).await?;
        let (stream, wire) = ClientStream::new(stream);
        let weak = Arc::downgrade(&wire);
        let mut builder = http1::Builder::new();
        let options = &self.0.options;
        builder
            .max_buf_size(options.max_header_bytes.max(8192))
            .max_header_size(options.max_header_bytes)
            .max_headers(options.max_headers);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(ProxyError::Broken)?;
        // Owned by the lease, and by the pool while idle: it ends with them.
        let task = tokio::spawn(async move {
            // The exchange itself is told about errors.
            if let Err(error) = connection.with_upgrades().await {
                tracing::debug!(%error, "client connection ended");
            }
        });
        let connection = Connection { sender, wire: weak, task: Some(task.abort_handle()) };
        Ok(self.lease(address, connection, false))
    }

    fn lease(&self, address: &Address, connection: Connection, reused: bool) -> Lease {
        Lease { connection, address: address.clone(), pool: Arc::downgrade(&self.0), reused }
    }

    /// Closes the idle connections to `address`, for instance because its pod is gone.
    pub fn forget(&self, address: &Address) {
        let mut idle = self.0.idle.lock();
        if let Some(parked) = idle.by_address.remove(address) {
            idle.total -= parked.len();
        }
        drop(idle);
        self.0.links.lock().retain(|other| other != address);
    }

    /// Closes the idle connections to addresses `keep` refuses.
    pub fn retain(&self, mut keep: impl FnMut(&Address) -> bool) {
        let mut idle = self.0.idle.lock();
        idle.by_address.retain(|address, _| keep(address));
        idle.total = idle.by_address.values().map(Vec::len).sum();
        drop(idle);
        self.0.links.lock().retain(keep);
    }

    /// Shared connections now.
    #[must_use]
    pub fn shared(&self) -> usize {
        self.0.links.lock().len()
    }

    /// Idle connections now, without shared ones.
    #[must_use]
    pub fn idle(&self) -> usize {
        self.0.idle.lock().total
    }
}

impl Inner {
    fn park(self: &Arc<Self>, address: Address, connection: Connection) {
        let mut idle = self.idle.lock();
        if idle.total >= self.options.max_idle {
            return;
        }
        let parked = idle.by_address.entry(address).or_default();
        if parked.len() >= self.options.max_idle_per_address {
            return;
        }
        parked.push(Parked { connection, since: Instant::now() });
        idle.total += 1;
        if !std::mem::replace(&mut idle.sweeping, true) {
            drop(idle);
            tokio::spawn(sweep(Arc::downgrade(self), self.options.idle_timeout));
        }
    }
}

/// Closes connections that were idle for too long; ends with the last of them, or with the pool.
async fn sweep(pool: Weak<Inner>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout / 2).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut idle = pool.idle.lock();
        for parked in idle.by_address.values_mut() {
            parked.retain(|Parked { connection, since }| {
                since.elapsed() < idle_timeout && !connection.is_stale()
            });
        }
        idle.by_address.retain(|_, parked| !parked.is_empty());
        idle.total = idle.by_address.values().map(Vec::len).sum();
        if idle.total == 0 {
            idle.sweeping = false;
            return;
        }
    }
}

/// A connection leased to one exchange. Dropping it closes the connection.
#[derive(Debug)]
pub struct Lease {
    connection: Connection,
    address: Address,
    pool: Weak<Inner>,
    reused: bool,
}

impl Lease {
    /// Whether another exchange used the connection before: only then can it be stale.
    #[must_use]
    pub fn is_reused(&self) -> bool {
        self.reused
    }

    pub(crate) fn sender(&mut self) -> &mut SendRequest<Body> {
        &mut self.connection.sender
    }

    /// Counts what goes over the socket; still to be read after the connection has ended.
    pub(crate) fn meter(&self) -> Option<Arc<Meter>> {
        self.connection.wire.upgrade().map(|wire| Arc::clone(&wire.meter))
    }

    /// Hands the connection over to an upgraded stream: it is the stream's to close.
    pub(crate) fn release_upgraded(mut self) {
        self.connection.task = None;
    }

    /// Returns the connection to the pool: at once if it is ready for another request, else when it is.
    pub(crate) fn give_back(self) {
        let Self { mut connection, address, pool, .. } = self;
        let Some(pool) = pool.upgrade() else { return };
        if connection.sender.is_ready() {
            pool.park(address, connection);
        } else if !connection.sender.is_closed() {
            // The backend answered before it had read the whole request, or the end of the response was seen here
            // before the connection's own task got to it.
            let patience = pool.options.idle_timeout;
            let weak = Arc::downgrade(&pool);
            tokio::spawn(async move {
                let ready = tokio::time::timeout(patience, connection.sender.ready()).await;
                if let (Ok(Ok(())), Some(pool)) = (ready, weak.upgrade()) {
                    pool.park(address, connection);
                }
            });
        }
    }
}

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
struct Wire {
    tcp: Option<TcpStream>,
    meter: Arc<Meter>,
}

impl Wire {
    /// Whether reading would not block: end of stream, an error, or bytes that belong to no response.
    fn has_input(&self) -> bool {
        let Some(tcp) = &self.tcp else { return false };
        let mut byte = [std::mem::MaybeUninit::uninit()];
        match socket2::SockRef::from(tcp).peek(&mut byte) {
            Err(error) => error.kind() != io::ErrorKind::WouldBlock,
            Ok(_) => true,
        }
    }
}

/// What hyper reads from and writes to.
struct ClientStream {
    wire: Arc<Wire>,
    memory: Option<DuplexStream>,
    /// Told when something was read.
    first: Option<oneshot::Sender<()>>,
    /// The backend reads no more. It may have answered before, so that what is still to be written is let go of and
    /// reading alone says how the exchange ended: with the answer, or with the error.
    unheard: bool,
}

impl ClientStream {
    fn new(stream: network::Stream) -> (Self, Arc<Wire>) {
        let (tcp, memory) = match stream {
            network::Stream::Tcp(tcp) => (Some(tcp), None),
            network::Stream::Memory(memory) => (None, Some(memory)),
        };
        let wire = Arc::new(Wire { tcp, meter: Arc::default() });
        (Self { wire: Arc::clone(&wire), memory, first: None, unheard: false }, wire)
    }

    /// Resolves when the backend has said something, or with an error when it never will.
    fn first_bytes(&mut self) -> oneshot::Receiver<()> {
        let (first, heard) = oneshot::channel();
        self.first = Some(first);
        heard
    }
}

impl AsyncRead for ClientStream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buf.filled().len();
        let polled = match (&this.wire.tcp, &mut this.memory) {
            (Some(tcp), _) => loop {
                if let Err(error) = std::task::ready!(tcp.poll_read_ready(cx)) {
                    break Poll::Ready(Err(error));
                }
                match tcp.try_read_buf(buf) {
                    Ok(_) => break Poll::Ready(Ok(())),
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    Err(error) => break Poll::Ready(Err(error)),
                }
            },
            (None, Some(memory)) => Pin::new(memory).poll_read(cx, buf),
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
        to_memory: impl FnOnce(Pin<&mut DuplexStream>, &mut Context<'_>) -> Poll<io::Result<usize>>,
    ) -> Poll<io::Result<usize>> {
        if self.unheard {
            return Poll::Ready(Ok(length));
        }
        let polled = match (&self.wire.tcp, &mut self.memory) {
            (Some(tcp), _) => loop {
                if let Err(error) = std::task::ready!(tcp.poll_write_ready(cx)) {
                    break Poll::Ready(Err(error));
                }
                match to_tcp(tcp) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                    other => break Poll::Ready(other),
                }
            },
            (None, Some(memory)) => to_memory(Pin::new(memory), cx),
            (None, None) => Poll::Ready(Err(io::ErrorKind::NotConnected.into())),
        };
        match polled {
            Poll::Ready(Ok(written)) => {
                self.wire.meter.written.fetch_add(written as u64, Ordering::Relaxed);
                Poll::Ready(Ok(written))
            }
            Poll::Ready(Err(error))
                if matches!(
                    error.kind(),
                    io::ErrorKind::BrokenPipe
                        | io::ErrorKind::ConnectionReset
                        | io::ErrorKind::ConnectionAborted
                ) =>
            {
                self.unheard = true;
                Poll::Ready(Ok(length))
            }
            other => other,
        }
    }
}

impl AsyncWrite for ClientStream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        self.get_mut().poll_write_with(
            cx,
            buf.len(),
            |tcp| tcp.try_write(buf),
            |memory, cx| memory.poll_write(cx, buf),
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
            |memory, cx| memory.poll_write_vectored(cx, bufs),
        )
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        // Neither a socket nor an in-memory pipe buffers on this side.
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        match (&this.wire.tcp, &mut this.memory) {
            (Some(tcp), _) => Poll::Ready(socket2::SockRef::from(tcp).shutdown(std::net::Shutdown::Write)),
            (None, Some(memory)) => Pin::new(memory).poll_shutdown(cx),
            (None, None) => Poll::Ready(Ok(())),
        }
    }
}
