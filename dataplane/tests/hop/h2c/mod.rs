//! HTTP/2 in clear text: client → server → proxy → backend, in all mixtures with HTTP/1.1.

mod connections;
mod drain;
mod failure;
mod grpc;
mod limits;
mod translation;

use std::convert::Infallible;
use std::net::SocketAddr;

use ember_dataplane::body::Body;
use ember_dataplane::protocol::Protocol;
use ember_dataplane::proxy::Outbound;
use ember_dataplane::server::Options;
use ember_dataplane::timeout::Timeouts;
use http::{Request, Response};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use crate::hop::{Running, hop_with};

/// A hop to a backend that speaks HTTP/2.
async fn hop(backend: SocketAddr) -> Running {
    hop_with(backend, Protocol::H2c, Timeouts::default(), Options::default()).await
}

/// A backend of hyper's own that speaks HTTP/2 only, `max_streams` at a time.
async fn backend<F, T>(max_streams: u32, answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> T + Clone + Send + Sync + 'static,
    T: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(max_streams)
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    addr
}

async fn client(addr: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // What it does not read of one stream does not keep it from reading another.
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(256 << 10).initial_connection_window_size(64 << 20);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(path: &str, body: Body) -> Request<Body> {
    Request::post(format!("http://app.example{path}")).body(body).unwrap()
}

fn direct(body: Body) -> Outbound {
    let request = Request::post("/").header("host", "a").body(body).unwrap();
    let mut outbound = Outbound::direct(request);
    outbound.set_protocol(Protocol::H2c);
    outbound
}
