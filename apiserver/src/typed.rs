//! The built-in kinds checked against their Kubernetes types: wrong types are errors, unknown fields are found.

use k8s_openapi::api::{
    apps::v1 as apps, coordination::v1 as coordination, core::v1 as core, discovery::v1 as discovery,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::resource::Resource;

/// Removes from `value` what its type does not know, and collects the paths of it.
///
/// # Errors
/// What does not fit the type.
pub(crate) fn check(resource: &Resource, value: &mut Value, unknown: &mut Vec<String>) -> Result<(), String> {
    let canonical = match (resource.group, resource.plural) {
        ("", "namespaces") => round_trip::<core::Namespace>(value),
        ("", "configmaps") => round_trip::<core::ConfigMap>(value),
        ("", "secrets") => round_trip::<core::Secret>(value),
        ("", "services") => round_trip::<core::Service>(value),
        ("", "endpoints") => round_trip::<core::Endpoints>(value),
        ("", "pods") => round_trip::<core::Pod>(value),
        ("", "events") => round_trip::<core::Event>(value),
        ("", "serviceaccounts") => round_trip::<core::ServiceAccount>(value),
        ("apps", "deployments") => round_trip::<apps::Deployment>(value),
        ("discovery.k8s.io", "endpointslices") => round_trip::<discovery::EndpointSlice>(value),
        ("coordination.k8s.io", "leases") => round_trip::<coordination::Lease>(value),
        _ => return Ok(()),
    }?;
    retain_known(value, &canonical, "", unknown);
    Ok(())
}

fn round_trip<T: DeserializeOwned + Serialize>(value: &Value) -> Result<Value, String> {
    let typed = T::deserialize(value).map_err(|e| e.to_string())?;
    serde_json::to_value(typed).map_err(|e| e.to_string())
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
        assert!(check(&RESOURCES[CONFIG_MAPS], &mut map, &mut Vec::new()).is_err());
    }
}
