//! The routing table: from host, path and headers to weighted backends. Immutable; a new one replaces it whole.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use ember_api::networking::v1alpha1::{HttpIngressPath, Ingress, IngressVisibility};
use ember_dataplane::header;
use http::{HeaderMap, HeaderName, HeaderValue};

use crate::backend::{Backend, BackendKey, PortRef};
use crate::fingerprint::fingerprint;
use crate::split::Split;

/// Which of the gateway's listeners a request came through.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Visibility {
    /// The one the outside reaches.
    External,
    /// The one that is reached from within only.
    Internal,
}

/// A condition on a header: the exact value, or, when that is empty, any value at all.
#[derive(Debug, PartialEq, Eq)]
struct Match {
    name: HeaderName,
    value: Option<HeaderValue>,
}

/// One backend of a path.
#[derive(Debug)]
pub struct Choice {
    /// Where to.
    pub backend: Arc<Backend>,
    /// Headers to set when this choice is taken.
    pub headers: Vec<(HeaderName, HeaderValue)>,
}

impl Choice {
    /// Whether requests say which revision they are for, so that the activator can serve them, too.
    #[must_use]
    pub fn names_revision(&self) -> bool {
        self.headers.iter().any(|(name, _)| *name == header::REVISION)
    }
}

/// One path of a rule.
#[derive(Debug)]
pub struct PathRoute {
    prefix: String,
    matches: Vec<Match>,
    /// What `Host` becomes, if anything.
    pub rewrite_host: Option<HeaderValue>,
    /// Headers to set whichever backend is taken.
    pub headers: Vec<(HeaderName, HeaderValue)>,
    choices: Vec<Choice>,
    split: Split,
    /// Identifies the version of the Ingress that this path comes from.
    pub fingerprint: Arc<HeaderValue>,
}

impl PathRoute {
    /// The backend whose turn it is; `None` when no backend has a share.
    #[must_use]
    pub fn choose(&self) -> Option<&Choice> {
        self.choices.get(self.split.next()?)
    }

    fn accepts(&self, path: &str, headers: &HeaderMap) -> bool {
        path.starts_with(&self.prefix)
            && self.matches.iter().all(|m| match (&m.value, headers.get(&m.name)) {
                (Some(wanted), Some(value)) => wanted == value,
                (None, Some(_)) => true,
                (_, None) => false,
            })
    }
}

/// The routes of one Ingress, ready to serve. Kept from table to table while the Ingress does not change, so that
/// its splits go on where they were.
#[derive(Debug)]
pub struct Compiled {
    /// uid and generation of the Ingress this was made from.
    version: (String, i64),
    hosts: Vec<(Visibility, String, Arc<[PathRoute]>)>,
}

/// What is wrong with an Ingress.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum InvalidIngress {
    /// A header that HTTP cannot carry.
    #[error("invalid header {0:?}")]
    Header(String),
    /// A rule with nothing to do.
    #[error("rule {0} has no http paths")]
    NoPaths(usize),
    /// More backends than a split can have.
    #[error("a path has {0} splits; at most 256 are supported")]
    TooManySplits(usize),
}

type Headers = Vec<(HeaderName, HeaderValue)>;

fn header_line(name: &str, value: &str) -> Result<(HeaderName, HeaderValue), InvalidIngress> {
    let invalid = || InvalidIngress::Header(format!("{name}: {value}"));
    let name = HeaderName::from_bytes(name.as_bytes()).map_err(|_| invalid())?;
    Ok((name, HeaderValue::from_str(value).map_err(|_| invalid())?))
}

fn headers(map: &BTreeMap<String, String>) -> Result<Headers, InvalidIngress> {
    map.iter().map(|(name, value)| header_line(name, value)).collect()
}

