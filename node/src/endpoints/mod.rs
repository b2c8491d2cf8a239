//! The Endpoints controller: the shell around [`compute`].

pub mod compute;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Endpoints, Pod, Service};
use kube::Api;
use kube::api::{DeleteParams, PostParams};
use tokio::time::{Instant, sleep_until};

use crate::cache::{Cache, Key, refused};
use crate::kubelet::Node;

/// Keeps the Endpoints of every Service with a selector until shutdown.
pub(crate) async fn run(node: Arc<Node>, services: Cache<Service>, endpoints: Cache<Endpoints>) {
    let mut controller = Controller { node, services, endpoints, retries: BTreeMap::new() };
    let mut changed_services = controller.services.subscribe();
    let mut changed_endpoints = controller.endpoints.subscribe();
    let mut changed_pods = controller.node.pods.subscribe();
    let shutdown = controller.node.shutdown.clone();
    tokio::select! {
        () = shutdown.cancelled() => return,
        () = async {
            tokio::join!(controller.services.synced(), controller.endpoints.synced(), controller.node.pods.synced());
        } => {}
    }
    loop {
        let next = controller.retries.values().map(|(at, _)| *at).min();
        let keys: BTreeSet<Key> = tokio::select! {
            biased;
            () = shutdown.cancelled() => return,
            changed = changed_pods.next() => controller.selecting(changed.values()),
            changed = changed_services.next() => controller.removed(changed).await,
            changed = changed_endpoints.next() => changed.into_keys().collect(),
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => controller.due(),
        };
        for key in keys {
            controller.reconcile(&key).await;
        }
    }
}

struct Controller {
    node: Arc<Node>,
    services: Cache<Service>,
    endpoints: Cache<Endpoints>,
    /// When what failed is tried again, and how often it has failed.
    retries: BTreeMap<Key, (Instant, u32)>,
}

impl Controller {
    /// The Services that select any of these pods.
    fn selecting<'a>(&self, pods: impl Iterator<Item = &'a Arc<Pod>>) -> BTreeSet<Key> {
        let mut namespaces: BTreeMap<String, Vec<Arc<Service>>> = BTreeMap::new();
        let mut keys = BTreeSet::new();
        for pod in pods {
            let namespace = pod.metadata.namespace.clone().unwrap_or_default();
            let services = namespaces.entry(namespace).or_insert_with_key(|n| self.services.list(n));
            keys.extend(services.iter().filter(|s| compute::selects(s, pod)).map(|s| Key::of(&**s)));
        }
        keys
    }

    /// The changed Services that still exist; the Endpoints of the others go with them.
    async fn removed(&self, changed: BTreeMap<Key, Arc<Service>>) -> BTreeSet<Key> {
        let mut keys = BTreeSet::new();
        for (key, last) in changed {
            if self.services.get(&key).is_some() {
                keys.insert(key);
            } else if compute::is_selecting(&last) {
                let api = Api::<Endpoints>::namespaced(self.node.client.clone(), &key.namespace);
                if let Err(error) = api.delete(&key.name, &DeleteParams::default()).await
                    && !refused(&error, 404)
                {
                    tracing::warn!(service = key.name, %error, "cannot delete the endpoints");
                }
            }
        }
        keys
    }

    fn due(&mut self) -> BTreeSet<Key> {
        let now = Instant::now();
        self.retries.iter().filter(|(_, (at, _))| *at <= now).map(|(key, _)| key.clone()).collect()
    }

    async fn reconcile(&mut self, key: &Key) {
        match self.write(key).await {
            Ok(()) => {
                self.retries.remove(key);
            }
            Err(error) => {
                tracing::debug!(service = key.name, %error, "cannot write the endpoints");
                let failures = self.retries.get(key).map_or(0, |(_, failures)| *failures);
                let wait = self.node.config.retry * 2_u32.pow(failures.min(6));
                self.retries.insert(key.clone(), (Instant::now() + wait, failures + 1));
            }
        }
    }

    async fn write(&self, key: &Key) -> Result<(), kube::Error> {
        let Some(service) = self.services.get(key).filter(|s| compute::is_selecting(s)) else {
            return Ok(());
        };
        let mut wanted = compute::endpoints(&service, &self.node.pods.list(&key.namespace));
        let api = Api::<Endpoints>::namespaced(self.node.client.clone(), &key.namespace);
        let mut stored = self.endpoints.get(key);
        // A second round after somebody else has written.
        for _ in 0..2 {
            let answer = match &stored {
                Some(stored) if compute::is_current(stored, &wanted) => return Ok(()),
                Some(stored) => {
                    wanted.metadata.resource_version.clone_from(&stored.metadata.resource_version);
                    wanted.metadata.uid.clone_from(&stored.metadata.uid);
                    wanted.metadata.annotations.clone_from(&stored.metadata.annotations);
                    api.replace(&key.name, &PostParams::default(), &wanted).await
                }
                None => {
                    wanted.metadata.resource_version = None;
                    wanted.metadata.uid = None;
                    api.create(&PostParams::default(), &wanted).await
                }
            };
            match answer {
                Ok(written) => {
                    self.endpoints.observe(written);
                    return Ok(());
                }
                Err(error) if refused(&error, 409) || refused(&error, 404) => {
                    stored = api.get_opt(&key.name).await?.map(Arc::new);
                }
                Err(error) => return Err(error),
            }
        }
        // Whoever keeps writing brings us back by the event of the write.
        Ok(())
    }
}
