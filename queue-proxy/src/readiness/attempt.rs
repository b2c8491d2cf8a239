//! One attempt of one probe.

use std::pin::pin;
use std::time::Duration;

use bytes::{BufMut, Bytes, BytesMut};
use ember_dataplane::address::Address;
use ember_dataplane::body::Body;
use ember_dataplane::dial::Dial;
use ember_dataplane::drain::Drain;
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::proxy::{Outbound, Proxy};
use ember_dataplane::tls::Unverified;
use http::header::{self, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::{BodyExt, Full, Limited};
use hyper::client::conn::{http1, http2};
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::time::Instant;

use super::spec::Action;

/// What the probes of Knative's sidecar call themselves.
const USER_AGENT: HeaderValue = HeaderValue::from_static("kube-probe//");
/// Redirects followed.
const REDIRECTS: usize = 10;
/// How much of an answer is read.
const MAX_ANSWER: usize = 64 << 10;

/// Tries probes against the app.
#[derive(Debug, Clone)]
pub(crate) struct Prober {
    io: Io,
    /// Where a probe goes that names no host, or the loopback address every container of a pod shares.
    app_host: String,
}

impl Prober {
    pub(crate) fn new(io: Io, app_host: std::net::IpAddr) -> Self {
        Self { io, app_host: app_host.to_string() }
    }

    fn address(&self, host: &str, port: u16) -> Address {
        let own = matches!(host, "" | "127.0.0.1" | "localhost");
        Address::new(if own { &self.app_host } else { host }, port)
    }

    /// One attempt within `timeout`; an error in words.
    pub(crate) async fn attempt(&self, action: &Action, timeout: Duration) -> Result<(), String> {
        let attempt = async {
            match action {
                Action::Tcp { host, port } => self.tcp(&self.address(host, *port)).await,
                Action::Http { host, port, path, https, headers } => {
                    let uri = path.parse().map_err(|error| format!("path {path:?}: {error}"))?;
                    let target = Target { https: *https, address: self.address(host, *port), uri };
                    self.http(target, headers, timeout).await
                }
                Action::Grpc { port, service } => self.grpc(&self.address("", *port), service).await,
                Action::Exec => Err("exec probe not supported".to_owned()),
                Action::None => Err("no probe found".to_owned()),
            }
        };
        tokio::time::timeout(timeout, attempt)
            .await
            .unwrap_or_else(|_| Err(format!("no answer after {timeout:?}")))
    }

    async fn tcp(&self, address: &Address) -> Result<(), String> {
        match self.io.network.connect(address.host(), address.port()).await {
            Ok(_) => Ok(()),
            Err(error) => Err(format!("dial tcp {address}: {error}")),
        }
    }

    async fn http(
        &self,
        mut target: Target,
        headers: &[(String, String)],
        timeout: Duration,
    ) -> Result<(), String> {
        let options = pool::Options {
            // Each attempt has a connection of its own, and its own timeout is the only one.
            max_idle: 0,
            dial: Dial { first: timeout, attempts: 1, ..Dial::default() },
            ..pool::Options::default()
        };
        let proxy = Proxy::new(Pool::new(self.io.clone(), options), Drain::new());
        let deadline = Instant::now() + timeout;
        for _ in 0..=REDIRECTS {
            let mut request = Request::new(Body::empty());
            *request.method_mut() = Method::GET;
            *request.uri_mut() = target.uri.clone();
            for (name, value) in headers {
                if let (Ok(name), Ok(value)) =
                    (name.parse::<HeaderName>(), HeaderValue::from_bytes(value.as_bytes()))
                {
                    request.headers_mut().append(name, value);
                }
            }
            request.headers_mut().insert(header::USER_AGENT, USER_AGENT);
            let host =
                HeaderValue::from_str(&target.address.to_string()).map_err(|error| error.to_string())?;
            request.headers_mut().insert(header::HOST, host);
            let (status, location) = if target.https {
                Box::pin(self.https(&target.address, request)).await?
            } else {
                let response = proxy
                    .forward(Outbound::direct(request), &target.address, Some(deadline))
                    .await
                    .map_err(|failure| failure.error().to_string())?;
                taken(response).await
            };
            if !status.is_redirection() || status == StatusCode::NOT_MODIFIED {
                return judge(status);
            }
            match location.and_then(|location| target.follow(&location)) {
                Some(next) => target = next,
                // Somewhere this cannot go: the app itself has answered.
                None => return judge(status),
            }
        }
        Err(format!("stopped after {REDIRECTS} redirects"))
    }

    /// As the kubelet does it: whoever answers is believed, and speaks whichever HTTP it prefers.
    async fn https(
        &self,
        address: &Address,
        mut request: Request<Body>,
    ) -> Result<(StatusCode, Option<HeaderValue>), String> {
        let text = |error: hyper::Error| error.to_string();
        let tls = Unverified::new(&[b"h2", b"http/1.1"]).map_err(|error| error.to_string())?;
        let stream = self
            .io
            .network
            .connect(address.host(), address.port())
            .await
            .map_err(|error| format!("dial tcp {address}: {error}"))?;
        let stream = tls.connect(stream, address.host()).await.map_err(|error| error.to_string())?;
        if stream.protocol() == Some(b"h2") {
            let uri = format!("https://{address}{}", request.uri());
            *request.uri_mut() = uri.parse().map_err(|error| format!("path {uri:?}: {error}"))?;
            request.headers_mut().remove(header::HOST);
            let (mut sender, connection) =
                http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
            let exchange = async { Ok(taken(sender.send_request(request).await.map_err(text)?).await) };
            driven(connection, exchange).await
        } else {
            let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(text)?;
            let exchange = async { Ok(taken(sender.send_request(request).await.map_err(text)?).await) };
            driven(connection, exchange).await
        }
    }

    async fn grpc(&self, address: &Address, service: &str) -> Result<(), String> {
        let text = |error: hyper::Error| error.to_string();
        let stream = self
            .io
            .network
            .connect(address.host(), address.port())
            .await
            .map_err(|error| format!("dial tcp {address}: {error}"))?;
        let (mut sender, connection) =
            http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.map_err(text)?;
        let exchange = async {
            let request = Request::post(format!("http://{address}/grpc.health.v1.Health/Check"))
                .header(header::CONTENT_TYPE, "application/grpc")
                .header(header::TE, "trailers")
                .header(header::USER_AGENT, USER_AGENT)
                .body(Full::new(health_request(service)))
                .map_err(|error| error.to_string())?;
            let response = sender.send_request(request).await.map_err(text)?;
            let status = response.headers().get("grpc-status").cloned();
            let collected = response.into_body().collect().await.map_err(text)?;
            let status =
                collected.trailers().and_then(|trailers| trailers.get("grpc-status").cloned()).or(status);
            if status.is_none_or(|status| status != "0") {
                return Err("grpc health check failed".to_owned());
            }
            if is_serving(&collected.to_bytes()) { Ok(()) } else { Err("service unhealthy".to_owned()) }
        };
        driven(connection, exchange).await
    }
}

/// Runs an exchange and the connection it goes by.
async fn driven<T>(
    connection: impl Future<Output = hyper::Result<()>>,
    exchange: impl Future<Output = Result<T, String>>,
) -> Result<T, String> {
    let mut exchange = pin!(exchange);
    tokio::select! {
        biased;
        done = exchange.as_mut() => done,
        // What it has brought until its end is with the exchange, and so is the error.
        _ = connection => exchange.await,
    }
}

/// What matters of an answer. The app sees all of it taken.
async fn taken<B>(response: Response<B>) -> (StatusCode, Option<HeaderValue>)
where
    B: http_body::Body<Data: Send, Error: Into<Box<dyn std::error::Error + Send + Sync>>>,
{
    let answer = (response.status(), response.headers().get(header::LOCATION).cloned());
    let _ = Limited::new(response.into_body(), MAX_ANSWER).collect().await;
    answer
}

fn judge(status: StatusCode) -> Result<(), String> {
    if (200..400).contains(&status.as_u16()) {
        Ok(())
    } else {
        Err(format!("HTTP probe did not respond Ready, got status code: {}", status.as_u16()))
    }
}

/// What a probe asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Target {
    https: bool,
    address: Address,
    uri: Uri,
}

