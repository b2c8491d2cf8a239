//! What is refused, and in which words.

use serde_json::json;

use super::*;
use crate::defaulting::{self, Context};
use crate::field_error::Level;
use crate::golden;

/// Without the lines that show differences between objects: they show them in terms of the types of a language.
fn without_differences(text: &str) -> String {
    let is_difference = |line: &str| line.starts_with('{') || line.starts_with('\t') || line.is_empty();
    let lines: Vec<&str> = text.lines().filter(|line| !is_difference(line)).collect();
    lines.join("\n")
}

fn outcome(kind: Kind, change: Change<'_>, configs: &Configs) -> Value {
    match validate(kind, change, configs) {
        Err(_) => json!({ "decodeError": true }),
        Ok(findings) => {
            let errors = findings.filter(Level::Error);
            let error =
                if errors.is_empty() { Value::Null } else { without_differences(&errors.to_string()).into() };
            json!({ "error": error, "warnings": findings.filter(Level::Warning).lines() })
        }
    }
}

/// The golden outcome in the same form; how a type error is worded depends on the decoder. `None` where the case
/// expects nothing.
fn expected(expect: &Value, stage: &str) -> Option<Value> {
    let want = golden::given(expect, stage);
    if [Some(expect), want].into_iter().flatten().any(|of| golden::given(of, "decodeError").is_some()) {
        return Some(json!({ "decodeError": true }));
    }
    let want = want?;
    let error = want["error"].as_str().map_or(Value::Null, |error| without_differences(error).into());
    let warnings = want["warnings"].as_array().cloned().unwrap_or_default();
    Some(json!({ "error": error, "warnings": warnings }))
}

