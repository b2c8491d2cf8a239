//! What a server settles about a request's head before anyone acts on it, so that every hop reads it the same way.
//!
//! What two readers could understand differently is refused, and the connection with it: one of them may take the rest
//! for another request.

use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Method, Request, Response, StatusCode, Uri, Version};

use crate::body::Body;
use crate::error::{http_error, status};
use crate::header::{FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};

/// Headers that go on to the backend although `Connection` names them: they frame the message, or say who asked whom.
const END_TO_END: [HeaderName; 7] = [
    header::HOST,
    header::CONTENT_LENGTH,
    header::TRANSFER_ENCODING,
    X_FORWARDED_FOR,
    X_FORWARDED_HOST,
    X_FORWARDED_PROTO,
    FORWARDED,
];

/// Headers of this hop that are read, and removed, when the request is made ready for the next.
const READ_LATER: [HeaderName; 2] = [header::TE, header::UPGRADE];

/// Settles the request: it has one Host, which is the authority of an absolute-form target; the target is in origin
/// form; a body is framed in one way; what `Connection` names is gone.
///
/// # Errors
/// The answer in the request's stead.
pub(super) fn settle(request: &mut Request<Body>) -> Result<(), Box<Response<Body>>> {
    let multiplexed = request.version() == Version::HTTP_2;
    if !multiplexed {
        // Routed by one and served by another, a second Host could reach what the first hides.
        if request.headers().get_all(header::HOST).iter().nth(1).is_some() {
            return Err(bad_request("too many Host headers"));
        }
        if !is_plainly_framed(request.headers()) {
            return Err(bad_request("unsupported transfer encoding"));
        }
        remove_named(request.headers_mut());
    }
    if request.method() == Method::CONNECT {
        return Ok(());
    }
    if request.uri().authority().is_some() {
        if request.uri().scheme().is_none() {
            // `GET a.example HTTP/1.1`: neither a path nor a whole address.
            return Err(bad_request("malformed request target"));
        }
        let uri = std::mem::take(request.uri_mut());
        let parts = uri.into_parts();
        if let Some(host) = parts.authority.and_then(|authority| {
            // Who asks is no part of who is asked.
            let host = authority.as_str().rsplit('@').next()?;
            HeaderValue::from_str(host).ok()
        }) {
            request.headers_mut().insert(header::HOST, host);
        }
        *request.uri_mut() = parts.path_and_query.map_or_else(|| Uri::from_static("/"), Uri::from);
    }
    let mut hosts = request.headers().get_all(header::HOST).iter();
    match (hosts.next(), hosts.next()) {
        (None, _) if request.version() >= Version::HTTP_11 => {
            return Err(bad_request("missing required Host header"));
        }
        (None, _) => {}
        (Some(host), None) if is_host(host) => {}
        (Some(_), None) => return Err(bad_request("malformed Host header")),
        (Some(_), Some(_)) => return Err(bad_request("too many Host headers")),
    }
    match request.uri().path_and_query().map(http::uri::PathAndQuery::as_str) {
        Some("*") if request.method() == Method::OPTIONS => Err(Box::new(status(StatusCode::OK))),
        Some(target) if target.starts_with('/') => Ok(()),
        // `http://a?b`: the path is the root's.
        Some(target) if target.starts_with('?') => {
            let target = Uri::try_from(format!("/{target}"));
            *request.uri_mut() = target.map_err(|_| bad_request("malformed request target"))?;
            Ok(())
        }
        _ => Err(bad_request("malformed request target")),
    }
}

/// Whether the length of the body is beyond doubt: another transfer coding than `chunked`, or that one twice, is
/// understood differently by different servers.
fn is_plainly_framed(headers: &HeaderMap) -> bool {
    let mut codings = headers.get_all(header::TRANSFER_ENCODING).iter();
    match (codings.next(), codings.next()) {
        (None, _) => true,
        (Some(coding), None) => coding.as_bytes().eq_ignore_ascii_case(b"chunked"),
        (Some(_), Some(_)) => false,
    }
}

/// Whether the value consists of what a host and a port are made of.
fn is_host(value: &HeaderValue) -> bool {
    value.as_bytes().iter().all(|byte| byte.is_ascii_alphanumeric() || b"!$%&'()*+,-.:;=[]_~".contains(byte))
}

