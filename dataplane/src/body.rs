//! The one body type of requests and responses.
//!
//! A body streams. It can carry guards (a permit, a count, a connection to give back) that live exactly as long as
//! the exchange: until the last byte, until the client is gone, or until the upgraded stream has ended.

use std::fmt;
use std::future::Future as _;
use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use http_body::{Body as _, Frame, SizeHint};
use http_body_util::BodyExt;
use http_body_util::combinators::BoxBody;
use hyper::body::Incoming;
use tokio::sync::oneshot;
use tokio::time::{Instant, Sleep};

use crate::pool::{Lease, Stream};
use crate::server::Conn;
use crate::timeout::{Deadlines, Expired};
use crate::upgrade::Tunnel;
use crate::upload::{Replay, Sending};

/// What a body fails with.
pub type Error = Box<dyn std::error::Error + Send + Sync>;

/// A guard: dropped when the exchange is over.
pub(crate) type Guard = Box<dyn std::any::Any + Send + Sync>;

/// How long a client that expects `100 Continue` waits for the backend's before its body is asked for anyway.
const CONTINUE_WAIT: Duration = Duration::from_secs(1);

/// A streaming body. See the module documentation.
#[derive(Default)]
pub struct Body {
    kind: Kind,
    limit: Option<Box<Limit>>,
    guards: Vec<Guard>,
    count: Option<Arc<AtomicU64>>,
}

#[derive(Default)]
enum Kind {
    #[default]
    Empty,
    Full(Bytes),
    Incoming(Incoming),
    /// What a client sends.
    Received(Box<Received>),
    /// A backend's response; the connection goes back to its pool at the end.
    Leased(Box<Leased>),
    /// Held back until the backend agrees or a short wait is over.
    Continue(Box<Continue>),
    /// Sent over a shared connection while the exchange has a hand on it.
    Sending(Sending),
    /// Sent in part before.
    Replay(Box<Replay>),
    /// A component's own stream.
    Boxed(BoxBody<Bytes, Error>),
    /// Empty; the exchange goes on as an upgraded stream.
    Upgraded(Arc<Tunnel>),
}

struct Leased {
    body: Incoming,
    lease: Option<Held>,
}

/// What an exchange has of a connection to its backend.
pub(crate) enum Held {
    /// All of it.
    Connection(Lease),
    /// A stream.
    Stream(Stream),
}

impl From<Lease> for Held {
    fn from(lease: Lease) -> Self {
        Self::Connection(lease)
    }
}

impl From<Stream> for Held {
    fn from(stream: Stream) -> Self {
        Self::Stream(stream)
    }
}

/// Tells the client's connection when nobody waits for more of the request.
struct Received {
    body: Incoming,
    conn: Arc<Conn>,
}

impl Drop for Received {
    fn drop(&mut self) {
        self.conn.stop_receiving();
    }
}

struct Continue {
    held: bool,
    agreed: Option<oneshot::Receiver<()>>,
    sleep: Pin<Box<Sleep>>,
    body: Body,
}

struct Limit {
    deadlines: Deadlines,
    text: &'static str,
    written: Instant,
    sleep: Option<Pin<Box<Sleep>>>,
    conn: Option<Arc<Conn>>,
}

impl Drop for Limit {
    fn drop(&mut self) {
        if let Some(conn) = &self.conn {
            conn.cut_writes_at(None);
        }
    }
}

impl Body {
    /// No bytes.
    #[must_use]
    pub fn empty() -> Self {
        Self::default()
    }

    /// Known bytes.
    #[must_use]
    pub fn full(bytes: impl Into<Bytes>) -> Self {
        let bytes = bytes.into();
        if bytes.is_empty() { Self::empty() } else { Kind::Full(bytes).into() }
    }

