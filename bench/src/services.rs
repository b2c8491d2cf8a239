//! The services that are woken.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt, stream};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, GroupVersionKind, ListParams, PostParams};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::{Value, json};
use tokio::time::{Instant, sleep, timeout};

/// The namespace of all of them.
pub(crate) const NAMESPACE: &str = "default";
/// How many are created or deleted at a time.
const AT_A_TIME: usize = 16;
/// How long all of them may take to get ready, or to go.
const PATIENCE: Duration = Duration::from_secs(120);
/// How often it is looked whether deleted ones are gone. Nothing is measured meanwhile.
const LOOK_AGAIN: Duration = Duration::from_millis(50);

/// The services of one instance.
pub(crate) struct Services {
    services: Api<DynamicObject>,
    pods: Api<Pod>,
}

impl Services {
    pub(crate) fn new(client: &Client) -> Self {
        let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("serving.knative.dev", "v1", "Service"));
        Self {
            services: Api::namespaced_with(client.clone(), NAMESPACE, &kind),
            pods: Api::namespaced(client.clone(), NAMESPACE),
        }
    }

    pub(crate) fn api(&self) -> &Api<DynamicObject> {
        &self.services
    }

    /// Creates services that run `command` and start with no pod.
    pub(crate) async fn create(&self, names: &[String], command: &[String]) -> anyhow::Result<()> {
        let creations = names.iter().map(|name| async move {
            let service: DynamicObject = serde_json::from_value(manifest(name, command))?;
            let created = self.services.create(&PostParams::default(), &service).await;
            created.map(drop).with_context(|| format!("cannot create service {name}"))
        });
        stream::iter(creations).buffer_unordered(AT_A_TIME).try_collect().await
    }

    /// Waits until all are Ready; returns the revision of each, as `NAMESPACE/NAME`.
    pub(crate) async fn ready(&self, names: &[String]) -> anyhow::Result<BTreeMap<String, String>> {
        let mut missing: BTreeSet<&str> = names.iter().map(String::as_str).collect();
        let mut revisions = BTreeMap::new();
        let mut last = String::new();
        let changes = watcher(self.services.clone(), watcher::Config::default()).default_backoff();
        let mut changes = changes.applied_objects().boxed();
        let waiting = async {
            while !missing.is_empty() {
                match changes.next().await {
                    Some(Ok(service)) => {
                        let name = service.name_any();
                        if let Some(revision) = ready_revision(&service) {
                            missing.remove(name.as_str());
                            revisions.insert(name, format!("{NAMESPACE}/{revision}"));
                        } else if missing.contains(name.as_str()) {
                            last = format!("{name} has {}", service.data["status"]["conditions"]);
                        }
                    }
                    Some(Err(error)) => last = format!("watching services: {error}"),
                    None => break,
                }
            }
        };
        // Not in time: told below.
        let _ = timeout(PATIENCE, waiting).await;
        if !missing.is_empty() {
            bail!("{} of {} services are not Ready; last seen: {last}", missing.len(), names.len());
        }
        Ok(revisions)
    }

    /// How many pods there are.
    pub(crate) async fn pod_count(&self) -> anyhow::Result<usize> {
        Ok(self.pods.list(&ListParams::default()).await.context("cannot list pods")?.items.len())
    }

    /// Deletes services and waits until they and all pods are gone.
    pub(crate) async fn delete(&self, names: &[String]) -> anyhow::Result<()> {
        let deletions = names.iter().map(|name| async move {
            let deleted = self.services.delete(name, &DeleteParams::default()).await;
            deleted.map(drop).with_context(|| format!("cannot delete service {name}"))
        });
        stream::iter(deletions).buffer_unordered(AT_A_TIME).try_collect::<()>().await?;
        let deadline = Instant::now() + PATIENCE;
        loop {
            let pods = self.pod_count().await?;
            if pods == 0 {
                return Ok(());
            }
            if Instant::now() > deadline {
                bail!("{pods} pods of deleted services are still there");
            }
            sleep(LOOK_AGAIN).await;
        }
    }
}

fn manifest(name: &str, command: &[String]) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service",
        "metadata": {"name": name, "namespace": NAMESPACE},
        "spec": {"template": {
            "metadata": {"annotations": {"autoscaling.knative.dev/initial-scale": "0"}},
            "spec": {"containers": [{"image": "dev.local/host", "command": command}]},
        }},
    })
}

/// The revision that answers, if the service is Ready as it was last described.
pub(crate) fn ready_revision(service: &DynamicObject) -> Option<&str> {
    let status = &service.data["status"];
    if status["observedGeneration"].as_i64() != service.metadata.generation {
        return None;
    }
    let mut conditions = status["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == "Ready" && condition["status"] == "True")?;
    status["latestReadyRevisionName"].as_str()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ready_as_last_described() {
        let service = |generation: i64, ready: &str| -> DynamicObject {
            serde_json::from_value(json!({
                "apiVersion": "serving.knative.dev/v1", "kind": "Service",
                "metadata": {"name": "a", "generation": 2},
                "status": {"observedGeneration": generation, "latestReadyRevisionName": "a-00002",
                    "conditions": [{"type": "RoutesReady", "status": "True"}, {"type": "Ready", "status": ready}]},
            }))
            .unwrap()
        };
        assert_eq!(ready_revision(&service(2, "True")), Some("a-00002"));
        assert_eq!(ready_revision(&service(1, "True")), None);
        assert_eq!(ready_revision(&service(2, "Unknown")), None);
        assert_eq!(ready_revision(&serde_json::from_value(manifest("a", &[])).unwrap()), None);
    }
}
