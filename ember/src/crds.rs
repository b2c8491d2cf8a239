//! `ember crds`: the manifests that make a Kubernetes API server serve Knative's kinds.

use std::io::Write;

use anyhow::Context;
use ember_api::schema;

/// Prints them, one YAML document each; what `kubectl apply -f -` takes.
pub(crate) fn run() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    match out.write_all(text()?.as_bytes()).and_then(|()| out.flush()) {
        // Whoever reads has seen enough.
        Err(error) if error.kind() == std::io::ErrorKind::BrokenPipe => Ok(()),
        written => Ok(written?),
    }
}

fn text() -> anyhow::Result<String> {
    let mut text = String::new();
    for kind in schema::all() {
        text += "---\n";
        let name = || format!("cannot write the manifest of {}", kind.kind);
        text += &serde_norway::to_string(&kind.crd).with_context(name)?;
    }
    Ok(text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
    use serde::Deserialize;
    use serde_json::Value;

    /// What the API server asks of structural schemas, of those rules that types could break.
    fn check(place: &str, schema: &Value) {
        // The one form of it that may stand there.
        let two = serde_json::json!([{"type": "integer"}, {"type": "string"}]);
        assert!(
            schema.get("anyOf").is_none_or(|any| *any == two && schema["x-kubernetes-int-or-string"] == true),
            "{place}"
        );
        for word in ["$ref", "oneOf", "allOf", "definitions", "const", "examples"] {
            assert!(schema.get(word).is_none(), "{place} has {word}");
        }
        let free = schema["x-kubernetes-preserve-unknown-fields"] == true;
        let either = schema["x-kubernetes-int-or-string"] == true;
        assert!(schema["type"].is_string() || free || either, "{place} has no type: {schema}");
        assert!(
            schema.get("properties").is_none() || schema.get("additionalProperties").is_none(),
            "{place}"
        );
        if schema["type"] == "array" {
            assert!(schema["items"].is_object(), "{place} has no items");
        }
        for (name, property) in schema["properties"].as_object().into_iter().flatten() {
            check(&format!("{place}.{name}"), property);
        }
        for inner in ["items", "additionalProperties"] {
            if schema[inner].is_object() {
                check(&format!("{place}[]"), &schema[inner]);
            }
        }
    }

    #[test]
    fn every_document_is_a_definition_that_an_api_server_takes() {
        let text = text().unwrap();
        let mut seen = 0;
        for (document, kind) in serde_norway::Deserializer::from_str(&text).zip(schema::all()) {
            let crd = CustomResourceDefinition::deserialize(document).unwrap();
            assert_eq!(crd, kind.crd, "{}", kind.kind);
            let value = serde_json::to_value(&crd).unwrap();
            assert_eq!(value["apiVersion"], "apiextensions.k8s.io/v1");
            assert_eq!(value["kind"], "CustomResourceDefinition");
            let name = format!("{}.{}", kind.plural, kind.group);
            assert_eq!(value["metadata"]["name"], name.as_str());
            assert!(value["spec"]["versions"].as_array().unwrap().iter().any(|v| v["storage"] == true));
            for version in value["spec"]["versions"].as_array().unwrap() {
                assert_eq!(version["schema"]["openAPIV3Schema"]["type"], "object");
                check(&kind.kind, &version["schema"]["openAPIV3Schema"]);
            }
            seen += 1;
        }
        assert_eq!(seen, schema::all().len());
    }
}
