//! What the built-in kinds may hold, with Kubernetes' messages. Pure.

mod keyed;
mod workload;

use serde_json::Value;

use crate::resource::Resource;
use crate::status::Cause;

/// Every fault of what an object declares; `old` is the stored one that it replaces.
pub(crate) fn validate(resource: &Resource, value: &Value, old: Option<&Value>) -> Vec<Cause> {
    match (resource.group, resource.plural) {
        ("", "configmaps") => keyed::config_map(value, old),
        ("", "secrets") => keyed::secret(value, old),
        ("", "pods") => workload::pod(value, old),
        ("", "services") => service(value),
        ("apps", "deployments") => workload::deployment(value, old),
        _ => Vec::new(),
    }
}

fn service(value: &Value) -> Vec<Cause> {
    let text = |path: &str| value.pointer(path).and_then(Value::as_str).unwrap_or_default();
    let external = text("/spec/type") == "ExternalName";
    let mut causes = Vec::new();
    if external && text("/spec/externalName").is_empty() {
        causes.push(Cause::required("spec.externalName", ""));
    }
    if !external && text("/spec/clusterIP") != "None" && is_empty(value.pointer("/spec/ports")) {
        causes.push(Cause::required("spec.ports", ""));
    }
    causes
}

/// Whether a field holds nothing, in one of the ways to say so.
fn is_empty(field: Option<&Value>) -> bool {
    match field {
        None | Some(Value::Null) => true,
        Some(Value::Array(list)) => list.is_empty(),
        Some(Value::Object(map)) => map.is_empty(),
        Some(_) => false,
    }
}

