//! A request taken apart: what its path names, its query, and the form of answer it accepts.

use http::{HeaderMap, header};

use crate::resource::{self, RESOURCES, Resource};
use crate::status::ApiError;

/// What a path under `/api` or `/apis` names.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Target {
    pub resource: usize,
    /// Absent for cluster-scoped resources and for all namespaces.
    pub namespace: Option<String>,
    pub name: Option<String>,
    pub subresource: Option<String>,
}

impl Target {
    pub(crate) fn resource(&self) -> &'static Resource {
        &RESOURCES[self.resource]
    }
}

/// Takes apart the segments after `/api/v1` or `/apis/group/version`.
///
/// # Errors
/// 404 when nothing is served there.
pub(crate) fn target(group: &str, version: &str, segments: &[&str]) -> Result<Target, ApiError> {
    let find = |plural: &str| resource::find(group, version, plural);
    let own = |s: &str| s.to_owned();
    let target = match segments {
        // `namespaces/{name}/{status|finalize}` is about the namespace itself.
        ["namespaces", name, sub @ ("status" | "finalize")] if group.is_empty() => {
            find("namespaces").map(|resource| Target {
                resource,
                namespace: None,
                name: Some(own(name)),
                subresource: Some(own(sub)),
            })
        }
        ["namespaces", namespace, plural, rest @ ..] => match rest {
            [] | [_] | [_, _] => find(plural).filter(|r| RESOURCES[*r].namespaced).map(|resource| Target {
                resource,
                namespace: Some(own(namespace)),
                name: rest.first().map(|s| own(s)),
                subresource: rest.get(1).map(|s| own(s)),
            }),
            _ => None,
        },
        [plural] => {
            find(plural).map(|resource| Target { resource, namespace: None, name: None, subresource: None })
        }
        [plural, name, rest @ ..] if rest.len() <= 1 => {
            find(plural).filter(|r| !RESOURCES[*r].namespaced).map(|resource| Target {
                resource,
                namespace: None,
                name: Some(own(name)),
                subresource: rest.first().map(|s| own(s)),
            })
        }
        _ => None,
    };
    target.ok_or_else(ApiError::no_such_path)
}

/// The decoded pairs of a query string.
#[derive(Debug, Default)]
pub(crate) struct Query(Vec<(String, String)>);

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(key, true), decode(value, true))
            })
            .collect();
        Self(pairs)
    }

    /// The value of a parameter, unless it is empty.
    pub(crate) fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str()).filter(|v| !v.is_empty())
    }

    /// Every value of a parameter that is not empty.
    pub(crate) fn all(&self, key: &str) -> Vec<&str> {
        self.0.iter().filter(|(k, v)| k == key && !v.is_empty()).map(|(_, v)| v.as_str()).collect()
    }

    pub(crate) fn flag(&self, key: &str) -> bool {
        self.0.iter().any(|(k, v)| k == key && matches!(v.as_str(), "" | "1" | "t" | "T" | "true" | "True"))
    }

    /// # Errors
    /// 400 when it is there and not a number.
    pub(crate) fn number<T: std::str::FromStr>(&self, key: &str) -> Result<Option<T>, ApiError> {
        self.get(key)
            .map(|text| {
                text.parse().map_err(|_| {
                    ApiError::bad_request(format!("strconv.ParseInt: parsing {text:?}: invalid syntax"))
                })
            })
            .transpose()
    }
}

/// Percent decoding; in queries a plus is a space.
pub(crate) fn decode(text: &str, plus: bool) -> String {
    if !text.contains(['%', '+']) {
        return text.to_owned();
    }
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |b: Option<&u8>| b.and_then(|b| char::from(*b).to_digit(16));
        match (bytes[at], hex(bytes.get(at + 1)), hex(bytes.get(at + 2))) {
            (b'%', Some(high), Some(low)) => {
                // Two hexadecimal digits make a byte.
                out.push((high * 16 + low) as u8);
                at += 3;
            }
            (b'+', ..) if plus => {
                out.push(b' ');
                at += 1;
            }
            (byte, ..) => {
                out.push(byte);
                at += 1;
            }
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// The form of an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Format {
    Json,
    Table,
    /// Metadata alone.
    Partial,
}

const ACCEPTED: &str = "application/json";

/// The first form in the Accept header that is served.
///
/// # Errors
/// 406 when none is.
pub(crate) fn format(headers: &HeaderMap) -> Result<Format, ApiError> {
    let mut given = false;
    for value in headers.get_all(header::ACCEPT) {
        for range in value.to_str().unwrap_or_default().split(',').map(str::trim).filter(|r| !r.is_empty()) {
            given = true;
            let mut parts = range.split(';').map(str::trim);
            let kind = parts.next().unwrap_or_default();
            let (mut form, mut group, mut version) = ("", "", "");
            for part in parts {
                match part.split_once('=') {
                    Some(("as", v)) => form = v,
                    Some(("g", v)) => group = v,
                    Some(("v", v)) => version = v,
                    _ => {}
                }
            }
            if !matches!(kind, "application/json" | "*/*" | "application/*") {
                continue;
            }
            match (form, group, version) {
                ("", ..) => return Ok(Format::Json),
                ("Table", "meta.k8s.io", "v1") => return Ok(Format::Table),
                ("PartialObjectMetadata" | "PartialObjectMetadataList", "meta.k8s.io", "v1") => {
                    return Ok(Format::Partial);
                }
                _ => {}
            }
        }
    }
    if given { Err(ApiError::not_acceptable(ACCEPTED)) } else { Ok(Format::Json) }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Parts = (String, Option<String>, Option<String>, Option<String>);

    fn parts(text: &str) -> Option<Parts> {
        let segments: Vec<&str> = text.split('/').collect();
        let t = target("", "v1", &segments).ok()?;
        Some((t.resource().plural.to_owned(), t.namespace, t.name, t.subresource))
    }

    #[test]
    fn paths_name_resources() {
        let some = |s: &str| Some(s.to_owned());
        assert_eq!(parts("namespaces/n"), Some(("namespaces".into(), None, some("n"), None)));
        assert_eq!(
            parts("namespaces/n/status"),
            Some(("namespaces".into(), None, some("n"), some("status")))
        );
        assert_eq!(parts("namespaces/n/pods"), Some(("pods".into(), some("n"), None, None)));
        assert_eq!(
            parts("namespaces/n/pods/p/log"),
            Some(("pods".into(), some("n"), some("p"), some("log")))
        );
        assert_eq!(parts("pods"), Some(("pods".into(), None, None, None)));
        assert_eq!(parts("pods/p"), None);
        assert_eq!(parts("namespaces/n/pods/p/log/x"), None);
    }

    #[test]
    fn accept_headers_choose_the_first_known_form() {
        let form = |accept: &str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::ACCEPT, accept.parse().unwrap());
            format(&headers)
        };
        let table = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json;as=Table;v=v1beta1;g=meta.k8s.io,\
                     application/json";
        assert_eq!(form(table).unwrap(), Format::Table);
        assert_eq!(form("application/vnd.kubernetes.protobuf,application/json").unwrap(), Format::Json);
        assert_eq!(form("*/*").unwrap(), Format::Json);
        assert_eq!(form("application/vnd.kubernetes.protobuf").unwrap_err().code(), 406);
    }

    #[test]
    fn queries_are_decoded() {
        let query = Query::parse(Some("labelSelector=a%3Db%2Cc&watch=true&x=a+b"));
        assert_eq!(query.get("labelSelector"), Some("a=b,c"));
        assert!(query.flag("watch"));
        assert_eq!(query.get("x"), Some("a b"));
    }
}
