//! `grpc`: the health checking protocol (`grpc.health.v1.Health/Check`) over HTTP/2 in clear text.

use bytes::{BufMut, Bytes, BytesMut};
use futures::future::Either;
use http::{HeaderMap, Request, header};
use http_body_util::{BodyExt, Full, Limited};
use hyper_util::rt::{TokioExecutor, TokioIo};
use k8s_openapi::api::core::v1::GRPCAction;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use prost::Message;

use super::{USER_AGENT, connect};

/// What an answer may be at most; a health check has a few bytes.
const MAX_ANSWER: usize = 64 << 10;
/// `ServingStatus.SERVING`.
const SERVING: i32 = 1;
/// The names of `ServingStatus`, by number.
const STATUS: [&str; 4] = ["UNKNOWN", "SERVING", "NOT_SERVING", "SERVICE_UNKNOWN"];

/// `grpc.health.v1.HealthCheckRequest`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckRequest {
    #[prost(string, tag = "1")]
    service: String,
}

/// `grpc.health.v1.HealthCheckResponse`.
#[derive(Clone, PartialEq, Message)]
struct HealthCheckResponse {
    #[prost(int32, tag = "1")]
    status: i32,
}

/// Asks once.
pub(super) async fn check(action: &GRPCAction) -> Result<(), String> {
    let stream = connect(None, &IntOrString::Int(action.port)).await?;
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
            .await
            .map_err(|e| e.to_string())?;
    let service = action.service.clone().unwrap_or_default();
    let request = Request::post(format!("http://127.0.0.1:{}/grpc.health.v1.Health/Check", action.port))
        .header(header::CONTENT_TYPE, "application/grpc")
        .header(header::TE, "trailers")
        .header(header::USER_AGENT, USER_AGENT)
        .body(Full::new(frame(&HealthCheckRequest { service })))
        .map_err(|e| e.to_string())?;
    let exchange = async {
        let response = sender.send_request(request).await.map_err(|e| e.to_string())?;
        let (head, body) = response.into_parts();
        if head.status != http::StatusCode::OK {
            return Err(format!("gRPC probe failed with HTTP status {}", head.status.as_u16()));
        }
        let whole = Limited::new(body, MAX_ANSWER).collect().await.map_err(|e| e.to_string())?;
        let end = whole.trailers().cloned().unwrap_or_default();
        verdict(&head.headers, &end, &whole.to_bytes())
    };
    // The connection is driven here, so that dropping the attempt closes it.
    match futures::future::select(std::pin::pin!(exchange), std::pin::pin!(connection)).await {
        Either::Left((outcome, _)) => outcome,
        Either::Right((_, exchange)) => exchange.await,
    }
}

/// A message with its prefix: not compressed, and its length.
fn frame(message: &impl Message) -> Bytes {
    let mut bytes = BytesMut::with_capacity(5 + message.encoded_len());
    bytes.put_u8(0);
    bytes.put_u32(u32::try_from(message.encoded_len()).unwrap_or(u32::MAX));
    bytes.put_slice(&message.encode_to_vec());
    bytes.freeze()
}

/// What an answer says; an error comes in the trailers, or in the headers of an answer without a body.
fn verdict(headers: &HeaderMap, trailers: &HeaderMap, body: &[u8]) -> Result<(), String> {
    let field = |name: &str| trailers.get(name).or_else(|| headers.get(name)).and_then(|v| v.to_str().ok());
    match field("grpc-status") {
        Some("0") => {}
        Some("12") => return Err("this server does not implement the gRPC health protocol".to_owned()),
        Some(code) => {
            let message = field("grpc-message").unwrap_or_default();
            return Err(format!("gRPC probe failed with code {code}: {message}"));
        }
        None => return Err("gRPC probe failed: the answer has no grpc-status".to_owned()),
    }
    let message = body.get(5..).unwrap_or_default();
    let answer = HealthCheckResponse::decode(message).map_err(|e| format!("gRPC probe failed: {e}"))?;
    if answer.status == SERVING {
        return Ok(());
    }
    let name = usize::try_from(answer.status).ok().and_then(|n| STATUS.get(n)).unwrap_or(&"UNKNOWN");
    Err(format!("service unhealthy (responded with {name:?})"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::convert::Infallible;

    use http::{HeaderValue, Response};
    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use hyper::service::service_fn;
    use tokio::net::TcpListener;

    /// Serves one connection: `up` is healthy, `down` is not, others are not found.
    async fn server() -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (stream, _) = listener.accept().await.unwrap();
            let answer = async |request: Request<hyper::body::Incoming>| {
                assert_eq!(request.uri().path(), "/grpc.health.v1.Health/Check");
                assert_eq!(request.headers()["content-type"], "application/grpc");
                let body = request.into_body().collect().await.unwrap().to_bytes();
                let asked = HealthCheckRequest::decode(&body[5..]).unwrap();
                let (code, status) = match asked.service.as_str() {
                    "" | "up" => ("0", 1),
                    "down" => ("0", 2),
                    _ => ("5", 0),
                };
                let mut end = HeaderMap::new();
                end.insert("grpc-status", HeaderValue::from_static(code));
                let message = frame(&HealthCheckResponse { status });
                let frames = [Frame::data(message), Frame::trailers(end)].map(Ok::<_, Infallible>);
                Ok::<_, Infallible>(Response::new(StreamBody::new(futures::stream::iter(frames))))
            };
            let _ = hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(stream), service_fn(answer))
                .await;
        });
        port
    }

    #[tokio::test]
    async fn the_health_of_a_service_counts() {
        let outcome = async |service: Option<&str>| {
            let action = GRPCAction { port: i32::from(server().await), service: service.map(str::to_owned) };
            check(&action).await
        };
        assert_eq!(outcome(None).await, Ok(()));
        assert_eq!(outcome(Some("up")).await, Ok(()));
        assert_eq!(
            outcome(Some("down")).await,
            Err("service unhealthy (responded with \"NOT_SERVING\")".to_owned())
        );
        assert_eq!(outcome(Some("no")).await, Err("gRPC probe failed with code 5: ".to_owned()));
    }

    #[test]
    fn errors_without_a_body_come_in_the_headers() {
        let mut headers = HeaderMap::new();
        headers.insert("grpc-status", HeaderValue::from_static("12"));
        let error = verdict(&headers, &HeaderMap::new(), b"").unwrap_err();
        assert_eq!(error, "this server does not implement the gRPC health protocol");
    }
}
