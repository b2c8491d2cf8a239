//! Exchanges with backends that speak HTTP/2.

use std::error::Error as _;

use http::header::{self, HeaderValue};
use http::uri::{Authority, PathAndQuery, Scheme};
use http::{Request, Response, Uri, Version};
use http_body::Body as _;
use tokio::time::Instant;

use super::{Failure, Outbound, Proxy, refused, remove_hop_by_hop, returned, unconnected};
use crate::address::Address;
use crate::body::Body;
use crate::error::ProxyError;
use crate::pool::Stream;
use crate::upload;

/// How often a request that a connection in use has not taken is given to another, before the caller is asked.
const MOST_CONNECTIONS: u32 = 4;

impl Proxy {
    pub(super) async fn forward_h2c(
        &self,
        mut outbound: Outbound,
        address: &Address,
        connect_by: Option<Instant>,
    ) -> Result<Response<Body>, Failure> {
        let scheme = if address.identity().is_some() { &Scheme::HTTPS } else { &Scheme::HTTP };
        let (mut connections, mut seen) = (0, false);
        loop {
            let stream = match self.pool.stream(address, connect_by).await {
                Ok(stream) => stream,
                Err(error) => return Err(unconnected(outbound, error)),
            };
            connections += 1;
            let again = stream.is_reused() && connections < MOST_CONNECTIONS;
            match exchange(outbound, stream, address, scheme).await {
                Err(Failure::Unsent(intact, _)) if again => outbound = intact,
                Err(Failure::NoResponse(intact, _)) if again && !seen => {
                    seen = true;
                    outbound = intact;
                }
                other => return other,
            }
        }
    }
}

async fn exchange(
    mut outbound: Outbound,
    mut stream: Stream,
    address: &Address,
    scheme: &Scheme,
) -> Result<Response<Body>, Failure> {
    let replayable = outbound.is_replayable();
    let body = std::mem::take(outbound.0.request.body_mut());
    let (upload, body) = if body.is_end_stream() {
        (None, Body::empty())
    } else {
        let (upload, sending) = upload::share(body);
        (Some(upload), Body::sending(sending))
    };
    let request = translate(outbound.head().0.request, body, scheme);
    let before = stream.written();
    let mut error = match stream.send(request, upload).await {
        Ok(response) => {
            let Some(patience) = returned(&response, outbound.0.returnable) else {
                stream.settle();
                return Ok(respond(response, stream));
            };
            let upload = stream.take_upload();
            return Err(refused(outbound.restored(upload), address.clone(), patience));
        }
        Err(error) => error,
    };
    let returned = error.take_message().is_some();
    let error = error.into_error();
    let cause = cause(&error);
    let unsent = returned || stream.written() == before || cause.is_some_and(is_refusal);
    let lost = returned || cause.is_none_or(h2::Error::is_io) || cause.is_some_and(is_refusal);
    let body = match stream.take_upload() {
        None => Some(Body::empty()),
        // A body that cannot be had back has been sent in part.
        Some(upload) => upload.take_back(),
    };
    let error = if lost { ProxyError::NoResponse(error) } else { ProxyError::Broken(error) };
    Err(match body {
        Some(body) if unsent => {
            *outbound.0.request.body_mut() = body;
            Failure::Unsent(outbound, error)
        }
        Some(_) if lost && replayable => Failure::NoResponse(outbound, error),
        _ => Failure::Final(error),
    })
}

/// What HTTP/2 says about an error.
fn cause(error: &hyper::Error) -> Option<&h2::Error> {
    error.source().and_then(|source| source.downcast_ref())
}

/// Whether the backend has promised not to have looked at the request: it refused the stream, or the stream came after
/// the last one it took before it went away.
fn is_refusal(error: &h2::Error) -> bool {
    let refused = error.is_reset() && error.reason() == Some(h2::Reason::REFUSED_STREAM);
    error.is_remote() && (refused || error.is_go_away())
}

/// Host becomes the authority; what concerns HTTP/1.1 goes. The body is asked for at once: HTTP/2 has windows for what
/// `Expect` is for.
fn translate(head: Request<Body>, body: Body, scheme: &Scheme) -> Request<Body> {
    let (mut parts, _) = head.into_parts();
    parts.headers.remove(header::TRANSFER_ENCODING);
    parts.headers.remove(header::EXPECT);
    let host = parts.headers.get(header::HOST).map(HeaderValue::as_bytes);
    // Without an authority the Host stays, which HTTP/2 knows, too.
    if let Some(authority) = host.and_then(|host| Authority::try_from(host).ok()) {
        let target = parts.uri.path_and_query().map_or("/", PathAndQuery::as_str);
        if let Ok(uri) =
            Uri::builder().scheme(scheme.clone()).authority(authority).path_and_query(target).build()
        {
            parts.uri = uri;
            parts.headers.remove(header::HOST);
            parts.version = Version::HTTP_2;
        }
    }
    Request::from_parts(parts, body)
}

fn respond(response: Response<hyper::body::Incoming>, stream: Stream) -> Response<Body> {
    let (mut parts, body) = response.into_parts();
    remove_hop_by_hop(&mut parts.headers);
    parts.version = Version::HTTP_11;
    let body = if body.is_end_stream() {
        stream.finish();
        Body::empty()
    } else {
        Body::leased(body, stream)
    };
    Response::from_parts(parts, body)
}
