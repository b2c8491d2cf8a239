//! A server without sockets, its client, and objects to put into it.

use std::collections::BTreeMap;
use std::path::Path;
use std::time::Duration;

use ember_apiserver::{ApiServer, Config};
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{ApiResource, DynamicObject, GroupVersionKind, WatchEvent};
use kube::{Client, Error};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};
use tempfile::TempDir;

pub const LIMIT: Duration = Duration::from_secs(10);

pub struct Harness {
    pub server: ApiServer,
    pub client: Client,
    pub folder: TempDir,
}

pub fn open_at(path: &Path) -> ApiServer {
    ApiServer::open(Config::new(path)).expect("opens")
}

pub fn harness_with(change: impl FnOnce(&mut Config)) -> Harness {
    let folder = tempfile::tempdir().unwrap();
    let mut config = Config::new(folder.path().join("data"));
    change(&mut config);
    let server = ApiServer::open(config).expect("opens");
    let client = server.client();
    Harness { server, client, folder }
}

pub fn harness() -> Harness {
    harness_with(|_| {})
}

pub fn object<T: DeserializeOwned>(value: Value) -> T {
    serde_json::from_value(value).unwrap()
}

pub fn config_map(name: &str, data: &[(&str, &str)]) -> ConfigMap {
    let data: BTreeMap<&str, &str> = data.iter().copied().collect();
    object(json!({ "metadata": { "name": name }, "data": data }))
}

pub fn code(result: Result<impl std::fmt::Debug, Error>) -> u16 {
    match result {
        Err(Error::Api(status)) => status.code,
        other => panic!("expected a failure, got {other:?}"),
    }
}

pub fn message(result: Result<impl std::fmt::Debug, Error>) -> String {
    match result {
        Err(Error::Api(status)) => status.message.clone(),
        other => panic!("expected a failure, got {other:?}"),
    }
}

pub fn serving(kind: &str, plural: &str) -> ApiResource {
    let gvk = GroupVersionKind::gvk("serving.knative.dev", "v1", kind);
    ApiResource::from_gvk_with_plural(&gvk, plural)
}

pub fn ksvc(name: &str) -> DynamicObject {
    object(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": { "name": name },
        "spec": { "template": { "spec": { "containers": [{ "image": "dev.local/host", "name": "c" }] } } },
    }))
}

pub fn pod(name: &str) -> Pod {
    object(json!({ "metadata": { "name": name, "labels": { "app": name } },
                   "spec": { "nodeName": "n1", "containers": [{ "name": "c", "image": "i" }] } }))
}

pub async fn next<K: DeserializeOwned + Clone + std::fmt::Debug + 'static>(
    stream: &mut (impl futures::Stream<Item = Result<WatchEvent<K>, Error>> + Unpin),
) -> WatchEvent<K> {
    tokio::time::timeout(LIMIT, stream.next())
        .await
        .expect("an event in time")
        .expect("the stream goes on")
        .expect("an event")
}
