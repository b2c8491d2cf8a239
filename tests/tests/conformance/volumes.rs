//! Files of ConfigMaps, Secrets and folders of a pod: the volumes of `test/conformance/api/v1`.

use ember_tests::instance::Ember;
use serde_json::{Value, json};

use crate::app::{App, object, ready, service};

/// A service that mounts `volume` at `/hello`.
async fn mounted(ember: &Ember, mount: &Value, volumes: &Value) -> App {
    let mut mount = mount.clone();
    mount["name"] = "v".into();
    let container = json!({"volumeMounts": [mount]});
    ready(ember, &service("volume", &container, &json!({"volumes": volumes}))).await
}

async fn config_map(ember: &Ember, name: &str, data: Value) {
    object(ember, "configmaps", &json!({"metadata": {"name": name}, "data": data})).await;
}

async fn secret(ember: &Ember, name: &str, data: Value) {
    object(ember, "secrets", &json!({"metadata": {"name": name}, "stringData": data})).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn test_config_map_volume() {
    let ember = Ember::start().await;
    config_map(&ember, "c", json!({"world": "text of a config map"})).await;
    let volumes = json!([{"name": "v", "configMap": {"name": "c"}}]);
    let app = mounted(&ember, &json!({"mountPath": "/hello"}), &volumes).await;
    assert_eq!(app.get("/hello/world").await, "text of a config map");
    assert!(!std::path::Path::new("/hello").exists(), "nothing of it is left on this machine");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_projected_config_map_volume() {
    let ember = Ember::start().await;
    config_map(&ember, "c", json!({"other": "text of a config map"})).await;
    let items = json!([{"key": "other", "path": "world"}]);
    let volumes =
        json!([{"name": "v", "projected": {"sources": [{"configMap": {"name": "c", "items": items}}]}}]);
    let app = mounted(&ember, &json!({"mountPath": "/hello/world", "subPath": "world"}), &volumes).await;
    assert_eq!(app.get("/hello/world").await, "text of a config map");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_secret_volume() {
    let ember = Ember::start().await;
    secret(&ember, "s", json!({"world": "text of a secret"})).await;
    let volumes = json!([
        {"name": "v", "secret": {"secretName": "s"}},
        {"name": "none", "secret": {"secretName": "no", "optional": true}}
    ]);
    let container = json!({"volumeMounts": [
        {"name": "v", "mountPath": "/hello"}, {"name": "none", "mountPath": "/not/there"}
    ]});
    let app = ready(&ember, &service("volume", &container, &json!({"volumes": volumes}))).await;
    assert_eq!(app.get("/hello/world").await, "text of a secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_projected_secret_volume() {
    let ember = Ember::start().await;
    secret(&ember, "s", json!({"other": "text of a secret"})).await;
    let items = json!([{"key": "other", "path": "world"}]);
    let sources = json!([
        {"secret": {"name": "s", "items": items}}, {"secret": {"name": "no", "optional": true}}
    ]);
    let volumes = json!([{"name": "v", "projected": {"sources": sources}}]);
    let app = mounted(&ember, &json!({"mountPath": "/hello"}), &volumes).await;
    assert_eq!(app.get("/hello/world").await, "text of a secret");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_projected_complex() {
    let ember = Ember::start().await;
    config_map(&ember, "c", json!({"key": "of the config map", "own": "the config map's own"})).await;
    secret(&ember, "s", json!({"key": "of the secret"})).await;
    let item = |key: &str, path: &str| json!([{"key": key, "path": path}]);
    let sources = json!([
        {"configMap": {"name": "c", "items": item("key", "world")}},
        {"configMap": {"name": "c", "items": item("own", "deep/own")}},
        {"secret": {"name": "s", "items": item("key", "world")}}
    ]);
    let volumes = json!([{"name": "v", "projected": {"sources": sources}}]);
    let app = mounted(&ember, &json!({"mountPath": "/hello"}), &volumes).await;
    assert_eq!(app.get("/hello/world").await, "of the secret", "the later source wins");
    assert_eq!(app.get("/hello/deep/own").await, "the config map's own");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_service_create_with_empty_dir() {
    let ember = Ember::start().await;
    let script = "echo from the volume > /data/testfile; exec \"$@\"";
    let mut service = service(
        "empty",
        &json!({"volumeMounts": [{"name": "v", "mountPath": "/data"}]}),
        &json!({
            "volumes": [{"name": "v", "emptyDir": {}}]
        }),
    );
    let container = &mut service["spec"]["template"]["spec"]["containers"][0];
    container["args"] = container["command"].take();
    container["command"] = json!(["sh", "-c", script, "sh"]);
    let app = ready(&ember, &service).await;
    assert_eq!(app.get("/data/testfile").await, "from the volume\n");
}
