//! Services to test with, and the instances they run in.

use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;
use ember_tests::{PATIENCE, api, eventually};
use serde_json::{Value, json};

const SERVICES: &str = "/apis/serving.knative.dev/v1/namespaces/default/services";
/// Answers with what it sees: the text of the file that the path names, or `/info`.
const APP: &str = include_str!("app.py");

/// The container of the test program, with further fields.
pub(crate) fn container(fields: &Value) -> Value {
    let mut container = json!({"image": "dev.local/host", "command": ["/usr/bin/python3", "-c", APP]});
    merge(&mut container, fields);
    container
}

/// A service with one container, further fields of the container and of the pod.
pub(crate) fn service(name: &str, container_fields: &Value, pod: &Value) -> Value {
    let mut spec = json!({"containers": [container(container_fields)]});
    merge(&mut spec, pod);
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "1"}}, "spec": spec
        }}
    })
}

fn merge(into: &mut Value, fields: &Value) {
    for (key, value) in fields.as_object().unwrap() {
        into[key] = value.clone();
    }
}

/// Enables features of `config-features`.
pub(crate) async fn enable(ember: &Ember, features: &[&str]) {
    let data: Value = features.iter().map(|name| ((*name).to_owned(), Value::from("enabled"))).collect();
    let path = "/api/v1/namespaces/knative-serving/configmaps/config-features";
    api::merge(&ember.client, path, &json!({"data": data})).await.unwrap();
}

/// Creates a service, once the API takes it: a feature that has just been enabled may need a moment.
pub(crate) async fn create(ember: &Ember, service: &Value) {
    eventually("the service is taken", PATIENCE, || api::create(&ember.client, SERVICES, service)).await;
}

/// Creates a service and waits until it is Ready.
pub(crate) async fn ready(ember: &Ember, service: &Value) -> App {
    create(ember, service).await;
    let name = service["metadata"]["name"].as_str().unwrap();
    ember.ready(name).await;
    App { client: Client::new(ember.gateway), host: host(name) }
}

/// Creates an object of the core group.
pub(crate) async fn object(ember: &Ember, kind: &str, object: &Value) {
    api::create(&ember.client, &format!("/api/v1/namespaces/default/{kind}"), object).await.unwrap();
}

/// A test program that is Ready.
pub(crate) struct App {
    pub(crate) client: Client,
    pub(crate) host: String,
}

impl App {
    /// The answer, which has to be 200.
    pub(crate) async fn get(&self, path: &str) -> String {
        self.client.ok(&self.host, path).await
    }

    /// What the program sees.
    pub(crate) async fn info(&self) -> Value {
        serde_json::from_str(&self.get("/info").await).unwrap()
    }
}

/// The status of a container of the service's pod.
pub(crate) async fn status(ember: &Ember, service: &str, container: &str) -> Result<Value, String> {
    let path =
        format!("/api/v1/namespaces/default/pods?labelSelector=serving.knative.dev%2Fservice%3D{service}");
    let list = api::get(&ember.client, &path).await.map_err(|e| e.to_string())?;
    let statuses = list["items"][0]["status"]["containerStatuses"].as_array().cloned().unwrap_or_default();
    let found = statuses.into_iter().find(|s| s["name"] == container);
    found.ok_or_else(|| format!("no status of {container}: {list}"))
}
