//! The patch types: JSON patch, JSON merge patch and strategic merge patch.

use serde_json::{Map, Value};

use crate::managed_fields::Type;
use crate::resource::Resource;
use crate::status::ApiError;

/// Media type of server-side apply, which is no patch of this module.
const APPLY: &str = "application/apply-patch+yaml";

/// Most operations of a JSON patch.
const OPERATIONS_LIMIT: usize = 10_000;
/// Before the name of a list: the order its elements are to have.
const ORDER: &str = "$setElementOrder/";

/// Whether a PATCH is a server-side apply.
pub(crate) fn is_apply(content_type: &str) -> bool {
    media_type(content_type) == APPLY
}

fn media_type(content_type: &str) -> &str {
    content_type.split(';').next().unwrap_or_default().trim()
}

/// A parsed patch, applied as often as a race makes necessary.
#[derive(Debug)]
pub(crate) enum Patch {
    Json(json_patch::Patch),
    Merge(Value),
    Strategic(Value),
}

impl Patch {
    /// Reads the body of a PATCH.
    ///
    /// # Errors
    /// 415 for a type the resource does not take, 400 for a body that is not of its type.
    pub(crate) fn parse(resource: &Resource, content_type: &str, body: &[u8]) -> Result<Self, ApiError> {
        let bad = |e: serde_json::Error| {
            ApiError::bad_request(format!("error decoding patch: json parse error: {e}"))
        };
        match media_type(content_type) {
            "application/json-patch+json" => {
                let operations: json_patch::Patch = serde_json::from_slice(body).map_err(bad)?;
                match operations.len() {
                    count if count > OPERATIONS_LIMIT => {
                        Err(ApiError::too_many_operations(OPERATIONS_LIMIT, count))
                    }
                    _ => Ok(Self::Json(operations)),
                }
            }
            "application/merge-patch+json" => {
                let patch: Map<String, Value> = serde_json::from_slice(body).map_err(bad)?;
                Ok(Self::Merge(Value::Object(patch)))
            }
            "application/strategic-merge-patch+json" if !resource.custom => {
                serde_json::from_slice(body).map(Self::Strategic).map_err(bad)
            }
            other => {
                let mut accepted = vec!["application/json-patch+json", "application/merge-patch+json"];
                if !resource.custom {
                    accepted.push("application/strategic-merge-patch+json");
                }
                accepted.push(APPLY);
                Err(ApiError::unsupported_media_type(format!(
                    "the body of the request was in an unknown format ({other}) - accepted media types include: {}",
                    accepted.join(", ")
                )))
            }
        }
    }

    /// The patched object of a resource.
    ///
    /// # Errors
    /// 422 when an operation cannot be carried out.
    pub(crate) fn apply(&self, resource: &Resource, base: &Value) -> Result<Value, ApiError> {
        let mut value = base.clone();
        match self {
            Self::Json(operations) => json_patch::patch(&mut value, operations)
                .map_err(|e| ApiError::unprocessable(format!("the patch cannot be applied: {e}")))?,
            Self::Merge(patch) => json_patch::merge(&mut value, patch),
            Self::Strategic(patch) => strategic(&mut value, patch, Type::of(resource, None))?,
        }
        if !value.is_object() {
            return Err(ApiError::unprocessable("the patch does not leave an object"));
        }
        Ok(value)
    }
}

/// Kubernetes' strategic merge: maps merge, lists with a merge key merge by it, other lists are replaced.
fn strategic(target: &mut Value, patch: &Value, ty: Type<'_>) -> Result<(), ApiError> {
    match patch {
        Value::Object(patch) => strategic_map(target, patch, ty),
        Value::Array(entries) => strategic_list(target, entries, ty),
        other => {
            *target = other.clone();
            Ok(())
        }
    }
}