/// Removes the headers `Connection` names, and those names: what a component adds later is none of this hop's.
fn remove_named(headers: &mut HeaderMap) {
    if !headers.contains_key(header::CONNECTION) {
        return;
    }
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .flat_map(|line| line.as_bytes().split(|byte| *byte == b','))
        .filter_map(|name| HeaderName::from_bytes(name.trim_ascii()).ok())
        .collect();
    for name in &named {
        if !END_TO_END.contains(name) && !READ_LATER.contains(name) {
            headers.remove(name);
        }
    }
    if named.contains(&header::UPGRADE) {
        headers.insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
    } else {
        headers.remove(header::CONNECTION);
    }
}

fn bad_request(reason: &str) -> Box<Response<Body>> {
    let mut response = http_error(StatusCode::BAD_REQUEST, &format!("400 Bad Request: {reason}"));
    response.headers_mut().insert(header::CONNECTION, HeaderValue::from_static("close"));
    Box::new(response)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(target: &str, headers: &[(&'static str, &'static str)]) -> Request<Body> {
        let mut request = Request::new(Body::empty());
        *request.uri_mut() = target.parse().unwrap();
        for (name, value) in headers {
            request.headers_mut().append(*name, HeaderValue::from_static(value));
        }
        request
    }

    fn settled(target: &str, headers: &[(&'static str, &'static str)]) -> Option<(String, String)> {
        let mut request = request(target, headers);
        settle(&mut request).ok()?;
        Some((request.headers()["host"].to_str().unwrap().to_owned(), request.uri().to_string()))
    }

    #[test]
    fn there_is_one_host_and_one_target() {
        let known = |host: &str, target: &str| Some((host.to_owned(), target.to_owned()));
        assert_eq!(settled("/x?y", &[("host", "a")]), known("a", "/x?y"));
        assert_eq!(settled("http://b:80/x", &[("host", "a")]), known("b:80", "/x"));
        assert_eq!(settled("http://me:secret@b/x", &[("host", "a")]), known("b", "/x"));
        assert_eq!(settled("http://b", &[]), known("b", "/"));
        assert_eq!(settled("http://b?x", &[]), known("b", "/?x"));
        for (target, headers) in [
            ("/", &[][..]),
            ("/", &[("host", "a"), ("host", "a")]),
            ("http://b/", &[("host", "a"), ("host", "b")]),
            ("/", &[("host", "a b")]),
            ("/", &[("host", "a/b")]),
            ("/", &[("host", "me@a")]),
            ("b:80", &[("host", "a")]),
            ("b", &[("host", "a")]),
            ("*", &[("host", "a")]),
        ] {
            assert_eq!(settled(target, headers), None, "{target} {headers:?}");
        }
    }

    #[test]
    fn a_body_is_framed_in_one_way() {
        let framed = |codings: &[&'static str]| {
            let headers: Vec<_> = codings.iter().map(|coding| ("transfer-encoding", *coding)).collect();
            settled("/", &[&[("host", "a")][..], &headers].concat()).is_some()
        };
        assert!(framed(&["chunked"]) && framed(&["Chunked"]));
        for codings in [&["identity, chunked"][..], &["chunked, chunked"], &["chunked", "chunked"], &["gzip"]]
        {
            assert!(!framed(codings), "{codings:?}");
        }
    }

    #[test]
    fn connection_names_what_ends_here_and_only_that() {
        let mut request = request(
            "/",
            &[
                ("host", "a"),
                ("connection", "x-hop, Host, content-length"),
                ("connection", "Upgrade,X-Forwarded-For, te"),
                ("x-hop", "1"),
                ("content-length", "0"),
                ("x-forwarded-for", "1.1.1.1"),
                ("upgrade", "websocket"),
                ("te", "trailers"),
            ],
        );
        settle(&mut request).unwrap();
        let headers = request.headers();
        assert!(!headers.contains_key("x-hop"));
        assert_eq!(headers["connection"], "upgrade");
        for kept in ["host", "content-length", "x-forwarded-for", "upgrade", "te"] {
            assert!(headers.contains_key(kept), "{kept}");
        }
    }
}
