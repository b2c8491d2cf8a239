//! Forwarding a request to a backend and its answer back, streaming both ways.
//!
//! [`Outbound`] is a request made ready once (hop-by-hop headers, `X-Forwarded-For`); it can be forwarded several
//! times. A forward that fails says by [`Failure`] whether it may be repeated. There is one rule:
//!
//! - nothing of the request was written, or the backend promises not to have looked at it (HTTP/2: it refused the
//!   stream, or went away before it): any method, anywhere ([`Failure::Unsent`]);
//! - a sidecar has handed it back, because its app does not listen: any method, anywhere, as long as the body can be
//!   had back ([`Failure::Refused`]);
//! - the connection ended before any byte of a response: safe methods, and requests with an `Idempotency-Key`, as
//!   long as the body is empty ([`Failure::NoResponse`]);
//! - otherwise never.

mod h2c;

use std::sync::Arc;
use std::time::Duration;

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};
use http_body::Body as _;
use hyper::upgrade::OnUpgrade;
use parking_lot::Mutex;
use tokio::sync::oneshot;
use tokio::time::Instant;

use crate::address::Address;
use crate::body::Body;
use crate::drain::Drain;
use crate::error::ProxyError;
use crate::header::{APP_AWAY, IDEMPOTENCY_KEY, RETURNABLE, X_FORWARDED_FOR, X_IDEMPOTENCY_KEY};
use crate::pool::{Lease, Pool};
use crate::protocol::Protocol;
use crate::server::Conn;
use crate::upgrade::{self, Tunnel};
use crate::upload::{self, Upload};

const KEEP_ALIVE: HeaderName = HeaderName::from_static("keep-alive");
const PROXY_CONNECTION: HeaderName = HeaderName::from_static("proxy-connection");

/// A request ready to be forwarded. Its headers may still be changed.
///
/// Boxed: it is handed through several futures, each of which would have room for it.
#[derive(Debug)]
pub struct Outbound(Box<Message>);

#[derive(Debug)]
struct Message {
    request: Request<Body>,
    /// The protocol the client asks to switch to, and its connection's side of that.
    upgrade: Option<(HeaderValue, OnUpgrade)>,
    protocol: Protocol,
    /// A sidecar may hand it back.
    returnable: bool,
}

impl Outbound {
    /// Applies the header rules of a proxy hop: hop-by-hop headers go, except an upgrade and `TE: trailers`;
    /// `X-Forwarded-For` gains the peer.
    ///
    /// # Errors
    /// [`ProxyError::Connected`] for CONNECT.
    pub fn new(mut request: Request<Body>, conn: &Conn) -> Result<Self, ProxyError> {
        if request.method() == Method::CONNECT {
            return Err(ProxyError::Connected);
        }
        let upgrade = requested_upgrade(request.headers())
            .and_then(|protocol| Some((protocol, request.extensions().get::<OnUpgrade>()?.clone())));
        let trailers = has_token(request.headers(), &header::TE, "trailers");
        remove_hop_by_hop(request.headers_mut());
        if trailers {
            request.headers_mut().insert(header::TE, HeaderValue::from_static("trailers"));
        }
        if let Some((protocol, _)) = &upgrade {
            request.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
            request.headers_mut().insert(header::UPGRADE, protocol.clone());
        }
        append_forwarded_for(request.headers_mut(), conn.peer_ip());
        if request.version() == Version::HTTP_2 {
            join_cookies(request.headers_mut());
        }
        *request.version_mut() = Version::HTTP_11;
        if !request.body().is_end_stream() && request.body().size_hint().exact().is_none() {
            // Said explicitly, or a GET of unknown length would be sent without its body.
            request.headers_mut().insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
            request.headers_mut().remove(header::CONTENT_LENGTH);
        } else {
            request.headers_mut().remove(header::TRAILER);
            settle_length(&mut request);
        }
        if let Some(target) = request.uri().path_and_query().filter(|_| request.uri().scheme().is_some()) {
            *request.uri_mut() = Uri::from(target.clone());
        }
        Ok(Self(Box::new(Message { request, upgrade, protocol: Protocol::Http1, returnable: false })))
    }

    /// A request of the component's own, sent as it is.
    #[must_use]
    pub fn direct(request: Request<Body>) -> Self {
        Self(Box::new(Message { request, upgrade: None, protocol: Protocol::Http1, returnable: false }))
    }

