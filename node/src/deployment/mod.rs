//! The Deployment controller: the shell around [`plan`] and [`status`].

pub mod plan;
pub mod status;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use tokio::time::{Instant, sleep_until};

use crate::cache::{Cache, Key, refused, status_patch};
use crate::kubelet::Node;
use crate::pod::revision;

/// Keeps the pods and the status of every Deployment until shutdown.
pub(crate) async fn run(node: Arc<Node>, deployments: Cache<Deployment>) {
    let mut controller = Controller { node, deployments, timers: BTreeMap::new(), failures: BTreeMap::new() };
    let mut changed = controller.deployments.subscribe();
    let mut changed_pods = controller.node.pods.subscribe();
    tokio::select! {
        () = controller.node.shutdown.cancelled() => return,
        () = async { tokio::join!(controller.deployments.synced(), controller.node.pods.synced()); } => {}
    }
    let shutdown = controller.node.shutdown.clone();
    loop {
        let next = controller.timers.values().min().copied();
        let keys: BTreeSet<Key> = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            changed = changed.next() => changed.into_keys().collect(),
            changed = changed_pods.next() => changed.values().filter_map(|pod| owner(pod)).collect(),
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => controller.due(),
        };
        for key in keys {
            controller.reconcile(&key).await;
        }
    }
}

/// The Deployment that the pod belongs to.
fn owner(pod: &Pod) -> Option<Key> {
    let owner = pod
        .metadata
        .owner_references
        .iter()
        .flatten()
        .find(|o| o.controller == Some(true) && o.kind == "Deployment")?;
    Some(Key { namespace: pod.metadata.namespace.clone()?, name: owner.name.clone() })
}

struct Controller {
    node: Arc<Node>,
    deployments: Cache<Deployment>,
    /// When a Deployment is looked at again though nothing changed.
    timers: BTreeMap<Key, Instant>,
    /// How often in a row something failed for a Deployment.
    failures: BTreeMap<Key, u32>,
}

impl Controller {
    fn due(&mut self) -> BTreeSet<Key> {
        let now = Instant::now();
        let due: BTreeSet<Key> =
            self.timers.iter().filter(|(_, at)| **at <= now).map(|(key, _)| key.clone()).collect();
        self.timers.retain(|key, _| !due.contains(key));
        due
    }

    async fn reconcile(&mut self, key: &Key) {
        self.timers.remove(key);
        let Some(deployment) = self.deployments.get(key) else {
            self.failures.remove(key);
            return;
        };
        let Some(spec) = &deployment.spec else { return };
        let hash = plan::template_hash(&spec.template);
        let pods = self.pods(&deployment);
        let plan = plan::plan(&deployment, &hash, &pods, &self.node.config.node_name, Timestamp::now());
        let (failure, retry) = self.apply(key, plan).await;

        let now = Timestamp::now();
        let pods = self.pods(&deployment);
        let counts = plan::count(&deployment, &hash, &pods, now);
        let status = status::status(&deployment, &hash, counts, failure.as_deref(), now);
        let wrote = self.write(key, &deployment, &status).await;
        let due = [status::deadline(&deployment, &status), plan::next_available(&deployment, &pods, now)];
        if let Some(at) = due.into_iter().flatten().min() {
            let wait = at.duration_since(now).unsigned_abs();
            // Not a moment too early: the plan compares with the same time.
            self.timers.insert(key.clone(), Instant::now() + wait + Duration::from_millis(1));
        }
        if retry || !wrote {
            let failures = self.failures.entry(key.clone()).or_default();
            let wait = self.node.config.retry * 2_u32.pow((*failures).min(6));
            *failures += 1;
            self.timers.insert(key.clone(), Instant::now() + wait);
        } else {
            self.failures.remove(key);
        }
    }

    fn pods(&self, deployment: &Deployment) -> Vec<Arc<Pod>> {
        let mut pods = self.node.pods.list(deployment.metadata.namespace.as_deref().unwrap_or_default());
        pods.retain(|pod| plan::is_controlled_by(pod, deployment.metadata.uid.as_deref()));
        pods
    }

    /// Carries a plan out; why a creation failed, and whether to try again.
    async fn apply(&self, key: &Key, plan: plan::Plan) -> (Option<String>, bool) {
        let api = Api::<Pod>::namespaced(self.node.client.clone(), &key.namespace);
        let (mut failure, mut retry) = (None, false);
        for pod in plan.create {
            match api.create(&PostParams::default(), &pod).await {
                // The node hears of the pod from here, not from the watch.
                Ok(created) => {
                    let revision = || revision(&created);
                    tracing::debug!(target: "ember::coldstart", phase = "pod_created", revision = revision());
                    self.node.pods.observe(created);
                }
                // A pod of that name that the cache does not show yet; its event brings us back here.
                Err(error) if refused(&error, 409) => retry = true,
                Err(error) => {
                    tracing::warn!(deployment = key.name, %error, "cannot create a pod");
                    let name = pod.metadata.name.unwrap_or_default();
                    failure = Some(format!("pods {name:?} is forbidden: {}", text(&error)));
                    retry = true;
                }
            }
        }
        for name in plan.delete {
            let pod = Key { namespace: key.namespace.clone(), name: name.clone() };
            let uid = self.node.pods.get(&pod).and_then(|pod| pod.metadata.uid.clone());
            let preconditions = Preconditions { uid, resource_version: None };
            match api.delete(&name, &DeleteParams::default().preconditions(preconditions)).await {
                Ok(answer) if answer.is_left() => {
                    answer.left().into_iter().for_each(|pod| self.node.pods.observe(pod));
                }
                Ok(_) => {}
                Err(error) if refused(&error, 404) || refused(&error, 409) => {}
                Err(error) => {
                    tracing::warn!(pod = name, %error, "cannot delete a pod");
                    retry = true;
                }
            }
        }
        (failure, retry)
    }

    /// Writes the status if it changed; false if it has to be tried again.
    async fn write(
        &self,
        key: &Key,
        deployment: &Deployment,
        status: &k8s_openapi::api::apps::v1::DeploymentStatus,
    ) -> bool {
        let stored = serde_json::to_value(deployment.status.clone().unwrap_or_default()).unwrap_or_default();
        let wanted = serde_json::to_value(status).unwrap_or_default();
        let Some(patch) = status_patch(&stored, &wanted) else { return true };
        let api = Api::<Deployment>::namespaced(self.node.client.clone(), &key.namespace);
        match api.patch_status(&key.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(written) => {
                self.deployments.observe(written);
                true
            }
            Err(error) if refused(&error, 404) => true,
            Err(error) => {
                tracing::warn!(deployment = key.name, %error, "cannot write the status");
                false
            }
        }
    }
}

/// What the API server said.
fn text(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