fn strategic_map(target: &mut Value, patch: &Map<String, Value>, ty: Type<'_>) -> Result<(), ApiError> {
    match patch.get("$patch").and_then(Value::as_str) {
        Some("replace") => {
            *target = Value::Object(patch.iter().filter(|(k, _)| *k != "$patch").map(clone_pair).collect());
            return Ok(());
        }
        Some("delete") => {
            *target = Value::Object(Map::new());
            return Ok(());
        }
        Some("merge") | None => {}
        Some(other) => return Err(ApiError::bad_request(format!("unknown patch type: {other}"))),
    }
    if !target.is_object() {
        *target = Value::Object(Map::new());
    }
    let Value::Object(map) = target else { unreachable!("made an object above") };
    if let Some(keep) = patch.get("$retainKeys").and_then(Value::as_array) {
        map.retain(|key, _| keep.iter().any(|k| k.as_str() == Some(key)));
    }
    // Where the elements of a list stood decides where those stay that the patch does not know.
    let stood = |list: &str| map.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
    let orders: Vec<_> = patch
        .iter()
        .filter_map(|(key, order)| Some((key.strip_prefix(ORDER)?, order.as_array()?)))
        .map(|(list, order)| (list, order, stood(list)))
        .collect();
    for (key, value) in patch {
        if let Some(list) = key.strip_prefix("$deleteFromPrimitiveList/") {
            if let (Some(Value::Array(entries)), Some(gone)) = (map.get_mut(list), value.as_array()) {
                entries.retain(|entry| !gone.contains(entry));
            }
            continue;
        }
        if key.starts_with('$') {
            continue;
        }
        if value.is_null() {
            map.remove(key);
        } else {
            strategic(map.entry(key.clone()).or_insert(Value::Null), value, ty.field(key))?;
        }
    }
    for (list, order, before) in orders {
        if let Some(Value::Array(elements)) = map.get_mut(list) {
            *elements = ordered(std::mem::take(elements), order, &before, ty.field(list).merge_key());
        }
    }
    Ok(())
}

/// The elements of a list in the order a patch asks for. Those it does not name stay where they stood `before`, as far
/// as that goes.
fn ordered(elements: Vec<Value>, order: &[Value], before: &[Value], key: Option<&str>) -> Vec<Value> {
    let id = |element: &Value| key.and_then(|key| element.get(key)).unwrap_or(element).clone();
    let place = |list: &[Value], element: &Value| list.iter().position(|other| id(other) == id(element));
    let (mut named, others): (Vec<Value>, Vec<Value>) =
        elements.into_iter().partition(|element| place(order, element).is_some());
    named.sort_by_key(|element| place(order, element));
    let (mut named, mut others) = (named.into_iter().peekable(), others.into_iter().peekable());
    let mut all = Vec::new();
    while let (Some(one), Some(other)) = (named.peek(), others.peek()) {
        let other_first = match (place(before, one), place(before, other)) {
            (Some(one), Some(other)) => other < one,
            _ => false,
        };
        all.extend(if other_first { others.next() } else { named.next() });
    }
    all.extend(named.chain(others));
    all
}

fn clone_pair((key, value): (&String, &Value)) -> (String, Value) {
    (key.clone(), value.clone())
}