    /// What the backend speaks; HTTP/1.1 unless said.
    pub fn set_protocol(&mut self, protocol: Protocol) {
        self.0.protocol = protocol;
    }

    /// Lets a pod's sidecar hand the request back when its app does not listen ([`Failure::Refused`]). Not if the body
    /// is known to be too long to be had back.
    pub fn allow_return(&mut self) {
        self.0.returnable = self.0.request.body().size_hint().lower() <= upload::KEPT as u64;
        if self.0.returnable {
            self.headers_mut().insert(RETURNABLE, HeaderValue::from_static("true"));
        } else {
            self.headers_mut().remove(RETURNABLE);
        }
    }

    /// Whether whoever sent the request by [`Outbound::allow_return`] can have it back, as far as is known of its body
    /// without having read it.
    #[must_use]
    pub fn can_return(&self) -> bool {
        let body = self.0.request.body();
        body.is_end_stream() || body.size_hint().exact().is_some_and(|length| length <= upload::KEPT as u64)
    }

    /// Reads ahead in a body of unknown length until `until`. Returns whether it has come to an end, so that the sender
    /// can have it back. A client that waits to be asked for its body is not asked.
    pub async fn read_ahead(&mut self, until: Instant) -> bool {
        if self.headers().contains_key(header::EXPECT) {
            return false;
        }
        let body = std::mem::take(self.0.request.body_mut());
        let (body, whole) = upload::read_ahead(body, until).await;
        *self.0.request.body_mut() = body;
        whole
    }

    /// The request's headers.
    #[must_use]
    pub fn headers(&self) -> &HeaderMap {
        self.0.request.headers()
    }

    /// The request's headers, to change them.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        self.0.request.headers_mut()
    }

    /// The request's method.
    #[must_use]
    pub fn method(&self) -> &Method {
        self.0.request.method()
    }

    /// The request's target.
    #[must_use]
    pub fn uri(&self) -> &Uri {
        self.0.request.uri()
    }

    /// The request's target, to change it.
    pub fn uri_mut(&mut self) -> &mut Uri {
        self.0.request.uri_mut()
    }

    /// Sends `host` as Host.
    pub fn set_host(&mut self, host: HeaderValue) {
        self.0.request.headers_mut().insert(header::HOST, host);
    }

    /// Whether the client asks for another protocol on this connection.
    #[must_use]
    pub fn is_upgrade(&self) -> bool {
        self.0.upgrade.is_some()
    }

    /// Whether the request may be repeated although a backend may have seen it.
    #[must_use]
    pub fn is_replayable(&self) -> bool {
        let safe =
            matches!(*self.0.request.method(), Method::GET | Method::HEAD | Method::OPTIONS | Method::TRACE);
        let keyed = || {
            let headers = self.0.request.headers();
            headers.contains_key(IDEMPOTENCY_KEY) || headers.contains_key(X_IDEMPOTENCY_KEY)
        };
        self.0.request.body().is_end_stream() && (safe || keyed())
    }

    /// Keeps a hand on the body, if the request may be handed back.
    fn hold(&mut self) -> Option<Upload> {
        let body = self.0.request.body_mut();
        if !self.0.returnable || body.is_end_stream() {
            return None;
        }
        let (upload, sending) = upload::share(std::mem::take(body));
        *body = Body::sending(sending);
        Some(upload)
    }

    /// With the body that `upload` has a hand on, or as it is; `None` if it cannot be had back.
    fn restored(mut self, upload: Option<Upload>) -> Option<Self> {
        if let Some(upload) = upload {
            *self.0.request.body_mut() = upload.take_back()?;
        }
        Some(self)
    }

    /// A copy without the body.
    fn head(&self) -> Self {
        let mut request = Request::new(Body::empty());
        *request.method_mut() = self.0.request.method().clone();
        *request.uri_mut() = self.0.request.uri().clone();
        *request.version_mut() = self.0.request.version();
        *request.headers_mut() = self.0.request.headers().clone();
        let Message { upgrade, protocol, returnable, .. } = &*self.0;
        let (upgrade, protocol, returnable) = (upgrade.clone(), *protocol, *returnable);
        Self(Box::new(Message { request, upgrade, protocol, returnable }))
    }
}