    /// A stream of the caller's own.
    pub fn stream<B>(body: B) -> Self
    where
        B: http_body::Body<Data = Bytes> + Send + Sync + 'static,
        B::Error: Into<Error>,
    {
        Kind::Boxed(body.map_err(Into::into).boxed()).into()
    }

    /// The body of a request that came by `conn`.
    pub(crate) fn received(body: Incoming, conn: &Arc<Conn>) -> Self {
        conn.begin_receiving(!body.is_end_stream());
        if body.is_end_stream() {
            return Self::empty();
        }
        Kind::Received(Box::new(Received { body, conn: Arc::clone(conn) })).into()
    }

    pub(crate) fn leased(body: Incoming, lease: impl Into<Held>) -> Self {
        Kind::Leased(Box::new(Leased { body, lease: Some(lease.into()) })).into()
    }

    pub(crate) fn sending(body: Sending) -> Self {
        Kind::Sending(body).into()
    }

    pub(crate) fn replay(body: Replay) -> Self {
        Kind::Replay(Box::new(body)).into()
    }

    pub(crate) fn upgraded(tunnel: Arc<Tunnel>) -> Self {
        // What counts is what the stream brings the client.
        let count = Some(tunnel.count());
        Self { count, ..Kind::Upgraded(tunnel).into() }
    }

    /// Holds the body back until `agreed` is told, at most for the customary second. Who can no longer agree has
    /// answered otherwise, or is gone: then nobody is to be asked for a body meanwhile.
    pub(crate) fn after_continue(mut self, agreed: oneshot::Receiver<()>) -> Self {
        // What was held back for another connection is held back anew.
        let body = match &mut self.kind {
            Kind::Continue(held) => std::mem::take(&mut held.body),
            _ => self,
        };
        let sleep = Box::pin(tokio::time::sleep(CONTINUE_WAIT));
        Kind::Continue(Box::new(Continue { held: true, agreed: Some(agreed), sleep, body })).into()
    }

    /// Keeps `guard` until the exchange is over: the body's end or drop, or the end of the upgraded stream.
    pub fn attach(&mut self, guard: impl Send + Sync + 'static) {
        match &self.kind {
            Kind::Upgraded(tunnel) => tunnel.attach(Box::new(guard)),
            _ => self.guards.push(Box::new(guard)),
        }
    }

    /// Holds the rest of the exchange to `deadlines`. When one runs out, a body of unknown length ends with `text`
    /// appended, and one of known length breaks off; an upgraded stream is closed. `conn` is the client's
    /// connection: a client that stops reading is cut off at the end of the whole request.
    pub fn limit(&mut self, deadlines: Deadlines, text: &'static str, conn: Option<&Arc<Conn>>) {
        if deadlines.is_unlimited() {
            return;
        }
        if let Kind::Upgraded(tunnel) = &self.kind {
            tunnel.limit(deadlines);
            return;
        }
        // What is known whole has nothing to wait for.
        if self.is_end_stream() || matches!(self.kind, Kind::Full(_)) {
            return;
        }
        if let (Some(conn), Some(total)) = (conn, deadlines.total()) {
            conn.cut_writes_at(Some(total));
        }
        let conn = conn.cloned();
        self.limit = Some(Box::new(Limit { deadlines, text, written: Instant::now(), sleep: None, conn }));
    }

    /// Adds the bytes that pass to the number returned, from now on. It may be read at any time.
    pub fn count(&mut self) -> Arc<AtomicU64> {
        Arc::clone(self.count.get_or_insert_default())
    }

    /// Reads everything, at most `limit` bytes.
    ///
    /// # Errors
    /// The stream broke, or is longer.
    pub async fn collect(self, limit: usize) -> Result<Bytes, Error> {
        Ok(http_body_util::Limited::new(self, limit).collect().await?.to_bytes())
    }

