//! Services to test with.

use serde_json::{Value, json};

/// A service that runs `ember demo-app APP`, with annotations on its revision.
pub(crate) fn service(name: &str, app: &str, annotations: &[(&str, &str)]) -> Value {
    let annotations: serde_json::Map<String, Value> = annotations
        .iter()
        .map(|(key, value)| (format!("autoscaling.knative.dev/{key}"), Value::from(*value)))
        .collect();
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": annotations},
            "spec": {"containers": [{
                "image": "dev.local/host",
                "command": ["ember", "demo-app", app],
                "env": [{"name": "TARGET", "value": name}],
            }]},
        }},
    })
}

/// The same with `TARGET` set.
pub(crate) fn greeting(name: &str, target: &str, annotations: &[(&str, &str)]) -> Value {
    let mut service = service(name, "hello", annotations);
    service["spec"]["template"]["spec"]["containers"][0]["env"][0]["value"] = target.into();
    service
}

/// A file of the repository.
pub(crate) fn sample(name: &str) -> String {
    let path = format!("{}/../samples/{name}", env!("CARGO_MANIFEST_DIR"));
    std::fs::read_to_string(path).expect("the sample exists")
}
