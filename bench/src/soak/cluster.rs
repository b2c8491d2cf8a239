//! What the API says: the objects that controllers and nodes would write around the data plane.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use anyhow::{Context, bail};
use ember_api::networking::v1alpha1::Ingress;
use ember_api::serving::v1::Revision;
use ember_api::status::Conditioned;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Service};
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::NamespaceResourceScope;
use kube::{Api, Client, Resource, ResourceExt};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tokio::time::Instant;

pub(super) const NAMESPACE: &str = "soak";
pub(super) const REVISION: &str = "soak-00001";
/// The host the gateway knows the revision by.
pub(super) const HOST: &str = "soak.soak.example.com";

const SYSTEM_NAMESPACE: &str = "knative-serving";
/// How long the gateway may take to serve the Ingress.
const READY_WITHIN: Duration = Duration::from_secs(20);

/// The API, and what it says at the moment.
pub(super) struct Cluster {
    client: Client,
    uid: String,
    /// Of sidecars and activators.
    data_port: u16,
    /// The pods that have an address, and whether they are ready.
    pods: BTreeMap<IpAddr, bool>,
    /// The activators that are ready.
    activators: Vec<IpAddr>,
    /// Whether requests go through the activators.
    activators_in_path: bool,
}

impl Cluster {
    /// Writes what does not change: the revision, its Services, its Ingress. There are no addresses yet.
    pub(super) async fn new(client: Client, concurrency: u32, data_port: u16) -> anyhow::Result<Self> {
        for name in [NAMESPACE, SYSTEM_NAMESPACE] {
            let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": name}}))?;
            match Api::all(client.clone()).create(&PostParams::default(), &namespace).await {
                Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
                created => drop(created.context("a namespace")?),
            }
        }
        let mut cluster = Self {
            client,
            uid: String::new(),
            data_port,
            pods: BTreeMap::new(),
            activators: Vec::new(),
            activators_in_path: true,
        };
        cluster.put::<ConfigMap>(SYSTEM_NAMESPACE, "config-network", json!({"data": {}})).await?;
        let revision = json!({"spec": {
            "containerConcurrency": concurrency,
            "timeoutSeconds": 300,
            "containers": [{"name": "user-container", "image": "dev.local/host"}],
        }});
        let revision: Revision = cluster.put(NAMESPACE, REVISION, revision).await?;
        cluster.uid = revision.uid().unwrap_or_default();
        let ports = json!({"spec": {"ports": [{"name": "http", "port": 80, "targetPort": data_port}]}});
        cluster.put::<Service>(NAMESPACE, REVISION, ports.clone()).await?;
        cluster.put::<Service>(SYSTEM_NAMESPACE, "activator-service", ports).await?;
        cluster.write().await?;
        let ingress = json!({
            "metadata": {"annotations": {
                "networking.knative.dev/ingress.class": "ember.ingress.networking.knative.dev",
            }},
            "spec": {"rules": [{"hosts": [HOST], "visibility": "ExternalIP", "http": {"paths": [{"splits": [{
                "serviceNamespace": NAMESPACE, "serviceName": REVISION, "servicePort": 80, "percent": 100,
                "appendHeaders": {
                    "Knative-Serving-Revision": REVISION, "Knative-Serving-Namespace": NAMESPACE,
                },
            }]}]}}]},
        });
        cluster.put::<Ingress>(NAMESPACE, "soak", ingress).await?;
        Ok(cluster)
    }

