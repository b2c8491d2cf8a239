//! What is refused, and in which words.

use std::collections::BTreeMap;

use serde_json::json;

use super::*;
use crate::defaulting::{self, Context};
use crate::field_error::Level;
use crate::golden;

fn kind(case: &Value) -> Kind {
    let group = case["object"]["apiVersion"].as_str().and_then(|v| v.split_once('/')).map_or("", |(g, _)| g);
    Kind::of(group, case["kind"].as_str().unwrap_or_default()).unwrap()
}

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

/// The golden outcome in the same form; how a type error is worded depends on the decoder.
fn expected(want: &Value) -> Value {
    if want.get("decodeError").is_some_and(|error| !error.is_null()) {
        return json!({ "decodeError": true });
    }
    let error = want["error"].as_str().map_or(Value::Null, |error| without_differences(error).into());
    let warnings = want["warnings"].as_array().cloned().unwrap_or_default();
    json!({ "error": error, "warnings": warnings })
}

#[test]
fn golden_validation() {
    let cases = golden::cases("validation");
    let mut failures = Vec::new();
    for case in &cases {
        let kind = kind(case);
        let maps: BTreeMap<String, BTreeMap<String, String>> =
            serde_json::from_value(case["configs"].clone()).unwrap_or_default();
        let configs = Configs::parse(&maps).unwrap();
        let operation = match case["operation"].as_str() {
            Some("UPDATE") => Operation::Update,
            _ => Operation::Create,
        };
        let subresource = case["subresource"].as_str().unwrap_or_default();
        let old = case.get("old").filter(|old| !old.is_null());
        let change = Change { operation, object: &case["object"], old, subresource };
        let raw = outcome(kind, change, &configs);
        if raw != expected(&case["expect"]["raw"]) {
            let want = expected(&case["expect"]["raw"]);
            failures.push(format!("{} raw: got {raw:#}\nwant {want:#}", case["id"]));
        }

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
        let defaulted = outcome(kind, change, &configs);
        if defaulted != expected(&case["expect"]["defaulted"]) {
            let want = expected(&case["expect"]["defaulted"]);
            failures.push(format!("{} defaulted: got {defaulted:#}\nwant {want:#}", case["id"]));
        }
    }
    golden::report("validation", cases.len(), &failures);
}
