//! The `Forwarded` header (RFC 7239), made from the `X-Forwarded-*` headers when a request has none.

use ember_dataplane::header::{FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};
use http::{HeaderMap, HeaderName, HeaderValue};

/// Adds `Forwarded` if it is absent and there is something to say. Only the first line of each header counts.
pub(crate) fn add(headers: &mut HeaderMap) {
    if headers.get(FORWARDED).is_some_and(|value| !value.is_empty()) {
        return;
    }
    let first = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let (xff, xfp, xfh) = (first(&X_FORWARDED_FOR), first(&X_FORWARDED_PROTO), first(&X_FORWARDED_HOST));
    if xff.is_empty() && xfp.is_empty() && xfh.is_empty() {
        return;
    }
    if let Ok(value) = HeaderValue::from_str(&build(xff, xfp, xfh)) {
        headers.insert(FORWARDED, value);
    }
}

/// `for=<first>;host=<xfh>;proto=<xfp>, for=<second>, …`, absent parts left out.
fn build(xff: &str, xfp: &str, xfh: &str) -> String {
    let mut nodes = xff.split(',').map(str::trim).peekable();
    let mut pairs = Vec::new();
    let first = nodes.next().unwrap_or("");
    if !xff.is_empty() {
        pairs.push(format!("for={}", node(first)));
    }
    if !xfh.is_empty() {
        pairs.push(format!("host={xfh}"));
    }
    if !xfp.is_empty() {
        pairs.push(format!("proto={xfp}"));
    }
    let mut text = pairs.join(";");
    while let Some(next) = nodes.next() {
        // Nothing after the last comma is nothing.
        if next.is_empty() && nodes.peek().is_none() {
            break;
        }
        text.push_str(", for=");
        text.push_str(&node(next));
    }
    text
}

/// IPv6 addresses are bracketed and quoted.
fn node(node: &str) -> String {
    if node.contains(':') { format!("\"[{node}]\"") } else { node.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_examples() {
        for (xff, xfp, xfh, expected) in [
            ("127.0.0.1, ::1", "p", "h", r#"for=127.0.0.1;host=h;proto=p, for="[::1]""#),
            ("127.0.0.1, ::1", "", "", r#"for=127.0.0.1, for="[::1]""#),
            ("127.0.0.1, ::1", "p", "", r#"for=127.0.0.1;proto=p, for="[::1]""#),
            ("", "p", "h", "host=h;proto=p"),
            (",,,", "", "", "for=, for=, for="),
            ("127.0.0.1", "", "", "for=127.0.0.1"),
        ] {
            assert_eq!(build(xff, xfp, xfh), expected);
        }
    }

    #[test]
    fn an_existing_header_stays_and_nothing_comes_from_nothing() {
        let mut headers = HeaderMap::new();
        add(&mut headers);
        assert!(headers.is_empty());
        headers.insert(FORWARDED, HeaderValue::from_static("for=x"));
        headers.insert(X_FORWARDED_FOR, HeaderValue::from_static("1.1.1.1"));
        add(&mut headers);
        assert_eq!(headers[FORWARDED], "for=x");
    }

    proptest::proptest! {
        #[test]
        fn every_header_makes_a_header(xff in ".*", xfp in ".*", xfh in ".*") {
            let _ = build(&xff, &xfp, &xfh);
        }
    }
}
