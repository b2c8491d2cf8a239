//! What objects look like with their defaults.

use super::*;
use crate::golden;

/// Without what writing a typed object adds or leaves out, and what makes no difference.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(fields) => {
            let adds_nothing = |key: &str, value: &Value| match value {
                Value::Null => true,
                Value::Array(items) => items.is_empty(),
                Value::Object(fields) if key == "status" => fields.is_empty(),
                Value::String(text) if key.ends_with("erviceName") => text.is_empty(),
                value => !is_something(key, value),
            };
            let fields = fields.iter().map(|(key, value)| (key, plain(value)));
            fields.filter(|(k, v)| !adds_nothing(k, v)).map(|(k, v)| (k.clone(), v)).collect()
        }
        Value::Array(items) => items.iter().map(plain).collect(),
        other => other.clone(),
    }
}

/// A case's object with its defaults.
fn defaulted(case: &Value) -> Result<Value, String> {
    let (kind, configs) = (golden::kind(case)?, golden::configs(case)?);
    let user = case["user"].as_str();
    let old = golden::given(case, "old").map(|old| {
        let mut old = old.clone();
        default(kind, &mut old, Context { operation: None, old: None, user, configs: &configs });
        old
    });
    let mut object = case["object"].clone();
    let operation = Some(golden::operation(case));
    default(kind, &mut object, Context { operation, old: old.as_ref(), user, configs: &configs });
    Ok(object)
}

#[test]
fn golden_defaulting() {
    let cases = golden::cases("defaulting");
    let mut failures = Vec::new();
    for case in &cases {
        match defaulted(case) {
            Err(problem) => failures.push(problem),
            Ok(got) => {
                let [got, want] =
                    [&got, &case["expect"]].map(|object| plain(&with_canonical_quantities(object)));
                if got != want {
                    failures.push(format!("{}: got {got}\nwant {want}", case["id"]));
                }
            }
        }
    }
    golden::report("defaulting", cases.len(), &failures);
}

#[test]
fn quantities_become_texts() {
    let configs = Configs::default();
    let mut object = json!({ "spec": { "template": { "spec": { "containers": [
        { "resources": { "limits": { "cpu": 1, "memory": "1Gi" } } },
    ] } } } });
    default(
        Kind::Service,
        &mut object,
        Context { operation: None, old: None, user: None, configs: &configs },
    );
    let limits = &object["spec"]["template"]["spec"]["containers"][0]["resources"]["limits"];
    assert_eq!(*limits, json!({ "cpu": "1", "memory": "1Gi" }));
}

#[test]
fn the_same_amount_is_no_change() {
    let container = |fields: Value| json!({ "spec": { "containers": [fields] } });
    let plain = container(json!({ "resources": { "limits": { "cpu": "1" } } }));
    let other = container(json!({ "env": [], "tty": false, "resources": { "limits": { "cpu": "1000m" } } }));
    assert!(same(&plain, &other));
    assert_eq!(differences(&plain, &other), "");
    let context = container(json!({ "securityContext": {}, "resources": { "limits": { "cpu": "1" } } }));
    assert!(!same(&plain, &context));
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
