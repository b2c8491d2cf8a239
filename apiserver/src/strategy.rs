//! What the server itself does to an object when it is created, changed or deleted. Pure.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};

use crate::object::{self, metadata_mut};
use crate::resource::Resource;
use crate::status::{ApiError, Cause};

/// The finalizer that keeps a Namespace until its contents are gone.
const NAMESPACE_FINALIZER: &str = "kubernetes";
/// Grace of a Pod that does not say otherwise, in seconds.
const DEFAULT_GRACE: i64 = 30;

/// Identity and time of a creation.
pub(crate) struct Birth {
    pub uid: String,
    /// RFC 3339, whole seconds.
    pub now: String,
}

/// Makes `value` what is stored for a new object. The name is already decided.
pub(crate) fn prepare_create(resource: &Resource, value: &mut Value, birth: &Birth) {
    value["apiVersion"] = resource.api_version().into();
    value["kind"] = resource.kind.into();
    let metadata = metadata_mut(value);
    metadata.retain(|_, v| !says_nothing(v));
    for field in
        ["managedFields", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"]
    {
        metadata.remove(field);
    }
    metadata.insert("uid".into(), birth.uid.as_str().into());
    metadata.insert("creationTimestamp".into(), birth.now.as_str().into());
    if resource.generation {
        metadata.insert("generation".into(), 1.into());
    }
    if !resource.namespaced {
        metadata.remove("namespace");
    }
    if resource.status
        && let Value::Object(map) = value
    {
        map.remove("status");
    }
    normalise(resource, value);
    match (resource.group, resource.plural) {
        ("", "namespaces") => {
            value["spec"]["finalizers"] = json!([NAMESPACE_FINALIZER]);
            value["status"] = json!({ "phase": "Active" });
            let name = object::text(value, "name").to_owned();
            let metadata = metadata_mut(value);
            let labels = metadata.entry("labels").or_insert_with(|| Value::Object(Map::new()));
            labels["kubernetes.io/metadata.name"] = name.into();
        }
        ("", "pods") => value["status"] = json!({ "phase": "Pending" }),
        _ => {}
    }
}

/// Canonical forms that hold for every write of the main resource.
fn normalise(resource: &Resource, value: &mut Value) {
    match (resource.group, resource.plural) {
        ("", "secrets") => {
            if let Some(Value::Object(strings)) =
                value.as_object_mut().and_then(|map| map.remove("stringData"))
            {
                for (key, text) in strings {
                    value["data"][key] = BASE64.encode(text.as_str().unwrap_or_default()).into();
                }
            }
            if value.get("type").and_then(Value::as_str).unwrap_or_default().is_empty() {
                value["type"] = "Opaque".into();
            }
        }
        ("apps", "deployments") if value.pointer("/spec/replicas").is_none_or(Value::is_null) => {
            value["spec"]["replicas"] = 1.into();
        }
        _ => {}
    }
}

/// Faults of a create or update that need more than the schema.
pub(crate) fn validate(resource: &Resource, value: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = crate::metadata::validate(resource, value);
    // What was stored stays as good as it was, so that it can be labelled and deleted.
    if old.is_none_or(|old| declares_otherwise(old, value)) {
        causes.extend(crate::contents::validate(resource, value, old));
    }
    if let Some(old) = old
        && object::is_terminating(old)
    {
        let list = |v| object::meta(v, "finalizers").and_then(Value::as_array).cloned().unwrap_or_default();
        let before = list(old);
        let added: Vec<String> =
            list(value).iter().filter(|f| !before.contains(f)).map(Value::to_string).collect();
        if !added.is_empty() {
            let text = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers []string{{{}}}",
                added.join(", ")
            );
            causes.push(Cause::forbidden("metadata.finalizers", &text));
        }
    }
    causes
}

