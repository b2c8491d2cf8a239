//! Reading the golden data of the tests.

use std::fmt::Display;
use std::path::PathBuf;

use serde_json::Value;

/// A golden file: `$EMBER_VECTORS`, or the repository's, `/NAME.json`.
pub(crate) fn file(name: &str) -> Value {
    let folder = std::env::var_os("EMBER_VECTORS").map_or_else(
        || PathBuf::from(concat!(env!("CARGO_MANIFEST_DIR"), "/../tests/vectors")),
        PathBuf::from,
    );
    let path = folder.join(format!("{name}.json"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
    serde_json::from_str(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The cases of a golden file.
pub(crate) fn cases(name: &str) -> Vec<Value> {
    file(name)["cases"].as_array().cloned().unwrap_or_default()
}

/// Fails the test when there are failures, or when nothing was checked.
pub(crate) fn report(name: &str, checked: usize, failures: &[impl Display]) {
    let listed: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert!(listed.is_empty(), "{name}: {} of {checked} failed:\n{}", listed.len(), listed.join("\n"));
    assert!(checked > 0, "{name}: nothing to check");
    eprintln!("{name}: {checked} checked");
}

/// The same value without transition times, as the golden data has it.
pub(crate) fn without_times(mut value: Value) -> Value {
    remove_times(&mut value);
    value
}

fn remove_times(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            fields.remove("lastTransitionTime");
            fields.values_mut().for_each(remove_times);
        }
        Value::Array(items) => items.iter_mut().for_each(remove_times),
        _ => {}
    }
}

/// Every object of the kind `T` that golden reconciles expect to be written, or read.
fn objects<'a>(value: &'a Value, api_version: &str, kind: &str, found: &mut Vec<&'a Value>) {
    match value {
        Value::Object(fields) => {
            let is = |key: &str, text: &str| fields.get(key).and_then(Value::as_str) == Some(text);
            if is("apiVersion", api_version) && is("kind", kind) && fields.contains_key("spec") {
                found.push(value);
            } else {
                fields.values().for_each(|field| objects(field, api_version, kind, found));
            }
        }
        Value::Array(items) => items.iter().for_each(|item| objects(item, api_version, kind, found)),
        _ => {}
    }
}

mod tests {
    use kube_core::Resource;
    use serde::Serialize;
    use serde::de::DeserializeOwned;

    use super::*;
    use crate::autoscaling::v1alpha1::PodAutoscaler;
    use crate::caching::v1alpha1::Image;
    use crate::networking::v1alpha1::{Certificate, ClusterDomainClaim, Ingress, ServerlessService};
    use crate::serving::v1::{Configuration, Revision, Route, Service};
    use crate::serving::v1beta1::DomainMapping;

    /// What the golden data's objects become when they are read and written again.
    fn round_trip<T>(files: &[Value], checked: &mut usize, failures: &mut Vec<String>)
    where
        T: Resource<DynamicType = ()> + Serialize + DeserializeOwned,
    {
        let mut found = Vec::new();
        for file in files {
            objects(file, &T::api_version(&()), &T::kind(&()), &mut found);
        }
        if found.is_empty() {
            failures.push(format!("{}: no objects", T::kind(&())));
        }
        for object in found {
            *checked += 1;
            let written =
                serde_json::from_value::<T>(object.clone()).and_then(|object| serde_json::to_value(&object));
            match written {
                Err(error) => failures.push(format!("{error}: {object}")),
                Ok(mut written) => {
                    // An absent status is the same as an empty one.
                    if written.get("status").is_none() && object.get("status").is_some() {
                        written["status"] = Value::Object(serde_json::Map::new());
                    }
                    if written != *object {
                        failures.push(format!("got {written}\nwant {object}"));
                    }
                }
            }
        }
    }

    #[test]
    fn golden_round_trip() {
        let kinds =
            ["configuration", "domainmapping", "gc", "labeler", "nscert", "revision", "route", "service"];
        let mut files: Vec<Value> = kinds
            .iter()
            .flat_map(|kind| cases(&format!("reconcile_{kind}")))
            .map(|case| case["expect"].clone())
            .collect();
        files.extend(cases("reconcile_serverlessservice").into_iter().map(|case| case["expect"].clone()));
        files.extend(cases("deployments").into_iter().map(|case| case["expect"].clone()));
        let (mut checked, mut failures) = (0, Vec::new());
        round_trip::<Service>(&files, &mut checked, &mut failures);
        round_trip::<Configuration>(&files, &mut checked, &mut failures);
        round_trip::<Revision>(&files, &mut checked, &mut failures);
        round_trip::<Route>(&files, &mut checked, &mut failures);
        round_trip::<DomainMapping>(&files, &mut checked, &mut failures);
        round_trip::<PodAutoscaler>(&files, &mut checked, &mut failures);
        round_trip::<Ingress>(&files, &mut checked, &mut failures);
        round_trip::<Certificate>(&files, &mut checked, &mut failures);
        round_trip::<ServerlessService>(&files, &mut checked, &mut failures);
        round_trip::<ClusterDomainClaim>(&files, &mut checked, &mut failures);
        round_trip::<Image>(&files, &mut checked, &mut failures);
        report("round trip", checked, &failures);
    }
}
