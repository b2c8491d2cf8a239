//! The API server, and what others than the autoscaler keep there.

use std::net::IpAddr;

use ember_api::autoscaling::v1alpha1::PodAutoscaler;
use ember_api::networking::v1alpha1::ServerlessService;
use ember_apiserver::ApiServer;
use futures::StreamExt;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Pod};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

/// Where Knative's own objects are; revisions are in `ns`.
pub(crate) const SYSTEM: &str = "knative-serving";

/// Statuses that are written at a time.
const WRITES: usize = 64;

/// An API server with both namespaces, and ConfigMaps of those names and data.
pub(crate) async fn cluster(config: ember_apiserver::Config, maps: &[(&str, &Value)]) -> ApiServer {
    let server = ApiServer::open(config).unwrap();
    let client = server.client();
    for name in [SYSTEM, "ns"] {
        let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}})).unwrap();
        let made = Api::all(client.clone()).create(&PostParams::default(), &namespace).await;
        assert!(made.is_ok() || matches!(&made, Err(kube::Error::Api(s)) if s.code == 409), "{made:?}");
    }
    for (name, data) in maps {
        let map = json!({"metadata": {"name": name}, "data": data});
        create::<ConfigMap>(&client, SYSTEM, map).await;
    }
    server
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

/// Deployment and PodAutoscaler of a revision with those labels.
pub(crate) async fn revision(
    client: &Client,
    name: &str,
    replicas: i32,
    annotations: &Value,
    labels: &Value,
) {
    let deployment = json!({
        "metadata": {"name": format!("{name}-deployment"), "labels": labels},
        "spec": {
            "replicas": replicas,
            "selector": {"matchLabels": {"app": name}},
            "template": {
                "metadata": {"labels": {"app": name}},
                "spec": {"containers": [{"name": "user-container", "image": "dev.local/host"}]},
            },
        },
    });
    create::<Deployment>(client, "ns", deployment).await;
    let mut all = json!({"autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev"});
    all.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
    let target = json!({"apiVersion": "apps/v1", "kind": "Deployment", "name": format!("{name}-deployment")});
    let pa = json!({
        "metadata": {"name": name, "labels": labels, "annotations": all},
        "spec": {"scaleTargetRef": target, "reachability": "Reachable", "protocolType": "http1"},
    });
    create::<PodAutoscaler>(client, "ns", pa).await;
}

/// A ready pod of the revision with those labels.
pub(crate) async fn pod(client: &Client, name: &str, ip: IpAddr, labels: &Value) {
    let pod = json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"containers": [{"name": "user-container", "image": "dev.local/host"}]},
    });
    create::<Pod>(client, "ns", pod).await;
    let status = json!({"status": {
        "phase": "Running", "podIP": ip, "startTime": "2020-01-01T00:00:00Z",
        "conditions": [{"type": "Ready", "status": "True"}],
    }});
    let pods = Api::<Pod>::namespaced(client.clone(), "ns");
    pods.patch_status(name, &PatchParams::default(), &Patch::Merge(status)).await.unwrap();
}

/// Keeps the status of ServerlessServices as their controller would.
pub(crate) async fn follow_services(client: Client, shutdown: CancellationToken) {
    let api: Api<ServerlessService> = Api::namespaced(client, "ns");
    let changes = watcher(api.clone(), watcher::Config::default()).applied_objects();
    let following = changes.for_each_concurrent(WRITES, |change| {
        let api = api.clone();
        async move {
            let sks = change.unwrap();
            let observed = sks.status.as_ref().map(|s| s.observed_generation);
            if sks.owner_references().is_empty() || observed == sks.metadata.generation {
                return;
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
    });
    shutdown.run_until_cancelled(following).await;
}
