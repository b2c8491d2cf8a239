//! What a template is applied to: the objects that Go's templates find in upstream's, by the same names.

use std::borrow::Cow;
use std::cell::OnceCell;
use std::collections::BTreeMap;

use ember_template::{Fields, Value};
use http::{HeaderMap, HeaderName, HeaderValue, Version, header};

use super::Revision;
use super::record::{Head, Response};

const TRACEPARENT: HeaderName = HeaderName::from_static("traceparent");
const B3_TRACE_ID: HeaderName = HeaderName::from_static("x-b3-traceid");

/// The root of a template's data.
pub(super) struct Input<'a> {
    request: Inbound<'a>,
    response: Response,
    revision: &'a Revision,
}

impl<'a> Input<'a> {
    pub(super) fn new(head: &'a Head, response: Response, revision: &'a Revision) -> Self {
        let url = Url { head, query: OnceCell::new() };
        let request = Inbound { head, url, header: OnceCell::new(), coding: OnceCell::new() };
        Self { request, response, revision }
    }
}

impl Fields for Input<'_> {
    fn type_name(&self) -> &'static str {
        "*http.RequestLogTemplateInput"
    }

    fn field(&self, name: &str) -> Option<Value<'_>> {
        Some(match name {
            "Request" => Value::Object(&self.request),
            "Response" => Value::Object(&self.response),
            "Revision" => Value::Object(self.revision),
            "TraceID" => Value::Text(trace_id(&self.request.head.headers)),
            _ => return None,
        })
    }
}

/// The trace a request belongs to: W3C's header, or else B3's.
fn trace_id(headers: &HeaderMap) -> Cow<'_, str> {
    match text(headers, &TRACEPARENT) {
        Cow::Borrowed(parent) => parent.split('-').nth(1).map(Cow::Borrowed),
        Cow::Owned(parent) => parent.split('-').nth(1).map(|id| Cow::Owned(id.to_owned())),
    }
    .unwrap_or_else(|| text(headers, &B3_TRACE_ID))
}

/// The first line of a header; empty if there is none.
fn text<'a>(headers: &'a HeaderMap, name: &HeaderName) -> Cow<'a, str> {
    headers.get(name).map_or(Cow::Borrowed(""), |value| String::from_utf8_lossy(value.as_bytes()))
}

impl Fields for Response {
    fn type_name(&self) -> &'static str {
        "*http.RequestLogResponse"
    }

    fn field(&self, name: &str) -> Option<Value<'_>> {
        Some(match name {
            "Code" => Value::Int(self.code.into()),
            "Size" => int(self.size),
            "Latency" => Value::Float(self.latency),
            _ => return None,
        })
    }
}

impl Fields for Revision {
    fn type_name(&self) -> &'static str {
        "*http.RequestLogRevision"
    }

    fn field(&self, name: &str) -> Option<Value<'_>> {
        let text = match name {
            "Name" => &self.name,
            "Namespace" => &self.namespace,
            "Service" => &self.service,
            "Configuration" => &self.configuration,
            "PodName" => &self.pod_name,
            "PodIP" => &self.pod_ip,
            _ => return None,
        };
        Some(Value::Text(text.into()))
    }
}

fn int(value: u64) -> Value<'static> {
    Value::Int(i64::try_from(value).unwrap_or(i64::MAX))
}

/// The request, as Go's `http.Request`.
struct Inbound<'a> {
    head: &'a Head,
    url: Url<'a>,
    header: OnceCell<Lists>,
    coding: OnceCell<Vec<String>>,
}

impl Inbound<'_> {
    fn version(&self) -> (&'static str, i64, i64) {
        match self.head.version {
            Version::HTTP_10 => ("HTTP/1.0", 1, 0),
            Version::HTTP_2 => ("HTTP/2.0", 2, 0),
            _ => ("HTTP/1.1", 1, 1),
        }
    }

    fn coding(&self) -> &[String] {
        self.coding.get_or_init(|| {
            let coding = text(&self.head.headers, &header::TRANSFER_ENCODING);
            if coding.is_empty() { Vec::new() } else { vec![coding.to_ascii_lowercase()] }
        })
    }
}

impl Fields for Inbound<'_> {
    fn type_name(&self) -> &'static str {
        "*http.Request"
    }

    fn field(&self, name: &str) -> Option<Value<'_>> {
        let (proto, major, minor) = self.version();
        Some(match name {
            "Method" => Value::Text(self.head.method.as_str().into()),
            "URL" => Value::Object(&self.url),
            "RequestURI" => Value::Text(self.head.target().into()),
            "Proto" => Value::Text(proto.into()),
            "ProtoMajor" => Value::Int(major),
            "ProtoMinor" => Value::Int(minor),
            "Header" => Value::Object(self.header.get_or_init(|| Lists::of_headers(&self.head.headers))),
            "ContentLength" => self.head.content_length.map_or(Value::Int(-1), int),
            "TransferEncoding" => Value::List(self.coding()),
            "Host" => Value::Text(text(&self.head.headers, &header::HOST)),
            "RemoteAddr" => {
                let peer = self.head.peer;
                Value::Text(Cow::Owned(
                    std::net::SocketAddr::new(peer.ip().to_canonical(), peer.port()).to_string(),
                ))
            }
            _ => return None,
        })
    }

    fn method(&self, name: &str, arguments: &[Value<'_>]) -> Option<Result<Value<'_>, String>> {
        Some(match (name, arguments) {
            ("UserAgent", []) => Ok(Value::Text(text(&self.head.headers, &header::USER_AGENT))),
            ("Referer", []) => Ok(Value::Text(text(&self.head.headers, &header::REFERER))),
            ("ProtoAtLeast", [Value::Int(major), Value::Int(minor)]) => {
                let (_, ours, our_minor) = self.version();
                Ok(Value::Bool((ours, our_minor) >= (*major, *minor)))
            }
            ("UserAgent" | "Referer" | "ProtoAtLeast", _) => Err(wrong_arguments(name)),
            _ => return None,
        })
    }
}

fn wrong_arguments(name: &str) -> String {
    format!("wrong arguments for {name}")
}

/// The request's target, as Go's `url.URL`.
struct Url<'a> {
    head: &'a Head,
    query: OnceCell<Lists>,
}

