//! The host names of a Route and its tags.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::configmaps::Configs;
use crate::configmaps::domain::Domain;
use crate::configmaps::network::{DomainTemplateValues, Network, TagTemplateValues};
use crate::golang::quote;
use crate::labels;
use crate::networking::v1alpha1::IngressVisibility;
use crate::syntax;
use crate::template::TemplateError;

/// Why a Route has no host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DomainError {
    /// The tag template does not apply.
    #[error("domain name error: error executing the TagTemplate: {0}")]
    TagTemplate(TemplateError),
    /// The domain template does not apply.
    #[error("domain name error: error executing the DomainTemplate: {0}")]
    DomainTemplate(TemplateError),
    /// The domain template gives no domain name.
    #[error("domain name error: invalid domain name {}: {problem}", quote(.name))]
    Invalid {
        /// What it gives.
        name: String,
        /// What is wrong with it.
        problem: String,
    },
}

/// The host names of one target at one visibility.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Domains {
    /// The name that URLs have.
    pub primary: String,
    /// All names that lead there, sorted; a cluster-local target has its short forms too.
    pub expanded: Vec<String>,
}

/// The name of a Route's target, from its tag; an empty tag is the default target. It is also the name of the
/// target's placeholder Service.
///
/// # Errors
/// The tag template does not apply.
pub fn hostname(network: &Network, route: &str, tag: &str) -> Result<String, DomainError> {
    if tag.is_empty() {
        return Ok(route.to_owned());
    }
    network.tag_template.render(&TagTemplateValues { name: route, tag }).map_err(DomainError::TagTemplate)
}

/// The domain name of `hostname` for an object with this metadata. Objects that are labelled cluster-local get a
/// name in the cluster's own domain, whatever the template.
///
/// # Errors
/// The template does not apply, or gives no domain name.
pub fn domain_name(configs: &Configs, meta: &ObjectMeta, hostname: &str) -> Result<String, DomainError> {
    static EMPTY: BTreeMap<String, String> = BTreeMap::new();
    let labels = meta.labels.as_ref().unwrap_or(&EMPTY);
    let namespace = meta.namespace.as_deref().unwrap_or_default();
    let domain = configs.domain.for_labels(labels);
    let name = if labels.get(labels::VISIBILITY).is_some_and(|v| v == labels::VISIBILITY_CLUSTER_LOCAL) {
        format!("{hostname}.{namespace}.{domain}")
    } else {
        let annotations = meta.annotations.as_ref().unwrap_or(&EMPTY);
        let values = DomainTemplateValues { name: hostname, namespace, domain: &domain, annotations, labels };
        configs.network.domain_template.render(&values).map_err(DomainError::DomainTemplate)?
    };
    match syntax::fully_qualified_domain_name("url", &name) {
        None => Ok(name),
        Some(problem) => Err(DomainError::Invalid { name, problem }),
    }
}

/// The names of a Route's target if it had that visibility, whatever the Route's label says.
///
/// # Errors
/// A template does not apply, or gives no domain name.
pub fn domains_for_visibility(
    configs: &Configs,
    route: &ObjectMeta,
    tag: &str,
    visibility: IngressVisibility,
) -> Result<Domains, DomainError> {
    let hostname = hostname(&configs.network, route.name.as_deref().unwrap_or_default(), tag)?;
    let cluster_local = visibility == IngressVisibility::ClusterLocal;
    let primary = domain_name(configs, &with_visibility(route, cluster_local), &hostname)?;
    let expanded =
        if cluster_local { expanded_hosts(&configs.domain, &primary) } else { vec![primary.clone()] };
    Ok(Domains { primary, expanded })
}

/// The metadata with its visibility label set to cluster-local or removed.
fn with_visibility(meta: &ObjectMeta, cluster_local: bool) -> ObjectMeta {
    let mut labels = meta.labels.clone().unwrap_or_default();
    if cluster_local {
        labels.insert(labels::VISIBILITY.to_owned(), labels::VISIBILITY_CLUSTER_LOCAL.to_owned());
    } else {
        labels.remove(labels::VISIBILITY);
    }
    ObjectMeta { labels: Some(labels), ..meta.clone() }
}