/// Makes `new` what is stored for an update of the main resource of `old`.
pub(crate) fn prepare_update(resource: &Resource, old: &Value, new: &mut Value) {
    new["apiVersion"] = resource.api_version().into();
    new["kind"] = resource.kind.into();
    keep_identity(old, new);
    if resource.status
        && let Value::Object(map) = new
    {
        match old.get("status") {
            Some(status) => map.insert("status".into(), status.clone()),
            None => map.remove("status"),
        };
    }
    normalise(resource, new);
    if resource.is("", "namespaces") {
        new["spec"]["finalizers"] = old.pointer("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
    }
    if resource.generation && declares_otherwise(old, new) {
        bump_generation(new);
    }
}

/// Whether a field of the metadata is left out of what is stored.
fn says_nothing(field: &Value) -> bool {
    match field {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        _ => false,
    }
}

/// What a client may not change comes from the stored object.
fn keep_identity(old: &Value, new: &mut Value) {
    let kept = [
        "name",
        "namespace",
        "generateName",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "resourceVersion",
    ];
    let metadata = metadata_mut(new);
    metadata.retain(|_, v| !says_nothing(v));
    metadata.remove("managedFields");
    metadata.remove("selfLink");
    for field in kept {
        match object::meta(old, field) {
            Some(value) => metadata.insert(field.into(), value.clone()),
            None => metadata.remove(field),
        };
    }
}

fn bump_generation(value: &mut Value) {
    let next = object::meta(value, "generation").and_then(Value::as_i64).unwrap_or(0) + 1;
    metadata_mut(value).insert("generation".into(), next.into());
}

/// Whether anything but metadata and status differs.
fn declares_otherwise(old: &Value, new: &Value) -> bool {
    let (Some(old), Some(new)) = (old.as_object(), new.as_object()) else { return true };
    let declared = |field: &str| !matches!(field, "metadata" | "status" | "apiVersion" | "kind");
    let absent = |v: Option<&Value>| v.is_none_or(Value::is_null);
    old.iter().any(|(k, v)| declared(k) && new.get(k) != Some(v) && !(v.is_null() && absent(new.get(k))))
        || new.iter().any(|(k, v)| declared(k) && !v.is_null() && !old.contains_key(k))
}

/// The stored object with the status of `new`.
pub(crate) fn prepare_status_update(old: &Value, new: &Value) -> Value {
    let mut value = old.clone();
    if let Value::Object(map) = &mut value {
        match new.get("status") {
            Some(status) if !status.is_null() => map.insert("status".into(), status.clone()),
            _ => map.remove("status"),
        };
    }
    value
}

/// The stored Namespace with the finalizers of `new`.
pub(crate) fn prepare_finalize(old: &Value, new: &Value) -> Value {
    let mut value = old.clone();
    value["spec"]["finalizers"] = new.pointer("/spec/finalizers").cloned().unwrap_or_else(|| json!([]));
    value
}

/// The `autoscaling/v1` Scale of a Deployment.
pub(crate) fn scale_of(value: &Value) -> Value {
    let mut metadata = Map::new();
    for field in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(v) = object::meta(value, field) {
            metadata.insert(field.into(), v.clone());
        }
    }
    let labels = value.pointer("/spec/selector/matchLabels").and_then(Value::as_object);
    let selector: Vec<String> = labels
        .into_iter()
        .flatten()
        .map(|(key, value)| format!("{key}={}", value.as_str().unwrap_or_default()))
        .collect();
    let count = |path: &str, default: i64| value.pointer(path).and_then(Value::as_i64).unwrap_or(default);
    json!({
        "kind": "Scale",
        "apiVersion": "autoscaling/v1",
        "metadata": metadata,
        "spec": { "replicas": count("/spec/replicas", 1) },
        "status": { "replicas": count("/status/replicas", 0), "selector": selector.join(",") },
    })
}

/// The stored Deployment with the replicas of `scale`.
///
/// # Errors
/// 400 for replicas that are not a number, 422 for less than none.
pub(crate) fn prepare_scale(resource: &Resource, old: &Value, scale: &Value) -> Result<Value, ApiError> {
    let replicas =
        scale.pointer("/spec/replicas").filter(|v| !v.is_null()).cloned().unwrap_or_else(|| 0.into());
    let Some(count) = replicas.as_i64().and_then(|count| i32::try_from(count).ok()) else {
        return Err(ApiError::bad_request(format!(
            "Scale in version \"v1\" cannot be handled as a Scale: json: spec.replicas: {replicas} is not a number of type \
             int32"
        )));
    };
    if count < 0 {
        let cause = Cause::invalid("spec.replicas", &replicas, "must be greater than or equal to 0");
        return Err(ApiError::invalid(resource, object::text(old, "name"), &[cause]));
    }
    let mut value = old.clone();
    value["spec"]["replicas"] = replicas;
    if resource.generation && declares_otherwise(old, &value) {
        bump_generation(&mut value);
    }
    Ok(value)
}

/// What the caller of a deletion asked for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct DeleteOptions {
    /// Seconds.
    pub grace: Option<i64>,
    pub propagation: Option<String>,
    pub uid: Option<String>,
    pub version: Option<String>,
    pub dry_run: bool,
}

/// What a deletion comes to.
#[derive(Debug, PartialEq)]
pub(crate) enum Deletion {
    /// The object goes now; this is its last state.
    Remove(Value),
    /// The object is marked and goes later.
    Mark(Value),
    /// The object is marked as far as this deletion would.
    Nothing,
}

