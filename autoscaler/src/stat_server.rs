//! The websocket server that activators report to.
//!
//! A report is handed on as soon as it is decoded, on the connection's task: nothing queues between the first
//! request for a sleeping revision and its evaluation.

use std::convert::Infallible;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use ember_dataplane::io::{Io, Listener, Stream};
use ember_dataplane::stat::{Stat, WireStatMessages};
use ember_reconcile::cache::Key;
use futures::{SinkExt, StreamExt};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::upgrade::{OnUpgrade, Upgraded};
use hyper_util::rt::{TokioIo, TokioTimer};
use prost::Message as _;
use tokio::sync::Semaphore;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};
use tokio_tungstenite::tungstenite::{Error as WebSocketError, Message};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::bucket::bucket_of_host;
use crate::config::Config;

/// Takes what activators report.
pub trait StatSink: Send + Sync + 'static {
    /// Takes one report; its timestamp is set. Must not block.
    fn accept(&self, revision: Key, stat: Stat);

    /// Whether this replica owns the bucket that a client asks for by host name.
    fn owns_bucket(&self, _bucket: &str) -> bool {
        true
    }
}

struct Shared {
    sink: Arc<dyn StatSink>,
    io: Io,
    idle_timeout: Duration,
    max_message: usize,
    stop: CancellationToken,
    tasks: TaskTracker,
}

/// Serves reports on `listener` until `shutdown`, then tells clients to come back later and waits for them, for at
/// most the configured time.
///
/// # Errors
/// When the listener can no longer accept.
pub async fn serve(
    mut listener: Listener,
    config: &Config,
    io: Io,
    sink: Arc<dyn StatSink>,
    shutdown: CancellationToken,
) -> io::Result<()> {
    let shared = Arc::new(Shared {
        sink,
        io,
        idle_timeout: config.stat_idle_timeout,
        max_message: config.max_stat_message,
        stop: shutdown.child_token(),
        tasks: TaskTracker::new(),
    });
    let places = Arc::new(Semaphore::new(config.max_stat_connections));
    let mut http = http1::Builder::new();
    http.timer(TokioTimer::new()).header_read_timeout(config.header_timeout);
    let result = loop {
        let accepted = tokio::select! {
            () = shutdown.cancelled() => break Ok(()),
            accepted = listener.accept() => accepted,
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) if error.kind() == io::ErrorKind::NotConnected => break Err(error),
            Err(error) => {
                // Out of descriptors, or a client that left at once: neither ends the server.
                tracing::warn!(%error, "a connection to the stats port was not accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
                continue;
            }
        };
        let Ok(place) = Arc::clone(&places).try_acquire_owned() else {
            tracing::warn!("a connection to the stats port was refused: too many are open");
            continue;
        };
        let (connection_shared, http) = (Arc::clone(&shared), http.clone());
        shared.tasks.spawn(async move {
            connection(connection_shared, http, stream).await;
            drop(place);
        });
    };
    drop(listener);
    shared.stop.cancel();
    shared.tasks.close();
    if tokio::time::timeout(config.shutdown_timeout, shared.tasks.wait()).await.is_err() {
        tracing::warn!("some activators' connections did not close in time");
    }
    result
}

async fn connection(shared: Arc<Shared>, http: http1::Builder, stream: Stream) {
    // The upgraded stream is served here, on the connection's own task, once HTTP has let go of it.
    let upgrade = Arc::new(parking_lot::Mutex::new(None::<OnUpgrade>));
    let service = service_fn(|request| {
        let response = respond(&shared, request, &upgrade);
        async move { Ok::<_, Infallible>(response) }
    });
    let mut serving = std::pin::pin!(http.serve_connection(TokioIo::new(stream), service).with_upgrades());
    let ended = tokio::select! {
        ended = serving.as_mut() => ended,
        () = shared.stop.cancelled() => {
            serving.as_mut().graceful_shutdown();
            serving.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "a connection to the stats port broke");
        return;
    }
    let upgrade = upgrade.lock().take();
    if let Some(upgrade) = upgrade
        && let Ok(upgraded) = upgrade.await
    {
        reports(&shared, upgraded).await;
    }
}