/// A host and, if it is in the cluster's own domain, its short forms; sorted. What no gateway takes for a name is
/// left out.
#[must_use]
pub fn expanded_hosts(domain: &Domain, host: &str) -> Vec<String> {
    let mut hosts = vec![host.to_owned()];
    if let Some(service) = host.strip_suffix(&format!(".{}", domain.cluster_domain)) {
        hosts.push(service.to_owned());
        hosts.extend(service.strip_suffix(".svc").map(str::to_owned));
    }
    hosts.retain(|host| has_valid_top_level(host));
    hosts.sort_unstable();
    hosts.dedup();
    hosts
}

/// Gateways take a last label of digits for an address, and refuse one that is too long.
fn has_valid_top_level(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    last.len() <= 63 && last.bytes().any(|b| b == b'-' || b > b'9')
}

/// Whether a host exists inside the cluster only.
#[must_use]
pub fn is_cluster_local(domain: &Domain, host: &str) -> bool {
    host.ends_with(&domain.cluster_domain)
}

/// The URL of a host that the gateway serves, with the gateway's port for such hosts if it is not the scheme's own.
/// The gateway's ports speak HTTP; what speaks HTTPS in front of it is taken to listen where HTTPS does.
#[must_use]
pub fn url(configs: &Configs, scheme: &str, host: &str) -> String {
    let network = &configs.network;
    let local = is_cluster_local(&configs.domain, host);
    match if local { network.internal_port } else { network.external_port } {
        Some(port) if scheme == "http" && port != 80 => format!("{scheme}://{host}:{port}"),
        _ => format!("{scheme}://{host}"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::golden;

    fn shown(result: Result<Domains, DomainError>) -> Value {
        match result {
            Ok(domains) => json!({ "primary": domains.primary, "expanded": domains.expanded }),
            Err(error) => json!({ "error": error.to_string() }),
        }
    }

    #[test]
    fn golden_domains() {
        let cases = golden::cases("domains");
        let mut failures = Vec::new();
        for case in &cases {
            let meta: ObjectMeta = serde_json::from_value(case["meta"].clone()).unwrap();
            let configs = match golden::configs(case) {
                Ok(configs) => configs,
                Err(problem) => {
                    failures.push(problem);
                    continue;
                }
            };
            let tag = case["tag"].as_str().unwrap_or_default();
            let at = |visibility| shown(domains_for_visibility(&configs, &meta, tag, visibility));
            let got = json!({
                "hostname": hostname(&configs.network, meta.name.as_deref().unwrap_or_default(), tag)
                    .unwrap_or_default(),
                "domainForLabels": configs.domain.for_labels(&meta.labels.clone().unwrap_or_default()),
                "ExternalIP": at(IngressVisibility::ExternalIP),
                "ClusterLocal": at(IngressVisibility::ClusterLocal),
            });
            if got != case["expect"] {
                failures.push(format!("{}: got {got}\nwant {}", case["id"], case["expect"]));
            }
        }
        golden::report("domains", cases.len(), &failures);
    }

    #[test]
    fn urls_carry_the_gateways_ports() {
        let mut configs = Configs::default();
        configs.network.external_port = Some(8080);
        assert_eq!(url(&configs, "http", "a.default.localhost"), "http://a.default.localhost:8080");
        assert_eq!(url(&configs, "http", "a.b.svc.cluster.local"), "http://a.b.svc.cluster.local");
        configs.network.internal_port = Some(8081);
        assert_eq!(url(&configs, "http", "a.b.svc.cluster.local"), "http://a.b.svc.cluster.local:8081");
        assert_eq!(url(&configs, "http", "a.default.localhost"), "http://a.default.localhost:8080");
        assert_eq!(url(&configs, "https", "a.default.localhost"), "https://a.default.localhost");
        configs.network.external_port = Some(80);
        assert_eq!(url(&configs, "http", "a.default.localhost"), "http://a.default.localhost");
    }

    #[test]
    fn labels_are_too_long_for_a_domain_name() {
        let meta = ObjectMeta {
            name: Some("a".repeat(63)),
            namespace: Some("default".into()),
            ..ObjectMeta::default()
        };
        let got = domains_for_visibility(&Configs::default(), &meta, "v1", IngressVisibility::ExternalIP);
        let error = got.map_err(|e| e.to_string()).unwrap_err();
        assert!(error.starts_with("domain name error: invalid domain name \"v1-aaa"), "{error}");
        assert!(error.ends_with("must be no more than 63 characters"), "{error}");
    }
}