/// Decides a deletion at `now` (seconds since the epoch).
///
/// # Errors
/// 409 when a precondition does not hold.
pub(crate) fn delete(
    resource: &Resource,
    old: &Value,
    options: &DeleteOptions,
    now: jiff::Timestamp,
) -> Result<Deletion, ApiError> {
    let name = object::text(old, "name");
    for (what, asked, actual) in [
        ("UID", &options.uid, object::text(old, "uid")),
        ("ResourceVersion", &options.version, object::text(old, "resourceVersion")),
    ] {
        if let Some(asked) = asked
            && asked != actual
        {
            let text = format!(
                "Precondition failed: {what} in precondition: {asked}, {what} in object meta: {actual}"
            );
            return Err(ApiError::conflict(resource, name, &text));
        }
    }

    let mut value = old.clone();
    match options.propagation.as_deref() {
        Some("Foreground") => set_finalizer(&mut value, "foregroundDeletion", "orphan"),
        Some("Orphan") => set_finalizer(&mut value, "orphan", "foregroundDeletion"),
        _ => {}
    }
    let grace = if resource.is("", "pods") { pod_grace(old, options.grace) } else { 0 };
    let held = object::has_finalizers(&value);
    if grace == 0 && !held {
        return Ok(Deletion::Remove(value));
    }
    if object::is_terminating(old) {
        let before = object::meta(old, "deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
        if grace >= before && value == *old {
            return Ok(Deletion::Nothing);
        }
        if grace < before {
            stamp_deletion(&mut value, now, grace);
        }
    } else {
        stamp_deletion(&mut value, now, grace);
        if resource.generation || object::meta(old, "generation").is_some() {
            bump_generation(&mut value);
        }
        if resource.is("", "namespaces") {
            value["status"]["phase"] = "Terminating".into();
        }
    }
    Ok(Deletion::Mark(value))
}

fn stamp_deletion(value: &mut Value, now: jiff::Timestamp, grace: i64) {
    let at = now.checked_add(jiff::SignedDuration::from_secs(grace)).unwrap_or(now);
    let metadata = metadata_mut(value);
    metadata.insert("deletionTimestamp".into(), timestamp(at).into());
    metadata.insert("deletionGracePeriodSeconds".into(), grace.into());
}

fn set_finalizer(value: &mut Value, add: &str, remove: &str) {
    let finalizers = metadata_mut(value).entry("finalizers").or_insert_with(|| json!([]));
    if let Some(list) = finalizers.as_array_mut() {
        list.retain(|f| f.as_str() != Some(remove));
        if !list.iter().any(|f| f.as_str() == Some(add)) {
            list.push(add.into());
        }
    }
}

fn pod_grace(pod: &Value, asked: Option<i64>) -> i64 {
    let phase = pod.pointer("/status/phase").and_then(Value::as_str);
    if matches!(phase, Some("Succeeded" | "Failed")) {
        return 0;
    }
    let declared = || pod.pointer("/spec/terminationGracePeriodSeconds").and_then(Value::as_i64);
    asked.or_else(declared).unwrap_or(DEFAULT_GRACE).max(0)
}

/// Whether an update that left the object like this removes it.
pub(crate) fn is_released(value: &Value) -> bool {
    let grace = object::meta(value, "deletionGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    object::is_terminating(value) && grace == 0 && !object::has_finalizers(value)
}

/// RFC 3339 in whole seconds, as `metav1.Time`.
pub(crate) fn timestamp(at: jiff::Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{PODS, RESOURCES, find};

    const NOW: jiff::Timestamp = jiff::Timestamp::UNIX_EPOCH;

    #[test]
    fn generation_counts_changes_of_the_spec_only() {
        let resource = &RESOURCES[find("serving.knative.dev", "v1", "services").unwrap()];
        let old =
            json!({ "metadata": { "name": "x", "generation": 3 }, "spec": { "a": 1 }, "status": { "s": 1 } });
        let mut labelled = old.clone();
        labelled["metadata"]["labels"] = json!({ "a": "b" });
        labelled["status"] = json!({ "s": 2 });
        prepare_update(resource, &old, &mut labelled);
        assert_eq!(labelled["metadata"]["generation"], 3);
        assert_eq!(labelled["status"]["s"], 1);
        let mut changed = old.clone();
        changed["spec"]["a"] = 2.into();
        prepare_update(resource, &old, &mut changed);
        assert_eq!(changed["metadata"]["generation"], 4);
    }

    #[test]
    fn a_pod_goes_with_grace_and_everything_else_at_once() {
        let pod = json!({ "metadata": { "name": "p" }, "spec": { "terminationGracePeriodSeconds": 5 } });
        let Deletion::Mark(marked) = delete(&RESOURCES[PODS], &pod, &DeleteOptions::default(), NOW).unwrap()
        else {
            panic!("not marked")
        };
        assert_eq!(marked["metadata"]["deletionTimestamp"], "1970-01-01T00:00:05Z");
        assert_eq!(
            delete(&RESOURCES[PODS], &marked, &DeleteOptions::default(), NOW).unwrap(),
            Deletion::Nothing
        );
        let now = DeleteOptions { grace: Some(0), ..DeleteOptions::default() };
        assert!(matches!(delete(&RESOURCES[PODS], &marked, &now, NOW).unwrap(), Deletion::Remove(_)));
        let map = json!({ "metadata": { "name": "m" } });
        assert!(matches!(
            delete(&RESOURCES[1], &map, &DeleteOptions::default(), NOW).unwrap(),
            Deletion::Remove(_)
        ));
    }

    #[test]
    fn finalizers_hold_an_object_back() {
        let map = json!({ "metadata": { "name": "m", "finalizers": ["a/b"] } });
        let Deletion::Mark(marked) = delete(&RESOURCES[1], &map, &DeleteOptions::default(), NOW).unwrap()
        else {
            panic!("not marked")
        };
        assert!(!is_released(&marked));
        let mut freed = marked.clone();
        freed["metadata"]["finalizers"] = json!([]);
        prepare_update(&RESOURCES[1], &marked, &mut freed);
        assert!(is_released(&freed));
    }
}