fn strategic_list(target: &mut Value, patch: &[Value], ty: Type<'_>) -> Result<(), ApiError> {
    let existing = target.as_array_mut().map(std::mem::take).unwrap_or_default();
    if ty.unites() {
        let mut merged: Vec<Value> = Vec::new();
        for entry in existing.iter().chain(patch) {
            if !merged.contains(entry) {
                merged.push(entry.clone());
            }
        }
        *target = Value::Array(merged);
        return Ok(());
    }
    let directive = |entry: &Value| entry.get("$patch").and_then(Value::as_str).map(str::to_owned);
    let plain = |entry: &&Value| directive(entry).is_none();
    let replace = patch.iter().any(|e| directive(e).as_deref() == Some("replace"));
    let Some(key) = ty.merge_key().filter(|_| !replace) else {
        *target = Value::Array(patch.iter().filter(plain).cloned().collect());
        return Ok(());
    };
    let mut merged = existing;
    for entry in patch {
        let Some(id) = entry.get(key) else {
            let text = format!("map: {entry} does not contain declared merge key: {key}");
            return Err(ApiError::bad_request(text));
        };
        let at = merged.iter().position(|e| e.get(key) == Some(id));
        if directive(entry).as_deref() == Some("delete") {
            merged.retain(|e| e.get(key) != Some(id));
        } else if let Some(at) = at {
            strategic(&mut merged[at], entry, ty.items())?;
        } else {
            let mut fresh = Value::Object(Map::new());
            strategic(&mut fresh, entry, ty.items())?;
            merged.push(fresh);
        }
    }
    *target = Value::Array(merged);
    Ok(())
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::{PODS, RESOURCES, find};

    #[test]
    fn strategic_merge_merges_lists_by_their_keys() {
        let base = json!({ "metadata": { "finalizers": ["x"], "labels": { "a": "1", "b": "2" } },
            "spec": { "containers": [{ "name": "a", "image": "i", "env": [{ "name": "E", "value": "1" }] },
                                     { "name": "b" }], "args": ["1"] } });
        let patch = Patch::Strategic(json!({
            "metadata": { "finalizers": ["y"], "labels": { "a": null, "c": "3" } },
            "spec": { "$setElementOrder/containers": [{ "name": "a" }],
                      "containers": [{ "name": "a", "env": [{ "name": "F", "value": "2" }] },
                                     { "name": "b", "$patch": "delete" }, { "name": "c" }],
                      "args": ["2", "3"] } }));
        let out = patch.apply(&RESOURCES[PODS], &base).unwrap();
        assert_eq!(
            out,
            json!({ "metadata": { "finalizers": ["x", "y"], "labels": { "b": "2", "c": "3" } },
                "spec": { "containers": [{ "name": "a", "image": "i",
                                           "env": [{ "name": "E", "value": "1" }, { "name": "F", "value": "2" }] },
                                         { "name": "c" }], "args": ["2", "3"] } })
        );
    }

    #[test]
    fn a_list_merges_by_the_key_it_has_where_it_stands() {
        let patched = |group, plural, base: Value, patch: Value| {
            let resource = &RESOURCES[find(group, "v1", plural).unwrap()];
            Patch::Strategic(patch).apply(resource, &base).unwrap()
        };
        let ports = |ports: Value| json!({ "spec": { "ports": ports } });
        assert_eq!(
            patched(
                "",
                "services",
                ports(json!([{ "port": 80, "name": "http" }])),
                ports(json!([{ "port": 80, "targetPort": 8080 }, { "port": 81 }])),
            ),
            ports(json!([{ "port": 80, "name": "http", "targetPort": 8080 }, { "port": 81 }]))
        );
        let template = |ports: Value| json!({ "spec": { "template": { "spec": { "containers": [{ "name": "c", "ports": ports }] } } } });
        assert_eq!(
            patched(
                "apps",
                "deployments",
                template(json!([{ "containerPort": 80, "name": "http" }])),
                template(json!([{ "containerPort": 80, "protocol": "UDP" }, { "containerPort": 81 }])),
            ),
            template(
                json!([{ "containerPort": 80, "name": "http", "protocol": "UDP" }, { "containerPort": 81 }])
            )
        );
        // Without a key the new list takes the old one's place, as upstream.
        assert_eq!(
            patched(
                "discovery.k8s.io",
                "endpointslices",
                json!({ "ports": [{ "port": 80 }] }),
                json!({ "ports": [{ "port": 81 }] })
            ),
            json!({ "ports": [{ "port": 81 }] })
        );
        assert_eq!(
            patched(
                "",
                "serviceaccounts",
                json!({ "imagePullSecrets": [{ "name": "a" }], "secrets": [{ "name": "a" }] }),
                json!({ "imagePullSecrets": [{ "name": "b" }], "secrets": [{ "name": "b" }] })
            ),
            json!({ "imagePullSecrets": [{ "name": "b" }], "secrets": [{ "name": "a" }, { "name": "b" }] })
        );
    }

    fn patched(plural: &str, base: &Value, patch: Value) -> Value {
        let resource = &RESOURCES[find("", "v1", plural).unwrap()];
        Patch::Strategic(patch).apply(resource, base).unwrap()
    }

    #[test]
    fn lists_have_the_order_that_is_asked_for() {
        let names = |value: &Value| -> Vec<String> {
            let list = value["spec"]["containers"].as_array().unwrap();
            list.iter().map(|c| c["name"].as_str().unwrap().to_owned()).collect()
        };
        for (before, order, fresh, wanted) in [
            (&["c", "side"][..], &["side", "c"][..], None, &["side", "c"][..]),
            (&["a", "b", "c"], &["c", "a"], None, &["b", "c", "a"]),
            (&["a", "b", "c"], &["a", "n", "c"], Some("n"), &["a", "n", "b", "c"]),
        ] {
            let list = |names: &[&str]| names.iter().map(|n| json!({ "name": n })).collect::<Vec<_>>();
            let mut patch = json!({ "spec": { "$setElementOrder/containers": list(order) } });
            if let Some(fresh) = fresh {
                patch["spec"]["containers"] = json!([{ "name": fresh }]);
            }
            let base = json!({ "spec": { "containers": list(before) } });
            assert_eq!(names(&patched("pods", &base, patch)), wanted, "{before:?} {order:?}");
        }
        let finalizers = json!({ "metadata": { "finalizers": ["a/b", "a/b", "c/d"] } });
        let merged = patched("configmaps", &json!({}), finalizers);
        assert_eq!(merged["metadata"]["finalizers"], json!(["a/b", "c/d"]));
    }

    #[test]
    fn patches_have_the_form_of_their_type() {
        let resource = &RESOURCES[find("", "v1", "configmaps").unwrap()];
        let parse = |kind: &str, body: &str| Patch::parse(resource, kind, body.as_bytes());
        let operation = r#"{"op":"test","path":"/a","value":1}"#;
        let many = |count: usize| format!("[{}]", vec![operation; count].join(","));
        assert!(parse("application/json-patch+json", &many(10_000)).is_ok());
        assert_eq!(parse("application/json-patch+json", &many(10_001)).unwrap_err().code(), 413);
        assert_eq!(parse("application/merge-patch+json", "[]").unwrap_err().code(), 400);
    }
}
