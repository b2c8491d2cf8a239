//! Clients: what the gateway sends.

use std::net::SocketAddr;

use bytes::Bytes;
use http::{Method, Request, Response, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

pub const OF_REV: [(&str, &str); 2] =
    [("knative-serving-namespace", "ns"), ("knative-serving-revision", "rev")];

pub async fn exchange(
    addr: SocketAddr,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> (StatusCode, String) {
    let response = respond(addr, path, headers, body).await;
    (response.status(), response.into_body())
}

/// The whole answer to a request on a connection of its own.
pub async fn respond(addr: SocketAddr, path: &str, headers: &[(&str, &str)], body: &str) -> Response<String> {
    let method = if body.is_empty() { Method::GET } else { Method::POST };
    respond_to(addr, method, path, headers, body).await
}

/// The same for any method.
pub async fn respond_to(
    addr: SocketAddr,
    method: Method,
    path: &str,
    headers: &[(&str, &str)],
    body: &str,
) -> Response<String> {
    let stream = TcpStream::connect(addr).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
    let mut request = Request::builder().method(method).uri(path).header("host", "hello.example.com");
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Full::from(body.to_owned())).unwrap();
    let answer = async {
        let response = sender.send_request(request).await.unwrap();
        let (parts, body) = response.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        Response::from_parts(parts, String::from_utf8(body.to_vec()).unwrap())
    };
    // The connection lives in this future, so that it ends with it.
    let mut connection = std::pin::pin!(connection);
    let mut answer = std::pin::pin!(answer);
    tokio::select! {
        answer = &mut answer => answer,
        ended = &mut connection => {
            ended.unwrap();
            answer.await
        }
    }
}

pub fn ok(body: &str) -> (StatusCode, String) {
    (StatusCode::OK, body.to_owned())
}
