//! What Knative's webhook fills into objects that leave something open. Objects are changed in place as JSON, so
//! that nothing is lost that the types do not know.

mod revision;
#[cfg(test)]
mod tests;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;
use serde_json::{Map, Value, json};

use crate::admission::{Kind, Operation};
use crate::annotations;
use crate::autoscaling::annotations::default_metric;
use crate::configmaps::Configs;
use crate::quantity;

/// Circumstances that defaults depend on.
#[derive(Clone, Copy, Debug)]
pub struct Context<'a> {
    /// What is to happen to the object; `None` fills in what does not depend on it.
    pub operation: Option<Operation>,
    /// The object as it is, with its own defaults filled in; only on updates.
    pub old: Option<&'a Value>,
    /// Who asks for the change; nobody is not recorded.
    pub user: Option<&'a str>,
    /// The cluster's configuration.
    pub configs: &'a Configs,
}

/// Fills the defaults into an object of one of Knative's kinds. The object has to fit its type; what does not is
/// left as it is.
pub fn default(kind: Kind, object: &mut Value, context: Context<'_>) {
    quantity::spell_out(object);
    let Value::Object(object) = object else { return };
    match kind {
        Kind::Service => {
            let meta = meta(object);
            if let Some(spec) = child(object, "spec") {
                template(spec, &meta, context);
                traffic(spec, true);
            }
            record_user(object, context);
        }
        Kind::Configuration => {
            let meta = meta(object);
            if let Some(spec) = child(object, "spec") {
                template(spec, &meta, context);
            }
            if !is_owned(object) {
                record_user(object, context);
            }
        }
        Kind::Revision if context.operation != Some(Operation::Update) => {
            if let Some(spec) = child(object, "spec") {
                // It has no parent to be named after.
                revision::spec(spec, &ObjectMeta::default(), context);
            }
        }
        Kind::Route => {
            if let Some(spec) = child(object, "spec") {
                traffic(spec, false);
            }
            if !is_owned(object) {
                record_user(object, context);
            }
        }
        Kind::DomainMapping => {
            let namespace = meta(object).namespace.unwrap_or_default();
            if let Some(reference) = child(object, "spec").and_then(|spec| child(spec, "ref"))
                && is_empty(reference.get("namespace"))
                && !namespace.is_empty()
            {
                reference.insert("namespace".to_owned(), json!(namespace));
            }
            record_user(object, context);
        }
        Kind::PodAutoscaler => pod_autoscaler(object, context.configs),
        Kind::Ingress => ingress(object),
        Kind::Revision | Kind::Metric | Kind::ServerlessService | Kind::Certificate | Kind::ConfigMap => {}
    }
}

/// The object under a key; made if there is none, `None` if there is something else.
fn child<'a>(object: &'a mut Map<String, Value>, key: &str) -> Option<&'a mut Map<String, Value>> {
    let value = object.entry(key).or_insert(Value::Null);
    if value.is_null() {
        *value = json!({});
    }
    value.as_object_mut()
}

fn items<'a>(
    object: &'a mut Map<String, Value>,
    key: &str,
) -> impl Iterator<Item = &'a mut Map<String, Value>> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten().filter_map(Value::as_object_mut)
}

fn is_empty(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::String(text)) => text.is_empty(),
        Some(Value::Number(number)) => number.as_i64() == Some(0),
        _ => false,
    }
}

fn is_absent(value: Option<&Value>) -> bool {
    value.is_none_or(Value::is_null)
}

fn set_if_absent(object: &mut Map<String, Value>, key: &str, value: impl Into<Value>) {
    if is_absent(object.get(key)) {
        object.insert(key.to_owned(), value.into());
    }
}

fn meta(object: &Map<String, Value>) -> ObjectMeta {
    object.get("metadata").and_then(|meta| serde_json::from_value(meta.clone()).ok()).unwrap_or_default()
}

fn is_owned(object: &Map<String, Value>) -> bool {
    object.get("metadata").is_some_and(|meta| !is_absent(meta.get("ownerReferences")))
}

/// A template keeps what it has while it keeps the name it was given: its revision exists already.
fn template(spec: &mut Map<String, Value>, parent: &ObjectMeta, context: Context<'_>) {
    let old_name = context.old.map(|old| &old["spec"]["template"]["metadata"]["name"]);
    let Some(template) = child(spec, "template") else { return };
    let name = template.get("metadata").map_or(&Value::Null, |meta| &meta["name"]);
    if !is_empty(Some(name)) && old_name == Some(name) {
        return;
    }
    if let Some(spec) = child(template, "spec") {
        revision::spec(spec, parent, context);
    }
}

fn traffic(spec: &mut Map<String, Value>, of_service: bool) {
    let is_empty_list = spec.get("traffic").is_none_or(|t| t.as_array().map_or(t.is_null(), Vec::is_empty));
    if is_empty_list && of_service {
        spec.insert("traffic".to_owned(), json!([{ "latestRevision": true, "percent": 100 }]));
    }
    for target in items(spec, "traffic") {
        let pinned = !is_empty(target.get("revisionName"));
        set_if_absent(target, "latestRevision", !pinned);
        set_if_absent(target, "percent", 0);
    }
}

/// Records who made the object, and who changed its spec last.
fn record_user(object: &mut Map<String, Value>, context: Context<'_>) {
    let Some(user) = context.user else { return };
    let is_update = context.operation == Some(Operation::Update);
    let spec = object.get("spec").unwrap_or(&Value::Null);
    if is_update && context.old.is_some_and(|old| same(&old["spec"], spec)) {
        return;
    }
    let Some(annotations) = child(object, "metadata").and_then(|meta| child(meta, "annotations")) else {
        return;
    };
    if !is_update {
        annotations.insert(annotations::CREATOR.to_owned(), json!(user));
    }
    annotations.insert(annotations::LAST_MODIFIER.to_owned(), json!(user));
}

