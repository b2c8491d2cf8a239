//! The kinds as an API server sees them: names, printer columns, structural schemas, CRD manifests.

mod pod;
mod structural;

use std::sync::LazyLock;

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceColumnDefinition, CustomResourceDefinition, CustomResourceSubresourceStatus,
    CustomResourceSubresources, CustomResourceValidation,
};
use kube_core::CustomResourceExt;
use serde_json::Value;

use crate::autoscaling::v1alpha1::{Metric, PodAutoscaler};
use crate::caching::v1alpha1::Image;
use crate::networking::v1alpha1::{Certificate, ClusterDomainClaim, Ingress, ServerlessService};
use crate::serving::v1::{Configuration, Revision, Route, Service};
use crate::serving::v1beta1::DomainMapping;

/// A kind: what discovery, tables and the checking of fields need. Every kind has a status subresource, and none a
/// scale.
#[derive(Clone, Debug, PartialEq)]
pub struct KindInfo {
    /// The API group.
    pub group: String,
    /// The version; each kind has one, which is also the stored one.
    pub version: String,
    /// The kind.
    pub kind: String,
    /// The name in URLs.
    pub plural: String,
    /// The name of one.
    pub singular: String,
    /// Abbreviations for `kubectl`.
    pub short_names: Vec<String>,
    /// Names under which `kubectl get` lists the kind among others, e.g. `all`.
    pub categories: Vec<String>,
    /// Whether objects live in namespaces.
    pub namespaced: bool,
    /// The columns after the name in tables.
    pub columns: Vec<Column>,
    /// The structural schema of the whole object (OpenAPI v3): fields that are not in it are unknown, except under
    /// `x-kubernetes-preserve-unknown-fields`. It has no `$ref`; `metadata` is just an object.
    pub schema: Value,
    /// The manifest that makes a Kubernetes API server serve the kind; it holds the same schema.
    pub crd: CustomResourceDefinition,
}

/// A column in tables of a kind.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Column {
    /// The heading.
    pub name: String,
    /// The OpenAPI type of its values.
    pub type_: String,
    /// The OpenAPI format of its values, or nothing.
    pub format: String,
    /// What it tells, or nothing.
    pub description: String,
    /// Where its values are, as a JSONPath that begins with a dot.
    pub json_path: String,
    /// 0 for columns that are always shown; others are for wide output.
    pub priority: i32,
}

/// Every kind.
#[must_use]
pub fn all() -> &'static [KindInfo] {
    static ALL: LazyLock<Vec<KindInfo>> = LazyLock::new(|| {
        vec![
            describe(Service::crd()),
            describe(Configuration::crd()),
            describe(Revision::crd()),
            describe(Route::crd()),
            describe(DomainMapping::crd()),
            describe(Ingress::crd()),
            describe(Certificate::crd()),
            describe(ServerlessService::crd()),
            describe(ClusterDomainClaim::crd()),
            describe(PodAutoscaler::crd()),
            describe(Metric::crd()),
            describe(Image::crd()),
        ]
    });
    &ALL
}

/// The kind of that name in that group, whichever its version.
#[must_use]
pub fn find(group: &str, kind: &str) -> Option<&'static KindInfo> {
    all().iter().find(|info| info.group == group && info.kind == kind)
}

fn describe(mut crd: CustomResourceDefinition) -> KindInfo {
    label(&mut crd);
    let names = &crd.spec.names;
    let (group, kind, plural) = (crd.spec.group.clone(), names.kind.clone(), names.plural.clone());
    let singular = names.singular.clone().unwrap_or_else(|| kind.to_lowercase());
    let short_names = names.short_names.clone().unwrap_or_default();
    let categories = names.categories.clone().unwrap_or_default();
    let namespaced = crd.spec.scope == "Namespaced";

    let (mut version, mut columns) = (String::new(), Vec::new());
    let mut schema = Value::Null;
    // Each kind has exactly one version.
    if let Some(served) = crd.spec.versions.first_mut() {
        version.clone_from(&served.name);
        // Also of the kind that has nothing to say there.
        served.subresources = Some(CustomResourceSubresources {
            scale: None,
            status: Some(CustomResourceSubresourceStatus(Value::Object(serde_json::Map::new()))),
        });
        columns = served.additional_printer_columns.iter().flatten().map(column).collect();
        let derived = served.schema.take().and_then(|validation| validation.open_api_v3_schema);
        schema = structural::rewrite(&kind, serde_json::to_value(derived).unwrap_or_default());
        served.schema = Some(CustomResourceValidation {
            open_api_v3_schema: serde_json::from_value(schema.clone()).unwrap_or_default(),
        });
    }
    KindInfo {
        group,
        version,
        kind,
        plural,
        singular,
        short_names,
        categories,
        namespaced,
        columns,
        schema,
        crd,
    }
}