impl Compiled {
    /// Compiles an Ingress; `backend` gives the live backend of a key.
    ///
    /// # Errors
    /// When the Ingress cannot be served as it stands.
    pub fn new(
        ingress: &Ingress,
        backend: impl Fn(&BackendKey) -> Arc<Backend>,
    ) -> Result<Self, InvalidIngress> {
        let metadata = &ingress.metadata;
        let namespace = metadata.namespace.as_deref().unwrap_or_default();
        let name = metadata.name.as_deref().unwrap_or_default();
        let hash = fingerprint(&ingress.spec, namespace, name);
        // Hexadecimal digits are always a header value.
        let hash = Arc::new(HeaderValue::from_str(&hash).unwrap_or_else(|_| HeaderValue::from_static("")));
        let mut hosts = Vec::new();
        for (index, rule) in ingress.spec.rules.iter().enumerate() {
            if rule.paths().is_empty() {
                return Err(InvalidIngress::NoPaths(index));
            }
            let mut paths = Vec::new();
            for path in rule.paths() {
                paths.push(path_route(path, &hash, &backend)?);
            }
            // Longer prefixes first; of the same prefix, the more demanding first. Stable: else in declared order.
            paths.sort_by_key(|p| std::cmp::Reverse((p.prefix.len(), p.matches.len())));
            let paths: Arc<[PathRoute]> = paths.into();
            let own: &[Visibility] = match rule.visibility {
                IngressVisibility::ClusterLocal => &[Visibility::Internal],
                // From within one reaches what the outside reaches, too.
                _ => &[Visibility::External, Visibility::Internal],
            };
            for host in &rule.hosts {
                let host = host.to_ascii_lowercase();
                hosts.extend(own.iter().map(|v| (*v, host.clone(), Arc::clone(&paths))));
            }
        }
        Ok(Self { version: version(ingress), hosts })
    }

    /// Whether this was made from `ingress` as it is now.
    #[must_use]
    pub fn is_current(&self, ingress: &Ingress) -> bool {
        self.version == version(ingress)
    }
}

fn version(ingress: &Ingress) -> (String, i64) {
    let metadata = &ingress.metadata;
    (metadata.uid.clone().unwrap_or_default(), metadata.generation.unwrap_or_default())
}

fn path_route(
    path: &HttpIngressPath,
    hash: &Arc<HeaderValue>,
    backend: &impl Fn(&BackendKey) -> Arc<Backend>,
) -> Result<PathRoute, InvalidIngress> {
    if path.splits.len() > 256 {
        return Err(InvalidIngress::TooManySplits(path.splits.len()));
    }
    let mut choices = Vec::new();
    let mut weights = Vec::new();
    for split in &path.splits {
        let key = BackendKey {
            namespace: split.service_namespace.clone(),
            service: split.service_name.clone(),
            port: PortRef::from(&split.service_port),
        };
        choices.push(Choice { backend: backend(&key), headers: headers(&split.append_headers)? });
        // A lone split without a share has all of it.
        let percent = if path.splits.len() == 1 && split.percent == 0 { 100 } else { split.percent };
        weights.push(u32::try_from(percent).unwrap_or(0).min(100));
    }
    let mut matches = Vec::new();
    for (name, wanted) in &path.headers {
        let (name, value) = header_line(name, &wanted.exact)?;
        matches.push(Match { name, value: (!value.is_empty()).then_some(value) });
    }
    let rewrite_host = match path.rewrite_host.as_str() {
        "" => None,
        host => Some(header_line("host", host)?.1),
    };
    Ok(PathRoute {
        prefix: path.path.clone(),
        matches,
        rewrite_host,
        headers: headers(&path.append_headers)?,
        choices,
        split: Split::new(&weights),
        fingerprint: Arc::clone(hash),
    })
}

/// Where requests go.
#[derive(Debug, Default)]
pub struct Table {
    external: HashMap<String, Arc<[PathRoute]>>,
    internal: HashMap<String, Arc<[PathRoute]>>,
}

/// A host that another Ingress already serves.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Conflict {
    /// Index of the refused Ingress in the list the table was built from.
    pub index: usize,
    /// The host.
    pub host: String,
}

impl Table {
    /// Builds the table of some Ingresses, oldest first: of two that claim one host the later is refused whole.
    #[must_use]
    pub fn build(ingresses: &[Arc<Compiled>]) -> (Self, Vec<Conflict>) {
        let mut table = Self::default();
        let mut conflicts = Vec::new();
        for (index, ingress) in ingresses.iter().enumerate() {
            let taken = ingress.hosts.iter().find(|(v, host, _)| table.hosts(*v).contains_key(host));
            if let Some((_, host, _)) = taken {
                conflicts.push(Conflict { index, host: host.clone() });
                continue;
            }
            for (visibility, host, paths) in &ingress.hosts {
                let hosts = match visibility {
                    Visibility::External => &mut table.external,
                    Visibility::Internal => &mut table.internal,
                };
                // Of the rules of one Ingress the first decides.
                hosts.entry(host.clone()).or_insert_with(|| Arc::clone(paths));
            }
        }
        (table, conflicts)
    }

    fn hosts(&self, visibility: Visibility) -> &HashMap<String, Arc<[PathRoute]>> {
        match visibility {
            Visibility::External => &self.external,
            Visibility::Internal => &self.internal,
        }
    }