    fn poll_kind(&mut self, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        match &mut self.kind {
            Kind::Empty | Kind::Upgraded(_) => Poll::Ready(None),
            Kind::Full(_) => {
                let Kind::Full(bytes) = std::mem::take(&mut self.kind) else { return Poll::Ready(None) };
                Poll::Ready(Some(Ok(Frame::data(bytes))))
            }
            Kind::Incoming(body) => Pin::new(body).poll_frame(cx).map_err(Into::into),
            Kind::Received(received) => {
                let polled = Pin::new(&mut received.body).poll_frame(cx);
                let last = match &polled {
                    Poll::Pending | Poll::Ready(Some(Err(_))) => false,
                    Poll::Ready(Some(Ok(frame))) => frame.is_trailers() || received.body.is_end_stream(),
                    Poll::Ready(None) => true,
                };
                if last {
                    received.conn.received_all();
                }
                if let Poll::Ready(Some(Err(error))) = &polled
                    && is_malformed(error)
                {
                    received.conn.receive_garbage();
                }
                polled.map_err(Into::into)
            }
            Kind::Leased(leased) => {
                let polled = Pin::new(&mut leased.body).poll_frame(cx);
                match &polled {
                    Poll::Pending => {}
                    Poll::Ready(Some(Err(_))) => leased.lease = None,
                    Poll::Ready(frame) => {
                        let last = match frame {
                            Some(Ok(frame)) => frame.is_trailers(),
                            _ => true,
                        };
                        if last || leased.body.is_end_stream() {
                            leased.give_back();
                        }
                    }
                }
                polled.map_err(Into::into)
            }
            Kind::Continue(held) => {
                if held.held {
                    let told = held.agreed.as_mut().map_or(Poll::Pending, |agreed| Pin::new(agreed).poll(cx));
                    if told.is_ready() {
                        held.agreed = None;
                    }
                    let agreed = matches!(told, Poll::Ready(Ok(())));
                    if !agreed && held.sleep.as_mut().poll(cx).is_pending() {
                        return Poll::Pending;
                    }
                    held.held = false;
                }
                Pin::new(&mut held.body).poll_frame(cx)
            }
            Kind::Sending(body) => body.poll_frame(cx),
            Kind::Replay(body) => body.poll_frame(cx),
            Kind::Boxed(body) => Pin::new(body).poll_frame(cx),
        }
    }
}

/// Whether a client's body broke because it is not what HTTP/1 knows as one, and not because the client is gone.
fn is_malformed(error: &hyper::Error) -> bool {
    use std::error::Error as _;
    let source = error.source().and_then(|source| source.downcast_ref::<io::Error>());
    source
        .is_some_and(|error| matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::InvalidData))
}

impl Leased {
    fn give_back(&mut self) {
        match self.lease.take() {
            Some(Held::Connection(lease)) => lease.give_back(),
            Some(Held::Stream(stream)) => stream.finish(),
            None => {}
        }
    }
}

impl Limit {
    /// Whether a timer has run out; registers for the next one if not.
    fn poll_expired(&mut self, cx: &mut Context<'_>) -> Poll<Expired> {
        let Some((at, expired)) = self.deadlines.next(Some(self.written)) else { return Poll::Pending };
        let sleep = match &mut self.sleep {
            Some(sleep) => {
                if sleep.deadline() != at {
                    sleep.as_mut().reset(at);
                }
                sleep
            }
            None => self.sleep.insert(Box::pin(tokio::time::sleep_until(at))),
        };
        sleep.as_mut().poll(cx).map(|()| expired)
    }
}

impl http_body::Body for Body {
    type Data = Bytes;
    type Error = Error;

