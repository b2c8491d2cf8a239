//! Asks whether the activator is in the path to a revision.

use std::time::Duration;

use bytes::Bytes;
use ember_dataplane::io::Io;
use http::{Request, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;

/// What an activator answers.
const ACTIVATOR: &str = "activator";
/// More than this is not an activator's answer.
const LONGEST_ANSWER: usize = 1024;

/// Asks the Service `host` once; true when an activator answers within `timeout`.
pub(crate) async fn activator_answers(io: &Io, host: &str, port: u16, timeout: Duration) -> bool {
    let asked = tokio::time::timeout(timeout, ask(io, host, port)).await;
    match asked {
        Ok(Ok(answered)) => answered,
        Ok(Err(error)) => {
            tracing::debug!(host, %error, "the activator could not be probed");
            false
        }
        Err(_) => false,
    }
}

async fn ask(io: &Io, host: &str, port: u16) -> Result<bool, Box<dyn std::error::Error + Send + Sync>> {
    let stream = io.network.connect(host, port).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        // The double slash is what Knative's activators and ingresses are asked for.
        .uri("//healthz")
        .header(header::HOST, format!("{host}:{port}"))
        .header(header::USER_AGENT, "Knative-Autoscaling-Probe")
        .header("K-Network-Probe", ACTIVATOR)
        .header(header::CONNECTION, "close")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let ok = response.status() == StatusCode::OK;
        let body = Limited::new(response.into_body(), LONGEST_ANSWER).collect().await?.to_bytes();
        Ok::<_, Box<dyn std::error::Error + Send + Sync>>(ok && body == ACTIVATOR)
    };
    // The connection lives no longer than the exchange, on this very task.
    tokio::pin!(exchange, connection);
    tokio::select! {
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}
