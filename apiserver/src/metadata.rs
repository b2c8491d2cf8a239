//! Grammar of names, labels, annotations and owners, with Kubernetes' messages.

use serde_json::Value;

use crate::object;
use crate::resource::{NameRule, Resource};
use crate::status::Cause;

const SUBDOMAIN: &str = "a lowercase RFC 1123 subdomain must consist of lower case alphanumeric characters, '-' or \
    '.', and must start and end with an alphanumeric character (e.g. 'example.com', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?(\\.[a-z0-9]([-a-z0-9]*[a-z0-9])?)*')";
const LABEL: &str = "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-', and must \
    start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc', regex used for validation is \
    '[a-z0-9]([-a-z0-9]*[a-z0-9])?')";
const LABEL_1035: &str = "a DNS-1035 label must consist of lower case alphanumeric characters or '-', start with an \
    alphabetic character, and end with an alphanumeric character (e.g. 'my-name',  or 'abc-123', regex used for \
    validation is '[a-z]([-a-z0-9]*[a-z0-9])?')";
const QUALIFIED: &str = "name part must consist of alphanumeric characters, '-', '_' or '.', and must start and end \
    with an alphanumeric character (e.g. 'MyName',  or 'my.name',  or '123-abc', regex used for validation is \
    '([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9]')";
const LABEL_VALUE: &str = "a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or \
    '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex \
    used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')";
/// Finalizers of Kubernetes' own, which need no domain.
const STANDARD_FINALIZERS: [&str; 3] = ["kubernetes", "orphan", "foregroundDeletion"];
/// All annotations of an object together, in bytes.
const ANNOTATIONS_LIMIT: usize = 256 * 1024;

fn is_label(text: &str) -> bool {
    let inner = |b: u8| b.is_ascii_lowercase() || b.is_ascii_digit() || b == b'-';
    !text.is_empty() && text.bytes().all(inner) && !text.starts_with('-') && !text.ends_with('-')
}

fn is_subdomain(text: &str) -> bool {
    text.split('.').all(is_label)
}

fn is_qualified_part(text: &str) -> bool {
    let edge = |b: Option<u8>| b.is_some_and(|b| b.is_ascii_alphanumeric());
    edge(text.bytes().next())
        && edge(text.bytes().last())
        && text.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_' | b'.'))
}

fn too_long(limit: usize) -> String {
    format!("must be no more than {limit} characters")
}

/// What is wrong with a name under `rule`.
pub(crate) fn name_faults(rule: NameRule, name: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let (limit, ok, text) = match rule {
        NameRule::Subdomain => (253, is_subdomain(name), SUBDOMAIN),
        NameRule::Label => (63, is_label(name), LABEL),
        NameRule::Label1035 => {
            (63, is_label(name) && name.starts_with(|c: char| c.is_ascii_lowercase()), LABEL_1035)
        }
    };
    if name.len() > limit {
        faults.push(too_long(limit));
    }
    if !ok {
        faults.push(text.to_owned());
    }
    faults
}

/// What is wrong with a label key, annotation key or finalizer.
pub(crate) fn qualified_faults(key: &str) -> Vec<String> {
    let mut faults = Vec::new();
    let name = match key.split_once('/') {
        None => key,
        Some((prefix, name)) => {
            if prefix.is_empty() {
                faults.push("prefix part must be non-empty".to_owned());
            } else if prefix.len() > 253 {
                faults.push(format!("prefix part {}", too_long(253)));
            } else if !is_subdomain(prefix) {
                faults.push(format!("prefix part {SUBDOMAIN}"));
            }
            name
        }
    };
    if name.is_empty() {
        faults.push("name part must be non-empty".to_owned());
    } else if name.len() > 63 {
        faults.push(format!("name part {}", too_long(63)));
    }
    if !is_qualified_part(name) {
        faults.push(QUALIFIED.to_owned());
    }
    faults
}

