//! Laws of ownership, over random objects.

use proptest::collection::{btree_map, btree_set, vec};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::apply::{Scope, Write, apply, update};
use super::compare::{Comparison, field_set};
use super::entry::Managed;
use super::fields_v1;
use super::kubectl::apply_as_kubectl;
use super::set::{Set, Step};
use super::types::Type;
use crate::resource::{PODS, RESOURCES};

fn pod() -> Type<'static> {
    Type::of(&RESOURCES[PODS], None)
}

fn by(manager: &str) -> Write<'_> {
    Write {
        manager,
        api_version: "v1",
        subresource: "",
        scope: Scope::WithoutStatus,
        now: "2026-01-01T00:00:00Z",
    }
}

fn json_value() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i32>().prop_map(Value::from),
        "[a-c]{0,2}".prop_map(Value::from),
    ];
    leaf.prop_recursive(5, 40, 5, |inner| {
        let name = prop_oneof![
            "[a-c]",
            prop::sample::select(vec![
                "metadata",
                "labels",
                "spec",
                "containers",
                "name",
                "ports",
                "containerPort",
                "finalizers",
                "env",
                "managedFields",
                "f:a",
                "k:{\"name\":\"a\"}",
                ".",
                "v:1",
                "i:0",
                "k:[",
                "f:",
            ])
            .prop_map(str::to_owned),
        ];
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            btree_map(name, inner, 0..5).prop_map(|m| Value::Object(m.into_iter().collect::<Map<_, _>>())),
        ]
    })
}

/// A piece of a pod: labels, finalizers, containers with images and arguments, of few names and values.
fn config(names: &'static str) -> impl Strategy<Value = Value> {
    let value = || "[xy]";
    let container =
        (proptest::option::of(value()), proptest::option::of(vec(value(), 0..3)), btree_set(names, 0..2));
    (btree_map(names, value(), 0..4), btree_set(names, 0..3), btree_map(names, container, 0..4)).prop_map(
        |(labels, finalizers, containers)| {
            let containers: Vec<Value> = containers
                .into_iter()
                .map(|(name, (image, args, env))| {
                    let mut container = json!({ "name": name });
                    if let Some(image) = image {
                        container["image"] = image.into();
                    }
                    if let Some(args) = args {
                        container["args"] = args.into();
                    }
                    if !env.is_empty() {
                        container["env"] = env.into_iter().map(|name| json!({ "name": name })).collect();
                    }
                    container
                })
                .collect();
            let mut value = json!({ "metadata": { "name": "p" } });
            if !labels.is_empty() {
                value["metadata"]["labels"] = json!(labels);
            }
            if !finalizers.is_empty() {
                value["metadata"]["finalizers"] = json!(finalizers);
            }
            if !containers.is_empty() {
                value["spec"] = json!({ "containers": containers });
            }
            value
        },
    )
}

/// The applied lists keep their order, so objects are compared with theirs in order of their names.
fn sorted(mut value: Value) -> Value {
    if let Some(list) = value.pointer_mut("/spec/containers").and_then(Value::as_array_mut) {
        list.sort_by_key(|c| c["name"].to_string());
    }
    if let Some(list) = value.pointer_mut("/metadata/finalizers").and_then(Value::as_array_mut) {
        list.sort_by_key(Value::to_string);
    }
    value
}

fn set() -> impl Strategy<Value = Set> {
    let step = prop_oneof![
        ".{0,4}".prop_map(|name| Step::field(&name)),
        ("[a-b\"\\\\]{1,3}", json_value()).prop_map(|(key, value)| Step::key([(key.as_str(), &value)])),
        json_value().prop_map(|value| Step::value(&value)),
    ];
    vec(vec(step, 1..4), 0..6).prop_map(|paths| {
        let mut set = Set::default();
        paths.iter().for_each(|path| set.insert(path));
        set
    })
}