/// Why a forward failed, and what may be done about it.
#[derive(Debug)]
pub enum Failure {
    /// Nothing of the request was written. It is intact and may go to another backend, whatever its method.
    Unsent(Outbound, ProxyError),
    /// The pod's sidecar has handed the request back: its app does not listen ([`ProxyError::AppAway`]). It is intact
    /// and may go to another pod, whatever its method.
    Refused(Outbound, ProxyError),
    /// The connection ended before any byte of a response, and the request may be repeated.
    NoResponse(Outbound, ProxyError),
    /// Not to be repeated.
    Final(ProxyError),
}

impl Failure {
    /// The request, if it may be repeated, and the error.
    #[must_use]
    pub fn into_retry(self) -> (Option<Outbound>, ProxyError) {
        match self {
            Self::Unsent(request, error)
            | Self::Refused(request, error)
            | Self::NoResponse(request, error) => (Some(request), error),
            Self::Final(error) => (None, error),
        }
    }

    /// The error.
    #[must_use]
    pub fn error(&self) -> &ProxyError {
        match self {
            Self::Unsent(_, error)
            | Self::Refused(_, error)
            | Self::NoResponse(_, error)
            | Self::Final(error) => error,
        }
    }
}

impl From<Failure> for ProxyError {
    fn from(failure: Failure) -> Self {
        failure.into_retry().1
    }
}

/// No connection. Somebody else than who was asked for would be there the next time, too.
fn unconnected(outbound: Outbound, error: ProxyError) -> Failure {
    match error {
        ProxyError::Tls(_) => Failure::Final(error),
        _ => Failure::Unsent(outbound, error),
    }
}

/// How long the app may be waited for, if `response` is a sidecar's that hands the request back. Only who said that it
/// can have it back understands it so.
fn returned<B>(response: &Response<B>, returnable: bool) -> Option<Duration> {
    let patience = response.headers().get(APP_AWAY).filter(|_| returnable)?;
    let millis = patience.to_str().ok().and_then(|patience| patience.parse().ok()).unwrap_or(0);
    Some(Duration::from_millis(millis))
}

/// The pod at `address` has handed the request back; `intact`: unless its body cannot be had back.
fn refused(intact: Option<Outbound>, address: Address, patience: Duration) -> Failure {
    let error = ProxyError::AppAway { address, patience };
    match intact {
        Some(intact) => Failure::Refused(intact, error),
        None => Failure::Final(error),
    }
}

/// Forwards requests over one worker's pool. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Proxy {
    pool: Pool,
    drain: Drain,
}

impl Proxy {
    /// Upgraded streams are tasks of `drain` and end when it is aborted.
    #[must_use]
    pub fn new(pool: Pool, drain: Drain) -> Self {
        Self { pool, drain }
    }

    /// The connections.
    #[must_use]
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Sends the request to `address` and returns the head of the response; its body streams. A stale pooled
    /// connection is replaced here, without the caller's knowledge. `connect_by` bounds connecting; the response is
    /// bounded by the caller's [`Deadlines`](crate::timeout::Deadlines). Dropping the future aborts the exchange.
    ///
    /// # Errors
    /// See [`Failure`].
    pub async fn forward(
        &self,
        mut outbound: Outbound,
        address: &Address,
        connect_by: Option<Instant>,
    ) -> Result<Response<Body>, Failure> {
        if !outbound.headers().contains_key(header::HOST)
            && let Ok(host) = HeaderValue::from_str(&address.to_string())
        {
            outbound.set_host(host);
        }
        if outbound.0.protocol == Protocol::H2c && !outbound.is_upgrade() {
            // Boxed: the other path is not to carry its size.
            return Box::pin(self.forward_h2c(outbound, address, connect_by)).await;
        }
        while let Some(lease) = self.pool.reuse(address) {
            match self.exchange(outbound, lease).await {
                // The connection was stale: the next one, and in the end a new one.
                Err(Failure::Unsent(intact, _)) => outbound = intact,
                Err(Failure::NoResponse(intact, _)) => {
                    outbound = intact;
                    break;
                }
                other => return other,
            }
        }
        // Boxed like the other: most requests find a connection.
        match Box::pin(self.pool.connect(address, connect_by)).await {
            Ok(lease) => self.exchange(outbound, lease).await,
            Err(error) => Err(unconnected(outbound, error)),
        }
    }