/// Whether two fields say the same; what is empty says as much as what is absent.
fn same(a: Option<&Value>, b: Option<&Value>) -> bool {
    match (a, b) {
        _ if is_empty(a) || is_empty(b) => is_empty(a) && is_empty(b),
        (Some(Value::Object(a)), Some(Value::Object(b))) => {
            let mut fields = a.keys().chain(b.keys());
            fields.all(|field| same(a.get(field), b.get(field)))
        }
        (Some(Value::Array(a)), Some(Value::Array(b))) => {
            a.len() == b.len() && a.iter().zip(b).all(|(a, b)| same(Some(a), Some(b)))
        }
        (a, b) => a == b,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::{RESOURCES, find};

    /// `field: message` of every fault.
    fn faults(group: &str, plural: &str, value: &Value, old: Option<&Value>) -> Vec<String> {
        let resource = &RESOURCES[find(group, "v1", plural).unwrap()];
        validate(resource, value, old).iter().map(|c| format!("{}: {}", c.field, c.message)).collect()
    }

    fn check(group: &str, plural: &str, cases: &[(Value, Option<Value>, &[&str])]) {
        for (value, old, wanted) in cases {
            assert_eq!(faults(group, plural, value, old.as_ref()), *wanted, "{value}");
        }
    }

    const KEY: &str = "a valid config key must consist of alphanumeric characters, '-', '_' or '.' (e.g. 'key.name',  \
                       or 'KEY_NAME',  or 'key-name', regex used for validation is '[-._a-zA-Z0-9]+')";

    #[test]
    fn config_maps() {
        let frozen = json!({ "data": { "a": "1" }, "immutable": true });
        let set = "Forbidden: field is immutable when `immutable` is set";
        check(
            "",
            "configmaps",
            &[
                (json!({}), None, &[]),
                (json!({ "data": { "a.b-C_1": "x" }, "binaryData": { "b": "eA==" } }), None, &[]),
                (
                    json!({ "data": { "a/b": "" } }),
                    None,
                    &[&format!("data[a/b]: Invalid value: \"a/b\": {KEY}")],
                ),
                (json!({ "data": { "": "" } }), None, &[&format!("data[]: Invalid value: \"\": {KEY}")]),
                (
                    json!({ "binaryData": { ".": "" } }),
                    None,
                    &["binaryData[.]: Invalid value: \".\": must not be '.'"],
                ),
                (
                    json!({ "data": { "..": "" } }),
                    None,
                    &["data[..]: Invalid value: \"..\": must not be '..'"],
                ),
                (
                    json!({ "data": { "..a": "" } }),
                    None,
                    &["data[..a]: Invalid value: \"..a\": must not start with '..'"],
                ),
                (
                    json!({ "data": { "a": "" }, "binaryData": { "a": "" } }),
                    None,
                    &["data[a]: Invalid value: \"a\": duplicate of key present in binaryData"],
                ),
                (json!({ "data": { "a": "x".repeat(1 << 20) } }), None, &[]),
                (
                    json!({ "data": { "a": "x".repeat(1 << 20) }, "binaryData": { "b": "eA==" } }),
                    None,
                    &["[]: Too long: may not be more than 1048576 bytes"],
                ),
                (
                    json!({ "data": { "a": "1" }, "immutable": true, "metadata": { "labels": { "a": "b" } } }),
                    Some(frozen.clone()),
                    &[],
                ),
                (
                    json!({ "data": { "a": "2" }, "immutable": true }),
                    Some(frozen.clone()),
                    &[&format!("data: {set}")],
                ),
                (
                    json!({ "data": { "a": "1" }, "binaryData": { "b": "" }, "immutable": false }),
                    Some(frozen),
                    &[&format!("immutable: {set}"), &format!("binaryData: {set}")],
                ),
                (
                    json!({ "data": { "a": "2" }, "immutable": true }),
                    Some(json!({ "data": { "a": "1" } })),
                    &[],
                ),
            ],
        );
    }

    #[test]
    fn secrets() {
        let set = "Forbidden: field is immutable when `immutable` is set";
        check(
            "",
            "secrets",
            &[
                (json!({ "type": "Opaque", "data": { "a": "eA==" } }), None, &[]),
                (json!({ "type": "example.com/own" }), None, &[]),
                (
                    json!({ "type": "Opaque", "data": { "a b": "" } }),
                    None,
                    &[&format!("data[a b]: Invalid value: \"a b\": {KEY}")],
                ),
                (
                    json!({ "type": "kubernetes.io/tls", "data": { "x": "" } }),
                    None,
                    &["data[tls.crt]: Required value", "data[tls.key]: Required value"],
                ),
                (json!({ "type": "kubernetes.io/tls", "data": { "tls.crt": "", "tls.key": "" } }), None, &[]),
                (
                    json!({ "type": "kubernetes.io/dockerconfigjson", "data": {} }),
                    None,
                    &["data[.dockerconfigjson]: Required value"],
                ),
                (
                    json!({ "type": "kubernetes.io/dockerconfigjson", "data": { ".dockerconfigjson": "eA==" } }),
                    None,
                    &[
                        "data[.dockerconfigjson]: Invalid value: \"<secret contents redacted>\": expected value at line 1 column 1",
                    ],
                ),
                (
                    json!({ "type": "kubernetes.io/basic-auth" }),
                    None,
                    &["data[%s][username]: Required value", "data[%s][password]: Required value"],
                ),
                (json!({ "type": "kubernetes.io/basic-auth", "data": { "username": "" } }), None, &[]),
                (
                    json!({ "type": "kubernetes.io/ssh-auth", "data": { "ssh-privatekey": "" } }),
                    None,
                    &["data[%s][ssh-privatekey]: Required value"],
                ),
                (
                    json!({ "type": "kubernetes.io/service-account-token" }),
                    None,
                    &["metadata.annotations[kubernetes.io/service-account.name]: Required value"],
                ),
                (
                    json!({ "type": "a" }),
                    Some(json!({ "type": "Opaque" })),
                    &["type: Invalid value: \"a\": field is immutable"],
                ),
                (
                    json!({ "type": "Opaque", "data": { "a": "" } }),
                    Some(json!({ "type": "Opaque", "immutable": true })),
                    &[&format!("immutable: {set}"), &format!("data: {set}")],
                ),
            ],
        );
    }

    #[test]
    fn services() {
        check(
            "",
            "services",
            &[
                (json!({ "spec": {} }), None, &["spec.ports: Required value"]),
                (json!({ "spec": { "ports": [{ "port": 80 }] } }), None, &[]),
                (json!({ "spec": { "clusterIP": "None" } }), None, &[]),
                (json!({ "spec": { "type": "ExternalName", "externalName": "a.b" } }), None, &[]),
                (json!({ "spec": { "type": "ExternalName" } }), None, &["spec.externalName: Required value"]),
            ],
        );
    }

    #[test]
    fn pods() {
        let pod = |container: Value| json!({ "spec": { "containers": [container], "nodeName": "n" } });
        let old = pod(json!({ "name": "a", "image": "i", "args": [] }));
        let fixed = "spec: Forbidden: pod updates may not change fields other than \
                     `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
                     `spec.tolerations` (only additions to existing tolerations),\
                     `spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";
        check(
            "",
            "pods",
            &[
                (json!({}), None, &["spec.containers: Required value"]),
                (
                    pod(json!({})),
                    None,
                    &["spec.containers[0].name: Required value", "spec.containers[0].image: Required value"],
                ),
                (
                    json!({ "spec": { "containers": [{ "name": "a", "image": "i" }, { "name": "a", "image": "i" }] } }),
                    None,
                    &["spec.containers[1].name: Duplicate value: \"a\""],
                ),
                (
                    json!({ "spec": { "containers": [{ "name": "a", "image": "i" }], "initContainers": [{ "name": "a" }] } }),
                    None,
                    &[
                        "spec.initContainers[0].image: Required value",
                        "spec.initContainers[0].name: Duplicate value: \"a\"",
                    ],
                ),
                (pod(json!({ "name": "a", "image": "j" })), Some(old.clone()), &[]),
                (pod(json!({ "name": "a", "image": "i", "command": ["x"] })), Some(old.clone()), &[fixed]),
                (
                    json!({ "spec": { "containers": [{ "name": "a", "image": "i" }, { "name": "b", "image": "i" }] } }),
                    Some(old.clone()),
                    &["spec.containers: Forbidden: pod updates may not add or remove containers"],
                ),
                (
                    json!({ "spec": { "containers": [{ "name": "a", "image": "i" }], "nodeName": "n",
                        "activeDeadlineSeconds": 5, "tolerations": [{ "key": "x" }] } }),
                    Some(old),
                    &[],
                ),
            ],
        );
        assert!(
            faults("", "pods", &pod(json!({ "name": "A", "image": "i" })), None)[0]
                .contains("RFC 1123 label")
        );
    }

    #[test]
    fn deployments() {
        let of = |selector: Value, labels: Value| {
            json!({ "spec": { "selector": selector, "template": {
                "metadata": { "labels": labels }, "spec": { "containers": [{ "name": "a", "image": "i" }] } } } })
        };
        let app = |name: &str| json!({ "matchLabels": { "app": name } });
        let misses = "`selector` does not match template `labels`";
        let expression = |operator: &str, values: Value| json!({ "matchExpressions": [{ "key": "app", "operator": operator, "values": values }] });
        check(
            "apps",
            "deployments",
            &[
                (of(app("x"), json!({ "app": "x", "b": "c" })), None, &[]),
                (
                    json!({ "spec": {} }),
                    None,
                    &[
                        "spec.selector: Required value",
                        &format!("spec.template.metadata.labels: Invalid value: null: {misses}"),
                        "spec.template.spec.containers: Required value",
                    ],
                ),
                (
                    of(json!({}), json!({ "app": "x" })),
                    None,
                    &["spec.selector: Invalid value: {}: empty selector is invalid for deployment"],
                ),
                (
                    of(app("y"), json!({ "app": "x" })),
                    None,
                    &[&format!("spec.template.metadata.labels: Invalid value: {{\"app\":\"x\"}}: {misses}")],
                ),
                (of(expression("In", json!(["x", "y"])), json!({ "app": "x" })), None, &[]),
                (of(expression("Exists", json!(null)), json!({ "app": "x" })), None, &[]),
                (
                    of(expression("NotIn", json!(["x"])), json!({ "app": "x" })),
                    None,
                    &[&format!("spec.template.metadata.labels: Invalid value: {{\"app\":\"x\"}}: {misses}")],
                ),
                (
                    of(app("y"), json!({ "app": "y" })),
                    Some(of(app("x"), json!({ "app": "x" }))),
                    &["spec.selector: Invalid value: {\"matchLabels\":{\"app\":\"y\"}}: field is immutable"],
                ),
            ],
        );
        let mut bad = of(app("x"), json!({ "app": "x" }));
        bad["spec"]["replicas"] = (-1).into();
        bad["spec"]["template"]["spec"]["restartPolicy"] = "Never".into();
        assert_eq!(
            faults("apps", "deployments", &bad, None),
            [
                "spec.replicas: Invalid value: -1: must be greater than or equal to 0",
                "spec.template.spec.restartPolicy: Unsupported value: \"Never\": supported values: \"Always\"",
            ]
        );
    }
}