fn label(crd: &mut CustomResourceDefinition) {
    let labels = crd.metadata.labels.get_or_insert_default();
    for (key, value) in [
        ("app.kubernetes.io/name", "knative-serving"),
        ("app.kubernetes.io/version", env!("CARGO_PKG_VERSION")),
        ("knative.dev/crd-install", "true"),
    ] {
        labels.insert(key.to_owned(), value.to_owned());
    }
}

fn column(declared: &CustomResourceColumnDefinition) -> Column {
    Column {
        name: declared.name.clone(),
        type_: declared.type_.clone(),
        format: declared.format.clone().unwrap_or_default(),
        description: declared.description.clone().unwrap_or_default(),
        json_path: declared.json_path.clone(),
        priority: declared.priority.unwrap_or_default(),
    }
}

/// The CRD manifests of every kind as one YAML stream.
///
/// # Errors
/// Never for the kinds there are; the error is the YAML writer's.
pub fn manifests() -> Result<String, serde_norway::Error> {
    let mut text = String::new();
    for info in all() {
        text.push_str("---\n");
        text.push_str(&serde_norway::to_string(&info.crd)?);
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn walk(schema: &Value, path: &str, visit: &mut impl FnMut(&str, &Value)) {
        visit(path, schema);
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            walk(property, &format!("{path}.{name}"), visit);
        }
        for (key, mark) in [("items", "[]"), ("additionalProperties", "{}")] {
            if schema[key].is_object() {
                walk(&schema[key], &format!("{path}{mark}"), visit);
            }
        }
    }

    #[test]
    fn schemas_are_structural() {
        for info in all() {
            let mut wrong = Vec::new();
            walk(&info.schema, &info.kind, &mut |path, schema| {
                let typed = schema["type"].is_string() || schema["x-kubernetes-int-or-string"] == true;
                let closed = schema["type"] != "object"
                    || schema["properties"].is_object()
                    || schema["additionalProperties"].is_object()
                    || schema["x-kubernetes-preserve-unknown-fields"] == true
                    || path.ends_with(".metadata");
                let foreign =
                    ["$ref", "nullable", "oneOf", "allOf"].iter().any(|key| schema.get(key).is_some());
                if !typed || !closed || foreign {
                    wrong.push(format!("{path}: {schema}"));
                }
            });
            assert!(wrong.is_empty(), "{}", wrong.join("\n"));
        }
    }

    #[test]
    fn a_pod_is_known_as_far_as_knative_goes() {
        let service = find("serving.knative.dev", "Service").unwrap();
        let mut known = Vec::new();
        walk(
            &service.schema["properties"]["spec"]["properties"]["template"]["properties"]["spec"],
            "",
            &mut |path, schema| {
                known.push((path.to_owned(), schema.clone()));
            },
        );
        let at = |path: &str| known.iter().find(|(known, _)| known == path).map(|(_, schema)| schema);
        assert_eq!(at(".containers[].ports[].protocol").unwrap()["default"], "TCP");
        assert_eq!(at(".containers[].env").unwrap()["x-kubernetes-list-map-keys"][0], "name");
        assert_eq!(at(".affinity").unwrap()["x-kubernetes-preserve-unknown-fields"], true);
        assert!(at(".containers[].resources.limits{}").unwrap()["pattern"].is_string());
        assert!(at(".containerConcurrency").is_some());
        for absent in [
            ".containers[].lifecycle",
            ".containers[].livenessProbe.terminationGracePeriodSeconds",
            ".subdomain",
        ] {
            assert!(at(absent).is_none(), "{absent}");
        }
        assert!(at(".containers[]").unwrap().get("required").is_none());
    }

    #[test]
    fn every_kind_has_names_and_a_manifest() {
        assert_eq!(all().len(), 12);
        let service = find("serving.knative.dev", "Service").unwrap();
        assert_eq!(service.short_names, ["kservice", "ksvc"]);
        assert_eq!(service.columns[0].json_path, ".status.url");
        assert_eq!(service.plural, "services");
        assert!(service.namespaced);
        assert!(!find("networking.internal.knative.dev", "ClusterDomainClaim").unwrap().namespaced);
        let text = manifests().unwrap();
        assert_eq!(text.matches("kind: CustomResourceDefinition\n").count(), 12);
        assert!(text.contains("name: podautoscalers.autoscaling.internal.knative.dev"));
    }
}
