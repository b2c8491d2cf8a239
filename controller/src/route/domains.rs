//! The host names of a Route's targets, and who may reach them.

use std::collections::{BTreeMap, BTreeSet};

use ember_api::labels;
use ember_api::networking::v1alpha1::IngressVisibility;
use ember_api::serving::v1::Route;

use crate::metadata::{self, Map, label};
use crate::route::RouteConfigs;

/// Why a target has no host name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("domain name error: {0}")]
pub(crate) struct DomainNameError(String);

/// The name of the target `tag` of a Route: its placeholder Service, and the first part of its host names.
pub(crate) fn hostname(configs: &RouteConfigs<'_>, route: &str, tag: &str) -> Result<String, DomainNameError> {
    if tag.is_empty() {
        return Ok(route.to_owned());
    }
    configs.tag_host(route, tag).map_err(|e| DomainNameError(format!("error executing the TagTemplate: {e}")))
}

/// Whether a Route is reached from within the cluster only, judging by the Route alone.
pub(crate) fn is_cluster_local(configs: &RouteConfigs<'_>, route: &Route) -> bool {
    base_domain(configs, &metadata::labels(&route.metadata)) == configs.service_domain()
}

/// The domain under which an object with these labels gets its hosts.
pub(crate) fn base_domain(configs: &RouteConfigs<'_>, labels: &Map) -> String {
    if labels.get(labels::VISIBILITY).is_some_and(|v| v == labels::VISIBILITY_CLUSTER_LOCAL) {
        return configs.service_domain();
    }
    configs.domain_for(labels)
}

/// The fully qualified host name of `name`, as seen with `visibility`.
pub(crate) fn host(
    configs: &RouteConfigs<'_>,
    route: &Route,
    name: &str,
    visibility: IngressVisibility,
) -> Result<String, DomainNameError> {
    let mut labels = metadata::labels(&route.metadata);
    match visibility {
        IngressVisibility::ClusterLocal => {
            labels.insert(labels::VISIBILITY.to_owned(), labels::VISIBILITY_CLUSTER_LOCAL.to_owned());
        }
        IngressVisibility::ExternalIP => {
            labels.remove(labels::VISIBILITY);
        }
    }
    host_by_labels(configs, route, name, &labels)
}

/// The fully qualified host name of `name`, as the Route's own labels have it.
pub(crate) fn host_by_labels(
    configs: &RouteConfigs<'_>,
    route: &Route,
    name: &str,
    labels: &Map,
) -> Result<String, DomainNameError> {
    let domain = base_domain(configs, labels);
    let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
    // Hosts within the cluster are the names of Services: no template applies to them.
    let local = labels.get(labels::VISIBILITY).is_some_and(|v| v == labels::VISIBILITY_CLUSTER_LOCAL);
    let host = if local {
        format!("{name}.{namespace}.{domain}")
    } else {
        let annotations = metadata::annotations(&route.metadata);
        configs
            .domain_host(name, namespace, &domain, &annotations, labels)
            .map_err(|e| DomainNameError(format!("error executing the DomainTemplate: {e}")))?
    };
    check_fully_qualified(&host)
        .map_err(|e| DomainNameError(format!("invalid domain name {host:?}: {e}")))?;
    Ok(host)
}

/// All host names of the target `tag` as seen with `visibility`, sorted: within the cluster the short forms, too.
pub(crate) fn hosts(
    configs: &RouteConfigs<'_>,
    route: &Route,
    tag: &str,
    visibility: IngressVisibility,
) -> Result<Vec<String>, DomainNameError> {
    let name = hostname(configs, route.metadata.name.as_deref().unwrap_or_default(), tag)?;
    let host = host(configs, route, &name, visibility)?;
    Ok(match visibility {
        IngressVisibility::ExternalIP => vec![host],
        IngressVisibility::ClusterLocal => expand([host.as_str()], configs.cluster_domain),
    })
}

/// Hosts with the forms that leave out the cluster's domain, sorted. What cannot be a host name is left out.
pub(crate) fn expand<'a>(hosts: impl IntoIterator<Item = &'a str>, cluster_domain: &str) -> Vec<String> {
    let suffixes = [format!(".{cluster_domain}"), format!(".svc.{cluster_domain}")];
    let mut expanded = BTreeSet::new();
    for host in hosts {
        let short = suffixes.iter().filter_map(|suffix| host.strip_suffix(suffix.as_str()));
        expanded.extend(short.chain([host]).filter(|h| has_valid_top_level(h)).map(str::to_owned));
    }
    expanded.into_iter().collect()
}

/// Gateways take a last label of digits for an address, and refuse one that is too long.
fn has_valid_top_level(host: &str) -> bool {
    let last = host.rsplit('.').next().unwrap_or_default();
    last.len() <= 63 && last.bytes().any(|b| b == b'-' || b > b'9')
}

/// The visibility of every target: a placeholder Service can hide its target from the outside, the Route all.
pub(crate) fn visibility<'a>(
    configs: &RouteConfigs<'_>,
    route: &Route,
    tags: impl IntoIterator<Item = &'a str>,
    placeholder_visibility: impl Fn(&str) -> Option<String>,
) -> Result<BTreeMap<String, IngressVisibility>, DomainNameError> {
    let route_name = route.metadata.name.as_deref().unwrap_or_default();
    let local = is_cluster_local(configs, route);
    let mut visibility = BTreeMap::new();
    for tag in tags {
        let hidden = local || {
            let name = hostname(configs, route_name, tag)?;
            placeholder_visibility(&name).is_some_and(|value| !value.is_empty())
        };
        let seen = if hidden { IngressVisibility::ClusterLocal } else { IngressVisibility::ExternalIP };
        visibility.insert(tag.to_owned(), seen);
    }
    Ok(visibility)
}

/// Whether the Route's label, and not a placeholder's, hides it.
pub(crate) fn is_labelled_cluster_local(route: &Route) -> bool {
    label(&route.metadata, labels::VISIBILITY) == Some(labels::VISIBILITY_CLUSTER_LOCAL)
}

fn check_fully_qualified(host: &str) -> Result<(), String> {
    const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
    if host.is_empty() {
        return Err("url: Required value".to_owned());
    }
    let name = host.strip_suffix('.').unwrap_or(host);
    let is_label = |l: &str| {
        let inner = l.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-');
        !l.is_empty() && inner && !l.starts_with('-') && !l.ends_with('-')
    };
    let invalid = |value: &str, detail: &str| Err(format!("url: Invalid value: {value:?}: {detail}"));
    let mut faults = Vec::new();
    if name.len() > 253 {
        faults.push("must be no more than 253 characters");
    }
    if !name.split('.').all(is_label) {
        faults.push(SUBDOMAIN);
    }
    if !faults.is_empty() {
        return invalid(name, &faults.join(","));
    }
    if !name.contains('.') {
        return invalid(name, "should be a domain with at least two segments separated by dots");
    }
    match name.split('.').find(|l| l.len() > 63) {
        Some(long) => invalid(long, "must be no more than 63 characters"),
        None => Ok(()),
    }
}
