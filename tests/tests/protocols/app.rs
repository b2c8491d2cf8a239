//! The app behind the tests, and how it becomes a service.

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ember_tests::grpc::{self, Answer, Frames};
use ember_tests::instance::Ember;
use ember_tests::{PATIENCE, eventually};
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Frame, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;
use tokio::sync::Notify;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::Role;

/// The app as a service that sleeps until it is asked. `h2c`: its port is named so.
pub(crate) fn service(name: &str, h2c: bool) -> Value {
    let program = std::env::current_exe().unwrap();
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": {"autoscaling.knative.dev/initial-scale": "0"}},
            "spec": {"containers": [{
                "image": "dev.local/host",
                "command": [program.to_str().unwrap()],
                "args": ["--exact", "--ignored", "app::serve_as_app"],
                "ports": [{"name": if h2c { "h2c" } else { "http1" }, "containerPort": 8080}],
            }]},
        }},
    })
}

/// An instance that serves [`service`].
pub(crate) async fn asleep(name: &str, h2c: bool) -> Ember {
    let ember = Ember::start().await;
    ember.apply(&service(name, h2c).to_string());
    ember.ready(name).await;
    assert_eq!(ember.running(name).await, Vec::<String>::new(), "it sleeps until it is asked");
    ember
}

/// What exchanges of one app know of each other.
#[derive(Default)]
struct Shared {
    next_event: Notify,
    /// Clients of `/stay`: all that came, and those that left.
    came: AtomicU64,
    left: AtomicU64,
}

/// Not a test: the app that the tests start as a service. HTTP/1.1 and HTTP/2 by prior knowledge on one port.
#[tokio::test]
#[ignore = "an app for the other tests, not a test"]
async fn serve_as_app() {
    let Ok(port) = std::env::var("PORT") else { return };
    let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).await.unwrap();
    let shared = Arc::<Shared>::default();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        stream.set_nodelay(true).unwrap();
        let shared = Arc::clone(&shared);
        let service = hyper::service::service_fn(move |request| {
            let shared = Arc::clone(&shared);
            async move { Ok::<_, Infallible>(handle(request, &shared).await) }
        });
        tokio::spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that goes away ends its exchange only.
            server.serve_connection_with_upgrades(TokioIo::new(stream), service).await.ok();
        });
    }
}

fn full(status: StatusCode, text: impl Into<Bytes>) -> Answer {
    let body = Full::new(text.into()).map_err(|never| match never {});
    let mut response = Response::new(UnsyncBoxBody::new(body));
    *response.status_mut() = status;
    response
}

fn stream(
    frames: impl futures::Stream<Item = Result<Frame<Bytes>, hyper::Error>> + Send + 'static,
) -> Answer {
    Response::new(UnsyncBoxBody::new(StreamBody::new(frames)))
}

async fn handle(request: Request<Incoming>, shared: &Arc<Shared>) -> Answer {
    let path = request.uri().path().to_owned();
    match path.as_str() {
        // Version, target and headers, then the number of bytes in the body.
        "/seen" => {
            let (head, body) = request.into_parts();
            let mut text = format!("{:?} {} {}\n", head.version, head.method, head.uri);
            for (name, value) in &head.headers {
                text += &format!("{name}: {}\n", value.to_str().unwrap_or("?"));
            }
            match body.collect().await {
                Ok(body) => text += &format!("\n{} bytes\n", body.to_bytes().len()),
                Err(error) => text += &format!("\n{error}\n"),
            }
            full(StatusCode::OK, text)
        }
        // The body as it comes, trailers included.
        "/echo" => {
            let declared = request.headers().get(header::TRAILER).cloned();
            let mut response = stream(Frames(request.into_body()));
            response.headers_mut().extend(declared.map(|names| (header::TRAILER, names)));
            response
        }
        "/call" => call(&request).await,
        "/large" => large(&request),
        // Answers before it has read anything of the body, and never reads it.
        "/early" => full(StatusCode::PAYLOAD_TOO_LARGE, "too long"),
        // One event, and another one each time that somebody asks for it.
        "/events" => {
            let shared = Arc::clone(shared);
            let events = futures::stream::unfold(0, move |count| {
                let shared = Arc::clone(&shared);
                async move {
                    if count > 0 {
                        shared.next_event.notified().await;
                    }
                    let event = Bytes::from(format!("id: {count}\ndata: event {count}\n\n"));
                    Some((Ok(Frame::data(event)), count + 1))
                }
            });
            let mut response = stream(events);
            response
                .headers_mut()
                .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/event-stream"));
            response
        }
        "/events/next" => {
            shared.next_event.notify_one();
            full(StatusCode::OK, "")
        }
        // Never answers; who goes away is counted.
        "/stay" | "/echo.Echo/Stay" => {
            shared.came.fetch_add(1, Ordering::SeqCst);
            let _counted = Leaving(Arc::clone(shared));
            std::future::pending::<Answer>().await
        }
        "/stayed" => {
            let (came, left) = (shared.came.load(Ordering::SeqCst), shared.left.load(Ordering::SeqCst));
            full(StatusCode::OK, format!("{came} came, {left} left"))
        }
        "/chat" => chat(request),
        "/raw" => raw(request),
        path => grpc::answer(path, request.into_body())
            .unwrap_or_else(|| full(StatusCode::NOT_FOUND, format!("no {path}"))),
    }
}

