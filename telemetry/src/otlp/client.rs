//! The HTTP client of the exporters.

use std::time::Duration;

use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full, Limited};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use opentelemetry_http::{HttpClient, HttpError};
use tokio::runtime::Handle;

/// Longest answer of a collector.
const MAX_ANSWER: usize = 4 << 20;
/// How long an export may take; OpenTelemetry's default.
const TIMEOUT: Duration = Duration::from_secs(10);

/// Sends on the runtime it was made in, whichever thread asks.
#[derive(Debug)]
pub(super) struct Sender {
    runtime: Handle,
    client: Connections,
}

#[derive(Debug, Clone)]
enum Connections {
    Plain(Client<HttpConnector, Full<Bytes>>),
    Tls(Client<HttpsConnector<HttpConnector>, Full<Bytes>>),
}

impl Sender {
    /// To be called in a tokio runtime. The system's roots are trusted, if there is something to trust.
    pub(super) fn new(tls: bool) -> std::io::Result<Self> {
        let builder = Client::builder(TokioExecutor::new());
        let client = if tls {
            let connector =
                HttpsConnectorBuilder::new().with_native_roots()?.https_or_http().enable_http1().build();
            Connections::Tls(builder.build(connector))
        } else {
            Connections::Plain(builder.build_http())
        };
        Ok(Self { runtime: Handle::current(), client })
    }
}

impl Connections {
    async fn send(self, request: Request<Full<Bytes>>) -> Result<Response<Bytes>, HttpError> {
        let response = match self {
            Self::Plain(client) => client.request(request).await?,
            Self::Tls(client) => client.request(request).await?,
        };
        let (parts, body) = response.into_parts();
        let body = Limited::new(body, MAX_ANSWER).collect().await?.to_bytes();
        Ok(Response::from_parts(parts, body))
    }
}

#[async_trait::async_trait]
impl HttpClient for Sender {
    async fn send_bytes(&self, request: Request<Bytes>) -> Result<Response<Bytes>, HttpError> {
        let sending = self.client.clone().send(request.map(Full::new));
        self.runtime.spawn(async move { tokio::time::timeout(TIMEOUT, sending).await? }).await?
    }
}
