//! What a container may not ask for: `container_test`.

use ember_tests::api;
use ember_tests::instance::Ember;
use serde_json::{Value, json};

use crate::app::service;
use crate::objects::all;

#[tokio::test(flavor = "multi_thread")]
async fn test_must_not_container_constraints() {
    let ember = Ember::start().await;
    let mounts = json!([{"name": "v", "mountPath": "/v", "mountPropagation": "HostToContainer"}]);
    let cases = [
        (json!({"ports": [{"name": "arbitrary", "containerPort": 8080}]}), "arbitrary"),
        (json!({"volumeMounts": mounts}), "mountPropagation"),
    ];
    for (container, part) in cases {
        let pod = json!({"volumes": [{"name": "v", "emptyDir": {}}]});
        let refused =
            api::create(&ember.client, &all("services"), &service("refused", &container, &pod)).await;
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_should_not_container_constraints() {
    let ember = Ember::start().await;
    let hook = json!({"exec": {"command": ["true"]}});
    let two = json!([{"name": "http1", "containerPort": 8080}, {"name": "http2", "containerPort": 8081}]);
    let refused =
        [("ports", json!({"ports": two})), ("runAsUser", json!({"securityContext": {"runAsUser": -10}}))];
    for (part, container) in &refused {
        let refused =
            api::create(&ember.client, &all("services"), &service("bad", container, &json!({}))).await;
        let message = refused.unwrap_err().to_string();
        assert!(message.contains(part), "{message}");
    }
    // Refused, or left out.
    let cases = [
        ("postStart", json!({"lifecycle": {"postStart": hook}})),
        ("preStop", json!({"lifecycle": {"preStop": hook}})),
        ("hostPort", json!({"ports": [{"containerPort": 8081, "hostPort": 80}]})),
        ("stdin", json!({"stdin": true})),
        ("stdinOnce", json!({"stdinOnce": true})),
        ("tty", json!({"tty": true})),
    ];
    for (field, container) in &cases {
        let name = format!("try-{}", field.to_lowercase());
        match api::create(&ember.client, &all("services"), &service(&name, container, &json!({}))).await {
            Ok(object) => assert!(!has(&object, field), "{field} stays: {object}"),
            Err(error) => assert!(error.to_string().contains(field), "{error}"),
        }
    }
}

/// Whether a field of this name stands anywhere.
fn has(value: &Value, field: &str) -> bool {
    match value {
        Value::Object(fields) => fields.contains_key(field) || fields.values().any(|value| has(value, field)),
        Value::Array(items) => items.iter().any(|value| has(value, field)),
        _ => false,
    }
}