/// Counts an exchange that was given up.
struct Leaving(Arc<Shared>);

impl Drop for Leaving {
    fn drop(&mut self) {
        self.0.left.fetch_add(1, Ordering::SeqCst);
    }
}

/// Waits until the app says this of its clients that stay: `{} came, {} left`.
pub(crate) async fn noticed(ember: &Ember, host: &str, expected: &str) {
    let client = ember_tests::http::Client::new(ember.gateway);
    eventually(expected, PATIENCE, || async {
        let stayed = client.get(host, "/stayed").await?.text;
        if stayed == expected { Ok(()) } else { Err(stayed) }
    })
    .await;
}

/// `?URL`: what an ordinary client gets there.
async fn call(request: &Request<Incoming>) -> Answer {
    let url: http::Uri = request.uri().query().unwrap_or_default().parse().unwrap();
    let client = hyper_util::client::legacy::Client::builder(TokioExecutor::new())
        .build_http::<http_body_util::Empty<Bytes>>();
    match client.get(url).await {
        Ok(answer) => answer.map(UnsyncBoxBody::new),
        Err(error) => full(StatusCode::BAD_GATEWAY, format!("{error:?}")),
    }
}

/// `?N`: so many bytes, of unknown length to the client.
fn large(request: &Request<Incoming>) -> Answer {
    const PIECE: usize = 64 * 1024;
    let size: usize = request.uri().query().and_then(|q| q.parse().ok()).unwrap_or_default();
    let pieces = (0..size)
        .step_by(PIECE)
        .map(move |at| Ok(Frame::data(Bytes::from(vec![b'x'; PIECE.min(size - at)]))));
    stream(futures::stream::iter(pieces))
}

/// A WebSocket that sends back what it gets.
fn chat(mut request: Request<Incoming>) -> Answer {
    let Some(key) = request.headers().get("sec-websocket-key").cloned() else {
        return full(StatusCode::BAD_REQUEST, "no WebSocket");
    };
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let Ok(upgraded) = upgrade.await else { return };
        let mut socket = WebSocketStream::from_raw_socket(TokioIo::new(upgraded), Role::Server, None).await;
        while let Some(Ok(message)) = socket.next().await {
            if message.is_text() || message.is_binary() {
                socket.send(message).await.ok();
            }
        }
    });
    let accept = HeaderValue::from_str(&derive_accept_key(key.as_bytes())).unwrap();
    switch("websocket", Some(accept))
}

/// Reads until the other side has no more to say, then tells how much it was.
fn raw(mut request: Request<Incoming>) -> Answer {
    let upgrade = hyper::upgrade::on(&mut request);
    tokio::spawn(async move {
        let mut upgraded = TokioIo::new(upgrade.await.unwrap());
        let mut said = Vec::new();
        upgraded.read_to_end(&mut said).await.unwrap();
        // For a while only the way back is open: a hop that closes both has time to do so.
        tokio::time::sleep(Duration::from_millis(100)).await;
        upgraded.write_all(format!("{} bytes", said.len()).as_bytes()).await.unwrap();
        upgraded.shutdown().await.unwrap();
    });
    switch("raw", None)
}

fn switch(protocol: &'static str, accept: Option<HeaderValue>) -> Answer {
    let mut response = full(StatusCode::SWITCHING_PROTOCOLS, "");
    let headers = response.headers_mut();
    headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    headers.insert(header::UPGRADE, HeaderValue::from_static(protocol));
    if let Some(accept) = accept {
        headers.insert(header::SEC_WEBSOCKET_ACCEPT, accept);
    }
    response
}