fn pod_autoscaler(object: &mut Map<String, Value>, configs: &Configs) {
    let Some(annotations) = child(object, "metadata").and_then(|meta| child(meta, "annotations")) else {
        return;
    };
    set_if_absent(annotations, annotations::CLASS, configs.autoscaler.pod_autoscaler_class.as_str());
    let class = annotations.get(annotations::CLASS).and_then(Value::as_str).unwrap_or_default();
    let metric = default_metric(class);
    set_if_absent(annotations, annotations::METRIC, metric);
}

fn ingress(object: &mut Map<String, Value>) {
    let Some(spec) = child(object, "spec") else { return };
    for rule in items(spec, "rules") {
        if is_empty(rule.get("visibility")) {
            rule.insert("visibility".to_owned(), json!("ExternalIP"));
        }
        let Some(http) = rule.get_mut("http").and_then(Value::as_object_mut) else { continue };
        for path in items(http, "paths") {
            if let Some([Value::Object(only)]) =
                path.get_mut("splits").and_then(Value::as_array_mut).map(Vec::as_mut_slice)
                && is_empty(only.get("percent"))
            {
                only.insert("percent".to_owned(), json!(100));
            }
        }
    }
}

/// Fields that are unset when they are empty, zero or false; to others that is a value like any other.
const UNSET_WHEN_EMPTY: [&str; 47] = [
    "annotations",
    "configurationName",
    "containerPort",
    "dnsPolicy",
    "failureThreshold",
    "host",
    "hostIP",
    "hostIPC",
    "hostNetwork",
    "hostPID",
    "hostPort",
    "imagePullPolicy",
    "initialDelaySeconds",
    "key",
    "labels",
    "limits",
    "matchLabels",
    "medium",
    "metadata",
    "mountPath",
    "name",
    "namespace",
    "nodeSelector",
    "path",
    "periodSeconds",
    "prefix",
    "priorityClassName",
    "protocol",
    "readOnly",
    "requests",
    "resources",
    "revisionName",
    "schedulerName",
    "scheme",
    "serviceAccountName",
    "spec",
    "stdin",
    "stdinOnce",
    "subPath",
    "successThreshold",
    "tag",
    "template",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "tty",
    "value",
    "workingDir",
];

fn is_something(field: &str, value: &Value) -> bool {
    let is_empty = match value {
        Value::Null => return false,
        Value::Array(items) => return !items.is_empty(),
        Value::Object(fields) => fields.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Number(number) => number.as_f64() == Some(0.0),
        Value::Bool(value) => !value,
    };
    !is_empty || !UNSET_WHEN_EMPTY.contains(&field)
}

/// Whether two values mean the same: empty lists, maps and nothing at all are alike, and so are quantities of the
/// same amount.
pub(crate) fn same(a: &impl Serialize, b: &impl Serialize) -> bool {
    canonical(a) == canonical(b)
}

/// Where two values differ, one place after the other; empty if they mean the same.
pub(crate) fn differences(old: &impl Serialize, new: &impl Serialize) -> String {
    let mut out = String::new();
    compare("", &canonical(old), &canonical(new), &mut out);
    out
}

fn canonical(value: &impl Serialize) -> Value {
    without_empty(with_canonical_quantities(value))
}

fn with_canonical_quantities(value: &impl Serialize) -> Value {
    // What cannot be written as JSON is not part of an object.
    let mut value = serde_json::to_value(value).unwrap_or_default();
    let written: Result<(), std::convert::Infallible> = quantity::visit(&mut value, &mut |amount| {
        if let Some(text) = amount.as_str().and_then(|text| quantity::canonical(text.trim()).ok()) {
            *amount = Value::String(text);
        }
        Ok(())
    });
    match written {
        Ok(()) => value,
    }
}

fn without_empty(value: Value) -> Value {
    match value {
        Value::Object(fields) => {
            let fields = fields.into_iter().map(|(key, value)| (key, without_empty(value)));
            Value::Object(fields.filter(|(key, value)| is_something(key, value)).collect())
        }
        Value::Array(items) => Value::Array(items.into_iter().map(without_empty).collect()),
        other => other,
    }
}

fn compare(path: &str, old: &Value, new: &Value, out: &mut String) {
    match (old, new) {
        (Value::Object(old), Value::Object(new)) => {
            let keys: std::collections::BTreeSet<&String> = old.keys().chain(new.keys()).collect();
            for key in keys {
                let [old, new] = [old, new].map(|fields| fields.get(key).unwrap_or(&Value::Null));
                compare(&format!("{path}.{key}"), old, new, out);
            }
        }
        (Value::Array(old), Value::Array(new)) => {
            for index in 0..old.len().max(new.len()) {
                let [old, new] = [old, new].map(|items| items.get(index).unwrap_or(&Value::Null));
                compare(&format!("{path}[{index}]"), old, new, out);
            }
        }
        (old, new) if old == new => {}
        (old, new) => {
            out.push_str(&format!("{{{}}}:\n", path.trim_start_matches('.')));
            for (sign, value) in [('-', old), ('+', new)] {
                if !value.is_null() {
                    let shown = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
                    out.push_str(&format!("\t{sign}: {}\n", crate::golang::quote(&shown)));
                }
            }
        }
    }
}