/// What one case finds, as given and with its defaults filled in.
fn stages(case: &Value) -> Result<[(&'static str, Value); 2], String> {
    let (kind, configs) = (golden::kind(case)?, golden::configs(case)?);
    let operation = golden::operation(case);
    let subresource = case["subresource"].as_str().unwrap_or_default();
    let old = golden::given(case, "old");
    let raw = outcome(kind, Change { operation, object: &case["object"], old, subresource }, &configs);

    let user = case["user"].as_str();
    let old = old.map(|old| {
        let mut old = old.clone();
        let context =
            Context { operation: Some(Operation::Create), old: None, user: None, configs: &configs };
        defaulting::default(kind, &mut old, context);
        old
    });
    let mut object = case["object"].clone();
    let context = Context { operation: Some(operation), old: old.as_ref(), user, configs: &configs };
    defaulting::default(kind, &mut object, context);
    let change = Change { operation, object: &object, old: old.as_ref(), subresource };
    Ok([("raw", raw), ("defaulted", outcome(kind, change, &configs))])
}

#[test]
fn golden_validation() {
    let cases = golden::cases("validation");
    let mut failures = Vec::new();
    for case in &cases {
        let id = &case["id"];
        let stages = match stages(case) {
            Ok(stages) => stages,
            Err(problem) => {
                failures.push(problem);
                continue;
            }
        };
        let mut compared = 0;
        for (stage, got) in stages {
            let Some(want) = expected(&case["expect"], stage) else { continue };
            // The reference moves what it found before below the container whose name is taken.
            let moved = |text: &str| text.replace("containers[1].containers[0]", "containers[0]");
            let want = match want["error"].as_str() {
                Some(text) => {
                    let mut want = want.clone();
                    want["error"] = moved(text).into();
                    want
                }
                None => want,
            };
            compared += 1;
            if got != want {
                failures.push(format!("{id} {stage}: got {got:#}\nwant {want:#}"));
            }
        }
        if compared == 0 {
            failures.push(format!("{id}: expects nothing"));
        }
    }
    golden::report("validation", cases.len(), &failures);
}

/// What is said of a Service with this in the spec of its template, warnings aside.
fn refused(features: &[(&str, &str)], spec: &Value) -> String {
    let map = features.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
    let configs = Configs::parse(&[("config-features".to_owned(), map)].into()).unwrap();
    let object = json!({ "metadata": { "name": "a" }, "spec": {
        "template": { "spec": spec }, "traffic": [{ "percent": 100 }],
    } });
    let change = Change { operation: Operation::Create, object: &object, old: None, subresource: "" };
    match validate(Kind::Service, change, &configs) {
        Err(error) => format!("type: {error}"),
        Ok(findings) => findings.filter(Level::Error).to_string().replace("spec.template.spec.", ""),
    }
}

#[test]
fn a_type_error_says_where() {
    let wrong = json!({ "containers": [{ "name": "c", "image": 5 }] });
    assert_eq!(
        refused(&[], &wrong),
        "type: json: spec.template.spec.containers[0].image: invalid type: integer `5`, expected a string"
    );
}

#[test]
fn a_duplicate_name_moves_no_other_finding() {
    let twice = json!({ "containers": [
        { "name": "c", "image": "", "ports": [{ "containerPort": 80 }] }, { "name": "c", "image": "example.com/app" }
    ] });
    let text = refused(&[], &twice);
    assert!(text.contains("duplicate container name \"c\": containers[1].name"), "{text}");
    assert!(text.contains("missing field(s): containers[0].image"), "{text}");
}

fn container(fields: &Value) -> Value {
    let mut container = json!({ "name": "c", "image": "example.com/app" });
    for (key, value) in fields.as_object().unwrap() {
        container[key] = value.clone();
    }
    json!({ "containers": [container] })
}

#[test]
fn quantities_may_be_numbers() {
    let limits = |cpu: Value| container(&json!({ "resources": { "limits": { "cpu": cpu } } }));
    assert_eq!(refused(&[], &limits(json!(1))), "");
    assert_eq!(refused(&[], &limits(json!(0.5))), "");
    assert!(refused(&[], &limits(json!("1x"))).starts_with("type: quantities must match"));
    assert!(refused(&[], &limits(json!(true))).starts_with("type: "));
}

#[test]
fn a_container_that_says_nothing_is_missing() {
    assert_eq!(refused(&[], &json!({ "containers": [{}] })), "missing field(s): containers[0]");
    let empty = json!({ "containers": [{ "name": "", "env": [], "resources": { "limits": {} } }] });
    assert_eq!(refused(&[], &empty), "missing field(s): containers[0]");
    let probed = json!({ "containers": [{ "livenessProbe": { "exec": {} } }] });
    assert_eq!(refused(&[], &probed), "missing field(s): containers[0].image");
}

#[test]
fn ids_have_bounds() {
    for id in [-1, 1_i64 << 31] {
        let context = container(&json!({ "securityContext": { "runAsUser": id, "runAsGroup": id } }));
        assert_eq!(
            refused(&[], &context),
            format!(
                "expected 0 <= {id} <= 2147483647: containers[0].securityContext.runAsGroup, \
                 containers[0].securityContext.runAsUser"
            )
        );
    }
    let mut pod = container(&json!({}));
    pod["securityContext"] = json!({ "fsGroup": -1, "supplementalGroups": [1, -2], "sysctls": [] });
    assert_eq!(
        refused(&[("kubernetes.podspec-securitycontext", "allowed")], &pod),
        "expected 0 <= -1 <= 2147483647: securityContext.fsGroup\n\
         expected 0 <= -2 <= 2147483647: securityContext.supplementalGroups[1]\n\
         must not set the field(s): securityContext.sysctls"
    );
}

#[test]
fn a_volume_may_hold_less_than_nothing_never() {
    let volume = |size: &str| {
        let mut pod = container(&json!({ "volumeMounts": [{ "name": "v", "mountPath": "/v" }] }));
        pod["volumes"] = json!([{ "name": "v", "emptyDir": { "sizeLimit": size } }]);
        pod
    };
    assert_eq!(refused(&[], &volume("1Gi")), "");
    assert_eq!(refused(&[], &volume("-1024Mi")), "invalid value: -1Gi: volumes[0].emptyDir.sizeLimit");
}

#[test]
fn references_and_backends_of_controllers_are_typed() {
    let check = |kind, object: &Value| {
        let change = Change { operation: Operation::Create, object, old: None, subresource: "" };
        validate(kind, change, &Configs::default()).unwrap().to_string()
    };
    let reference = |name: &str| {
        json!({ "metadata": { "name": "a" }, "spec": {
            "scaleTargetRef": { "apiVersion": "apps/v1", "kind": "Deployment", "name": name, "novel": 1 },
            "protocolType": "http1",
        } })
    };
    assert_eq!(check(Kind::PodAutoscaler, &reference("b")), "");
    assert_eq!(
        check(Kind::PodAutoscaler, &reference("b.c")),
        "invalid value: must not contain dots: spec.scaleTargetRef.name"
    );
    let rule =
        |rule: Value| json!({ "metadata": { "name": "a", "namespace": "n" }, "spec": { "rules": [rule] } });
    assert_eq!(check(Kind::Ingress, &rule(json!({}))), "missing field(s): spec.rules[0]");
    assert_eq!(
        check(Kind::Ingress, &rule(json!({ "http": {} }))),
        "missing field(s): spec.rules[0].http.paths"
    );
    let path = json!({ "http": { "paths": [{ "headers": { "a": {} } }] } });
    assert_eq!(check(Kind::Ingress, &rule(path)), "missing field(s): spec.rules[0].http.paths[0].splits");
}