/// What is wrong with the value of a label.
pub(crate) fn label_value_fault(text: &str) -> Option<String> {
    if text.len() > 63 {
        Some(too_long(63))
    } else if !text.is_empty() && !is_qualified_part(text) {
        Some(LABEL_VALUE.to_owned())
    } else {
        None
    }
}

/// Every fault of an object's metadata.
pub(crate) fn validate(resource: &Resource, value: &Value) -> Vec<Cause> {
    let mut causes = Vec::new();
    let name = object::text(value, "name");
    let generate = object::text(value, "generateName");
    if !generate.is_empty() {
        // A prefix may end in a dash: the suffix follows.
        let probe = format!("{}a", generate.trim_end_matches('-'));
        for fault in name_faults(resource.name_rule, &probe) {
            causes.push(Cause::invalid("metadata.generateName", &generate.into(), fault));
        }
    }
    if name.is_empty() {
        causes.push(Cause::required("metadata.name", "name or generateName is required"));
    } else {
        for fault in name_faults(resource.name_rule, name) {
            causes.push(Cause::invalid("metadata.name", &name.into(), fault));
        }
    }
    let entries = |field: &str| object::meta(value, field).and_then(Value::as_object);
    for (key, label) in entries("labels").into_iter().flatten() {
        for fault in qualified_faults(key) {
            causes.push(Cause::invalid("metadata.labels", &key.as_str().into(), fault));
        }
        let fault = label_value_fault(label.as_str().unwrap_or_default());
        causes.extend(fault.map(|fault| Cause::invalid("metadata.labels", label, fault)));
    }
    let mut size = 0;
    for (key, annotation) in entries("annotations").into_iter().flatten() {
        for fault in qualified_faults(&key.to_lowercase()) {
            causes.push(Cause::invalid("metadata.annotations", &key.as_str().into(), fault));
        }
        size += key.len() + annotation.as_str().map_or(0, str::len);
    }
    if size > ANNOTATIONS_LIMIT {
        causes.push(Cause::too_long("metadata.annotations", ANNOTATIONS_LIMIT));
    }
    let list = |field: &str| object::meta(value, field).and_then(Value::as_array);
    for (index, owner) in list("ownerReferences").into_iter().flatten().enumerate() {
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner.get(field).and_then(Value::as_str).unwrap_or_default().is_empty() {
                causes.push(Cause::invalid(
                    format!("metadata.ownerReferences[{index}].{field}"),
                    &"".into(),
                    "must not be empty",
                ));
            }
        }
    }
    causes.extend(list("ownerReferences").and_then(|owners| two_controllers(owners)));
    for (index, finalizer) in list("finalizers").into_iter().flatten().enumerate() {
        let name = finalizer.as_str().unwrap_or_default();
        for fault in qualified_faults(name) {
            causes.push(Cause::invalid("metadata.finalizers", finalizer, fault));
        }
        // Of custom kinds a cluster only warns about these.
        if !resource.custom && !name.contains('/') && !STANDARD_FINALIZERS.contains(&name) {
            let text = "name is neither a standard finalizer name nor is it fully qualified";
            causes.push(Cause::invalid(format!("metadata.finalizers[{index}]"), finalizer, text));
        }
    }
    causes
}

/// At most one owner controls an object.
fn two_controllers(owners: &[Value]) -> Option<Cause> {
    let text =
        |owner: &Value, field: &str| owner.get(field).and_then(Value::as_str).unwrap_or_default().to_owned();
    let mut names = owners
        .iter()
        .filter(|owner| owner.get("controller") == Some(&Value::Bool(true)))
        .map(|owner| format!("{}/{}", text(owner, "kind"), text(owner, "name")));
    let (first, second) = (names.next()?, names.next()?);
    let detail = format!(
        "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
    );
    Some(Cause::invalid("metadata.ownerReferences", &Value::Array(owners.to_vec()), detail))
}