impl Target {
    /// Where a redirect leads, if there is a way.
    fn follow(&self, location: &HeaderValue) -> Option<Self> {
        let location: Uri = match location.to_str().ok()? {
            // Relative to the directory of what was asked for.
            relative if !relative.starts_with('/') && !relative.contains("://") => {
                let directory = self.uri.path().rsplit_once('/').map_or("", |(directory, _)| directory);
                format!("{directory}/{relative}").parse().ok()?
            }
            other => other.parse().ok()?,
        };
        let uri = location.path_and_query().cloned().map_or_else(|| Uri::from_static("/"), Uri::from);
        let (https, port) = match location.scheme_str() {
            None if location.authority().is_none() => return Some(Self { uri, ..self.clone() }),
            Some("http") => (false, 80),
            Some("https") => (true, 443),
            _ => return None,
        };
        let authority = location.authority()?;
        let host = authority.host().trim_matches(['[', ']']);
        Some(Self { https, address: Address::new(host, authority.port_u16().unwrap_or(port)), uri })
    }
}

/// `HealthCheckRequest` in gRPC's framing.
fn health_request(service: &str) -> Bytes {
    let mut message = BytesMut::new();
    if !service.is_empty() {
        message.put_u8(0x0a);
        put_varint(&mut message, service.len() as u64);
        message.put_slice(service.as_bytes());
    }
    let mut framed = BytesMut::new();
    framed.put_u8(0);
    framed.put_u32(u32::try_from(message.len()).unwrap_or(u32::MAX));
    framed.unsplit(message);
    framed.freeze()
}

