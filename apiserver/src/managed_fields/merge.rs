//! What an apply makes of the stored object: the applied values laid over it, and what was dropped taken out.

use serde_json::Value;

use super::compare::find;
use super::set::{Set, Step};
use super::types::{Items, Parts, Type};

/// Lays `applied` over `live`: maps and identified lists merge, everything else is replaced.
pub(crate) fn merge(live: &mut Value, applied: &Value, ty: Type<'_>) {
    if let (Parts::List(old), Parts::List(new)) = (ty.parts(live), ty.parts(applied)) {
        *live = Value::Array(merge_lists(&old, &new, ty.items()));
        return;
    }
    match (live, ty.parts(applied)) {
        (Value::Object(map), Parts::Map(applied)) => {
            for (name, value) in applied {
                match map.get_mut(name) {
                    Some(live) => merge(live, value, ty.field(name)),
                    None => drop(map.insert(name.clone(), value.clone())),
                }
            }
        }
        (live, _) => *live = applied.clone(),
    }
}

/// The applied items keep their order; those that are only stored stay where they are among them.
fn merge_lists(old: &Items<'_>, new: &Items<'_>, ty: Type<'_>) -> Vec<Value> {
    let mut merged = Vec::with_capacity(old.len() + new.len());
    let mut taken = new.iter();
    let mut placed: Vec<&Step> = Vec::with_capacity(new.len());
    let take = |(step, value): &(Step, &Value)| {
        let Some(stored) = find(old, step) else { return (*value).clone() };
        let mut item = stored.clone();
        merge(&mut item, value, ty);
        item
    };
    for (step, stored) in old {
        if find(new, step).is_none() {
            merged.push((*stored).clone());
            continue;
        }
        while !placed.contains(&step) {
            let Some(next) = taken.next() else { break };
            merged.push(take(next));
            placed.push(&next.0);
        }
    }
    merged.extend(taken.map(take));
    merged
}

/// Takes out of `value` what its applier owned before (`last`), unless it is `owned` now, by the applier or anybody
/// else. What is below a field or item that goes, goes with it; entries of a free map that nobody asked for stay.
pub(crate) fn prune(value: &mut Value, last: &Set, owned: &Set, ty: Type<'_>) {
    Pruning { below: false, dead: false }.run(value, Some(last), Some(owned), ty);
}

#[derive(Clone, Copy)]
struct Pruning {
    /// Something above was the applier's.
    below: bool,
    /// Something above or here is nobody's any more.
    dead: bool,
}

impl Pruning {
    /// Whether anything went.
    fn run(self, value: &mut Value, last: Option<&Set>, owned: Option<&Set>, ty: Type<'_>) -> bool {
        let Some(last) = last.filter(|set| set.has_children()) else { return false };
        // Items are told apart before any of them changes.
        let steps: Vec<Step> = match ty.parts(value) {
            Parts::Leaf => return false,
            Parts::Map(_) => Vec::new(),
            Parts::List(items) => items.into_iter().map(|(step, _)| step).collect(),
        };
        match value {
            Value::Object(map) => {
                let before = map.len();
                let mut changed = false;
                map.retain(|name, value| {
                    let step = Step::field(name);
                    let (last, owned) = (last.child(&step), owned.and_then(|o| o.child(&step)));
                    let (keep, inner) = self.keeps(value, last, owned, ty.field(name), ty.declares(name));
                    changed |= inner;
                    keep
                });
                changed || map.len() != before
            }
            Value::Array(list) => {
                let (before, mut steps, mut changed) = (list.len(), steps.iter(), false);
                list.retain_mut(|value| {
                    let Some(step) = steps.next() else { return true };
                    let (last, owned) = (last.child(step), owned.and_then(|o| o.child(step)));
                    let (keep, inner) = self.keeps(value, last, owned, ty.items(), false);
                    changed |= inner;
                    keep
                });
                changed || list.len() != before
            }
            _ => false,
        }
    }

