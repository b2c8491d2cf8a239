//! From the schemas that are derived from the types to the ones an API server is given.

use serde_json::{Map, Value, json};

use super::pod;

/// The grammar of Kubernetes quantities.
const QUANTITY: &str = r"^(\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))(([KMGTPE]i)|[numkMGTPE]|([eE](\+|-)?(([0-9]+(\.[0-9]*)?)|(\.[0-9]+))))?$";

/// Makes the derived schema of a kind the one that is served.
///
/// `spec` stays required of every kind: an object without one means nothing to any controller.
pub(super) fn rewrite(kind: &str, mut schema: Value) -> Value {
    normalize(&mut schema);
    // Where pods stand, only the part of them that Knative lets through is known.
    match kind {
        "Service" | "Configuration" => {
            edit(&mut schema, "/properties/spec/properties/template/properties/metadata", |metadata| {
                *metadata = template_metadata();
            });
            edit(&mut schema, "/properties/spec/properties/template/properties/spec", pod::keep_known_fields);
            require(&mut schema, "/properties/spec/properties/template/properties/spec", &["containers"]);
        }
        "Revision" => {
            edit(&mut schema, "/properties/spec", pod::keep_known_fields);
            require(&mut schema, "/properties/spec", &["containers"]);
        }
        "DomainMapping" => {
            require(&mut schema, "/properties/spec", &["ref"]);
            require(&mut schema, "/properties/spec/properties/ref", &["kind", "name"]);
            require(&mut schema, "/properties/spec/properties/tls", &["secretName"]);
        }
        "PodAutoscaler" => {
            require(&mut schema, "/properties/spec", &["protocolType", "scaleTargetRef"]);
            require(&mut schema, "/properties/status", &["metricsServiceName", "serviceName"]);
            edit(&mut schema, "/properties/spec/properties/scaleTargetRef", pod::keep_scale_target_fields);
        }
        "ServerlessService" => {
            require(&mut schema, "/properties/spec", &["objectRef", "protocolType"]);
            edit(&mut schema, "/properties/spec/properties/objectRef", |reference| {
                reference["x-kubernetes-map-type"] = json!("atomic");
            });
        }
        "Metric" => {
            require(&mut schema, "/properties/spec", &["panicWindow", "scrapeTarget", "stableWindow"]);
        }
        "Ingress" => {
            let paths = "/properties/spec/properties/rules/items/properties/http";
            require(&mut schema, paths, &["paths"]);
            let path = "/properties/spec/properties/rules/items/properties/http/properties/paths/items";
            require(&mut schema, path, &["splits"]);
            let split = format!("{path}/properties/splits/items");
            require(&mut schema, &split, &["serviceName", "serviceNamespace", "servicePort"]);
            require(&mut schema, &format!("{path}/properties/headers/additionalProperties"), &["exact"]);
        }
        "Certificate" => require(&mut schema, "/properties/spec", &["dnsNames", "secretName"]),
        "ClusterDomainClaim" => require(&mut schema, "/properties/spec", &["namespace"]),
        "Image" => {
            require(&mut schema, "/properties/spec", &["image"]);
            edit(&mut schema, "/properties/spec", pod::keep_image_fields);
        }
        _ => {}
    }
    if let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) {
        properties.insert(
            "apiVersion".to_owned(),
            json!({
                "description": "APIVersion defines the versioned schema of this representation of an object.",
                "type": "string",
            }),
        );
        properties.insert("kind".to_owned(), json!({
            "description": "Kind is a string value representing the REST resource this object represents.",
            "type": "string",
        }));
        properties.insert("metadata".to_owned(), json!({ "type": "object" }));
    }
    schema
}

fn edit(schema: &mut Value, pointer: &str, change: impl FnOnce(&mut Value)) {
    if let Some(part) = schema.pointer_mut(pointer) {
        change(part);
    }
}

fn require(schema: &mut Value, pointer: &str, fields: &[&str]) {
    edit(schema, pointer, |part| part["required"] = json!(fields));
}

/// Metadata of a template is kept as it is; the parts that are read are typed.
fn template_metadata() -> Value {
    json!({
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "annotations": { "type": "object", "additionalProperties": { "type": "string" } },
            "finalizers": { "type": "array", "items": { "type": "string" } },
            "labels": { "type": "object", "additionalProperties": { "type": "string" } },
            "name": { "type": "string" },
            "namespace": { "type": "string" },
        },
    })
}

/// Removes what the derivation adds and Kubernetes' schemas do not have: nullability, and the types' own defaults
/// (defaulting is the webhook's).
fn normalize(schema: &mut Value) {
    let Value::Object(fields) = schema else { return };
    fields.remove("nullable");
    fields.remove("title");
    fields.remove("default");
    if fields.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        int_or_string(fields);
        return;
    }
    if let Some(Value::Object(properties)) = fields.get_mut("properties") {
        properties.values_mut().for_each(normalize);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = fields.get_mut(key) {
            normalize(inner);
        }
    }
}

fn int_or_string(fields: &mut Map<String, Value>) {
    fields.insert("anyOf".to_owned(), json!([{ "type": "integer" }, { "type": "string" }]));
    // The types tell quantities from ports by their descriptions alone.
    let text = fields.get("description").and_then(Value::as_str).unwrap_or_default();
    let is_quantity = text.starts_with("Quantity is");
    let is_divisor = text.starts_with("Specifies the output format of the exposed resources");
    if is_quantity || is_divisor {
        fields.insert("pattern".to_owned(), json!(QUANTITY));
    }
    // What a quantity is takes pages, and would stand at each one.
    if is_quantity {
        fields.remove("description");
    }
}
