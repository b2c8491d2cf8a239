//! The built-in kinds checked against their Kubernetes types: wrong types are errors, unknown fields are found.

use k8s_openapi::api::{
    apps::v1 as apps, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
};
use schemars::{JsonSchema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::resource::Resource;

/// What a kind's type can do for us.
struct Shape {
    /// The value as its type writes it; an error says what does not fit.
    round_trip: fn(&Value) -> Result<Value, String>,
    /// Adds the schema, and those it refers to, to the definitions; returns its name there.
    describe: fn(&mut SchemaGenerator) -> String,
}

impl Shape {
    const fn of<T: DeserializeOwned + Serialize + JsonSchema>() -> Self {
        Self { round_trip: round_trip::<T>, describe: describe::<T> }
    }
}

fn shape(resource: &Resource) -> Option<Shape> {
    let shape = match (resource.group, resource.plural) {
        ("", "namespaces") => Shape::of::<core::Namespace>(),
        ("", "configmaps") => Shape::of::<core::ConfigMap>(),
        ("", "secrets") => Shape::of::<core::Secret>(),
        ("", "services") => Shape::of::<core::Service>(),
        ("", "endpoints") => Shape::of::<core::Endpoints>(),
        ("", "pods") => Shape::of::<core::Pod>(),
        ("", "events") => Shape::of::<core::Event>(),
        ("", "serviceaccounts") => Shape::of::<core::ServiceAccount>(),
        ("apps", "deployments") => Shape::of::<apps::Deployment>(),
        ("discovery.k8s.io", "endpointslices") => Shape::of::<discovery::EndpointSlice>(),
        ("coordination.k8s.io", "leases") => Shape::of::<coordination::Lease>(),
        _ => return None,
    };
    Some(shape)
}

/// Removes from `value` what its type does not know, and collects the paths of it.
///
/// # Errors
/// What does not fit the type.
pub(crate) fn check(resource: &Resource, value: &mut Value, unknown: &mut Vec<String>) -> Result<(), String> {
    let Some(shape) = shape(resource) else { return Ok(()) };
    let canonical = (shape.round_trip)(value)?;
    retain_known(value, &canonical, "", unknown);
    Ok(())
}

/// The name of the kind's schema, which is put into the definitions of `generator` with all it refers to.
pub(crate) fn describe_kind(resource: &Resource, generator: &mut SchemaGenerator) -> Option<String> {
    shape(resource).map(|shape| (shape.describe)(generator))
}

fn round_trip<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, String> {
    // The error begins with the path of the field.
    let typed: T = serde_path_to_error::deserialize(value).map_err(|e| e.to_string())?;
    serde_json::to_value(typed).map_err(|e| e.to_string())
}

/// Adds the schema of `T` to the definitions; returns its name there.
pub(crate) fn describe<T: JsonSchema>(generator: &mut SchemaGenerator) -> String {
    generator.subschema_for::<T>();
    T::schema_name().into_owned()
}

fn retain_known(value: &mut Value, known: &Value, path: &str, unknown: &mut Vec<String>) {
    match (value, known) {
        (Value::Object(map), Value::Object(known)) => map.retain(|field, value| {
            let here = || if path.is_empty() { field.clone() } else { format!("{path}.{field}") };
            match known.get(field) {
                Some(known) => {
                    if value.is_object() || value.is_array() {
                        retain_known(value, known, &here(), unknown);
                    }
                    true
                }
                // A null does not survive the round trip, whether the field is known or not.
                None if value.is_null() => false,
                None => {
                    unknown.push(here());
                    false
                }
            }
        }),
        (Value::Array(list), Value::Array(known)) => {
            for (index, (value, known)) in list.iter_mut().zip(known).enumerate() {
                retain_known(value, known, &format!("{path}[{index}]"), unknown);
            }
        }
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::resource::{CONFIG_MAPS, PODS, RESOURCES};

    #[test]
    fn unknown_fields_of_builtin_kinds_are_found_and_removed() {
        let mut pod = json!({ "apiVersion": "v1", "kind": "Pod", "metadata": { "name": "p", "odd": 1 },
            "spec": { "containers": [{ "name": "a", "image": "i", "nope": true }], "nodeName": null } });
        let mut unknown = Vec::new();
        check(&RESOURCES[PODS], &mut pod, &mut unknown).unwrap();
        unknown.sort();
        assert_eq!(unknown, ["metadata.odd", "spec.containers[0].nope"]);
        assert_eq!(pod["spec"]["containers"][0], json!({ "name": "a", "image": "i" }));
    }

    #[test]
    fn wrong_types_are_errors() {
        let mut map = json!({ "metadata": { "name": "p" }, "data": { "a": 1 } });
        let error = check(&RESOURCES[CONFIG_MAPS], &mut map, &mut Vec::new()).unwrap_err();
        assert_eq!(error, "data.a: invalid type: integer `1`, expected a string");
        let mut pod = json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b", "image": 5 }] } });
        let error = check(&RESOURCES[PODS], &mut pod, &mut Vec::new()).unwrap_err();
        assert_eq!(error, "spec.containers[1].image: invalid type: integer `5`, expected a string");
    }
}
