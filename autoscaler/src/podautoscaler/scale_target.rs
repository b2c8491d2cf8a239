//! The scale of what a PodAutoscaler scales: a Deployment, or anything else with a `/scale` subresource.

use std::borrow::Cow;

use ember_reconcile::apply::{Action, Applier, ResourceType, Verb};
use ember_reconcile::cache::Cache;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::Client;
use serde_json::{Value, json};

use crate::revisions::WrittenScale;

/// Replicas of a scale target, as of a resourceVersion.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Replicas {
    version: u64,
    /// Absent in the object counts as 1.
    pub(crate) count: Option<i32>,
}

impl Replicas {
    /// These replicas, or what we wrote since they were read.
    pub(crate) fn or_newer(self, written: Option<WrittenScale>) -> Option<i32> {
        match written {
            Some(written) if written.version > self.version => Some(written.replicas),
            _ => self.count,
        }
    }
}

/// Reads and writes scales.
#[derive(Clone)]
pub(crate) struct ScaleTargets {
    deployments: Cache<Deployment>,
    client: Client,
    applier: Applier,
}

impl ScaleTargets {
    pub(crate) fn new(deployments: Cache<Deployment>, client: Client) -> Self {
        Self { deployments, applier: Applier::new(client.clone()), client }
    }

    /// The present scale: from the cache if it is a Deployment that is in there, else from the API.
    pub(crate) async fn read(&self, namespace: &str, target: &ObjectReference) -> Result<Replicas, String> {
        let name = target.name.as_deref().unwrap_or_default();
        if let Some(replicas) = self.cached(namespace, target) {
            return Ok(replicas);
        }
        let resource = resource_of(target);
        let path = object_path(&resource, namespace, name);
        let get = |e: &dyn std::fmt::Display| format!("failed to get scale target {}: {e}", describe(target));
        let request = http::Request::get(path).body(Vec::new()).map_err(|e| get(&e))?;
        let object: Value = self.client.request(request).await.map_err(|e| get(&e))?;
        Ok(Replicas { version: version_of(&object), count: replicas_of(&object) })
    }

    fn cached(&self, namespace: &str, target: &ObjectReference) -> Option<Replicas> {
        if target.kind.as_deref() != Some("Deployment") {
            return None;
        }
        let deployment = self.deployments.get(namespace, target.name.as_deref()?)?;
        let version = deployment.metadata.resource_version.as_deref();
        Some(Replicas {
            version: version.and_then(|v| v.parse().ok()).unwrap_or(0),
            count: deployment.spec.as_ref().and_then(|s| s.replicas),
        })
    }

    /// Writes the scale.
    pub(crate) async fn write(
        &self,
        namespace: &str,
        target: &ObjectReference,
        replicas: i32,
    ) -> Result<WrittenScale, String> {
        let name = target.name.as_deref().unwrap_or_default();
        let action = Action {
            resource: resource_of(target),
            namespace: Some(namespace.to_owned()),
            name: format!("{name}/scale"),
            verb: Verb::JsonPatch(json!([{"op": "add", "path": "/spec/replicas", "value": replicas}])),
        };
        let scale = self.applier.execute(&action).await.map_err(|e| {
            format!("failed to apply scale {replicas} to scale target {name}: {}", e.api_message())
        })?;
        Ok(WrittenScale { version: version_of(&scale), replicas })
    }
}

fn version_of(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().and_then(|v| v.parse().ok()).unwrap_or(0)
}

fn replicas_of(object: &Value) -> Option<i32> {
    object["spec"]["replicas"].as_i64().and_then(|n| i32::try_from(n).ok())
}

fn describe(target: &ObjectReference) -> String {
    format!("{}/{}", target.kind.as_deref().unwrap_or_default(), target.name.as_deref().unwrap_or_default())
}

/// The collection of a target: its kind in lower case, as a plural.
fn resource_of(target: &ObjectReference) -> ResourceType {
    let api_version = target.api_version.as_deref().unwrap_or("apps/v1");
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let kind = target.kind.as_deref().unwrap_or("Deployment");
    let lower = kind.to_lowercase();
    let plural = if lower.ends_with('s') { format!("{lower}es") } else { format!("{lower}s") };
    ResourceType {
        group: Cow::Owned(group.to_owned()),
        version: Cow::Owned(version.to_owned()),
        kind: Cow::Owned(kind.to_owned()),
        plural: Cow::Owned(plural),
    }
}

fn object_path(resource: &ResourceType, namespace: &str, name: &str) -> String {
    let (group, version, plural) = (&resource.group, &resource.version, &resource.plural);
    if group.is_empty() {
        format!("/api/{version}/namespaces/{namespace}/{plural}/{name}")
    } else {
        format!("/apis/{group}/{version}/namespaces/{namespace}/{plural}/{name}")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn our_own_newer_write_hides_an_outdated_view() {
        let seen = Replicas { version: 7, count: Some(0) };
        let written = |version| Some(WrittenScale { version, replicas: 3 });
        assert_eq!(seen.or_newer(None), Some(0));
        assert_eq!(seen.or_newer(written(8)), Some(3));
        assert_eq!(seen.or_newer(written(7)), Some(0));
    }

    #[test]
    fn a_kind_names_its_collection() {
        let target = |api_version: &str, kind: &str| ObjectReference {
            api_version: Some(api_version.to_owned()),
            kind: Some(kind.to_owned()),
            ..ObjectReference::default()
        };
        let path = |t| object_path(&resource_of(&t), "ns", "x");
        assert_eq!(path(target("apps/v1", "Deployment")), "/apis/apps/v1/namespaces/ns/deployments/x");
        assert_eq!(
            path(target("example.com/v2", "Process")),
            "/apis/example.com/v2/namespaces/ns/processes/x"
        );
        assert_eq!(
            path(target("v1", "ReplicationController")),
            "/api/v1/namespaces/ns/replicationcontrollers/x"
        );
    }
}