    fn poll_frame(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
    ) -> Poll<Option<Result<Frame<Bytes>, Error>>> {
        let this = &mut *self;
        let polled = this.poll_kind(cx);
        if let (Some(count), Poll::Ready(Some(Ok(frame)))) = (&this.count, &polled) {
            let length = frame.data_ref().map_or(0, Bytes::len);
            count.fetch_add(length as u64, Ordering::Relaxed);
        }
        let Some(limit) = &mut this.limit else { return polled };
        let expired = match &polled {
            Poll::Ready(Some(Ok(_))) => {
                limit.written = Instant::now();
                // A backend that never pauses must not outrun the end of the request.
                match limit.deadlines.next(Some(limit.written)) {
                    Some((at, expired)) if at <= limit.written => expired,
                    _ => return polled,
                }
            }
            Poll::Ready(_) => return polled,
            Poll::Pending => match limit.poll_expired(cx) {
                Poll::Ready(expired) => expired,
                Poll::Pending => return Poll::Pending,
            },
        };
        let text = limit.text;
        // What is still to be written is held to the end of the whole request all the same.
        limit.conn = None;
        let unknown_length = this.kind_size().exact().is_none();
        tracing::debug!("{expired}");
        if let (Some(count), true) = (&this.count, unknown_length) {
            count.fetch_add(text.len() as u64, Ordering::Relaxed);
        }
        *this = Self::empty();
        if unknown_length {
            Poll::Ready(Some(Ok(Frame::data(Bytes::from_static(text.as_bytes())))))
        } else {
            Poll::Ready(Some(Err(expired.into())))
        }
    }

    fn is_end_stream(&self) -> bool {
        match &self.kind {
            Kind::Empty | Kind::Upgraded(_) => true,
            Kind::Full(_) => false,
            Kind::Incoming(body) => body.is_end_stream(),
            Kind::Received(received) => received.body.is_end_stream(),
            Kind::Leased(leased) => leased.body.is_end_stream(),
            Kind::Continue(held) => held.body.is_end_stream(),
            Kind::Sending(body) => body.is_end_stream(),
            Kind::Replay(body) => body.is_end_stream(),
            Kind::Boxed(body) => body.is_end_stream(),
        }
    }

    fn size_hint(&self) -> SizeHint {
        self.kind_size()
    }
}

impl Body {
    fn kind_size(&self) -> SizeHint {
        match &self.kind {
            Kind::Empty | Kind::Upgraded(_) => SizeHint::with_exact(0),
            Kind::Full(bytes) => SizeHint::with_exact(bytes.len() as u64),
            Kind::Incoming(body) => body.size_hint(),
            Kind::Received(received) => received.body.size_hint(),
            Kind::Leased(leased) => leased.body.size_hint(),
            Kind::Continue(held) => held.body.size_hint(),
            Kind::Sending(body) => body.size_hint(),
            Kind::Replay(body) => body.size_hint(),
            Kind::Boxed(body) => body.size_hint(),
        }
    }
}

impl From<Kind> for Body {
    fn from(kind: Kind) -> Self {
        Self { kind, limit: None, guards: Vec::new(), count: None }
    }
}

impl From<Incoming> for Body {
    fn from(body: Incoming) -> Self {
        if body.is_end_stream() { Self::empty() } else { Kind::Incoming(body).into() }
    }
}

impl From<Bytes> for Body {
    fn from(bytes: Bytes) -> Self {
        Self::full(bytes)
    }
}

impl From<&'static str> for Body {
    fn from(text: &'static str) -> Self {
        Self::full(text)
    }
}

impl From<String> for Body {
    fn from(text: String) -> Self {
        Self::full(text)
    }
}

impl fmt::Debug for Body {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match &self.kind {
            Kind::Empty => "empty",
            Kind::Full(_) => "full",
            Kind::Incoming(_) => "incoming",
            Kind::Received(_) => "received",
            Kind::Leased(_) => "leased",
            Kind::Continue(_) => "continue",
            Kind::Sending(_) => "sending",
            Kind::Replay(_) => "replay",
            Kind::Boxed(_) => "boxed",
            Kind::Upgraded(_) => "upgraded",
        };
        f.debug_struct("Body")
            .field("kind", &kind)
            .field("guards", &self.guards.len())
            .finish_non_exhaustive()
    }
}
