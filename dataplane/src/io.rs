//! How a component reaches the world: a clock, listening, connecting.
//!
//! A component opens no socket and reads no wall clock any other way, so that the same code runs on a cluster
//! (system resolver), in one process (names resolved from the embedded API) and in simulation (in memory).

pub(crate) mod shared;

use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use futures::future::BoxFuture;
use tokio::io::{AsyncRead, AsyncWrite, DuplexStream, ReadBuf};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;

use crate::tls::TlsStream;

/// Wall-clock time. Timers use the runtime's (pausable) clock; this one is for what is aligned to or printed as
/// wall time, such as the autoscaler's buckets.
pub trait Clock: Send + Sync + 'static {
    /// Time since the Unix epoch.
    fn now(&self) -> Duration;
}

/// The machine's clock.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemClock;

impl Clock for SystemClock {
    fn now(&self) -> Duration {
        SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default()
    }
}

/// Opens listeners and connections.
pub trait Network: Send + Sync + 'static {
    /// Listens on `addr`; port 0 picks a free one ([`Listener::local_addr`] tells which).
    ///
    /// # Errors
    /// What the system says, for instance that the address is in use.
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, io::Result<Listener>>;

    /// Connects to a host name or an IP address. The caller sets the deadline.
    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Stream>>;
}

/// Sockets of this machine, names resolved by the system.
#[derive(Debug, Clone, Copy, Default)]
pub struct SystemNetwork;

impl Network for SystemNetwork {
    fn listen<'a>(&'a self, addr: SocketAddr) -> BoxFuture<'a, io::Result<Listener>> {
        Box::pin(async move { Ok(Listener::Tcp(TcpListener::bind(addr).await?)) })
    }

    fn connect<'a>(&'a self, host: &'a str, port: u16) -> BoxFuture<'a, io::Result<Stream>> {
        Box::pin(async move {
            let stream = match host.parse::<std::net::IpAddr>() {
                Ok(ip) => TcpStream::connect((ip, port)).await?,
                Err(_) => TcpStream::connect((host, port)).await?,
            };
            stream.set_nodelay(true)?;
            Ok(Stream::Tcp(stream))
        })
    }
}

/// What a component is given to reach the world.
#[derive(Clone)]
pub struct Io {
    /// Wall-clock time.
    pub clock: Arc<dyn Clock>,
    /// Sockets.
    pub network: Arc<dyn Network>,
}

impl Io {
    /// The machine's clock, sockets and resolver.
    #[must_use]
    pub fn system() -> Self {
        Self { clock: Arc::new(SystemClock), network: Arc::new(SystemNetwork) }
    }
}

impl std::fmt::Debug for Io {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Io").finish_non_exhaustive()
    }
}

/// A listening socket, or its in-memory counterpart.
#[derive(Debug)]
pub enum Listener {
    /// A TCP socket.
    Tcp(TcpListener),
    /// Connections handed over in memory, with the address they pretend to.
    Memory(SocketAddr, mpsc::Receiver<DuplexStream>),
}

impl Listener {
    /// The address clients connect to.
    ///
    /// # Errors
    /// What the system says about the socket.
    pub fn local_addr(&self) -> io::Result<SocketAddr> {
        match self {
            Self::Tcp(listener) => listener.local_addr(),
            Self::Memory(addr, _) => Ok(*addr),
        }
    }

    /// The next connection and its peer's address. Cancel safe.
    ///
    /// # Errors
    /// What the system says; for an in-memory listener, that every client side is gone.
    pub async fn accept(&mut self) -> io::Result<(Stream, SocketAddr)> {
        match self {
            Self::Tcp(listener) => {
                let (stream, peer) = listener.accept().await?;
                stream.set_nodelay(true)?;
                Ok((Stream::Tcp(stream), peer))
            }
            Self::Memory(addr, connections) => match connections.recv().await {
                Some(stream) => Ok((Stream::Memory(stream), *addr)),
                None => Err(io::ErrorKind::NotConnected.into()),
            },
        }
    }
}

/// A connection: a TCP stream, an in-memory pipe, or TLS over either. An enum and not a trait object, so that the hot
/// path costs a branch and no indirect call.
#[derive(Debug)]
pub enum Stream {
    /// A TCP connection.
    Tcp(TcpStream),
    /// An in-memory pipe.
    Memory(DuplexStream),
    /// A TLS connection. Boxed: the others are not to carry its size.
    Tls(Box<TlsStream>),
}

impl Stream {
    /// The socket, where there is one: it tells when there is something to read.
    pub(crate) fn socket(&self) -> Option<&TcpStream> {
        match self {
            Self::Tcp(tcp) => Some(tcp),
            Self::Memory(_) => None,
            Self::Tls(tls) => tls.carrier(),
        }
    }
}

impl AsyncRead for Stream {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Memory(stream) => Pin::new(stream).poll_read(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_read(cx, buf),
        }
    }
}

impl AsyncWrite for Stream {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Memory(stream) => Pin::new(stream).poll_write(cx, buf),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write(cx, buf),
        }
    }

    fn poll_flush(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_flush(cx),
            Self::Memory(stream) => Pin::new(stream).poll_flush(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_flush(cx),
        }
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Memory(stream) => Pin::new(stream).poll_shutdown(cx),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_shutdown(cx),
        }
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bufs: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        match self.get_mut() {
            Self::Tcp(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Memory(stream) => Pin::new(stream).poll_write_vectored(cx, bufs),
            Self::Tls(stream) => Pin::new(stream.as_mut()).poll_write_vectored(cx, bufs),
        }
    }

    fn is_write_vectored(&self) -> bool {
        match self {
            Self::Tcp(stream) => stream.is_write_vectored(),
            Self::Memory(stream) => stream.is_write_vectored(),
            Self::Tls(stream) => stream.is_write_vectored(),
        }
    }
}