fn respond(
    shared: &Shared,
    mut request: Request<Incoming>,
    upgrade: &parking_lot::Mutex<Option<OnUpgrade>>,
) -> Response<Full<Bytes>> {
    let headers = request.headers();
    if is_kubelet_probe(headers) {
        return empty(StatusCode::OK);
    }
    let host = text(headers, &header::HOST);
    if let Some(bucket) = bucket_of_host(host)
        && !shared.sink.owns_bucket(bucket)
    {
        return empty(StatusCode::OK);
    }
    let Some(key) = websocket_key(&request) else { return empty(StatusCode::BAD_REQUEST) };
    if let Some(origin) = headers.get(header::ORIGIN)
        && !same_host(origin, host)
    {
        return empty(StatusCode::FORBIDDEN);
    }
    let accept = derive_accept_key(key.as_bytes());
    let mut response = empty(StatusCode::SWITCHING_PROTOCOLS);
    let answer = response.headers_mut();
    answer.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
    answer.insert(header::UPGRADE, HeaderValue::from_static("websocket"));
    match HeaderValue::from_str(&accept) {
        Ok(accept) => answer.insert(header::SEC_WEBSOCKET_ACCEPT, accept),
        Err(_) => return empty(StatusCode::BAD_REQUEST),
    };
    *upgrade.lock() = Some(hyper::upgrade::on(&mut request));
    response
}

fn empty(status: StatusCode) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    *response.status_mut() = status;
    response
}

fn text<'a>(headers: &'a HeaderMap, name: &header::HeaderName) -> &'a str {
    headers.get(name).and_then(|v| v.to_str().ok()).unwrap_or_default()
}

fn is_kubelet_probe(headers: &HeaderMap) -> bool {
    text(headers, &header::USER_AGENT).starts_with("kube-probe/")
        || headers.get("K-Kubelet-Probe").is_some_and(|v| !v.is_empty())
}

/// The client's key, if the request asks for a websocket.
fn websocket_key(request: &Request<Incoming>) -> Option<String> {
    let headers = request.headers();
    let has_token = |name, token: &str| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|v| v.to_str().ok())
            .flat_map(|v| v.split(','))
            .any(|v| v.trim().eq_ignore_ascii_case(token))
    };
    let upgrade = request.method() == http::Method::GET
        && has_token(header::CONNECTION, "upgrade")
        && has_token(header::UPGRADE, "websocket")
        && text(headers, &header::SEC_WEBSOCKET_VERSION) == "13";
    let key = text(headers, &header::SEC_WEBSOCKET_KEY);
    (upgrade && !key.is_empty()).then(|| key.to_owned())
}

fn same_host(origin: &HeaderValue, host: &str) -> bool {
    let origin = origin.to_str().ok().and_then(|o| o.parse::<http::Uri>().ok());
    origin.and_then(|o| o.authority().map(|a| a.as_str().eq_ignore_ascii_case(host))).unwrap_or(false)
}

async fn reports(shared: &Shared, upgraded: Upgraded) {
    let limits = WebSocketConfig::default()
        .read_buffer_size(8 << 10)
        .max_message_size(Some(shared.max_message))
        .max_frame_size(Some(shared.max_message));
    let mut socket =
        WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, Some(limits)).await;
    loop {
        let received = tokio::select! {
            () = shared.stop.cancelled() => {
                return say_goodbye(socket).await;
            }
            received = tokio::time::timeout(shared.idle_timeout, socket.next()) => received,
        };
        match received {
            Ok(Some(Ok(Message::Binary(report)))) => take(shared, &report),
            Ok(Some(Ok(Message::Text(_)))) => tracing::debug!("a text message on the stats port was dropped"),
            // Pings are answered by the library when it is polled next.
            Ok(Some(Ok(_))) => {}
            Ok(Some(Err(WebSocketError::ConnectionClosed)) | None) => return,
            Ok(Some(Err(error))) => {
                tracing::debug!(%error, "an activator's connection broke");
                return;
            }
            Err(_) => {
                tracing::debug!("an activator's connection was silent for too long");
                return;
            }
        }
    }
}

async fn say_goodbye(mut socket: WebSocketStream<TokioIo<Upgraded>>) {
    let frame = CloseFrame { code: CloseCode::Restart, reason: "Restarting".into() };
    if socket.send(Message::Close(Some(frame))).await.is_ok() {
        // The client's own close frame, or the end of its stream; the server's deadline bounds the wait.
        while let Some(Ok(_)) = socket.next().await {}
    }
}

fn take(shared: &Shared, report: &[u8]) {
    let report = match WireStatMessages::decode(report) {
        Ok(report) => report,
        Err(error) => {
            tracing::warn!(%error, "a report cannot be read");
            return;
        }
    };
    let received = i64::try_from(shared.io.clock.now().as_secs()).unwrap_or(i64::MAX);
    for message in report.messages {
        let Some(mut stat) = message.stat else { continue };
        if stat.timestamp == 0 {
            stat.timestamp = received;
        }
        shared.sink.accept(Key::new(message.namespace, message.name), stat);
    }
}
