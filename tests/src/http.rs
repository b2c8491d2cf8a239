//! Requests through the gateway.

use std::net::SocketAddr;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::client::legacy::Client as HyperClient;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;

/// A whole answer.
#[derive(Debug, Clone)]
pub struct Answer {
    /// Status.
    pub status: StatusCode,
    /// Headers.
    pub headers: HeaderMap,
    /// Body as text.
    pub text: String,
}

/// A keep-alive client of one gateway.
#[derive(Debug, Clone)]
pub struct Client {
    gateway: SocketAddr,
    inner: HyperClient<HttpConnector, Full<Bytes>>,
}

/// How long one request may take.
const TIMEOUT: Duration = Duration::from_secs(60);

impl Client {
    /// A client with connections of its own.
    #[must_use]
    pub fn new(gateway: SocketAddr) -> Self {
        Self { gateway, inner: HyperClient::builder(TokioExecutor::new()).build_http() }
    }

    /// GET of `path` at a host.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn get(&self, host: &str, path: &str) -> Result<Answer, String> {
        self.get_with(host, path, &[]).await
    }

    /// The same with further headers.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn get_with(&self, host: &str, path: &str, headers: &[(&str, &str)]) -> Result<Answer, String> {
        let request = Request::get(format!("http://{}{path}", self.gateway)).header(http::header::HOST, host);
        let request = headers.iter().fold(request, |request, (name, value)| request.header(*name, *value));
        self.exchange(request.body(Full::default()).map_err(|e| e.to_string())?).await
    }

    /// POST of a body to `path` at a host.
    ///
    /// # Errors
    /// When there is no whole answer.
    pub async fn post(&self, host: &str, path: &str, body: &'static str) -> Result<Answer, String> {
        let request =
            Request::post(format!("http://{}{path}", self.gateway)).header(http::header::HOST, host);
        self.exchange(request.body(Full::from(body)).map_err(|e| e.to_string())?).await
    }

    async fn exchange(&self, request: Request<Full<Bytes>>) -> Result<Answer, String> {
        let exchange = async {
            let response = self.inner.request(request).await.map_err(|e| format!("{e:?}"))?;
            let (parts, body) = response.into_parts();
            let bytes = body.collect().await.map_err(|e| format!("{e:?}"))?.to_bytes();
            Ok(Answer {
                status: parts.status,
                headers: parts.headers,
                text: String::from_utf8_lossy(&bytes).into_owned(),
            })
        };
        tokio::time::timeout(TIMEOUT, exchange).await.map_err(|_| "timed out".to_owned())?
    }

    /// GET that has to be answered with 200; returns the body.
    ///
    /// # Panics
    /// When it is not.
    pub async fn ok(&self, host: &str, path: &str) -> String {
        let answer = self.get(host, path).await.expect("an answer");
        assert_eq!(answer.status, StatusCode::OK, "{host}{path}: {}", answer.text);
        answer.text
    }
}

/// The host of a service in namespace `default`.
#[must_use]
pub fn host(service: &str) -> String {
    format!("{service}.default.localhost")
}
