//! Shared connections: HTTP/2, many exchanges on each.
//!
//! A backend has one connection until its streams are all in use; then there is one more. Who needs a new one waits
//! for whoever is connecting already, so that a burst of requests opens as few as it takes.

use std::collections::HashMap;
use std::fmt;
use std::pin::Pin;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Weak};
use std::task::Poll;
use std::time::Duration;

use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::TrySendError;
use hyper::client::conn::http2::{self, SendRequest};
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use tokio::time::Instant;
use tokio_util::sync::{CancellationToken, DropGuard};

use super::{ClientStream, GREETING, Inner, Meter, Pool};
use crate::address::Address;
use crate::body::Body;
use crate::error::ProxyError;
use crate::upload::Upload;

/// Streams on one connection; with more to do, another is opened. The backend may allow fewer.
const MAX_STREAMS: usize = 100;
/// What a backend may send ahead of its reader, in bytes: on a stream …
const STREAM_WINDOW: u32 = 256 << 10;
/// … and on a connection: enough for all streams, so that no slow reader holds up the others.
const CONNECTION_WINDOW: u32 = STREAM_WINDOW * MAX_STREAMS as u32;
/// What is buffered of a request's body for a slow backend, in bytes.
const SEND_BUFFER: usize = 64 << 10;

type Driver = http2::Connection<TokioIo<ClientStream>, Body, Tasks>;

/// The shared connections of a pool.
#[derive(Debug, Default)]
pub(super) struct Links {
    by_address: HashMap<Address, Spot>,
    sweeping: bool,
}

#[derive(Debug, Default)]
struct Spot {
    links: Vec<Arc<Link>>,
    /// Held by who connects.
    turn: Arc<tokio::sync::Mutex<()>>,
}

impl Links {
    pub(super) fn retain(&mut self, mut keep: impl FnMut(&Address) -> bool) {
        self.by_address.retain(|address, _| keep(address));
    }

    pub(super) fn len(&self) -> usize {
        let links = self.by_address.values().flat_map(|spot| &spot.links);
        links.filter(|link| !link.sender.is_closed()).count()
    }
}

/// One connection. Its tasks end with it: the pool holds it, and each exchange.
struct Link {
    sender: SendRequest<Body>,
    /// `None` once it has ended.
    driver: Arc<Mutex<Option<Driver>>>,
    meter: Arc<Meter>,
    streams: AtomicUsize,
    idle_since: Mutex<Instant>,
    _tasks: DropGuard,
}

impl fmt::Debug for Link {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Link").field("streams", &self.streams).finish_non_exhaustive()
    }
}

impl Link {
    /// Whether the connection takes another stream.
    fn has_room(&self) -> bool {
        let used = self.streams.load(Ordering::Relaxed);
        if used >= MAX_STREAMS || self.sender.is_closed() {
            return false;
        }
        // In use by its own task: it has just proven to be alive, and what is too much for it waits there.
        let Some(driver) = self.driver.try_lock() else { return true };
        driver.as_ref().is_some_and(|driver| used < driver.current_max_send_streams())
    }

    fn enter(self: &Arc<Self>, reused: bool) -> Stream {
        self.streams.fetch_add(1, Ordering::Relaxed);
        Stream { link: Arc::clone(self), upload: None, reused }
    }

    fn is_expired(&self, after: Duration) -> bool {
        self.streams.load(Ordering::Relaxed) == 0 && self.idle_since.lock().elapsed() >= after
    }
}

/// A place for one exchange on a shared connection. Dropping it before the exchange is [finished](Self::finish) ends
/// what is still being sent.
#[derive(Debug)]
pub(crate) struct Stream {
    link: Arc<Link>,
    upload: Option<Upload>,
    reused: bool,
}

impl Stream {
    /// Whether the connection was there before: only then can it be stale.
    pub(crate) fn is_reused(&self) -> bool {
        self.reused
    }

    /// Bytes written to the connection so far, for whichever exchange.
    pub(crate) fn written(&self) -> u64 {
        self.link.meter.traffic().written
    }

    /// Sends the request, whose body `upload` has a hand on.
    pub(crate) async fn send(
        &mut self,
        request: Request<Body>,
        upload: Option<Upload>,
    ) -> Result<Response<Incoming>, TrySendError<Request<Body>>> {
        self.upload = upload;
        self.link.sender.clone().try_send_request(request).await
    }

    /// The backend has answered: the body will not be needed again.
    pub(crate) fn settle(&self) {
        if let Some(upload) = &self.upload {
            upload.settle();
        }
    }

    /// The hand on the body, after a failure.
    pub(crate) fn take_upload(&mut self) -> Option<Upload> {
        self.upload.take()
    }

