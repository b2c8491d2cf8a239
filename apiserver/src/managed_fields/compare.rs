//! Which fields a value has, and which differ between two values.

use serde_json::Value;

use super::set::{Set, Step};
use super::types::{Parts, Type};

/// The fields of a value that somebody who applies it owns: its leaves, the items of its lists, and the entries of its
/// free maps.
pub(crate) fn field_set(value: &Value, ty: Type<'_>) -> Set {
    let mut set = Set::default();
    match ty.parts(value) {
        Parts::Leaf => set.member = true,
        Parts::Map(map) => {
            for (name, value) in map {
                let mut child = field_set(value, ty.field(name));
                child.member |= is_void(value) || !ty.declares(name);
                set.put(Step::field(name), child);
            }
        }
        Parts::List(items) => {
            for (step, item) in items {
                let mut child = field_set(item, ty.items());
                child.member = true;
                set.put(step, child);
            }
        }
    }
    set
}

fn is_void(value: &Value) -> bool {
    value.is_null() || value.as_object().is_some_and(serde_json::Map::is_empty)
}

/// The item that a step identifies.
pub(crate) fn find<'v>(items: &[(Step, &'v Value)], step: &Step) -> Option<&'v Value> {
    items.iter().find(|(s, _)| s == step).map(|(_, value)| *value)
}

/// How a value differs from an older one.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Comparison {
    pub added: Set,
    pub modified: Set,
    pub removed: Set,
}

impl Comparison {
    pub(crate) fn of(old: &Value, new: &Value, ty: Type<'_>) -> Self {
        let mut comparison = Self::default();
        comparison.walk(Some(old), Some(new), ty, &mut Vec::new());
        comparison
    }

    /// The fields that have another value now.
    pub(crate) fn written(&self) -> Set {
        let mut written = self.added.clone();
        written.union(&self.modified);
        written
    }

    fn walk(&mut self, old: Option<&Value>, new: Option<&Value>, ty: Type<'_>, path: &mut Vec<Step>) {
        let old = old.filter(|v| !v.is_null());
        let new = new.filter(|v| !v.is_null());
        if old == new {
            return;
        }
        let before = old.map(|v| ty.parts(v));
        let after = new.map(|v| ty.parts(v));
        match (before, after) {
            (Some(Parts::Map(old)), Some(Parts::Map(new))) => {
                for (name, value) in old {
                    self.field(name, Some(value), new.get(name), ty, path);
                }
                for (name, value) in new.iter().filter(|(name, _)| !old.contains_key(*name)) {
                    self.field(name, None, Some(value), ty, path);
                }
            }
            (Some(Parts::List(old)), Some(Parts::List(new))) => {
                for (step, value) in &old {
                    self.item(step, Some(value), find(&new, step), ty, path);
                }
                for (step, value) in new.iter().filter(|(step, _)| find(&old, step).is_none()) {
                    self.item(step, None, Some(value), ty, path);
                }
            }
            (before, after) => {
                let both = before.is_some() && after.is_some();
                self.one_side(before, true, ty, path);
                self.one_side(after, false, ty, path);
                let set = match (old, new) {
                    _ if both => &mut self.modified,
                    (Some(_), _) => &mut self.removed,
                    _ => &mut self.added,
                };
                set.insert(path);
            }
        }
    }

    /// What is in a value that has nothing to be compared with.
    fn one_side(&mut self, parts: Option<Parts<'_>>, old: bool, ty: Type<'_>, path: &mut Vec<Step>) {
        let sides = |value| if old { (Some(value), None) } else { (None, Some(value)) };
        match parts {
            Some(Parts::Map(map)) => {
                for (name, value) in map {
                    let (before, after) = sides(value);
                    self.field(name, before, after, ty, path);
                }
            }
            Some(Parts::List(items)) => {
                for (step, value) in &items {
                    let (before, after) = sides(*value);
                    self.item(step, before, after, ty, path);
                }
            }
            Some(Parts::Leaf) | None => {}
        }
    }