    /// Waits until the gateway has said that it serves the Ingress.
    pub(super) async fn served(&self) -> anyhow::Result<()> {
        let api: Api<Ingress> = Api::namespaced(self.client.clone(), NAMESPACE);
        let deadline = Instant::now() + READY_WITHIN;
        while !api.get("soak").await?.is_ready() {
            if Instant::now() > deadline {
                bail!("the gateway does not serve the Ingress");
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(())
    }

    /// A pod is there, ready or not.
    pub(super) async fn put_pod(&mut self, ip: IpAddr, ready: bool) -> anyhow::Result<()> {
        self.pods.insert(ip, ready);
        self.write().await
    }

    /// A pod is there no more.
    pub(super) async fn remove_pod(&mut self, ip: IpAddr) -> anyhow::Result<()> {
        self.pods.remove(&ip);
        self.write().await
    }

    /// An activator is ready, or no longer.
    pub(super) async fn set_activator(&mut self, ip: IpAddr, ready: bool) -> anyhow::Result<()> {
        self.activators.retain(|other| *other != ip);
        if ready {
            self.activators.push(ip);
        }
        self.write().await
    }

    /// Takes the activators into the path of requests or out of it. Returns whether they are in it now.
    pub(super) async fn switch_path(&mut self) -> anyhow::Result<bool> {
        self.activators_in_path = !self.activators_in_path;
        self.write().await?;
        Ok(self.activators_in_path)
    }

    /// Writes all Endpoints as things are now. In the order of the controllers: a revision's pods, then who answers
    /// for it.
    async fn write(&self) -> anyhow::Result<()> {
        let of = |ready: bool| -> Vec<IpAddr> {
            self.pods.iter().filter(|(_, is)| **is == ready).map(|(ip, _)| *ip).collect()
        };
        let (ready, not_ready) = (of(true), of(false));
        let mut activators = self.activators.clone();
        activators.sort();
        let private = format!("{REVISION}-private");
        self.endpoints(NAMESPACE, &private, Some("Private"), &ready, &not_ready).await?;
        // Without a ready pod the activators answer for the revision in any case.
        if self.activators_in_path || ready.is_empty() {
            self.endpoints(NAMESPACE, REVISION, Some("Public"), &activators, &[]).await?;
        } else {
            self.endpoints(NAMESPACE, REVISION, Some("Public"), &ready, &not_ready).await?;
        }
        self.endpoints(SYSTEM_NAMESPACE, "activator-service", None, &activators, &[]).await
    }

    async fn endpoints(
        &self,
        namespace: &str,
        name: &str,
        kind: Option<&str>,
        ready: &[IpAddr],
        not_ready: &[IpAddr],
    ) -> anyhow::Result<()> {
        let addresses = |ips: &[IpAddr]| ips.iter().map(|ip| json!({"ip": ip})).collect::<Vec<_>>();
        let mut subset = json!({"ports": [{"name": "http", "port": self.data_port}]});
        for (key, ips) in [("addresses", ready), ("notReadyAddresses", not_ready)] {
            if !ips.is_empty() {
                subset[key] = addresses(ips).into();
            }
        }
        let subsets = if ready.is_empty() && not_ready.is_empty() { json!([]) } else { json!([subset]) };
        let mut object = json!({"subsets": subsets});
        if let Some(kind) = kind {
            object["metadata"] = json!({"labels": {
                "serving.knative.dev/revision": REVISION,
                "serving.knative.dev/revisionUID": self.uid,
                "networking.internal.knative.dev/serviceType": kind,
            }});
        }
        self.put::<Endpoints>(namespace, name, object).await?;
        Ok(())
    }

    /// Creates an object, or merges into the one there is.
    async fn put<K>(&self, namespace: &str, name: &str, mut object: Value) -> anyhow::Result<K>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + Serialize
            + DeserializeOwned,
    {
        object["metadata"]["name"] = name.into();
        let api: Api<K> = Api::namespaced(self.client.clone(), namespace);
        let typed: K = serde_json::from_value(object.clone())?;
        let put = match api.create(&PostParams::default(), &typed).await {
            Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {
                api.patch(name, &PatchParams::default(), &Patch::Merge(object)).await
            }
            created => created,
        };
        put.with_context(|| format!("{} {namespace}/{name}", K::kind(&())))
    }
}
