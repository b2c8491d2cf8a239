//! The three-way merge behind `apply`: what the last applied manifest set and the new one no longer does is removed,
//! what others have set in between stays. Lists are replaced whole, as Kubernetes does for custom resources.

use serde_json::{Map, Value, json};

/// Where kubectl keeps the last applied manifest too, so that both can be used on one object.
pub(crate) const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The object with its own text in the last-applied annotation.
pub(crate) fn annotated(object: &Value) -> Value {
    let mut object = object.clone();
    if let Some(annotations) = object.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.remove(LAST_APPLIED);
    }
    let text = format!("{object}\n");
    if !object["metadata"]["annotations"].is_object() {
        object["metadata"]["annotations"] = json!({});
    }
    object["metadata"]["annotations"][LAST_APPLIED] = text.into();
    object
}

/// The JSON merge patch that takes `live` to `wanted`, given what was applied `last`. `None` when nothing changes.
pub(crate) fn patch(last: &Value, live: &Value, wanted: &Value) -> Option<Value> {
    let patch = changes(last, live, wanted);
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// The manifest last applied to `live`, or null.
pub(crate) fn last_applied(live: &Value) -> Value {
    live["metadata"]["annotations"][LAST_APPLIED]
        .as_str()
        .and_then(|text| serde_json::from_str(text).ok())
        .unwrap_or(Value::Null)
}

fn changes(last: &Value, live: &Value, wanted: &Value) -> Map<String, Value> {
    let mut patch = Map::new();
    let Some(fields) = wanted.as_object() else { return patch };
    for (key, value) in fields {
        let (last, live) = (&last[key], &live[key]);
        if value.is_object() && live.is_object() {
            let inner = changes(last, live, value);
            if !inner.is_empty() {
                patch.insert(key.clone(), Value::Object(inner));
            }
        } else if value != live && !(value.is_null() && live.is_null()) {
            patch.insert(key.clone(), value.clone());
        }
    }
    for (key, value) in last.as_object().into_iter().flatten() {
        if !value.is_null() && !fields.contains_key(key) && !live[key].is_null() {
            patch.insert(key.clone(), Value::Null);
        }
    }
    patch
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn removes_only_what_was_applied_before() {
        let last = json!({"spec": {"a": 1, "b": 2, "list": [1]}});
        let live = json!({"spec": {"a": 1, "b": 2, "list": [1], "defaulted": true}});
        let wanted = json!({"spec": {"a": 3, "list": [1, 2]}});
        assert_eq!(patch(&last, &live, &wanted), Some(json!({"spec": {"a": 3, "b": null, "list": [1, 2]}})));
        assert_eq!(patch(&last, &live, &json!({"spec": {"a": 1, "b": 2, "list": [1]}})), None);
    }

    #[test]
    fn the_annotation_holds_the_manifest_without_itself() {
        let object = json!({"metadata": {"name": "a", "annotations": {LAST_APPLIED: "old", "x": "y"}}});
        let annotated = annotated(&object);
        assert_eq!(last_applied(&annotated), json!({"metadata": {"name": "a", "annotations": {"x": "y"}}}));
    }
}
