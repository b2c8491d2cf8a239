//! The two ways in: TLS connections, and a `kube::Client` without sockets.

use std::convert::Infallible;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::{HeaderMap, Request, Response, header};
use http_body::Body as _;
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::api::{self, Api, Caller};
use crate::body::Body;
use crate::credentials::Credentials;
use crate::status::ApiError;

/// A client has this long to finish its handshake, and to send a request's head.
const HANDSHAKE_TIMEOUT: Duration = Duration::from_secs(10);
/// Requests in flight at shutdown have this long.
const DRAIN: Duration = Duration::from_secs(5);
/// Connections at once.
const CONNECTIONS: usize = 1024;
/// After an accept that failed (no file descriptors left), the next one waits.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);
/// Who everybody with the token is.
const USER: &str = "kubernetes-admin";

/// Serves TLS connections until `shutdown`, then lets requests finish.
pub(crate) async fn serve(
    api: Arc<Api>,
    credentials: Arc<Credentials>,
    listener: TcpListener,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(credentials.tls());
    let connections = TaskTracker::new();
    let slots = Arc::new(tokio::sync::Semaphore::new(CONNECTIONS));
    let abort = CancellationToken::new();
    loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break,
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = slots.clone().try_acquire_owned() else {
            tracing::warn!("too many connections to the API; one was closed");
            continue;
        };
        let connection =
            connect(api.clone(), credentials.clone(), acceptor.clone(), stream, shutdown.clone());
        let abort = abort.clone();
        connections.spawn(async move {
            tokio::select! {
                () = connection => {}
                () = abort.cancelled() => {}
            }
            drop(slot);
        });
    }
    connections.close();
    if tokio::time::timeout(DRAIN, connections.wait()).await.is_err() {
        abort.cancel();
        connections.wait().await;
    }
}

async fn connect(
    api: Arc<Api>,
    credentials: Arc<Credentials>,
    acceptor: TlsAcceptor,
    stream: TcpStream,
    shutdown: CancellationToken,
) {
    // Small writes are events and answers that somebody waits for.
    let _ = stream.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_TIMEOUT, acceptor.accept(stream)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => {
            tracing::debug!(%error, "TLS handshake failed");
            return;
        }
        Err(_) => return,
    };
    let caller = Caller { user: USER.to_owned(), local: false, stop: shutdown.clone() };
    let service = service_fn(move |request: Request<Incoming>| {
        let (api, credentials, caller) = (api.clone(), credentials.clone(), caller.clone());
        async move {
            let authorization = request.headers().get(header::AUTHORIZATION).and_then(|v| v.to_str().ok());
            if !credentials.admits(authorization) {
                return Ok::<_, Infallible>(unread(&request, &ApiError::unauthorized()));
            }
            if let Some(error) = impersonation(request.headers()) {
                return Ok(unread(&request, &error));
            }
            Ok(Box::pin(api.handle(request, &caller)).await)
        }
    });
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HANDSHAKE_TIMEOUT);
    builder.http2().timer(TokioTimer::new()).max_concurrent_streams(250);
    let connection = builder.serve_connection(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let result = tokio::select! {
        result = connection.as_mut() => result,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = result {
        tracing::debug!(%error, "connection ended");
    }
}

/// A refusal of a request that nobody has looked into.
fn unread(request: &Request<Incoming>, error: &ApiError) -> Response<Body> {
    let response = api::failure(error);
    if request.body().is_end_stream() { response } else { api::last(response, request.version()) }
}

/// There is one user. Whoever asks to be another is told so, and does not act as the one there is.
fn impersonation(headers: &HeaderMap) -> Option<ApiError> {
    let (name, value) = headers.iter().find(|(name, _)| name.as_str().starts_with("impersonate-"))?;
    let what = match name.as_str() {
        "impersonate-user" => "users",
        "impersonate-group" => "groups",
        "impersonate-uid" => "uids",
        _ => "userextras",
    };
    Some(ApiError::impersonation(what, &String::from_utf8_lossy(value.as_bytes()), USER))
}

/// The tower service behind the in-process client.
#[derive(Clone)]
pub(crate) struct Local {
    pub api: Arc<Api>,
    pub caller: Caller,
}

impl tower::Service<Request<kube::client::Body>> for Local {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = BoxFuture<'static, Result<Self::Response, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<kube::client::Body>) -> Self::Future {
        let Self { api, caller } = self.clone();
        Box::pin(async move { Ok(api.handle(request, &caller).await) })
    }
}