    fn field(
        &mut self,
        name: &str,
        old: Option<&Value>,
        new: Option<&Value>,
        ty: Type<'_>,
        path: &mut Vec<Step>,
    ) {
        if old != new {
            path.push(Step::field(name));
            self.walk(old, new, ty.field(name), path);
            path.pop();
        }
    }

    fn item(
        &mut self,
        step: &Step,
        old: Option<&Value>,
        new: Option<&Value>,
        ty: Type<'_>,
        path: &mut Vec<Step>,
    ) {
        path.push(step.clone());
        self.walk(old, new, ty.items(), path);
        path.pop();
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::fields_v1;
    use super::*;
    use crate::resource::{PODS, RESOURCES};

    fn pod() -> Type<'static> {
        Type::of(&RESOURCES[PODS], None)
    }

    #[test]
    fn an_applied_pod_is_owned_field_by_field() {
        let value = json!({ "metadata": { "labels": { "a": "b" }, "finalizers": ["x/y"] },
            "spec": { "nodeSelector": { "a": "b" }, "containers": [
                { "name": "c", "args": ["1"], "ports": [{ "containerPort": 80 }], "securityContext": {} }] } });
        assert_eq!(
            fields_v1::encode(&field_set(&value, pod())),
            json!({ "f:metadata": { "f:labels": { "f:a": {} }, "f:finalizers": { "v:\"x/y\"": {} } },
                "f:spec": { "f:nodeSelector": {}, "f:containers": { "k:{\"name\":\"c\"}": {
                    ".": {}, "f:name": {}, "f:args": {}, "f:securityContext": {},
                    "f:ports": { "k:{\"containerPort\":80,\"protocol\":\"TCP\"}": {
                        ".": {}, "f:containerPort": {} } } } } } })
        );
    }

    #[test]
    fn differences_are_found_in_lists_by_key_and_in_whole_values_at_their_place() {
        let old = json!({ "metadata": { "labels": { "a": "1" } }, "spec": { "nodeSelector": { "a": "b" },
            "containers": [{ "name": "a", "image": "1" }, { "name": "b", "args": ["x"] }] } });
        let new = json!({ "metadata": { "annotations": { "n": "1" } }, "spec": { "nodeSelector": { "a": "c" },
            "containers": [{ "name": "b", "args": ["y"] }, { "name": "a", "image": "1", "env": [] }] } });
        let found = Comparison::of(&old, &new, pod());
        assert_eq!(
            fields_v1::encode(&found.added),
            json!({ "f:metadata": { "f:annotations": { ".": {}, "f:n": {} } },
                    "f:spec": { "f:containers": { "k:{\"name\":\"a\"}": { "f:env": {} } } } })
        );
        assert_eq!(
            fields_v1::encode(&found.modified),
            json!({ "f:spec": { "f:nodeSelector": {},
                                "f:containers": { "k:{\"name\":\"b\"}": { "f:args": {} } } } })
        );
        assert_eq!(
            fields_v1::encode(&found.removed),
            json!({ "f:metadata": { "f:labels": { ".": {}, "f:a": {} } } })
        );
    }

    #[test]
    fn items_that_cannot_be_told_apart_make_a_list_one_value() {
        let list = |images: [&str; 2]| json!({ "spec": { "containers": [{ "name": "a", "image": images[0] }, { "name": "a", "image": images[1] }] } });
        let found = Comparison::of(&list(["1", "2"]), &list(["1", "3"]), pod());
        assert_eq!(fields_v1::encode(&found.modified), json!({ "f:spec": { "f:containers": {} } }));
        assert_eq!(
            pod().fault(&list(["1", "2"])).unwrap(),
            ".spec.containers: duplicate entries for key [name=\"a\"]"
        );
        let nameless = json!({ "spec": { "containers": [{ "name": "a", "env": [{ "value": "1" }] }] } });
        let fault = pod().fault(&nameless).unwrap();
        assert!(fault.starts_with(".spec.containers[name=\"a\"].env: element 0: "), "{fault}");
    }
}
