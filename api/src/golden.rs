//! Reading the golden data of the tests.

use std::collections::BTreeMap;
use std::fmt::Display;
use std::path::PathBuf;

use serde::Deserialize;
use serde_json::Value;

use crate::admission::{Kind, Operation};
use crate::configmaps::Configs;
use crate::{autoscaling, networking, serving};

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
    list(name, "cases")
}

/// One list of a golden file.
pub(crate) fn list(name: &str, key: &str) -> Vec<Value> {
    let list = file(name)[key].as_array().cloned().unwrap_or_default();
    assert!(!list.is_empty(), "{name}: the list {key} is empty or not there");
    list
}

/// What is under a key; `None` where the case leaves it out.
pub(crate) fn given<'a>(case: &'a Value, key: &str) -> Option<&'a Value> {
    case.get(key).filter(|value| !value.is_null())
}

/// The kind of a case's object. A case may leave the object's group out.
pub(crate) fn kind(case: &Value) -> Result<Kind, String> {
    let kind = case["kind"].as_str().or_else(|| case["object"]["kind"].as_str()).unwrap_or_default();
    let group = case["object"]["apiVersion"].as_str().and_then(|version| version.split_once('/'));
    let groups =
        [serving::GROUP, autoscaling::INTERNAL_GROUP, networking::INTERNAL_GROUP, ""].map(str::to_owned);
    let groups = group.map(|(group, _)| group.to_owned()).into_iter().chain(groups);
    groups
        .into_iter()
        .find_map(|group| Kind::of(&group, kind))
        .ok_or_else(|| format!("{}: unknown kind {kind:?}", case["id"]))
}

/// The ConfigMaps of a case, over those of the cluster that the golden data was made in.
pub(crate) fn configs(case: &Value) -> Result<Configs, String> {
    let mut maps: BTreeMap<String, BTreeMap<String, String>> = match given(case, "configs") {
        None => BTreeMap::new(),
        Some(maps) => Deserialize::deserialize(maps).map_err(|e| format!("{}: configs: {e}", case["id"]))?,
    };
    let image = ("queue-sidecar-image".to_owned(), "example.com/queue:v1".to_owned());
    let deployment = maps.entry("config-deployment".to_owned()).or_default();
    if !deployment.contains_key("queueSidecarImage") {
        deployment.entry(image.0).or_insert(image.1);
    }
    Configs::parse(&maps).map_err(|e| format!("{}: configs: {e}", case["id"]))
}

/// Whether a case creates or updates.
pub(crate) fn operation(case: &Value) -> Operation {
    match case["operation"].as_str() {
        Some(text) if text.eq_ignore_ascii_case("update") => Operation::Update,
        _ => Operation::Create,
    }
}

/// Fails the test when there are failures, or when nothing was checked.
pub(crate) fn report(name: &str, checked: usize, failures: &[impl Display]) {
    let listed: Vec<String> = failures.iter().map(ToString::to_string).collect();
    assert!(checked > 0, "{name}: nothing to check");
    assert!(listed.is_empty(), "{name}: {} of {checked} failed:\n{}", listed.len(), listed.join("\n"));
    println!("{name}: {checked} checked");
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
