//! What is served, in the forms clients ask for it: legacy resource lists and aggregated discovery.

use http::{HeaderMap, header};
use serde_json::{Value, json};

use crate::resource::{RESOURCES, Resource, group_versions};
use crate::unstored::{UNSTORED, Unstored};

const VERBS: [&str; 8] = ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"];

/// The aggregated form a client accepts, as `(version, media type)`.
pub(crate) fn aggregated(headers: &HeaderMap) -> Option<(&'static str, &'static str)> {
    headers
        .get_all(header::ACCEPT)
        .iter()
        .filter_map(|v| v.to_str().ok())
        .flat_map(|v| v.split(','))
        .find_map(|range| {
            let compact: String = range.chars().filter(|c| !c.is_whitespace()).collect();
            if !compact.contains("as=APIGroupDiscoveryList") || !compact.contains("g=apidiscovery.k8s.io") {
                None
            } else if compact.contains("v=v2;") || compact.ends_with("v=v2") {
                Some(("v2", "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList"))
            } else if compact.contains("v=v2beta1") {
                Some(("v2beta1", "application/json;g=apidiscovery.k8s.io;v=v2beta1;as=APIGroupDiscoveryList"))
            } else {
                None
            }
        })
}

fn of(group: &str, version: &str) -> impl Iterator<Item = &'static Resource> {
    RESOURCES.iter().filter(move |r| r.group == group && r.version == version)
}

fn unstored(group: &str, version: &str) -> impl Iterator<Item = &'static Unstored> {
    UNSTORED.iter().filter(move |r| r.group == group && r.version == version)
}

/// Subresources as `(name, group, version, kind, verbs)`.
fn subresources(resource: &Resource) -> Vec<(&'static str, &str, &str, &str, Vec<&'static str>)> {
    let mut all = Vec::new();
    if resource.status {
        all.push(("status", resource.group, resource.version, resource.kind, vec!["get", "patch", "update"]));
    }
    if resource.scale {
        all.push(("scale", "autoscaling", "v1", "Scale", vec!["get", "patch", "update"]));
    }
    if resource.is("", "pods") {
        all.push(("log", "", "v1", "Pod", vec!["get"]));
    }
    if resource.is("", "namespaces") {
        all.push(("finalize", "", "v1", "Namespace", vec!["patch", "update"]));
    }
    all
}

fn verbs(resource: &Resource) -> Vec<&'static str> {
    // As on a cluster, namespaces are deleted one by one.
    let bulk = !resource.is("", "namespaces");
    VERBS.into_iter().filter(|v| bulk || *v != "deletecollection").collect()
}

/// `/api`.
pub(crate) fn core_versions() -> Value {
    json!({ "kind": "APIVersions", "versions": ["v1"],
            "serverAddressByClientCIDRs": [{ "clientCIDR": "0.0.0.0/0", "serverAddress": "" }] })
}

fn group(name: &str) -> Value {
    let versions: Vec<Value> = group_versions()
        .into_iter()
        .filter(|(g, _)| *g == name)
        .map(|(g, v)| json!({ "groupVersion": format!("{g}/{v}"), "version": v }))
        .collect();
    json!({ "name": name, "preferredVersion": versions.first(), "versions": versions })
}

fn groups() -> Vec<&'static str> {
    let mut names: Vec<&str> =
        group_versions().into_iter().map(|(g, _)| g).filter(|g| !g.is_empty()).collect();
    names.dedup();
    names
}

/// `/apis`.
pub(crate) fn group_list() -> Value {
    let groups: Vec<Value> = groups().into_iter().map(group).collect();
    json!({ "kind": "APIGroupList", "apiVersion": "v1", "groups": groups })
}

/// `/apis/{group}`.
pub(crate) fn single_group(name: &str) -> Option<Value> {
    groups().contains(&name).then(|| {
        let mut value = group(name);
        value["kind"] = "APIGroup".into();
        value["apiVersion"] = "v1".into();
        value
    })
}

/// `/api/v1` or `/apis/{group}/{version}`.
pub(crate) fn resource_list(group: &str, version: &str) -> Option<Value> {
    let mut resources = Vec::new();
    for resource in of(group, version) {
        let mut entry = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": verbs(resource),
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            entry["categories"] = json!(resource.categories);
        }
        resources.push(entry);
        for (name, g, v, kind, verbs) in subresources(resource) {
            let mut entry = json!({
                "name": format!("{}/{name}", resource.plural), "singularName": "",
                "namespaced": resource.namespaced, "kind": kind, "verbs": verbs,
            });
            if g != resource.group {
                entry["group"] = g.into();
                entry["version"] = v.into();
            }
            resources.push(entry);
        }
    }
    resources.extend(unstored(group, version).map(|resource| {
        let mut entry = json!({
            "name": resource.plural, "singularName": resource.singular, "namespaced": resource.namespaced,
            "kind": resource.kind, "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            entry["shortNames"] = json!(resource.short_names);
        }
        entry
    }));
    let api_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    (!resources.is_empty()).then(|| {
        json!({ "kind": "APIResourceList", "apiVersion": "v1", "groupVersion": api_version, "resources": resources })
    })
}

/// `/api` (`core`) or `/apis` in one document.
pub(crate) fn aggregate(version: &str, core: bool) -> Value {
    let names = if core { vec![""] } else { groups() };
    let items: Vec<Value> = names
        .into_iter()
        .map(|name| {
            let versions: Vec<Value> = group_versions()
                .into_iter()
                .filter(|(g, _)| *g == name)
                .map(|(g, v)| {
                    let stored = of(g, v).map(aggregate_resource);
                    let resources: Vec<Value> =
                        stored.chain(unstored(g, v).map(aggregate_unstored)).collect();
                    json!({ "version": v, "freshness": "Current", "resources": resources })
                })
                .collect();
            let metadata = if name.is_empty() { json!({}) } else { json!({ "name": name }) };
            json!({ "metadata": metadata, "versions": versions })
        })
        .collect();
    json!({ "kind": "APIGroupDiscoveryList", "apiVersion": format!("apidiscovery.k8s.io/{version}"),
            "metadata": {}, "items": items })
}

fn aggregate_resource(resource: &'static Resource) -> Value {
    let subresources: Vec<Value> = subresources(resource)
        .into_iter()
        .map(|(name, group, version, kind, verbs)| {
            json!({ "subresource": name, "verbs": verbs,
                    "responseKind": { "group": group, "version": version, "kind": kind } })
        })
        .collect();
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": { "group": resource.group, "version": resource.version, "kind": resource.kind },
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": verbs(resource),
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        entry["categories"] = json!(resource.categories);
    }
    if !subresources.is_empty() {
        entry["subresources"] = subresources.into();
    }
    entry
}

fn aggregate_unstored(resource: &Unstored) -> Value {
    let mut entry = json!({
        "resource": resource.plural,
        "responseKind": { "group": resource.group, "version": resource.version, "kind": resource.kind },
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        entry["shortNames"] = json!(resource.short_names);
    }
    entry
}

/// `/version`.
pub(crate) fn version() -> Value {
    json!({
        "major": "1",
        "minor": "34",
        "gitVersion": concat!("v1.34.0+ember-", env!("CARGO_PKG_VERSION")),
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "",
        "compiler": "",
        "platform": format!("{}/{}", std::env::consts::OS, std::env::consts::ARCH),
    })
}