    async fn exchange(&self, mut outbound: Outbound, mut lease: Lease) -> Result<Response<Body>, Failure> {
        let upload = outbound.hold();
        // What can be sent again from here is what has no body, or one that is kept; the copy is the price of never
        // losing it.
        let kept = upload.is_some() || outbound.0.request.body().is_end_stream();
        let copy = kept.then(|| outbound.head());
        let replayable = outbound.is_replayable();
        let meter = lease.meter();
        let before = meter.as_ref().map(|meter| meter.traffic());
        let Message { mut request, upgrade, protocol, returnable } = *outbound.0;
        hold_for_continue(&mut request);
        match lease.sender().try_send_request(request).await {
            Ok(response) => {
                if let Some(patience) = returned(&response, returnable) {
                    let address = lease.address().clone();
                    if upload.is_none() && response.body().is_end_stream() {
                        lease.give_back();
                    }
                    return Err(refused(copy.and_then(|copy| copy.restored(upload)), address, patience));
                }
                if let Some(upload) = &upload {
                    upload.settle();
                }
                self.respond(response, upgrade, lease)
            }
            Err(mut error) => {
                let intact = error.take_message();
                let error = error.into_error();
                if let Some(request) = intact {
                    let outbound = Outbound(Box::new(Message { request, upgrade, protocol, returnable }));
                    let error = ProxyError::NoResponse(error);
                    return Err(match outbound.restored(upload) {
                        Some(outbound) => Failure::Unsent(outbound, error),
                        None => Failure::Final(error),
                    });
                }
                let (Some(before), Some(after)) = (before, meter.map(|meter| meter.traffic())) else {
                    return Err(Failure::Final(ProxyError::Broken(error)));
                };
                if after.read != before.read {
                    return Err(Failure::Final(ProxyError::Broken(error)));
                }
                let unsent = after.written == before.written;
                let error = ProxyError::NoResponse(error);
                Err(match copy {
                    Some(copy) if unsent => match copy.restored(upload) {
                        Some(intact) => Failure::Unsent(intact, error),
                        None => Failure::Final(error),
                    },
                    Some(copy) if replayable => Failure::NoResponse(copy, error),
                    _ => Failure::Final(error),
                })
            }
        }
    }

    fn respond(
        &self,
        response: Response<hyper::body::Incoming>,
        upgrade: Option<(HeaderValue, OnUpgrade)>,
        lease: Lease,
    ) -> Result<Response<Body>, Failure> {
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return self.switch(response, upgrade, lease).map_err(Failure::Final);
        }
        let (mut parts, body) = response.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        parts.version = Version::HTTP_11;
        let body = if body.is_end_stream() {
            lease.give_back();
            Body::empty()
        } else {
            Body::leased(body, lease)
        };
        Ok(Response::from_parts(parts, body))
    }

    fn switch(
        &self,
        mut response: Response<hyper::body::Incoming>,
        upgrade: Option<(HeaderValue, OnUpgrade)>,
        lease: Lease,
    ) -> Result<Response<Body>, ProxyError> {
        let answered = requested_upgrade(response.headers());
        let text = |value: Option<&HeaderValue>| {
            value.map_or_else(String::new, |value| String::from_utf8_lossy(value.as_bytes()).into_owned())
        };
        let (protocol, client) = match (upgrade, answered) {
            (Some((requested, client)), Some(answered))
                if requested.as_bytes().eq_ignore_ascii_case(answered.as_bytes()) =>
            {
                (answered, client)
            }
            (requested, answered) => {
                return Err(ProxyError::UpgradeMismatch {
                    requested: text(requested.as_ref().map(|(requested, _)| requested)),
                    answered: text(answered.as_ref()),
                });
            }
        };
        let backend = hyper::upgrade::on(&mut response);
        lease.release_upgraded();
        let tunnel = Arc::new(Tunnel::default());
        upgrade::join(&self.drain, Arc::clone(&tunnel), client, backend);
        let (mut parts, _) = response.into_parts();
        remove_hop_by_hop(&mut parts.headers);
        parts.headers.insert(header::CONNECTION, HeaderValue::from_static("Upgrade"));
        parts.headers.insert(header::UPGRADE, protocol);
        Ok(Response::from_parts(parts, Body::upgraded(tunnel)))
    }
}

