//! The clients: each sends one request after another, of all shapes, and checks the answers.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context, ensure};
use bytes::Bytes;
use futures::{StreamExt, stream};
use hdrhistogram::Histogram;
use http::{Request, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty, Full, StreamBody};
use hyper::body::Frame;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::time::{Instant, timeout};
use tokio_util::task::AbortOnDropHandle;

use super::app::{END, ID, LENGTH, PAUSE, PIECES, pattern};
use super::cluster::HOST;
use super::ledger::{Event, Ledger, Method};

/// How long an answer may take: far longer than anything that is done to the system.
const ANSWER_WITHIN: Duration = Duration::from_secs(60);
/// Bytes of a piece of a body that is sent in pieces.
const PIECE: usize = 8 << 10;

type RequestBody = UnsyncBoxBody<Bytes, Infallible>;

/// What all clients share.
#[derive(Debug)]
pub(super) struct Load {
    pub(super) gateway: SocketAddr,
    pub(super) ledger: Arc<Ledger>,
    pub(super) stop: AtomicBool,
    next_id: AtomicU64,
    /// The mean time between two requests of one client, from start to start where answers come in time.
    interval: Duration,
}

/// What a client has seen.
#[derive(Debug)]
pub(super) struct Seen {
    /// Microseconds from before a connection is made to the last byte of the answer.
    pub(super) latencies: Histogram<u64>,
    pub(super) connections: u64,
}

/// A connection to the gateway.
#[derive(Debug)]
struct Connection {
    sender: SendRequest<RequestBody>,
    _task: AbortOnDropHandle<()>,
}

impl Connection {
    async fn open(gateway: SocketAddr) -> anyhow::Result<Self> {
        let stream = TcpStream::connect(gateway).await?;
        stream.set_nodelay(true)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
        let task = tokio::spawn(async move {
            // The exchange itself is told about errors.
            let _ = connection.await;
        });
        Ok(Self { sender, _task: AbortOnDropHandle::new(task) })
    }
}

/// A request as it will be.
#[derive(Debug, Clone, Copy)]
struct Shape {
    method: Method,
    /// On the connection of the one before.
    kept: bool,
    length: usize,
    /// The body's length is not said ahead.
    in_pieces: bool,
    pause_ms: u64,
    pieces: u64,
}

impl Shape {
    fn random() -> Self {
        let percent = |share: u8| fastrand::u8(..100) < share;
        let method = if percent(50) { Method::Get } else { Method::Post };
        let length = match (method, fastrand::u8(..10)) {
            (Method::Get, _) => 0,
            (Method::Post, 0..6) => fastrand::usize(1..200),
            (Method::Post, 6..9) => fastrand::usize(1000..40_000),
            (Method::Post, _) => fastrand::usize(60_000..250_000),
        };
        Self {
            method,
            kept: percent(75),
            length,
            in_pieces: length > PIECE && percent(50),
            pause_ms: if percent(3) { fastrand::u64(20..400) } else { 0 },
            pieces: if percent(2) { fastrand::u64(1..20) } else { 0 },
        }
    }

    fn words(self) -> String {
        let Self { length, in_pieces, pause_ms, pieces, .. } = self;
        format!("body {length} (in pieces: {in_pieces}), pause {pause_ms} ms, answer in {pieces} pieces")
    }

    fn request(self, id: u64) -> anyhow::Result<Request<RequestBody>> {
        let method = match self.method {
            Method::Get => http::Method::GET,
            Method::Post => http::Method::POST,
        };
        let bytes: Bytes = (0..self.length).map(|at| pattern(id, at)).collect();
        let body = if self.length == 0 {
            Empty::new().boxed_unsync()
        } else if self.in_pieces {
            let pieces = stream::unfold(bytes, |mut rest| async move {
                if rest.is_empty() {
                    return None;
                }
                let piece = rest.split_to(PIECE.min(rest.len()));
                tokio::time::sleep(Duration::from_millis(fastrand::u64(0..4))).await;
                Some((Ok(Frame::data(piece)), rest))
            });
            StreamBody::new(pieces.boxed()).boxed_unsync()
        } else {
            Full::from(bytes).boxed_unsync()
        };
        let request = Request::builder()
            .method(method)
            .uri("/")
            .header(header::HOST, HOST)
            .header(ID, id)
            .header(LENGTH, self.length)
            .header(PAUSE, self.pause_ms)
            .header(PIECES, self.pieces);
        Ok(request.body(body)?)
    }
}

impl Load {
    pub(super) fn new(gateway: SocketAddr, ledger: Arc<Ledger>, interval: Duration) -> Self {
        Self { gateway, ledger, stop: AtomicBool::new(false), next_id: AtomicU64::new(1), interval }
    }

    /// One client: requests until it is told to stop, and the last one's answer.
    pub(super) async fn client(self: Arc<Self>) -> anyhow::Result<Seen> {
        let mut seen = Seen { latencies: Histogram::new(3)?, connections: 0 };
        let mut kept: Option<Connection> = None;
        while !self.stop.load(Ordering::Relaxed) {
            let begun = Instant::now();
            let shape = Shape::random();
            let id = self.next_id.fetch_add(1, Ordering::Relaxed);
            self.ledger.open(id, shape.method, shape.words());
            let exchange = self.exchange(id, shape, &mut kept, &mut seen.connections);
            let event = match timeout(ANSWER_WITHIN, exchange).await {
                Ok(Ok(())) => Event::Answered,
                Ok(Err(error)) => Event::Failed(format!("{error:#}")),
                Err(_) => Event::Failed(format!("no answer after {ANSWER_WITHIN:?}")),
            };
            if event != Event::Answered {
                kept = None;
            }
            self.ledger.record(id, event);
            let took = begun.elapsed();
            seen.latencies.record(u64::try_from(took.as_micros())?)?;
            // From nothing to twice the mean, so that clients do not fall into step.
            let until = begun + self.interval.mul_f64(fastrand::f64() * 2.0);
            tokio::time::sleep_until(until).await;
        }
        Ok(seen)
    }

    async fn exchange(
        &self,
        id: u64,
        shape: Shape,
        kept: &mut Option<Connection>,
        connections: &mut u64,
    ) -> anyhow::Result<()> {
        let request = shape.request(id)?;
        // A kept connection that has ended meanwhile is no use; the gateway says so before it ends one.
        let usable = match kept.take().filter(|_| shape.kept) {
            Some(mut connection) => connection.sender.ready().await.is_ok().then_some(connection),
            None => None,
        };
        let reused = usable.is_some();
        let mut connection = match usable {
            Some(connection) => connection,
            None => {
                *connections += 1;
                Connection::open(self.gateway).await.context("connecting to the gateway")?
            }
        };
        self.ledger.record(id, Event::Sent { kept: reused });
        let response = connection.sender.send_request(request).await?;
        let status = response.status();
        let close = response.headers().get(header::CONNECTION).is_some_and(|value| value == "close");
        let body = response.into_body().collect().await.context("the answer's body")?.to_bytes();
        let text = String::from_utf8_lossy(&body);
        ensure!(status == StatusCode::OK, "{status}: {text}");
        let own = text.split(' ').next().is_some_and(|first| first == id.to_string());
        ensure!(own, "the answer of another request: {text}");
        ensure!(text.ends_with(END), "an answer without an end: {text}");
        if shape.kept && !close {
            *kept = Some(connection);
        }
        Ok(())
    }
}
