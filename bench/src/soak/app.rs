//! The app of a pod: answers each request with its id, and writes down what it has seen.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::{StreamExt, stream};
use http::{HeaderMap, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::ledger::{Event, Ledger};

/// The request's number.
pub(super) const ID: &str = "x-soak-id";
/// Bytes of its body.
pub(super) const LENGTH: &str = "x-soak-length";
/// How long the app takes until it answers, in milliseconds.
pub(super) const PAUSE: &str = "x-soak-pause";
/// In how many pieces it answers, [`BETWEEN`] one another.
pub(super) const PIECES: &str = "x-soak-pieces";
/// The last line of an answer.
pub(super) const END: &str = "end\n";

type Answer = UnsyncBoxBody<Bytes, Infallible>;

const BETWEEN: Duration = Duration::from_millis(20);

/// A running app.
#[derive(Debug)]
pub(super) struct App {
    inner: Arc<Inner>,
    killed: CancellationToken,
    tasks: TaskTracker,
}

#[derive(Debug)]
struct Inner {
    pod: Arc<str>,
    ledger: Arc<Ledger>,
    in_flight: AtomicUsize,
}

/// What byte stands where in the body of a request.
#[expect(clippy::cast_possible_truncation, reason = "any byte will do that depends on both")]
pub(super) fn pattern(id: u64, at: usize) -> u8 {
    (id as usize).wrapping_mul(31).wrapping_add(at) as u8
}

impl App {
    /// Listens on `address` until it is killed.
    pub(super) async fn start(
        address: SocketAddr,
        pod: Arc<str>,
        ledger: Arc<Ledger>,
    ) -> std::io::Result<Self> {
        let listener = TcpListener::bind(address).await?;
        let app = Self {
            inner: Arc::new(Inner { pod, ledger, in_flight: AtomicUsize::new(0) }),
            killed: CancellationToken::new(),
            tasks: TaskTracker::new(),
        };
        let (inner, killed, tasks) = (Arc::clone(&app.inner), app.killed.clone(), app.tasks.clone());
        app.tasks.spawn(async move {
            loop {
                let accepted = tokio::select! {
                    () = killed.cancelled() => return,
                    accepted = listener.accept() => accepted,
                };
                // A connection that failed before it was accepted concerns its client alone.
                let Ok((stream, _)) = accepted else { continue };
                let (inner, killed) = (Arc::clone(&inner), killed.clone());
                tasks.spawn(async move {
                    let service = service_fn(|request| {
                        let inner = Arc::clone(&inner);
                        async move { Ok::<_, Infallible>(inner.answer(request).await) }
                    });
                    let _ = stream.set_nodelay(true);
                    let serving = http1::Builder::new().serve_connection(TokioIo::new(stream), service);
                    tokio::select! {
                        () = killed.cancelled() => {}
                        // Whoever broke it off has been written down.
                        _ = serving => {}
                    }
                });
            }
        });
        Ok(app)
    }

    /// Requests it has not answered to the end.
    pub(super) fn in_flight(&self) -> usize {
        self.inner.in_flight.load(Ordering::SeqCst)
    }

    /// Ends as a process ends that does not mind its requests.
    pub(super) async fn kill(&self) {
        self.killed.cancel();
        self.tasks.close();
        self.tasks.wait().await;
    }
}

/// Counts a request in, and writes down how it ends.
struct Execution {
    id: u64,
    app: Arc<Inner>,
    finished: bool,
}

impl Drop for Execution {
    fn drop(&mut self) {
        let pod = Arc::clone(&self.app.pod);
        let event = if self.finished { Event::Finished(pod) } else { Event::Cut(pod) };
        self.app.ledger.record(self.id, event);
        self.app.in_flight.fetch_sub(1, Ordering::SeqCst);
    }
}

fn number(headers: &HeaderMap, name: &str) -> Option<u64> {
    headers.get(name)?.to_str().ok()?.parse().ok()
}

impl Inner {
    async fn answer(self: Arc<Self>, request: Request<Incoming>) -> Response<Answer> {
        let headers = request.headers();
        let Some(id) = number(headers, ID) else {
            return refusal(StatusCode::BAD_REQUEST, "a request without an id\n".to_owned());
        };
        // From here on it counts: an app may act on a request as soon as it sees it.
        self.ledger.record(id, Event::Started(Arc::clone(&self.pod)));
        self.in_flight.fetch_add(1, Ordering::SeqCst);
        let mut execution = Execution { id, app: Arc::clone(&self), finished: false };
        let length = number(headers, LENGTH).and_then(|length| usize::try_from(length).ok()).unwrap_or(0);
        let pause = Duration::from_millis(number(headers, PAUSE).unwrap_or(0));
        let pieces = number(headers, PIECES).unwrap_or(0);
        let body = match request.into_body().collect().await {
            Ok(body) => body.to_bytes(),
            Err(error) => return refusal(StatusCode::BAD_REQUEST, format!("a body cut short: {error}\n")),
        };
        let intact =
            body.len() == length && body.iter().enumerate().all(|(at, byte)| *byte == pattern(id, at));
        if !intact {
            let text = format!("a body of {} bytes that is not the one of {length} sent\n", body.len());
            return refusal(StatusCode::BAD_REQUEST, text);
        }
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let head = format!("{id} {}\n", self.pod);
        if pieces == 0 {
            // Whether the client gets it, the client says.
            execution.finished = true;
            return Response::new(Full::from(head + END).boxed_unsync());
        }
        // The execution lives in the body: it ends with its last piece, or when it is dropped before.
        let rest = stream::unfold((execution, pieces), |(mut execution, left)| async move {
            let left = left.checked_sub(1)?;
            tokio::time::sleep(BETWEEN).await;
            execution.finished = left == 0;
            let text = if left == 0 { END.to_owned() } else { format!("{left}\n") };
            Some((Ok(Frame::data(Bytes::from(text))), (execution, left)))
        });
        let first = stream::iter([Ok(Frame::data(Bytes::from(head)))]);
        Response::new(StreamBody::new(first.chain(rest)).boxed_unsync())
    }
}

fn refusal(status: StatusCode, text: String) -> Response<Answer> {
    let mut response = Response::new(Full::from(text).boxed_unsync());
    *response.status_mut() = status;
    response
}
