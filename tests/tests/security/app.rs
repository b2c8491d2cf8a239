//! The service behind the tests.

use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;
use serde_json::{Value, json};

/// Answers with what it was given: see the file.
const APP: &str = include_str!("app.py");

/// Whether this test, and with it Ember, runs as root.
pub(crate) fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// A service of the test program, with further fields of its container.
pub(crate) fn service(name: &str, fields: &Value) -> Value {
    let mut container = json!({"image": "dev.local/host", "command": ["/usr/bin/python3", "-c", APP]});
    for (key, value) in fields.as_object().unwrap() {
        container[key] = value.clone();
    }
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Service", "metadata": {"name": name},
        "spec": {"template": {"spec": {"containers": [container]}}}
    })
}

/// What the program of a service was given.
pub(crate) async fn facts(ember: &Ember, name: &str) -> Value {
    serde_json::from_str(&Client::new(ember.gateway).ok(&host(name), "/facts").await).unwrap()
}

/// The same of a new service, once it is Ready.
pub(crate) async fn started(ember: &Ember, name: &str, fields: &Value) -> Value {
    ember.apply(&service(name, fields).to_string());
    ember.ready(name).await;
    facts(ember, name).await
}
