//! What the tests of the whole component share: the API's other clients, and patience.

use std::time::Duration;

use ember_api::networking::v1alpha1::ServerlessService;
use futures::StreamExt;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

/// How long a test waits for what has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

/// Keeps the status of ServerlessServices as their controller would.
pub(crate) async fn follow_services(client: Client, shutdown: CancellationToken) {
    let api: Api<ServerlessService> = Api::namespaced(client, "ns");
    let changes = kube::runtime::watcher(api.clone(), kube::runtime::watcher::Config::default());
    let mut changes = std::pin::pin!(kube::runtime::WatchStreamExt::applied_objects(changes));
    while let Some(Some(change)) = shutdown.run_until_cancelled(changes.next()).await {
        let sks = change.unwrap();
        let observed = sks.status.as_ref().map(|s| s.observed_generation);
        if sks.owner_references().is_empty() || observed == sks.metadata.generation {
            continue;
        }
        let (name, now) = (sks.name_any(), jiff::Timestamp::now());
        let patch = json!({"status": {
            "observedGeneration": sks.metadata.generation,
            "serviceName": name, "privateServiceName": format!("{name}-private"),
            "conditions": [
                {"type": "ActivatorEndpointsPopulated", "status": "True", "severity": "Info", "lastTransitionTime": now},
                {"type": "EndpointsPopulated", "status": "True", "lastTransitionTime": now},
                {"type": "Ready", "status": "True", "lastTransitionTime": now},
            ],
        }});
        api.patch_status(&name, &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    }
}

pub(crate) async fn create<K>(client: &Client, namespace: &str, object: Value) -> K
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Clone
        + std::fmt::Debug
        + Serialize
        + DeserializeOwned,
{
    let object: K = serde_json::from_value(object).unwrap();
    Api::<K>::namespaced(client.clone(), namespace).create(&PostParams::default(), &object).await.unwrap()
}

pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "still waiting for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}