/// Faults of metadata that is not of the right types, which would otherwise be misread.
pub(crate) fn type_fault(value: &Value) -> Option<String> {
    let metadata = match value.get("metadata") {
        None | Some(Value::Null) => return None,
        Some(Value::Object(metadata)) => metadata,
        Some(_) => return Some("metadata: expected an object".to_owned()),
    };
    let strings = [
        "name",
        "generateName",
        "namespace",
        "uid",
        "resourceVersion",
        "creationTimestamp",
        "deletionTimestamp",
    ];
    for (field, value) in metadata {
        let ok = match field.as_str() {
            _ if value.is_null() => true,
            "labels" | "annotations" => {
                value.as_object().is_some_and(|map| map.values().all(Value::is_string))
            }
            "ownerReferences" => value.as_array().is_some_and(|list| list.iter().all(Value::is_object)),
            "finalizers" => value.as_array().is_some_and(|list| list.iter().all(Value::is_string)),
            "generation" | "deletionGracePeriodSeconds" => value.is_i64() || value.is_u64(),
            field if strings.contains(&field) => value.is_string(),
            _ => true,
        };
        if !ok {
            return Some(format!("metadata.{field}: value has the wrong type"));
        }
    }
    None
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::{CONFIG_MAPS, NAMESPACES, RESOURCES};

    fn faults(resource: usize, metadata: &Value) -> Vec<Cause> {
        validate(&RESOURCES[resource], &json!({ "metadata": metadata }))
    }

    #[test]
    fn names_follow_the_rule_of_the_resource() {
        assert!(faults(CONFIG_MAPS, &json!({ "name": "a.b-c" })).is_empty());
        assert!(faults(NAMESPACES, &json!({ "name": "a.b" }))[0].message.contains("RFC 1123 label"));
        for bad in ["Foo", "-a", "a-", "a..b", "a_b", &"x".repeat(254)] {
            assert!(!faults(CONFIG_MAPS, &json!({ "name": bad })).is_empty(), "{bad}");
        }
        assert!(faults(CONFIG_MAPS, &json!({}))[0].message.contains("name or generateName is required"));
    }

    #[test]
    fn labels_annotations_and_owners_are_checked() {
        assert!(!faults(CONFIG_MAPS, &json!({ "name": "a", "labels": { "a/b/c": "x" } })).is_empty());
        assert!(!faults(CONFIG_MAPS, &json!({ "name": "a", "labels": { "a": "-x" } })).is_empty());
        assert!(faults(CONFIG_MAPS, &json!({ "name": "a", "labels": { "x.io/a": "" } })).is_empty());
        assert!(
            !faults(CONFIG_MAPS, &json!({ "name": "a", "ownerReferences": [{ "name": "x" }] })).is_empty()
        );
        let owner = |name: &str| json!({ "apiVersion": "v1", "kind": "K", "name": name, "uid": name, "controller": true });
        let two = faults(CONFIG_MAPS, &json!({ "name": "a", "ownerReferences": [owner("x"), owner("y")] }));
        assert_eq!(two[0].field, "metadata.ownerReferences");
        assert!(
            two[0].message.ends_with("Found \"true\" in references for K/x and K/y"),
            "{}",
            two[0].message
        );
        let finalizers = |resource: usize, name: &str| -> Vec<String> {
            faults(resource, &json!({ "name": "a", "finalizers": [name] }))
                .iter()
                .map(|c| c.field.clone())
                .collect()
        };
        let none: Vec<String> = Vec::new();
        assert_eq!(finalizers(CONFIG_MAPS, "nodomain"), ["metadata.finalizers[0]"]);
        assert_eq!(finalizers(CONFIG_MAPS, "orphan"), none);
        let custom = crate::resource::find("serving.knative.dev", "v1", "services").unwrap();
        assert_eq!(finalizers(custom, "nodomain"), none);
        assert!(type_fault(&json!({ "metadata": { "labels": { "a": 1 } } })).is_some());
    }
}