    /// The paths of a host (without port; compared without case), and the one that takes the request.
    #[must_use]
    pub fn route(
        &self,
        visibility: Visibility,
        host: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> Option<(Arc<[PathRoute]>, usize)> {
        let hosts = self.hosts(visibility);
        let paths = match hosts.get(host) {
            Some(paths) => paths,
            None => hosts.get(&host.to_ascii_lowercase())?,
        };
        let index = paths.iter().position(|route| route.accepts(path, headers))?;
        Some((Arc::clone(paths), index))
    }
}

/// The host of an authority or `Host` header without its port.
#[must_use]
pub fn without_port(authority: &str) -> &str {
    match authority.rsplit_once(':') {
        Some((host, port))
            if port.bytes().all(|b| b.is_ascii_digit()) && (!host.contains(':') || host.ends_with(']')) =>
        {
            host
        }
        _ => authority,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::backend::{Backends, Resolved};
    use serde_json::json;

    fn ingress(name: &str, rules: &serde_json::Value) -> Arc<Compiled> {
        let ingress: Ingress = serde_json::from_value(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": name, "namespace": "ns", "uid": name, "generation": 1},
            "spec": {"rules": rules}}))
        .unwrap();
        let backends = Backends::default();
        Arc::new(Compiled::new(&ingress, |key| backends.get(key, |_| Resolved::default())).unwrap())
    }

    fn split(name: &str, percent: u32) -> serde_json::Value {
        json!({"serviceNamespace": "ns", "serviceName": name, "servicePort": 80, "percent": percent})
    }

    fn service(
        table: &Table,
        visibility: Visibility,
        host: &str,
        path: &str,
        headers: &HeaderMap,
    ) -> Option<String> {
        let (paths, index) = table.route(visibility, host, path, headers)?;
        paths[index].choose().map(|choice| choice.backend.key.service.clone())
    }

    #[test]
    fn headers_then_longer_paths_go_first() {
        let compiled = ingress(
            "a",
            &json!([{"hosts": ["h.example.com"], "http": {"paths": [
            {"splits": [split("all", 100)]},
            {"path": "/foo", "splits": [split("foo", 100)]},
            {"headers": {"Knative-Serving-Tag": {"exact": "t"}}, "splits": [split("tagged", 100)]}]}}]),
        );
        let (table, conflicts) = Table::build(&[compiled]);
        assert!(conflicts.is_empty());
        let mut tag = HeaderMap::new();
        tag.insert("knative-serving-tag", HeaderValue::from_static("t"));
        let none = HeaderMap::new();
        let to = |host, path, headers| service(&table, Visibility::External, host, path, headers);
        assert_eq!(to("h.example.com", "/", &none).as_deref(), Some("all"));
        assert_eq!(to("H.Example.com", "/foobar", &none).as_deref(), Some("foo"));
        assert_eq!(to("h.example.com", "/", &tag).as_deref(), Some("tagged"));
        assert_eq!(to("other.example.com", "/", &none), None);
    }

    #[test]
    fn cluster_local_hosts_do_not_exist_outside() {
        let compiled = ingress(
            "a",
            &json!([
            {"hosts": ["a.ns.svc"], "visibility": "ClusterLocal", "http": {"paths": [{"splits": [split("in", 100)]}]}},
            {"hosts": ["a.example.com"], "http": {"paths": [{"splits": [split("out", 100)]}]}}]),
        );
        let (table, _) = Table::build(&[compiled]);
        let none = HeaderMap::new();
        assert_eq!(service(&table, Visibility::External, "a.ns.svc", "/", &none), None);
        assert_eq!(service(&table, Visibility::Internal, "a.ns.svc", "/", &none).as_deref(), Some("in"));
        assert_eq!(
            service(&table, Visibility::Internal, "a.example.com", "/", &none).as_deref(),
            Some("out")
        );
    }

    #[test]
    fn the_later_claim_on_a_host_is_refused_whole() {
        let rules = |service| json!([{"hosts": ["x.example.com"], "http": {"paths": [{"splits": [split(service, 100)]}]}}]);
        let (table, conflicts) =
            Table::build(&[ingress("a", &rules("first")), ingress("b", &rules("second"))]);
        assert_eq!(conflicts, [Conflict { index: 1, host: "x.example.com".into() }]);
        let to = service(&table, Visibility::External, "x.example.com", "/", &HeaderMap::new());
        assert_eq!(to.as_deref(), Some("first"));
    }

    #[test]
    fn ports_are_no_part_of_the_host() {
        for (authority, host) in
            [("a.b:80", "a.b"), ("a.b", "a.b"), ("[::1]:80", "[::1]"), ("[::1]", "[::1]"), ("a:b", "a:b")]
        {
            assert_eq!(without_port(authority), host);
        }
    }
}