    /// Whether a field or item stays, and whether anything in it went.
    fn keeps(
        self,
        value: &mut Value,
        last: Option<&Set>,
        owned: Option<&Set>,
        ty: Type<'_>,
        declared: bool,
    ) -> (bool, bool) {
        // Whoever owns something in a declared field owns the field.
        let holds = |set: Option<&Set>| set.is_some_and(|s| s.member || (declared && s.has_children()));
        let was = holds(last);
        let below = self.below || was;
        let dead = self.dead || (below && !holds(owned));
        let goes = was && dead;
        let free = value.is_object() && ty.is_free();
        if goes && !(free && last.is_some_and(Set::has_children)) {
            return (false, true);
        }
        let changed = Self { below, dead }.run(value, last, owned, ty);
        (!(changed && is_empty(value)), changed)
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Object(map) => map.is_empty(),
        Value::Array(list) => list.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::compare::field_set;
    use super::*;
    use crate::resource::{PODS, RESOURCES};

    fn pod() -> Type<'static> {
        Type::of(&RESOURCES[PODS], None)
    }

    fn names(value: &Value) -> Vec<&str> {
        let list = value["spec"]["containers"].as_array().unwrap();
        list.iter().map(|c| c["name"].as_str().unwrap()).collect()
    }

    #[test]
    fn lists_merge_by_key_in_the_applied_order() {
        let containers = |names: &[&str]| {
            let list: Vec<Value> = names.iter().map(|n| json!({ "name": n })).collect();
            json!({ "spec": { "containers": list } })
        };
        for (stored, applied, expected) in [
            (&["x", "a", "b"][..], &["b", "a"][..], &["x", "b", "a"][..]),
            (&["a", "x"], &["n", "a"], &["n", "a", "x"]),
            (&["x"], &["n"], &["x", "n"]),
            (&["a", "x", "b"], &["a", "b", "c"], &["a", "x", "b", "c"]),
        ] {
            let mut live = containers(stored);
            merge(&mut live, &containers(applied), pod());
            assert_eq!(names(&live), expected);
            merge(&mut live, &containers(applied), pod());
            assert_eq!(names(&live), expected, "again");
        }
        let mut live = json!({ "spec": { "containers": [{ "name": "a", "image": "1", "args": ["x"] }] } });
        merge(&mut live, &json!({ "spec": { "containers": [{ "name": "a", "image": "2" }] } }), pod());
        assert_eq!(live["spec"]["containers"][0], json!({ "name": "a", "image": "2", "args": ["x"] }));
    }

    #[test]
    fn what_was_dropped_goes_unless_somebody_owns_it() {
        let live = json!({ "metadata": { "name": "p", "labels": { "mine": "1", "theirs": "2" },
                "annotations": { "mine": "1", "nobodys": "2" } },
            "spec": { "containers": [{ "name": "a", "image": "1" }, { "name": "b", "image": "2", "tty": true }],
                      "dnsConfig": { "searches": ["x"] }, "hostname": "h" } });
        let last = field_set(
            &json!({ "metadata": { "labels": { "mine": "1" }, "annotations": { "mine": "1" } },
                "spec": { "containers": [{ "name": "b", "image": "2" }], "dnsConfig": { "searches": ["x"] } } }),
            pod(),
        );
        let owned = field_set(
            &json!({ "metadata": { "name": "p", "labels": { "theirs": "2" } },
                     "spec": { "containers": [{ "name": "a", "image": "1" }] } }),
            pod(),
        );
        let mut value = live.clone();
        prune(&mut value, &last, &owned, pod());
        assert_eq!(
            value,
            json!({ "metadata": { "name": "p", "labels": { "theirs": "2" }, "annotations": { "nobodys": "2" } },
                    "spec": { "containers": [{ "name": "a", "image": "1" }], "hostname": "h" } })
        );
    }
}
