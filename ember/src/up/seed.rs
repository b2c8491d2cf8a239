//! What a new data folder starts with. Everything is created only if absent: edits by people survive.

use std::net::IpAddr;

use anyhow::Context;
use kube::Client;
use serde_json::{Value, json};

/// The ingress class of Ember's own gateway.
pub(crate) const INGRESS_CLASS: &str = "ember.ingress.networking.knative.dev";

fn config_map(name: &str, data: &Value) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": name, "namespace": "knative-serving", "labels": {"app.kubernetes.io/name": "ember"}},
        "data": data,
    })
}

fn namespace(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}})
}

/// Durable objects: namespaces and ConfigMaps.
fn declarations() -> Vec<(&'static str, Value)> {
    let maps = "/api/v1/namespaces/knative-serving/configmaps";
    let mut objects = vec![
        ("/api/v1/namespaces", namespace("default")),
        ("/api/v1/namespaces", namespace("knative-serving")),
        (
            maps,
            config_map(
                "config-autoscaler",
                &json!({
                    "allow-zero-initial-scale": "true",
                    // An upper bound for routing to let go of a pod, which takes milliseconds in one process.
                    "scale-to-zero-grace-period": "6s",
                }),
            ),
        ),
        (maps, config_map("config-domain", &json!({"localhost": ""}))),
        (maps, config_map("config-network", &json!({"ingress-class": INGRESS_CLASS}))),
        // The sidecar is part of this program; the name is what pods show.
        (
            maps,
            config_map(
                "config-deployment",
                &json!({
                    "queue-sidecar-image": "dev.local/queue-proxy",
                    "registries-skipping-tag-resolving": "kind.local,ko.local,dev.local",
                }),
            ),
        ),
    ];
    for name in [
        "config-defaults",
        "config-features",
        "config-gc",
        "config-logging",
        "config-observability",
        "config-leader-election",
    ] {
        objects.push((maps, config_map(name, &json!({}))));
    }
    objects
}

/// The Service and Endpoints of a component of this process.
fn component(name: &str, ip: IpAddr, ports: &[(&str, u16, u16)]) -> [(&'static str, Value); 2] {
    let metadata = json!({"name": name, "namespace": "knative-serving"});
    let service: Vec<Value> = ports
        .iter()
        .map(|(name, port, target)| json!({"name": name, "port": port, "targetPort": target}))
        .collect();
    let endpoints: Vec<Value> =
        ports.iter().map(|(name, _, target)| json!({"name": name, "port": target})).collect();
    [
        (
            "/api/v1/namespaces/knative-serving/services",
            json!({"apiVersion": "v1", "kind": "Service", "metadata": metadata, "spec": {"ports": service}}),
        ),
        (
            "/api/v1/namespaces/knative-serving/endpoints",
            json!({"apiVersion": "v1", "kind": "Endpoints", "metadata": metadata,
                   "subsets": [{"addresses": [{"ip": ip.to_string()}], "ports": endpoints}]}),
        ),
    ]
}

/// Where the components of this process are reached.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Addresses {
    pub(crate) activator: IpAddr,
    pub(crate) autoscaler: IpAddr,
    pub(crate) gateway: IpAddr,
    /// Where the gateway serves hosts of the inside.
    pub(crate) internal_port: u16,
    /// Where the gateway serves hosts of the outside.
    pub(crate) external_port: u16,
}

/// Creates what is absent, and states the addresses of this run.
pub(crate) async fn seed(client: &Client, addresses: Addresses) -> anyhow::Result<()> {
    for (collection, object) in declarations() {
        create(client, collection, &object).await?;
    }
    let components = [
        component("activator-service", addresses.activator, &[("http", 80, 8012), ("http2", 81, 8013)]),
        component("autoscaler", addresses.autoscaler, &[("http", 8080, 8080)]),
        component("ember-gateway", addresses.gateway, &[("http2", 80, addresses.internal_port)]),
    ];
    for (collection, object) in components.into_iter().flatten() {
        replace(client, collection, &object).await?;
    }
    let internal = Some(addresses.internal_port).filter(|port| *port != 80).map(|port| port.to_string());
    let ports = json!({"data": {
        "external-port": addresses.external_port.to_string(),
        "internal-port": internal,
    }});
    let path = "/api/v1/namespaces/knative-serving/configmaps/config-network";
    send(client, "PATCH", path, "application/merge-patch+json", &ports)
        .await
        .context("cannot state the gateway's ports in config-network")?;
    Ok(())
}

async fn create(client: &Client, collection: &str, object: &Value) -> anyhow::Result<bool> {
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    match send(client, "POST", collection, "application/json", object).await {
        Ok(_) => Ok(true),
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => Ok(false),
        Err(error) => Err(error).with_context(|| format!("cannot create {name} in {collection}")),
    }
}

/// Objects that state where this run listens replace those of an earlier run.
async fn replace(client: &Client, collection: &str, object: &Value) -> anyhow::Result<()> {
    if create(client, collection, object).await? {
        return Ok(());
    }
    let name = object["metadata"]["name"].as_str().unwrap_or_default();
    let path = format!("{collection}/{name}");
    send(client, "PATCH", &path, "application/merge-patch+json", object)
        .await
        .with_context(|| format!("cannot update {path}"))?;
    Ok(())
}

async fn send(
    client: &Client,
    method: &str,
    path: &str,
    content_type: &str,
    body: &Value,
) -> Result<Value, kube::Error> {
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header(http::header::CONTENT_TYPE, content_type)
        .body(body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}
