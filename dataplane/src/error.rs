//! What can go wrong with a request on its way, and the one mapping to responses.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderValue, Response, StatusCode, header};

use crate::address::Address;
use crate::body::Body;
use crate::timeout::Expired;
use crate::tls;

/// Why a request got no answer from its backend.
#[derive(Debug, thiserror::Error)]
pub enum ProxyError {
    /// No connection.
    #[error("dial tcp {address}: {}", describe(source))]
    Connect {
        /// The backend.
        address: Address,
        /// What the system said.
        source: io::Error,
    },
    /// The pod is there, but its app does not listen. It has seen nothing of the request.
    #[error("dial tcp {address}: connect: connection refused")]
    AppAway {
        /// The pod, or in the pod the app.
        address: Address,
        /// How long a request may wait for the app to come back.
        patience: Duration,
    },
    /// No connection within the time allowed.
    #[error("timed out dialing {address} after {:.2}s", elapsed.as_secs_f64())]
    ConnectTimeout {
        /// The backend.
        address: Address,
        /// Since the first attempt.
        elapsed: Duration,
    },
    /// A connection, but not with who was asked for.
    #[error(transparent)]
    Tls(#[from] tls::Error),
    /// The connection ended before any byte of a response.
    #[error("EOF")]
    NoResponse(#[source] hyper::Error),
    /// The exchange broke for another reason.
    #[error("{0}")]
    Broken(#[source] hyper::Error),
    /// The backend switched to a protocol the client had not asked for.
    #[error("backend tried to switch protocol {answered:?} when {requested:?} was requested")]
    UpgradeMismatch {
        /// `Upgrade` of the request.
        requested: String,
        /// `Upgrade` of the response.
        answered: String,
    },
    /// CONNECT is not proxied.
    #[error("client sent unsupported CONNECT request")]
    Connected,
    /// The admission queue has no place left.
    #[error("pending request queue full")]
    QueueFull,
    /// Waited for a free place until the deadline.
    #[error("context deadline exceeded")]
    QueueTimeout,
    /// One of the request's timers ran out.
    #[error("{0}")]
    Expired(#[from] Expired),
}

/// Go's words for the errors clients and tests meet.
fn describe(error: &io::Error) -> String {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => "connect: connection refused".to_owned(),
        io::ErrorKind::ConnectionReset => "connect: connection reset by peer".to_owned(),
        io::ErrorKind::NetworkUnreachable => "connect: network is unreachable".to_owned(),
        io::ErrorKind::HostUnreachable => "connect: no route to host".to_owned(),
        _ => error.to_string(),
    }
}

impl ProxyError {
    /// Why there is no answer, in a word: the `error.type` of metrics and spans.
    #[must_use]
    pub fn kind(&self) -> &'static str {
        match self {
            Self::Connect { .. } | Self::AppAway { .. } => "connect",
            Self::ConnectTimeout { .. } => "connect_timeout",
            Self::NoResponse(_) => "no_response",
            Self::Broken(_) => "broken",
            Self::UpgradeMismatch { .. } => "upgrade_mismatch",
            Self::Tls(_) => "tls",
            Self::Connected => "unsupported",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout | Self::Expired(_) => "timeout",
        }
    }

    /// The status [`respond`] answers with.
    #[must_use]
    pub fn status(&self) -> StatusCode {
        match self {
            Self::Connect { .. }
            | Self::AppAway { .. }
            | Self::ConnectTimeout { .. }
            | Self::Tls(_)
            | Self::NoResponse(_)
            | Self::Broken(_)
            | Self::UpgradeMismatch { .. }
            | Self::Connected => StatusCode::BAD_GATEWAY,
            Self::QueueFull | Self::QueueTimeout => StatusCode::SERVICE_UNAVAILABLE,
            Self::Expired(_) => StatusCode::GATEWAY_TIMEOUT,
        }
    }
}

/// The response a client gets for an error: [`http_error`] with its text.
/// Timeouts have a body of the component's own ([`timed_out`]).
#[must_use]
pub fn respond(error: &ProxyError) -> Response<Body> {
    http_error(error.status(), &error.to_string())
}

/// Knative's plain error answer: the message and a line feed as `text/plain`, not to be sniffed.
#[must_use]
pub fn http_error(status: StatusCode, message: &str) -> Response<Body> {
    let mut response = Response::new(Body::full(format!("{message}\n")));
    *response.status_mut() = status;
    let headers = response.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    headers.insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// 504 with exactly `text` as body: `request timeout`, `activator request timeout`.
#[must_use]
pub fn timed_out(text: &'static str) -> Response<Body> {
    let mut response = Response::new(Body::full(Bytes::from_static(text.as_bytes())));
    *response.status_mut() = StatusCode::GATEWAY_TIMEOUT;
    response
        .headers_mut()
        .insert(header::CONTENT_TYPE, HeaderValue::from_static("text/plain; charset=utf-8"));
    response
}

/// An empty answer.
#[must_use]
pub fn status(status: StatusCode) -> Response<Body> {
    let mut response = Response::new(Body::empty());
    *response.status_mut() = status;
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn errors_speak_as_upstream_does() {
        let address: Address = "127.0.0.1:18099".parse().unwrap();
        let refused =
            ProxyError::Connect { address: address.clone(), source: io::ErrorKind::ConnectionRefused.into() };
        assert_eq!(refused.to_string(), "dial tcp 127.0.0.1:18099: connect: connection refused");
        let late = ProxyError::ConnectTimeout { address, elapsed: Duration::from_millis(19_876) };
        assert_eq!(late.to_string(), "timed out dialing 127.0.0.1:18099 after 19.88s");
        assert_eq!(late.status(), StatusCode::BAD_GATEWAY);
        let full = respond(&ProxyError::QueueFull);
        assert_eq!(full.status(), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(full.headers()["content-type"], "text/plain; charset=utf-8");
        assert_eq!(full.headers()["x-content-type-options"], "nosniff");
    }
}
