//! What objects look like with their defaults.

use std::collections::BTreeMap;

use super::*;
use crate::golden;

fn kind(case: &Value) -> Kind {
    let group = case["object"]["apiVersion"].as_str().and_then(|v| v.split_once('/')).map_or("", |(g, _)| g);
    Kind::of(group, case["kind"].as_str().unwrap_or_default()).unwrap()
}

/// Without what writing a typed object adds, and what makes no difference.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let adds_nothing = |key: &str, value: &Value| {
                let is_empty = value == &json!({}) || value == &json!("") || value.is_null();
                let keys = ["status", "resources", "metadata", "name", "serviceName", "metricsServiceName"];
                is_empty && keys.contains(&key)
            };
            let fields = fields.iter().map(|(key, value)| (key, plain(value)));
            fields.filter(|(k, v)| !adds_nothing(k, v)).map(|(k, v)| (k.clone(), v)).collect()
        }
        Value::Array(items) => items.iter().map(plain).collect(),
        other => other.clone(),
    }
}

#[test]
fn golden_defaulting() {
    let cases = golden::cases("defaulting");
    let mut failures = Vec::new();
    for case in &cases {
        let maps: BTreeMap<String, BTreeMap<String, String>> =
            serde_json::from_value(case["configs"].clone()).unwrap_or_default();
        let configs = Configs::parse(&maps).unwrap();
        let operation = match case["operation"].as_str() {
            Some("UPDATE") => Operation::Update,
            _ => Operation::Create,
        };
        let user = case["user"].as_str();
        let old = case.get("old").map(|old| {
            let mut old = old.clone();
            default(kind(case), &mut old, Context { operation: None, old: None, user, configs: &configs });
            old
        });
        let mut got = case["object"].clone();
        let context = Context { operation: Some(operation), old: old.as_ref(), user, configs: &configs };
        default(kind(case), &mut got, context);
        let (got, want) = (plain(&got), plain(&case["expect"]));
        if got != want {
            failures.push(format!("{}: got {got}\nwant {want}", case["id"]));
        }
    }
    golden::report("defaulting", cases.len(), &failures);
}

#[test]
fn unknown_fields_stay() {
    let configs = Configs::default();
    let mut object =
        json!({ "spec": { "template": { "spec": { "novel": 1, "containers": [{ "novel": [] }] } } } });
    let context = Context { operation: Some(Operation::Create), old: None, user: None, configs: &configs };
    default(Kind::Service, &mut object, context);
    assert_eq!(object["spec"]["template"]["spec"]["novel"], 1);
    assert_eq!(object["spec"]["template"]["spec"]["containers"][0]["novel"], json!([]));
}

#[test]
fn what_has_no_shape_is_left_alone() {
    let configs = Configs::default();
    for given in
        [json!(null), json!([]), json!({ "spec": 1 }), json!({ "spec": { "template": "x", "traffic": {} } })]
    {
        for kind in [Kind::Service, Kind::Revision, Kind::Ingress, Kind::PodAutoscaler, Kind::DomainMapping] {
            let mut object = given.clone();
            default(
                kind,
                &mut object,
                Context { operation: None, old: None, user: Some("a"), configs: &configs },
            );
        }
    }
}
