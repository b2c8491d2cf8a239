//! OpenAPI v3: what kubectl needs to leave validation to the server, and to explain the kinds.

use std::collections::BTreeMap;
use std::sync::OnceLock;

use bytes::Bytes;
use k8s_openapi::api::{
    authentication::v1 as authentication, authorization::v1 as authorization,
    autoscaling::v1 as autoscaling_v1, autoscaling::v2 as autoscaling_v2,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::SchemaGenerator;
use schemars::generate::SchemaSettings;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::kinds::Kinds;
use crate::resource::{RESOURCES, Resource, group_versions};
use crate::typed;
use crate::unstored::{UNSTORED, Unstored};

/// The documents, made when the first one is asked for.
#[derive(Default)]
pub(crate) struct OpenApi(OnceLock<Documents>);

struct Documents {
    root: Bytes,
    documents: BTreeMap<String, Bytes>,
}

impl OpenApi {
    /// `/openapi/v3`.
    pub(crate) fn root(&self, kinds: &Kinds) -> &Bytes {
        &self.made(kinds).root
    }

    /// The document of `api/v1` or `apis/{group}/{version}`.
    pub(crate) fn document(&self, kinds: &Kinds, path: &str) -> Option<&Bytes> {
        self.made(kinds).documents.get(path)
    }

    fn made(&self, kinds: &Kinds) -> &Documents {
        self.0.get_or_init(|| {
            let (mut paths, mut documents) = (Map::new(), BTreeMap::new());
            for (group, version) in group_versions() {
                let path = prefix(group, version);
                let text = document(kinds, group, version).to_string();
                let hash = hex::encode_upper(Sha256::digest(text.as_bytes()));
                let url = format!("/openapi/v3{path}?hash={hash}");
                let path = path.trim_start_matches('/').to_owned();
                paths.insert(path.clone(), json!({ "serverRelativeURL": url }));
                documents.insert(path, Bytes::from(text));
            }
            Documents { root: Bytes::from(json!({ "paths": paths }).to_string()), documents }
        })
    }
}

fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

fn reference(name: &str) -> Value {
    json!({ "$ref": format!("#/components/schemas/{name}") })
}

/// `dev.knative.serving.v1.Service`.
fn custom_name(resource: &Resource) -> String {
    let mut parts: Vec<&str> = resource.group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{}", parts.join("."), resource.version, resource.kind)
}

/// The schema of a custom kind, with the fields that every object has.
fn custom_schema(mut schema: Value, generator: &mut SchemaGenerator) -> Value {
    let metadata = json!({ "description": "Name, labels, annotations and what else every object has.",
                           "allOf": [reference(&typed::describe::<ObjectMeta>(generator))] });
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        for field in ["apiVersion", "kind"] {
            properties.entry(field).or_insert_with(|| json!({ "type": "string" }));
        }
        properties.insert("metadata".into(), metadata);
    }
    schema
}

/// The name of the schema of a kind without objects.
fn describe_unstored(resource: &Unstored, generator: &mut SchemaGenerator) -> String {
    match (resource.version, resource.plural) {
        ("v2", "horizontalpodautoscalers") => {
            typed::describe::<autoscaling_v2::HorizontalPodAutoscaler>(generator)
        }
        ("v1", "horizontalpodautoscalers") => {
            typed::describe::<autoscaling_v1::HorizontalPodAutoscaler>(generator)
        }
        (_, "selfsubjectaccessreviews") => {
            typed::describe::<authorization::SelfSubjectAccessReview>(generator)
        }
        (_, "selfsubjectrulesreviews") => typed::describe::<authorization::SelfSubjectRulesReview>(generator),
        _ => typed::describe::<authentication::SelfSubjectReview>(generator),
    }
}

