//! Client connections of one worker, kept per backend.
//!
//! An HTTP/1.1 connection is idle here or leased to exactly one exchange. It comes back only after the response was
//! read to its end; a lease that is dropped earlier closes it, which tells the backend that the client is gone.
//! HTTP/2 connections are [shared](multiplexed).

mod multiplexed;
mod wire;

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use tokio::task::AbortHandle;
use tokio::time::Instant;

use crate::address::Address;
use crate::body::Body;
use crate::dial::Dial;
use crate::error::ProxyError;
use crate::io::{self as network, Io};
use crate::protocol::INLINE_HEADERS;
use crate::tls::{self, Identity};

use multiplexed::Links;
pub(crate) use multiplexed::Stream;
pub(crate) use wire::Meter;
use wire::{ClientStream, Wire};

/// How long a backend may take to prove itself, or to say hello, where the caller sets no deadline.
const GREETING: Duration = Duration::from_secs(10);

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
    /// Most header lines of a response; it fails beyond. 100.
    pub max_headers: usize,
    /// How long an HTTP/2 backend may be silent during an exchange before it is asked for a sign of life. Off: some
    /// servers do not like to be asked.
    pub ping_interval: Option<Duration>,
    /// How long it may take to give one. 5 s.
    pub ping_timeout: Duration,
    /// Connects to backends that have to prove an identity. Without it there is no way to them.
    pub tls: Option<tls::Client>,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            max_idle_per_address: 1000,
            max_idle: 1000,
            idle_timeout: Duration::from_secs(90),
            dial: Dial::default(),
            max_header_bytes: 256 << 10,
            max_headers: INLINE_HEADERS,
            ping_interval: None,
            ping_timeout: Duration::from_secs(5),
            tls: None,
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
        let stream = self.open(address, deadline).await?;
        let (stream, wire) = ClientStream::new(stream);
        let weak = Arc::downgrade(&wire);
        let mut builder = http1::Builder::new();
        let options = &self.0.options;
        let most = options.max_header_bytes;
        builder.max_buf_size(most.max(8192)).max_header_size(most);
        if options.max_headers != INLINE_HEADERS {
            builder.max_headers(options.max_headers);
        }
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

    /// Connects, and has the backend prove itself where it has to.
    async fn open(
        &self,
        address: &Address,
        deadline: Option<Instant>,
    ) -> Result<network::Stream, ProxyError> {
        let begun = Instant::now();
        let stream = self.0.options.dial.connect(&self.0.io, address, deadline).await?;
        match address.identity() {
            None => Ok(stream),
            // Boxed: a connection in clear text is not to carry its size.
            Some(identity) => Box::pin(self.secure(stream, address, identity, begun, deadline)).await,
        }
    }

    /// One handshake with time enough, and not several with little: a pod that is slow to answer would be slower still.
    async fn secure(
        &self,
        stream: network::Stream,
        address: &Address,
        identity: &Identity,
        begun: Instant,
        deadline: Option<Instant>,
    ) -> Result<network::Stream, ProxyError> {
        let client = self.0.options.tls.as_ref().ok_or(tls::Error::NoRoots)?;
        let until = deadline.unwrap_or_else(|| Instant::now() + GREETING);
        match tokio::time::timeout_at(until, client.connect(stream, identity)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(tls::Error::Broken(source))) => {
                Err(ProxyError::Connect { address: address.clone(), source })
            }
            Ok(Err(error)) => Err(error.into()),
            Err(_) => Err(ProxyError::ConnectTimeout { address: address.clone(), elapsed: begun.elapsed() }),
        }
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

    pub(crate) fn address(&self) -> &Address {
        &self.address
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