fn put_varint(buffer: &mut BytesMut, mut value: u64) {
    while value >= 0x80 {
        buffer.put_u8((value & 0x7f) as u8 | 0x80);
        value >>= 7;
    }
    buffer.put_u8(value as u8);
}

/// Whether a framed `HealthCheckResponse` says SERVING.
fn is_serving(framed: &[u8]) -> bool {
    framed == [0, 0, 0, 0, 2, 0x08, 1]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn health_messages() {
        assert_eq!(&health_request("")[..], [0, 0, 0, 0, 0]);
        assert_eq!(&health_request("ab")[..], [0, 0, 0, 0, 4, 0x0a, 2, b'a', b'b']);
        assert_eq!(&health_request(&"x".repeat(200))[..8], [0, 0, 0, 0, 203, 0x0a, 0xc8, 1]);
        assert!(is_serving(&[0, 0, 0, 0, 2, 8, 1]));
        assert!(!is_serving(&[0, 0, 0, 0, 2, 8, 2]));
        assert!(!is_serving(&[0, 0, 0, 0, 0]));
    }

    #[test]
    fn redirects() {
        let here = |https| {
            let address = Address::new("127.0.0.1", 8080);
            Target { https, address, uri: "/a/b?c".parse().unwrap() }
        };
        let to = |https, location: &'static str| {
            here(https).follow(&HeaderValue::from_static(location)).map(|target| {
                let scheme = if target.https { "https" } else { "http" };
                format!("{scheme}://{}{}", target.address, target.uri)
            })
        };
        assert_eq!(to(false, "/x?y").as_deref(), Some("http://127.0.0.1:8080/x?y"));
        assert_eq!(to(true, "x").as_deref(), Some("https://127.0.0.1:8080/a/x"));
        assert_eq!(to(true, "http://other/z").as_deref(), Some("http://other:80/z"));
        assert_eq!(to(false, "https://[::1]/z").as_deref(), Some("https://[::1]:443/z"));
        assert_eq!(to(false, "ftp://other/z"), None);
    }
}
