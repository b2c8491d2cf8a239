//! The backend that speaks HTTP/2: one thread, the answers of the other backend.

use std::convert::Infallible;
use std::net::Ipv4Addr;

use bytes::Bytes;
use clap::Args;
use http::{HeaderValue, Request, Response, header};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http2;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

const ANSWER: Bytes = Bytes::from_static(b"hello\n");

/// Where it is.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Port to listen on
    #[arg(long)]
    port: u16,
}

/// Runs until it is killed.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    serve(TcpListener::bind((Ipv4Addr::LOCALHOST, options.port)).await?).await
}

/// Answers whoever connects.
pub(super) async fn serve(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        stream.set_nodelay(true)?;
        let service = service_fn(|_: Request<Incoming>| async {
            let mut response = Response::new(Full::new(ANSWER));
            response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain"));
            Ok::<_, Infallible>(response)
        });
        tokio::spawn(async move {
            let mut builder = http2::Builder::new(TokioExecutor::new());
            // As many at a time as come.
            let serving =
                builder.max_concurrent_streams(1000).serve_connection(TokioIo::new(stream), service);
            // Who asked is gone.
            let _ = serving.await;
        });
    }
}