fn document(kinds: &Kinds, group: &str, version: &str) -> Value {
    let mut generator = SchemaSettings::openapi3().into_generator();
    let (mut custom, mut paths) = (Map::new(), Map::new());
    // The schema's name and the kind that is stored under it.
    let mut served: Vec<(String, &str)> = Vec::new();
    for (index, resource) in RESOURCES.iter().enumerate() {
        if resource.group != group || resource.version != version {
            continue;
        }
        let name = match (kinds.schema(index), typed::describe_kind(resource, &mut generator)) {
            (Some(schema), _) => {
                let name = custom_name(resource);
                custom.insert(name.clone(), custom_schema(schema.clone(), &mut generator));
                name
            }
            (None, Some(name)) => name,
            // Every kind has a schema or a type; the registry's tests hold it to that.
            (None, None) => continue,
        };
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let base = format!("{}{scope}/{}", prefix(group, version), resource.plural);
        let operation = |action: &str| operation(action, (group, version, resource.kind), &name);
        paths.insert(base.clone(), json!({ "get": operation("list"), "post": operation("post") }));
        paths.insert(
            format!("{base}/{{name}}"),
            json!({ "get": operation("get"), "put": operation("put"), "patch": operation("patch"),
                    "delete": operation("delete") }),
        );
        served.push((name, resource.kind));
    }
    for resource in UNSTORED.iter().filter(|r| r.group == group && r.version == version) {
        let name = describe_unstored(resource, &mut generator);
        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let base = format!("{}{scope}/{}", prefix(group, version), resource.plural);
        let operation = |action: &str| operation(action, (group, version, resource.kind), &name);
        paths.insert(base.clone(), json!({ "post": operation("post") }));
        // Never answered; without it kubectl holds validation by the server to be unknown here.
        paths.insert(format!("{base}/{{name}}"), json!({ "patch": operation("patch") }));
        served.push((name, resource.kind));
    }
    let mut schemas = generator.take_definitions(true);
    schemas.append(&mut custom);
    for (name, kind) in served {
        if let Some(schema) = schemas.get_mut(&name) {
            schema["x-kubernetes-group-version-kind"] =
                json!([{ "group": group, "version": version, "kind": kind }]);
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.34.0" },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn operation(action: &str, (group, version, kind): (&str, &str, &str), schema: &str) -> Value {
    let parameters = ["dryRun", "fieldManager", "fieldValidation"].map(
        |name| json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } }),
    );
    json!({
        "x-kubernetes-action": action,
        "x-kubernetes-group-version-kind": { "group": group, "version": version, "kind": kind },
        "parameters": parameters,
        "responses": { "200": { "description": "OK", "content": { "application/json": {
            "schema": reference(schema) } } } },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Every reference in `value`.
    fn references<'a>(value: &'a Value, found: &mut Vec<&'a str>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str));
                map.values().for_each(|v| references(v, found));
            }
            Value::Array(list) => list.iter().for_each(|v| references(v, found)),
            _ => {}
        }
    }

    #[test]
    fn every_kind_has_a_schema_and_every_reference_leads_somewhere() {
        let kinds = Kinds::new();
        let mut described = Vec::new();
        for (group, version) in group_versions() {
            let document = document(&kinds, group, version);
            let schemas = document["components"]["schemas"].as_object().unwrap();
            let mut found = Vec::new();
            references(&document, &mut found);
            for reference in found {
                let name = reference.strip_prefix("#/components/schemas/").unwrap();
                assert!(schemas.contains_key(name), "{group}/{version}: {reference}");
            }
            for schema in schemas.values() {
                if let Some(kind) = schema.pointer("/x-kubernetes-group-version-kind/0/kind") {
                    assert!(schema["properties"]["metadata"].is_object(), "{kind}");
                    described.push((group, version, kind.as_str().unwrap().to_owned()));
                }
            }
        }
        for resource in &RESOURCES {
            let kind = (resource.group, resource.version, resource.kind.to_owned());
            assert!(described.contains(&kind), "{}", resource.qualified_kind());
        }
        assert_eq!(described.len(), RESOURCES.len() + UNSTORED.len());
    }
}