/// With `Expect: 100-continue` the client sends its body only once it is asked for. It is asked for when the backend
/// has agreed.
fn hold_for_continue(request: &mut Request<Body>) {
    let expects = request
        .headers()
        .get(header::EXPECT)
        .is_some_and(|value| value.as_bytes().eq_ignore_ascii_case(b"100-continue"));
    if !expects || request.body().is_end_stream() {
        return;
    }
    let (agree, agreed) = oneshot::channel();
    let agree = Mutex::new(Some(agree));
    hyper::ext::on_informational(request, move |informational| {
        if informational.status() == StatusCode::CONTINUE
            && let Some(agree) = agree.lock().take()
        {
            // The body may be gone already.
            let _ = agree.send(());
        }
    });
    let body = std::mem::take(request.body_mut());
    *request.body_mut() = body.after_continue(agreed);
}

/// Writes a length that could be misread (`05`, twice, none) as what the body is known to have.
fn settle_length(request: &mut Request<Body>) {
    let mut lengths = request.headers().get_all(header::CONTENT_LENGTH).iter();
    let Some(length) = lengths.next() else { return };
    let plain = match length.as_bytes() {
        [] => false,
        [b'0'] => true,
        [first, ..] => *first != b'0' && !request.body().is_end_stream(),
    };
    if plain && lengths.next().is_none() {
        return;
    }
    let length = request.body().size_hint().exact().unwrap_or(0);
    request.headers_mut().insert(header::CONTENT_LENGTH, HeaderValue::from(length));
}

/// `Upgrade`, if `Connection` names it. HTTP/2 is not switched to: through such a connection a client could send
/// requests that no hop has looked at.
fn requested_upgrade(headers: &HeaderMap) -> Option<HeaderValue> {
    let protocol = headers.get(header::UPGRADE)?;
    let wanted = has_token(headers, &header::CONNECTION, "upgrade")
        && !has_token(headers, &header::UPGRADE, "h2c")
        && !has_token(headers, &header::UPGRADE, "h2");
    wanted.then(|| protocol.clone())
}

fn tokens<'a>(headers: &'a HeaderMap, name: &HeaderName) -> impl Iterator<Item = &'a str> {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|token| !token.is_empty())
}

fn has_token(headers: &HeaderMap, name: &HeaderName, token: &str) -> bool {
    // `TE: trailers;q=1` counts too.
    tokens(headers, name)
        .any(|found| found.split(';').next().is_some_and(|found| found.trim().eq_ignore_ascii_case(token)))
}

/// Removes what concerns one hop only. `Trailer` stays: the trailers it announces are forwarded.
fn remove_hop_by_hop(headers: &mut HeaderMap) {
    if headers.contains_key(header::CONNECTION) {
        let named: Vec<HeaderName> = tokens(headers, &header::CONNECTION)
            .filter_map(|token| HeaderName::from_bytes(token.as_bytes()).ok())
            .collect();
        for name in named {
            headers.remove(name);
        }
        headers.remove(header::CONNECTION);
    }
    for name in [
        KEEP_ALIVE,
        PROXY_CONNECTION,
        header::PROXY_AUTHENTICATE,
        header::PROXY_AUTHORIZATION,
        header::TE,
        header::TRANSFER_ENCODING,
        header::UPGRADE,
    ] {
        headers.remove(name);
    }
}

/// Joins the lines HTTP/2 clients split their cookies into: HTTP/1.1 knows one.
fn join_cookies(headers: &mut HeaderMap) {
    let lines: Vec<&[u8]> = headers.get_all(header::COOKIE).iter().map(HeaderValue::as_bytes).collect();
    if lines.len() > 1
        && let Ok(joined) = HeaderValue::from_bytes(&lines.join(&b"; "[..]))
    {
        headers.insert(header::COOKIE, joined);
    }
}

/// Joins all lines of `X-Forwarded-For` into one and appends the peer.
fn append_forwarded_for(headers: &mut HeaderMap, peer: &HeaderValue) {
    if !headers.contains_key(X_FORWARDED_FOR) {
        headers.insert(X_FORWARDED_FOR, peer.clone());
        return;
    }
    let mut joined = Vec::new();
    for line in headers.get_all(X_FORWARDED_FOR) {
        joined.extend_from_slice(line.as_bytes());
        joined.extend_from_slice(b", ");
    }
    joined.extend_from_slice(peer.as_bytes());
    if let Ok(joined) = HeaderValue::from_bytes(&joined) {
        headers.insert(X_FORWARDED_FOR, joined);
    }
}
