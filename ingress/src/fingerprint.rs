//! The hash by which a prober recognises which version of an Ingress a gateway serves.
//!
//! Knative's contract: the lowercase hexadecimal SHA-256 of the spec's JSON, then namespace, then name. The JSON is
//! that of Go's encoder: members in declared order, `<`, `>`, `&` and the line separators escaped.

use std::fmt::Write;

use ember_api::networking::v1alpha1::IngressSpec;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use sha2::{Digest, Sha256};

/// The hash of an Ingress.
#[must_use]
pub fn fingerprint(spec: &IngressSpec, namespace: &str, name: &str) -> String {
    let mut digest = Sha256::new();
    digest.update(json(spec).as_bytes());
    digest.update(namespace.as_bytes());
    digest.update(name.as_bytes());
    hex::encode(digest.finalize())
}

/// Writes a JSON object's members, leaving out what Go's `omitempty` leaves out.
struct Members<'a> {
    out: &'a mut String,
    first: bool,
}

impl<'a> Members<'a> {
    fn open(out: &'a mut String) -> Self {
        out.push('{');
        Self { out, first: true }
    }

    fn key(&mut self, key: &str) -> &mut String {
        if !std::mem::take(&mut self.first) {
            self.out.push(',');
        }
        string(self.out, key);
        self.out.push(':');
        self.out
    }

    fn text(&mut self, key: &str, value: &str) {
        if !value.is_empty() {
            string(self.key(key), value);
        }
    }

    fn list<T>(&mut self, key: &str, items: &[T], write: impl Fn(&mut String, &T)) {
        if !items.is_empty() {
            list(self.key(key), items, write);
        }
    }

    fn map<'m, V: 'm>(
        &mut self,
        key: &str,
        map: impl IntoIterator<Item = (&'m String, &'m V)>,
        write: impl Fn(&mut String, &V),
    ) {
        let mut entries = map.into_iter().peekable();
        if entries.peek().is_none() {
            return;
        }
        let mut members = Members::open(self.key(key));
        for (key, value) in entries {
            write(members.key(key), value);
        }
        members.close();
    }

    fn close(self) {
        self.out.push('}');
    }
}

fn list<T>(out: &mut String, items: &[T], write: impl Fn(&mut String, &T)) {
    out.push('[');
    for (index, item) in items.iter().enumerate() {
        if index > 0 {
            out.push(',');
        }
        write(out, item);
    }
    out.push(']');
}

fn string(out: &mut String, text: &str) {
    // A string always serialises.
    let quoted = serde_json::to_string(text).unwrap_or_default();
    for c in quoted.chars() {
        match c {
            '<' | '>' | '&' | '\u{2028}' | '\u{2029}' => {
                // Writing to a String cannot fail.
                let _ = write!(out, "\\u{:04x}", u32::from(c));
            }
            c => out.push(c),
        }
    }
}

fn json(spec: &IngressSpec) -> String {
    let mut out = String::new();
    let mut top = Members::open(&mut out);
    top.list("tls", &spec.tls, |out, tls| {
        let mut m = Members::open(out);
        m.list("hosts", &tls.hosts, |out, host| string(out, host));
        m.text("secretName", &tls.secret_name);
        m.text("secretNamespace", &tls.secret_namespace);
        m.close();
    });
    top.list("rules", &spec.rules, |out, rule| {
        let mut m = Members::open(out);
        m.list("hosts", &rule.hosts, |out, host| string(out, host));
        m.text("visibility", rule.visibility.as_str());
        if let Some(http) = &rule.http {
            let mut h = Members::open(m.key("http"));
            list(h.key("paths"), &http.paths, |out, path| {
                let mut m = Members::open(out);
                m.text("path", &path.path);
                m.text("rewriteHost", &path.rewrite_host);
                m.map("headers", &path.headers, |out, value| {
                    let mut m = Members::open(out);
                    string(m.key("exact"), &value.exact);
                    m.close();
                });
                list(m.key("splits"), &path.splits, |out, split| {
                    let mut m = Members::open(out);
                    string(m.key("serviceNamespace"), &split.service_namespace);
                    string(m.key("serviceName"), &split.service_name);
                    match &split.service_port {
                        IntOrString::Int(port) => *m.key("servicePort") += &port.to_string(),
                        IntOrString::String(name) => string(m.key("servicePort"), name),
                    }
                    if split.percent != 0 {
                        *m.key("percent") += &split.percent.to_string();
                    }
                    m.map("appendHeaders", &split.append_headers, |out, value| string(out, value));
                    m.close();
                });
                m.map("appendHeaders", &path.append_headers, |out, value| string(out, value));
                m.close();
            });
            h.close();
        }
        m.close();
    });
    if let Some(option) = &spec.http_option {
        top.text("httpOption", option.as_str());
    }
    top.close();
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use ember_api::networking::v1alpha1::{
        HttpIngressPath, HttpIngressRuleValue, IngressBackendSplit, IngressRule,
    };

    fn spec(headers: &[(&str, &str)]) -> IngressSpec {
        let split = IngressBackendSplit {
            service_name: "blah".into(),
            service_port: IntOrString::Int(0),
            append_headers: headers.iter().map(|(k, v)| ((*k).to_owned(), (*v).to_owned())).collect(),
            ..IngressBackendSplit::default()
        };
        let path = HttpIngressPath { splits: vec![split], ..HttpIngressPath::default() };
        let rule = IngressRule {
            hosts: vec!["example.com".into()],
            http: Some(HttpIngressRuleValue { paths: vec![path] }),
            ..IngressRule::default()
        };
        IngressSpec { rules: vec![rule], ..IngressSpec::default() }
    }

    /// The contract's vectors have no visibility: their objects were never defaulted.
    fn undefaulted(headers: &[(&str, &str)]) -> String {
        let text = json(&spec(headers)).replace(r#""visibility":"ExternalIP","#, "");
        hex::encode(Sha256::digest(text.as_bytes()))
    }

    #[test]
    fn contract_vectors() {
        assert_eq!(undefaulted(&[]), "a25000a350642c8abef53078b329bd043e18758f6063c1172d53b04e14fcf5c1");
        assert_eq!(
            undefaulted(&[("Foo", "bar")]),
            "6b652c7abed871354affd4a9cb699d33816f24541fac942149b91ad872fe63ca"
        );
    }

    #[test]
    fn escapes_like_go() {
        let mut out = String::new();
        string(&mut out, "a<b>&\u{2028}\"");
        assert_eq!(out, r#""a\u003cb\u003e\u0026\u2028\"""#);
    }
}