    /// The response has come to its end. A backend may still read the request.
    pub(crate) fn finish(mut self) {
        self.upload = None;
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        if let Some(upload) = self.upload.take() {
            upload.cut();
        }
        *self.link.idle_since.lock() = Instant::now();
        self.link.streams.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Pool {
    /// A place on a shared connection to `address`, or on a new one, no later than `deadline`.
    pub(crate) async fn stream(
        &self,
        address: &Address,
        deadline: Option<Instant>,
    ) -> Result<Stream, ProxyError> {
        if let Some(stream) = self.free_stream(address) {
            return Ok(stream);
        }
        let begun = Instant::now();
        let turn = self.turn(address);
        let _connecting = match deadline {
            None => turn.lock().await,
            Some(at) => tokio::time::timeout_at(at, turn.lock()).await.map_err(|_| {
                ProxyError::ConnectTimeout { address: address.clone(), elapsed: begun.elapsed() }
            })?,
        };
        if let Some(stream) = self.free_stream(address) {
            return Ok(stream);
        }
        let link = Arc::new(self.connect_shared(address, deadline).await?);
        let stream = link.enter(false);
        self.0.links.lock().by_address.entry(address.clone()).or_default().links.push(link);
        Ok(stream)
    }

    /// What is held by who connects to `address`.
    fn turn(&self, address: &Address) -> Arc<tokio::sync::Mutex<()>> {
        let mut links = self.0.links.lock();
        if !std::mem::replace(&mut links.sweeping, true) {
            tokio::spawn(sweep(Arc::downgrade(&self.0), self.0.options.idle_timeout));
        }
        Arc::clone(&links.by_address.entry(address.clone()).or_default().turn)
    }

    /// The first connection with room: the last ones become idle first.
    fn free_stream(&self, address: &Address) -> Option<Stream> {
        let mut links = self.0.links.lock();
        let spot = links.by_address.get_mut(address)?;
        if spot.links.iter().any(|link| link.sender.is_closed()) {
            spot.links.retain(|link| !link.sender.is_closed());
        }
        spot.links.iter().find(|link| link.has_room()).map(|link| link.enter(true))
    }

    async fn connect_shared(&self, address: &Address, deadline: Option<Instant>) -> Result<Link, ProxyError> {
        let begun = Instant::now();
        let options = &self.0.options;
        let stream = self.open(address, deadline).await?;
        let (mut stream, wire) = ClientStream::new(stream);
        let greeted = stream.first_bytes();
        let stop = CancellationToken::new();
        let tasks = stop.clone().drop_guard();
        let mut builder = http2::Builder::new(Tasks(stop.clone()));
        builder
            .timer(TokioTimer::new())
            .initial_stream_window_size(STREAM_WINDOW)
            .initial_connection_window_size(CONNECTION_WINDOW)
            .max_send_buf_size(SEND_BUFFER)
            .max_header_list_size(u32::try_from(options.max_header_bytes).unwrap_or(u32::MAX))
            .keep_alive_interval(options.ping_interval)
            .keep_alive_timeout(options.ping_timeout);
        let (sender, connection) =
            builder.handshake(TokioIo::new(stream)).await.map_err(ProxyError::Broken)?;
        let driver = Arc::new(Mutex::new(Some(connection)));
        let task = Arc::clone(&driver);
        let run = std::future::poll_fn(move |cx| {
            let mut driver = task.lock();
            let Some(running) = driver.as_mut() else { return Poll::Ready(Ok(())) };
            let ended = std::task::ready!(Pin::new(running).poll(cx));
            // Requests that it has not begun go back to their exchanges.
            let over = driver.take();
            drop((driver, over));
            Poll::Ready(ended)
        });
        tokio::spawn(stop.run_until_cancelled_owned(async move {
            // The exchanges themselves are told about errors.
            if let Err(error) = run.await {
                tracing::debug!(%error, "shared client connection ended");
            }
        }));
        // Not used before the backend has said how many streams it takes.
        let until = deadline.unwrap_or(begun + GREETING);
        match tokio::time::timeout_at(until, greeted).await {
            Ok(Ok(())) => {}
            Ok(Err(_)) => {
                let source = std::io::ErrorKind::UnexpectedEof.into();
                return Err(ProxyError::Connect { address: address.clone(), source });
            }
            Err(_) => {
                return Err(ProxyError::ConnectTimeout {
                    address: address.clone(),
                    elapsed: begun.elapsed(),
                });
            }
        }
        Ok(Link {
            sender,
            driver,
            meter: Arc::clone(&wire.meter),
            streams: AtomicUsize::new(0),
            idle_since: Mutex::new(Instant::now()),
            _tasks: tasks,
        })
    }
}

/// Closes connections that were idle for too long; ends with the last of them, or with the pool.
async fn sweep(pool: Weak<Inner>, idle_timeout: Duration) {
    loop {
        tokio::time::sleep(idle_timeout / 2).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut links = pool.links.lock();
        links.by_address.retain(|_, spot| {
            spot.links.retain(|link| !link.sender.is_closed() && !link.is_expired(idle_timeout));
            // Somebody may be connecting.
            !spot.links.is_empty() || Arc::strong_count(&spot.turn) > 1
        });
        if links.by_address.is_empty() {
            links.sweeping = false;
            return;
        }
    }
}

/// Runs the tasks of one connection until it is let go of.
#[derive(Debug, Clone)]
struct Tasks(CancellationToken);

impl<F> hyper::rt::Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send + 'static,
{
    fn execute(&self, task: F) {
        tokio::spawn(self.0.clone().run_until_cancelled_owned(task));
    }
}
