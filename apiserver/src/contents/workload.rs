//! Pods, and Deployments of them.

use std::collections::BTreeSet;

use serde_json::{Map, Value};

use super::{is_empty, same};
use crate::metadata::name_faults;
use crate::resource::NameRule;
use crate::status::Cause;

/// What an update of a Pod may change, as Kubernetes says it.
const CHANGEABLE: &str = "`spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,\
    `spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be \
    set to 1 if it was previously negative)";

pub(super) fn pod(value: &Value, old: Option<&Value>) -> Vec<Cause> {
    let spec = value.get("spec");
    let Some(old) = old else { return pod_spec("spec", spec) };
    let old = old.get("spec");
    for field in ["containers", "initContainers"] {
        if list(old, field).len() != list(spec, field).len() {
            return vec![Cause::forbidden(
                &format!("spec.{field}"),
                "pod updates may not add or remove containers",
            )];
        }
    }
    let mut causes = pod_spec("spec", spec);
    if !only_changeable(old, spec) {
        let text = format!("pod updates may not change fields other than {CHANGEABLE}");
        causes.push(Cause::forbidden("spec", &text));
    }
    causes
}

/// Whether nothing else differs than what may.
fn only_changeable(old: Option<&Value>, new: Option<&Value>) -> bool {
    let empty = Map::new();
    let map = |spec: Option<&Value>| spec.and_then(Value::as_object).unwrap_or(&empty).clone();
    let (old, new) = (map(old), map(new));
    let mut fields = old.keys().chain(new.keys());
    fields.all(|field| {
        let (before, after) = (old.get(field), new.get(field));
        match field.as_str() {
            "containers" | "initContainers" => {
                let rest = |containers: Option<&Value>| {
                    let mut containers = containers.cloned().unwrap_or_default();
                    for container in containers.as_array_mut().into_iter().flatten() {
                        if let Some(container) = container.as_object_mut() {
                            container.remove("image");
                        }
                    }
                    containers
                };
                same(Some(&rest(before)), Some(&rest(after)))
            }
            "activeDeadlineSeconds" => true,
            "tolerations" => {
                let after = after.and_then(Value::as_array).map_or(&[][..], Vec::as_slice);
                before.and_then(Value::as_array).into_iter().flatten().all(|kept| after.contains(kept))
            }
            "terminationGracePeriodSeconds" => {
                let negative = before.and_then(Value::as_i64).is_some_and(|seconds| seconds < 0);
                same(before, after) || negative && after == Some(&1.into())
            }
            _ => same(before, after),
        }
    })
}

pub(super) fn deployment(value: &Value, old: Option<&Value>) -> Vec<Cause> {
    let mut causes = Vec::new();
    let selector = value.pointer("/spec/selector").filter(|selector| !selector.is_null());
    if let Some(replicas) = value.pointer("/spec/replicas")
        && replicas.as_i64().is_some_and(|replicas| replicas < 0)
    {
        causes.push(Cause::invalid("spec.replicas", replicas, "must be greater than or equal to 0"));
    }
    let terms = |field: &str| selector.and_then(|selector| selector.get(field));
    let selects_all = is_empty(terms("matchLabels")) && is_empty(terms("matchExpressions"));
    match selector {
        None => causes.push(Cause::required("spec.selector", "")),
        Some(selector) if selects_all => {
            causes.push(Cause::invalid(
                "spec.selector",
                selector,
                "empty selector is invalid for deployment",
            ));
        }
        Some(_) => {}
    }
    let labels = value.pointer("/spec/template/metadata/labels").unwrap_or(&Value::Null);
    let selected = selector.is_some_and(|selector| selects(selector, labels));
    if !selected {
        let text = "`selector` does not match template `labels`";
        causes.push(Cause::invalid("spec.template.metadata.labels", labels, text));
    }
    let spec = value.pointer("/spec/template/spec");
    causes.extend(pod_spec("spec.template.spec", spec));
    if let Some(policy) = spec.and_then(|spec| spec.get("restartPolicy"))
        && policy.as_str().is_some_and(|policy| !policy.is_empty() && policy != "Always")
    {
        let field = "spec.template.spec.restartPolicy";
        causes.push(Cause::unsupported(field, policy, &["Always".into()]));
    }
    if let (Some(old), Some(selector)) = (old, selector)
        && !same(old.pointer("/spec/selector"), Some(selector))
    {
        causes.push(Cause::invalid("spec.selector", selector, "field is immutable"));
    }
    causes
}

/// Whether a label selector matches labels.
fn selects(selector: &Value, labels: &Value) -> bool {
    let expressions = selector.get("matchExpressions").and_then(Value::as_array);
    let mut wanted = selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten();
    wanted.all(|(key, value)| labels.get(key) == Some(value))
        && expressions.into_iter().flatten().all(|expression| {
            let text = |field: &str| expression.get(field).and_then(Value::as_str).unwrap_or_default();
            let label = labels.get(text("key"));
            let values = expression.get("values").and_then(Value::as_array);
            let listed = label.is_some_and(|label| values.is_some_and(|values| values.contains(label)));
            match text("operator") {
                "In" => listed,
                "NotIn" => !listed,
                "Exists" => label.is_some(),
                "DoesNotExist" => label.is_none(),
                _ => false,
            }
        })
}

fn pod_spec(path: &str, spec: Option<&Value>) -> Vec<Cause> {
    let mut names = BTreeSet::new();
    let mut causes = Vec::new();
    if list(spec, "containers").is_empty() {
        causes.push(Cause::required(format!("{path}.containers"), ""));
    }
    for field in ["containers", "initContainers"] {
        for (index, container) in list(spec, field).iter().enumerate() {
            let at = format!("{path}.{field}[{index}]");
            let text = |field: &str| container.get(field).and_then(Value::as_str).unwrap_or_default();
            let name = text("name");
            if name.is_empty() {
                causes.push(Cause::required(format!("{at}.name"), ""));
            }
            let faults = if name.is_empty() { Vec::new() } else { name_faults(NameRule::Label, name) };
            causes.extend(
                faults.into_iter().map(|fault| Cause::invalid(format!("{at}.name"), &name.into(), fault)),
            );
            if text("image").is_empty() {
                causes.push(Cause::required(format!("{at}.image"), ""));
            }
            if !name.is_empty() && !names.insert(name) {
                causes.push(Cause::duplicate(format!("{at}.name"), &name.into()));
            }
        }
    }
    causes
}

fn list<'a>(spec: Option<&'a Value>, field: &str) -> &'a [Value] {
    let list = spec.and_then(|spec| spec.get(field)).and_then(Value::as_array);
    list.map_or(&[], Vec::as_slice)
}
