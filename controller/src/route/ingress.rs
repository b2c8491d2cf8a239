//! The Ingress of a Route.

use std::collections::BTreeMap;

use ember_api::configmaps::Configs;
use ember_api::domains::domains_for_visibility;
use ember_api::networking::ProtocolType;
use ember_api::networking::v1alpha1::{
    HeaderMatch, Http01Challenge, HttpIngressPath, HttpIngressRuleValue, Ingress, IngressBackendSplit,
    IngressRule, IngressSpec, IngressTls, IngressVisibility,
};
use ember_api::serving::v1::Route;
use ember_api::{annotations, labels, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::metadata;
use crate::owner::controller_ref;
use crate::route::configs::http_option;
use crate::route::rollout::Rollout;
use crate::route::traffic::{DEFAULT_TARGET, RevisionTarget, Traffic};
use crate::route::visibility::{self, Visibility};

const REVISION_HEADER: &str = "Knative-Serving-Revision";
const NAMESPACE_HEADER: &str = "Knative-Serving-Namespace";
const TAG_HEADER: &str = "Knative-Serving-Tag";
const DEFAULT_ROUTE_HEADER: &str = "Knative-Serving-Default-Route";

/// Annotations of the Route that its children do not get.
pub(crate) fn is_excluded_annotation(key: &str) -> bool {
    // The class is written under its newer spelling.
    key == annotations::LAST_APPLIED
        || annotations::INGRESS_CLASS.get(1) == Some(&key)
        || annotations::CERTIFICATE_CLASS.get(1) == Some(&key)
}

/// What the Ingress is made from, beside the Route.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Parts<'a> {
    pub(crate) traffic: &'a Traffic,
    pub(crate) visibility: &'a Visibility,
    pub(crate) rollout: &'a Rollout,
    pub(crate) tls: &'a [IngressTls],
    pub(crate) challenges: &'a [Http01Challenge],
}

/// The Ingress that carries a Route's traffic.
///
/// # Errors
/// An annotation or a host name that makes no sense, in words.
pub(crate) fn ingress(configs: &Configs, route: &Route, parts: Parts<'_>) -> Result<Ingress, String> {
    let name = route.metadata.name.as_deref().unwrap_or_default();
    let namespace = route.metadata.namespace.as_deref().unwrap_or_default();
    let own = metadata::annotations(&route.metadata);
    let class = annotations::lookup(&own, annotations::INGRESS_CLASS)
        .filter(|(_, class)| !class.is_empty())
        .map_or(configs.network.default_ingress_class.as_str(), |(_, v)| v);

    let mut all = metadata::Map::new();
    all.insert(annotations::INGRESS_CLASS[0].to_owned(), class.to_owned());
    all.insert(annotations::ROLLOUT.to_owned(), json(parts.rollout));
    all.extend(own.clone());
    all.retain(|key, _| !is_excluded_annotation(key));
    let tags = tag_hosts(configs, route, parts)?;
    if !tags.is_empty() {
        all.insert(annotations::TAG_TO_HOST.to_owned(), json(&tags));
    }
    let mut labels = metadata::labels(&route.metadata);
    labels.insert(labels::ROUTE.to_owned(), name.to_owned());
    labels.insert(labels::ROUTE_NAMESPACE.to_owned(), namespace.to_owned());

    Ok(Ingress {
        metadata: ObjectMeta {
            name: Some(names::ingress(name)),
            namespace: Some(namespace.to_owned()),
            labels: Some(labels),
            annotations: Some(all),
            owner_references: Some(vec![controller_ref(route)]),
            ..ObjectMeta::default()
        },
        spec: IngressSpec {
            rules: rules(configs, route, namespace, parts)?,
            tls: parts.tls.to_vec(),
            http_option: http_option(configs, route)?,
        },
        status: None,
    })
}

fn json<T: serde::Serialize>(value: &T) -> String {
    // Neither kind of value written here can fail to serialise: structs and maps with string keys.
    serde_json::to_string(value).unwrap_or_default()
}

fn is_external(parts: Parts<'_>, tag: &str) -> bool {
    visibility::of(parts.visibility, tag) == IngressVisibility::ExternalIP
}

fn tag_hosts(
    configs: &Configs,
    route: &Route,
    parts: Parts<'_>,
) -> Result<BTreeMap<String, Vec<String>>, String> {
    let host =
        |tag: &str, seen| domains_for_visibility(configs, &route.metadata, tag, seen).map(|d| d.primary);
    let mut tags = BTreeMap::new();
    for tag in parts.traffic.targets.keys().filter(|tag| *tag != DEFAULT_TARGET) {
        let mut hosts = vec![host(tag, IngressVisibility::ClusterLocal).map_err(|e| e.to_string())?];
        if is_external(parts, tag) {
            hosts.push(host(tag, IngressVisibility::ExternalIP).map_err(|e| e.to_string())?);
        }
        tags.insert(tag.clone(), hosts);
    }
    Ok(tags)
}