proptest! {
    #[test]
    fn sets_survive_their_json(set in set()) {
        let json = fields_v1::encode(&set);
        let text = json.to_string();
        prop_assert_eq!(fields_v1::decode(&serde_json::from_str(&text).unwrap()).unwrap(), set.clone());
        let mut all = set.clone();
        all.union(&set);
        prop_assert_eq!(&all, &set);
        all.subtract(&set);
        prop_assert!(all.is_empty());
        prop_assert_eq!(set.intersection(&set), set);
    }

    #[test]
    fn whatever_comes_in_is_taken_or_refused(live in json_value(), config in json_value(), owners in json_value()) {
        let _ = fields_v1::decode(&owners);
        let managed = Managed::decode(&json!([
            { "manager": "a", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": owners },
        ]));
        let managed = managed.unwrap_or_default();
        let _ = pod().fault(&config);
        for force in [false, true] {
            let _ = apply(&live, &config, pod(), managed.clone(), &by("a"), force);
            let _ = apply_as_kubectl(&live, &config, pod(), managed.clone(), &by("kubectl"), force);
        }
        let stored = update(&live, &config, pod(), managed, &by("b")).encode();
        prop_assert_eq!(Managed::decode(&stored).unwrap().encode(), stored);
    }

    #[test]
    fn applying_twice_changes_nothing(live in config("[a-d]"), config in config("[a-d]")) {
        let owners = update(&Value::Null, &live, pod(), Managed::default(), &by("other"));
        let (first, managed) = apply(&live, &config, pod(), owners, &by("a"), true).unwrap();
        let (second, again) = apply(&first, &config, pod(), managed.clone(), &by("a"), false).unwrap();
        prop_assert_eq!(second, first);
        prop_assert_eq!(again, managed);
    }

    #[test]
    fn disjoint_applies_commute(live in config("[a-b]"), one in config("[c-d]"), two in config("[e-f]")) {
        let owners = update(&Value::Null, &live, pod(), Managed::default(), &by("other"));
        let both = |order: [(&str, &Value); 2]| {
            let mut state = (live.clone(), owners.clone());
            for (manager, config) in order {
                state = apply(&state.0, config, pod(), state.1, &by(manager), false).unwrap();
            }
            (sorted(state.0), state.1.encode())
        };
        prop_assert_eq!(both([("a", &one), ("b", &two)]), both([("b", &two), ("a", &one)]));
    }

    #[test]
    fn dropping_everything_leaves_what_others_own(live in config("[a-b]"), config in config("[a-d]")) {
        let owners = update(&Value::Null, &live, pod(), Managed::default(), &by("other"));
        let Ok((applied, managed)) = apply(&live, &config, pod(), owners, &by("a"), false) else { return Ok(()) };
        let (left, managed) =
            apply(&applied, &json!({ "metadata": { "name": "p" } }), pod(), managed, &by("a"), false).unwrap();
        prop_assert_eq!(sorted(left), sorted(live));
        prop_assert!(managed.0.iter().all(|entry| entry.id.manager == "other"));
    }

    #[test]
    fn dropping_a_field_removes_exactly_it(live in config("[a-b]"), config in config("[c-e]"), at in any::<prop::sample::Index>()) {
        let owners = update(&Value::Null, &live, pod(), Managed::default(), &by("other"));
        let (applied, managed) = apply(&live, &config, pod(), owners, &by("a"), false).unwrap();
        let mut less = config.clone();
        let Some(labels) = less.pointer_mut("/metadata/labels").and_then(Value::as_object_mut) else { return Ok(()) };
        let key = labels.keys().nth(at.index(labels.len())).unwrap().clone();
        labels.remove(&key);
        let (left, _) = apply(&applied, &less, pod(), managed, &by("a"), false).unwrap();
        let mut gone = Set::default();
        gone.insert(&[Step::field("metadata"), Step::field("labels"), Step::field(&key)]);
        let mut expected = field_set(&applied, pod());
        expected.subtract(&gone);
        let mut found = field_set(&left, pod());
        // A map that nothing is in any more goes; an empty one that is applied stays.
        found.subtract(&{
            let mut empty = Set::default();
            empty.insert(&[Step::field("metadata"), Step::field("labels")]);
            empty
        });
        prop_assert_eq!(found, expected);
        prop_assert!(Comparison::of(&applied, &left, pod()).written().is_empty());
    }

    #[test]
    fn another_value_is_a_conflict_unless_forced(config in config("[a-d]"), image in "[xyz]") {
        let (live, managed) = apply(&Value::Null, &config, pod(), Managed::default(), &by("a"), false).unwrap();
        let other = json!({ "metadata": { "name": "p" }, "spec": { "containers": [{ "name": "a", "image": image }] } });
        let stored = config.pointer("/spec/containers").and_then(Value::as_array).into_iter().flatten();
        let stored = stored.filter(|c| c["name"] == "a").find_map(|c| c.get("image").cloned());
        let conflicts = stored.is_some_and(|stored| stored != image.as_str());
        prop_assert_eq!(apply(&live, &other, pod(), managed.clone(), &by("b"), false).is_err(), conflicts);
        let (after, managed) = apply(&live, &other, pod(), managed, &by("b"), true).unwrap();
        // Who lost the field gets no way back without force either.
        let back = apply(&after, &config, pod(), managed, &by("a"), false);
        prop_assert_eq!(back.is_err(), conflicts);
    }
}
