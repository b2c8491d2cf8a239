//! The `Forwarded` header (RFC 7239), made from the `X-Forwarded-*` headers when a request has none.

use ember_dataplane::header::{FORWARDED, X_FORWARDED_FOR, X_FORWARDED_HOST, X_FORWARDED_PROTO};
use http::{HeaderMap, HeaderName, HeaderValue};

/// With more than this in the three headers, in bytes, none is made: nobody's request came by so many proxies.
const LONGEST: usize = 8 << 10;

/// Adds `Forwarded` if it is absent and there is something to say. Only the first line of each header counts.
pub(crate) fn add(headers: &mut HeaderMap) {
    if headers.get(FORWARDED).is_some_and(|value| !value.is_empty()) {
        return;
    }
    let first = |name: &HeaderName| headers.get(name).and_then(|value| value.to_str().ok()).unwrap_or("");
    let (xff, xfp, xfh) = (first(&X_FORWARDED_FOR), first(&X_FORWARDED_PROTO), first(&X_FORWARDED_HOST));
    let length = xff.len() + xfp.len() + xfh.len();
    if length == 0 || length > LONGEST {
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
        pairs.push(format!("host={}", value(xfh)));
    }
    if !xfp.is_empty() {
        pairs.push(format!("proto={}", value(xfp)));
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
    if node.contains(':') { quoted(&format!("[{node}]")) } else { value(node) }
}

/// As it is, unless it would then say something else.
fn value(text: &str) -> String {
    if text.contains(|c: char| matches!(c, ';' | ',' | '"' | '\\' | '=') || c.is_whitespace()) {
        quoted(text)
    } else {
        text.to_owned()
    }
}

fn quoted(text: &str) -> String {
    format!("\"{}\"", text.replace('\\', r"\\").replace('"', "\\\""))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

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

    #[test]
    fn what_would_say_something_else_is_quoted() {
        let text = build("1.1.1.1;proto=x", "https", "a, for=evil");
        assert_eq!(text, r#"for="1.1.1.1;proto=x";host="a, for=evil";proto=https"#);
        assert_eq!(build(r#"a"b"#, "", ""), r#"for="a\"b""#);
        assert_eq!(build("", "", "a:8080"), "host=a:8080", "as upstream has it");
    }

    #[test]
    fn a_chain_without_end_makes_no_header() {
        let mut headers = HeaderMap::new();
        headers.insert(X_FORWARDED_FOR, HeaderValue::from_str(&",".repeat(LONGEST + 1)).unwrap());
        add(&mut headers);
        assert!(!headers.contains_key(FORWARDED));
        headers.insert(X_FORWARDED_FOR, HeaderValue::from_str(&",".repeat(LONGEST)).unwrap());
        add(&mut headers);
        assert!(headers[FORWARDED].len() <= 7 * LONGEST);
    }

    /// The elements, each of them pairs of a name and a value.
    fn parse(text: &str) -> Option<Vec<Vec<(String, String)>>> {
        let mut elements = vec![Vec::new()];
        let mut chars = text.chars().peekable();
        loop {
            let mut name = String::new();
            loop {
                match chars.next()? {
                    '=' => break,
                    c if c.is_ascii_lowercase() => name.push(c),
                    _ => return None,
                }
            }
            let mut value = String::new();
            if chars.next_if_eq(&'"').is_some() {
                loop {
                    match chars.next()? {
                        '"' => break,
                        '\\' => value.push(chars.next()?),
                        c => value.push(c),
                    }
                }
            } else {
                while let Some(c) = chars.next_if(|c| !matches!(c, ';' | ',' | '"')) {
                    value.push(c);
                }
            }
            elements.last_mut()?.push((name, value));
            match chars.next() {
                None => return Some(elements),
                Some(';') => {}
                Some(',') => {
                    chars.next_if_eq(&' ')?;
                    elements.push(Vec::new());
                }
                Some(_) => return None,
            }
        }
    }

    fn text() -> impl Strategy<Value = String> {
        prop_oneof![
            r#"[ -~]{0,30}"#,
            r#"[a:\[\];,="\\ .1]{0,30}"#,
            r#"([0-9.]{3,9}|[0-9a-f:]{3,9})(, ?([0-9.]{3,9}|[0-9a-f:]{3,9})){0,5}"#
        ]
    }

    proptest! {
        #[test]
        fn every_header_says_what_the_others_said(xff in text(), xfp in text(), xfh in text()) {
            let mut headers = HeaderMap::new();
            for (name, text) in [(X_FORWARDED_FOR, &xff), (X_FORWARDED_PROTO, &xfp), (X_FORWARDED_HOST, &xfh)] {
                headers.insert(name, HeaderValue::from_str(text).unwrap());
            }
            add(&mut headers);
            let Some(value) = headers.get(FORWARDED) else {
                prop_assert!(xff.is_empty() && xfp.is_empty() && xfh.is_empty());
                return Ok(());
            };
            let elements = parse(value.to_str().unwrap()).unwrap();
            let mut expected = vec![Vec::new()];
            let mut nodes: Vec<&str> = xff.split(',').map(str::trim).collect();
            if nodes.len() > 1 && nodes.last() == Some(&"") {
                nodes.pop();
            }
            let node = |node: &str| {
                let node = if node.contains(':') { format!("[{node}]") } else { node.to_owned() };
                ("for".to_owned(), node)
            };
            if !xff.is_empty() {
                expected[0].push(node(nodes[0]));
            }
            for (name, text) in [("host", &xfh), ("proto", &xfp)] {
                if !text.is_empty() {
                    expected[0].push((name.to_owned(), text.clone()));
                }
            }
            expected.extend(nodes[1..].iter().map(|other| vec![node(other)]));
            prop_assert_eq!(elements, expected);
        }
    }
}