fn rules(
    configs: &Configs,
    route: &Route,
    namespace: &str,
    parts: Parts<'_>,
) -> Result<Vec<IngressRule>, String> {
    let mut rules = Vec::new();
    let encrypted = configs.network.system_internal_tls;
    for (tag, targets) in &parts.traffic.targets {
        let mut visibilities = vec![IngressVisibility::ClusterLocal];
        if is_external(parts, tag) {
            visibilities.push(IngressVisibility::ExternalIP);
        }
        for visibility in visibilities {
            let hosts = domains_for_visibility(configs, &route.metadata, tag, visibility)
                .map_err(|e| e.to_string())?
                .expanded;
            let mut base = base_path(namespace, tag, targets, parts.rollout, encrypted);
            let mut paths = Vec::new();
            if visibility == IngressVisibility::ExternalIP {
                paths.extend(challenge_paths(parts.challenges, &hosts));
            }
            if configs.features.tag_header_based_routing.is_enabled() {
                if tag == DEFAULT_TARGET {
                    paths.extend(tag_paths(namespace, parts, encrypted));
                    // With this header a tag that nobody knows is told apart from the tag of the target.
                    base.append_headers.insert(DEFAULT_ROUTE_HEADER.to_owned(), "true".to_owned());
                } else {
                    base.append_headers.insert(TAG_HEADER.to_owned(), tag.clone());
                }
            }
            paths.push(base);
            rules.push(IngressRule { hosts, visibility, http: Some(HttpIngressRuleValue { paths }) });
        }
    }
    Ok(rules)
}

fn base_path(
    namespace: &str,
    tag: &str,
    targets: &[RevisionTarget],
    rollout: &Rollout,
    encrypted: bool,
) -> HttpIngressPath {
    let mut splits = Vec::with_capacity(targets.len());
    for target in targets.iter().filter(|t| t.percent != 0) {
        let port = match target.protocol {
            _ if encrypted => 443,
            ProtocolType::Http1 => 80,
            ProtocolType::H2c => 81,
        };
        let state = rollout
            .configuration(tag, &target.configuration_name)
            .filter(|state| target.latest && state.revisions.len() > 1);
        match state {
            None => splits.push(split(namespace, &target.revision_name, port, target.percent)),
            Some(state) => splits
                .extend(state.revisions.iter().map(|r| split(namespace, &r.revision_name, port, r.percent))),
        }
    }
    HttpIngressPath { splits, ..HttpIngressPath::default() }
}

fn split(namespace: &str, revision: &str, port: i32, percent: i64) -> IngressBackendSplit {
    IngressBackendSplit {
        service_namespace: namespace.to_owned(),
        service_name: revision.to_owned(),
        service_port: IntOrString::Int(port),
        percent: i32::try_from(percent).unwrap_or(100),
        append_headers: BTreeMap::from([
            (REVISION_HEADER.to_owned(), revision.to_owned()),
            (NAMESPACE_HEADER.to_owned(), namespace.to_owned()),
        ]),
    }
}

/// One path per tag for requests that name the tag in a header.
fn tag_paths(namespace: &str, parts: Parts<'_>, encrypted: bool) -> Vec<HttpIngressPath> {
    let tagged = parts.traffic.targets.iter().filter(|(tag, _)| *tag != DEFAULT_TARGET);
    tagged
        .map(|(tag, targets)| HttpIngressPath {
            headers: BTreeMap::from([(TAG_HEADER.to_owned(), HeaderMatch { exact: tag.clone() })]),
            ..base_path(namespace, tag, targets, parts.rollout, encrypted)
        })
        .collect()
}

/// Paths to the solvers of the challenges for these hosts.
fn challenge_paths(challenges: &[Http01Challenge], hosts: &[String]) -> Vec<HttpIngressPath> {
    challenges
        .iter()
        .filter_map(|challenge| {
            let (host, path) = host_and_path(challenge.url.as_deref()?)?;
            hosts.iter().any(|h| h == host).then(|| HttpIngressPath {
                path: path.to_owned(),
                splits: vec![IngressBackendSplit {
                    service_namespace: challenge.service_namespace.clone(),
                    service_name: challenge.service_name.clone(),
                    service_port: challenge.service_port.clone(),
                    percent: 100,
                    append_headers: BTreeMap::new(),
                }],
                ..HttpIngressPath::default()
            })
        })
        .collect()
}

fn host_and_path(url: &str) -> Option<(&str, &str)> {
    let (_, rest) = url.split_once("://")?;
    let at = rest.find('/').unwrap_or(rest.len());
    let (authority, path) = rest.split_at(at);
    Some((authority.rsplit_once(':').map_or(authority, |(host, _)| host), path))
}
