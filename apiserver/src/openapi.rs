//! OpenAPI v3: as much as kubectl needs to leave validation to the server and to explain the custom kinds.

use std::collections::BTreeMap;

use bytes::Bytes;
use serde_json::{Map, Value, json};
use sha2::{Digest, Sha256};

use crate::kinds::Kinds;
use crate::resource::{RESOURCES, Resource, group_versions};

/// The documents, made once.
pub(crate) struct OpenApi {
    root: Bytes,
    documents: BTreeMap<String, Bytes>,
}

impl OpenApi {
    pub(crate) fn new(kinds: &Kinds) -> Self {
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
        Self { root: Bytes::from(json!({ "paths": paths }).to_string()), documents }
    }

    /// `/openapi/v3`.
    pub(crate) fn root(&self) -> &Bytes {
        &self.root
    }

    /// The document of `api/v1` or `apis/{group}/{version}`.
    pub(crate) fn document(&self, path: &str) -> Option<&Bytes> {
        self.documents.get(path)
    }
}

fn prefix(group: &str, version: &str) -> String {
    if group.is_empty() { format!("/api/{version}") } else { format!("/apis/{group}/{version}") }
}

fn schema_name(resource: &Resource) -> String {
    let group = if resource.group.is_empty() { "core" } else { resource.group };
    let mut parts: Vec<&str> = group.split('.').collect();
    parts.reverse();
    format!("{}.{}.{}", parts.join("."), resource.version, resource.kind)
}

fn document(kinds: &Kinds, group: &str, version: &str) -> Value {
    let (mut schemas, mut paths) = (Map::new(), Map::new());
    for (index, resource) in RESOURCES.iter().enumerate() {
        if resource.group != group || resource.version != version {
            continue;
        }
        let gvk = json!({ "group": group, "version": version, "kind": resource.kind });
        let name = schema_name(resource);
        let mut schema = kinds.schema(index).cloned().unwrap_or_else(|| {
            json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true,
                    "properties": { "spec": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } })
        });
        if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
            properties.entry("apiVersion").or_insert_with(|| json!({ "type": "string" }));
            properties.entry("kind").or_insert_with(|| json!({ "type": "string" }));
            properties.insert(
                "metadata".into(),
                json!({ "type": "object", "x-kubernetes-preserve-unknown-fields": true }),
            );
        }
        schema["x-kubernetes-group-version-kind"] = json!([gvk]);
        schemas.insert(name.clone(), schema);

        let scope = if resource.namespaced { "/namespaces/{namespace}" } else { "" };
        let base = format!("{}{scope}/{}", prefix(group, version), resource.plural);
        let parameters = ["dryRun", "fieldManager", "fieldValidation"].map(query_parameter);
        let operation = |action: &str| {
            json!({
                "x-kubernetes-action": action,
                "x-kubernetes-group-version-kind": gvk,
                "parameters": parameters,
                "responses": { "200": { "description": "OK", "content": { "application/json": {
                    "schema": { "$ref": format!("#/components/schemas/{name}") } } } } },
            })
        };
        paths.insert(base.clone(), json!({ "get": operation("list"), "post": operation("post") }));
        paths.insert(
            format!("{base}/{{name}}"),
            json!({ "get": operation("get"), "put": operation("put"), "patch": operation("patch"),
                    "delete": operation("delete") }),
        );
    }
    json!({
        "openapi": "3.0.0",
        "info": { "title": "Kubernetes", "version": "v1.34.0" },
        "paths": paths,
        "components": { "schemas": schemas },
    })
}

fn query_parameter(name: &str) -> Value {
    json!({ "name": name, "in": "query", "schema": { "type": "string", "uniqueItems": true } })
}