impl Url<'_> {
    fn path_and_query(&self) -> (&str, &str) {
        let target = self.head.uri.path_and_query();
        (target.map_or("", |target| target.path()), target.and_then(|target| target.query()).unwrap_or(""))
    }
}

impl Fields for Url<'_> {
    fn type_name(&self) -> &'static str {
        "*url.URL"
    }

    fn field(&self, name: &str) -> Option<Value<'_>> {
        let (path, query) = self.path_and_query();
        Some(match name {
            "Path" => Value::Text(decode(path, false).map_or(Cow::Borrowed(path), Cow::Owned)),
            "RawQuery" => Value::Text(query.into()),
            "ForceQuery" => Value::Bool(query.is_empty() && self.head.target().ends_with('?')),
            // A target has none of these.
            "Scheme" | "Opaque" | "Host" | "Fragment" | "RawFragment" => Value::Text("".into()),
            _ => return None,
        })
    }

    fn method(&self, name: &str, arguments: &[Value<'_>]) -> Option<Result<Value<'_>, String>> {
        let (path, query) = self.path_and_query();
        Some(match (name, arguments) {
            ("String" | "RequestURI" | "Redacted", []) => Ok(Value::Text(self.head.target().into())),
            ("EscapedPath", []) => Ok(Value::Text(path.into())),
            ("Query", []) => Ok(Value::Object(self.query.get_or_init(|| Lists::of_query(query)))),
            ("Hostname" | "Port" | "EscapedFragment", []) => Ok(Value::Text("".into())),
            ("IsAbs", []) => Ok(Value::Bool(false)),
            ("String" | "RequestURI" | "Redacted" | "EscapedPath" | "Query" | "Hostname" | "Port", _)
            | ("EscapedFragment" | "IsAbs", _) => Err(wrong_arguments(name)),
            _ => return None,
        })
    }

    fn text(&self) -> Option<String> {
        Some(self.head.target().to_owned())
    }
}

/// Texts by key: headers or the parameters of a query.
struct Lists {
    type_name: &'static str,
    /// How a key is spelt in the map.
    spelling: fn(&str) -> String,
    lists: BTreeMap<String, Vec<String>>,
}

impl Lists {
    /// Headers by the names Go spells; without those that Go keeps elsewhere.
    fn of_headers(headers: &HeaderMap) -> Self {
        let mut lists: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for name in headers.keys() {
            if [header::HOST, header::TRANSFER_ENCODING, header::TRAILER].contains(name) {
                continue;
            }
            let text = |value: &HeaderValue| String::from_utf8_lossy(value.as_bytes()).into_owned();
            lists.insert(canonical(name.as_str()), headers.get_all(name).iter().map(text).collect());
        }
        Self { type_name: "http.Header", spelling: canonical, lists }
    }

    /// The parameters that can be read; those that cannot are left out.
    fn of_query(query: &str) -> Self {
        let mut lists: BTreeMap<_, Vec<_>> = BTreeMap::new();
        for pair in query.split('&').filter(|pair| !pair.is_empty() && !pair.contains(';')) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            if let (Some(key), Some(value)) = (decode(key, true), decode(value, true)) {
                lists.entry(key).or_default().push(value);
            }
        }
        Self { type_name: "url.Values", spelling: str::to_owned, lists }
    }
}

impl Fields for Lists {
    fn type_name(&self) -> &'static str {
        self.type_name
    }

    fn field(&self, _: &str) -> Option<Value<'_>> {
        None
    }

    fn method(&self, name: &str, arguments: &[Value<'_>]) -> Option<Result<Value<'_>, String>> {
        let headers = self.type_name == "http.Header";
        let known = matches!((name, headers), ("Get", _) | ("Values", true) | ("Has", false));
        known.then(|| {
            let [Value::Text(key)] = arguments else { return Err(wrong_arguments(name)) };
            let list = self.lists.get(&(self.spelling)(key)).map_or(&[][..], Vec::as_slice);
            Ok(match name {
                "Get" => Value::Text(list.first().map_or("", String::as_str).into()),
                "Has" => Value::Bool(!list.is_empty()),
                _ => Value::List(list),
            })
        })
    }

    fn lists(&self) -> Option<&BTreeMap<String, Vec<String>>> {
        Some(&self.lists)
    }
}

/// A header's name as Go spells it: `X-B3-Traceid`.
fn canonical(name: &str) -> String {
    let mut upper = true;
    name.chars()
        .map(|c| {
            let spelt = if upper { c.to_ascii_uppercase() } else { c.to_ascii_lowercase() };
            upper = c == '-';
            spelt
        })
        .collect()
}

/// Percent-encoded text as it was before, if it can be; in a query `+` is a space.
fn decode(text: &str, query: bool) -> Option<String> {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.bytes();
    while let Some(byte) = rest.next() {
        bytes.push(match byte {
            b'%' => {
                let mut digit = || char::from(rest.next()?).to_digit(16);
                u8::try_from(digit()? * 16 + digit()?).ok()?
            }
            b'+' if query => b' ',
            byte => byte,
        });
    }
    Some(String::from_utf8_lossy(&bytes).into_owned())
}
