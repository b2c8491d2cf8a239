//! What a program finds when it runs: `test/conformance/runtime`.

use ember_tests::instance::Ember;
use serde_json::json;

use crate::app::{enable, object, ready, service};

#[tokio::test(flavor = "multi_thread")]
async fn test_cmd_args() {
    let ember = Ember::start().await;
    let app = ready(&ember, &service("args", &json!({"args": ["abra", "cadabra", "do"]}), &json!({}))).await;
    assert_eq!(app.info().await["args"], json!(["abra", "cadabra", "do"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn test_secrets_via_env() {
    let ember = Ember::start().await;
    object(&ember, "secrets", &json!({"metadata": {"name": "s"}, "stringData": {"testKey": "hidden"}})).await;
    let env = json!([{"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "s", "key": "testKey"}}}]);
    let one = ready(&ember, &service("key", &json!({"env": env}), &json!({}))).await;
    assert_eq!(one.info().await["env"]["KEY"], "hidden");
    let all = json!([{"secretRef": {"name": "s"}}]);
    let all = ready(&ember, &service("all", &json!({"envFrom": all}), &json!({}))).await;
    assert_eq!(all.info().await["env"]["testKey"], "hidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_configs_via_env() {
    let ember = Ember::start().await;
    object(&ember, "configmaps", &json!({"metadata": {"name": "c"}, "data": {"testKey": "plain"}})).await;
    let env = json!([{"name": "KEY", "valueFrom": {"configMapKeyRef": {"name": "c", "key": "testKey"}}}]);
    let one = ready(&ember, &service("key", &json!({"env": env}), &json!({}))).await;
    assert_eq!(one.info().await["env"]["KEY"], "plain");
    let all = json!([{"prefix": "C_", "configMapRef": {"name": "c"}}]);
    let all = ready(&ember, &service("all", &json!({"envFrom": all}), &json!({}))).await;
    assert_eq!(all.info().await["env"]["C_testKey"], "plain");
}

/// Processes share the machine's ports: `PORT` is the one picked for the process. A request tells that it is right.
#[tokio::test(flavor = "multi_thread")]
async fn test_must_env_vars() {
    let ember = Ember::start().await;
    let app = ready(&ember, &service("port", &json!({"ports": [{"containerPort": 8801}]}), &json!({}))).await;
    let port: u16 = app.info().await["env"]["PORT"].as_str().unwrap().parse().unwrap();
    assert_ne!(port, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn test_should_env_vars() {
    let ember = Ember::start().await;
    let app = ready(&ember, &service("names", &json!({}), &json!({}))).await;
    let env = app.info().await["env"].clone();
    assert_eq!(
        [&env["K_SERVICE"], &env["K_CONFIGURATION"], &env["K_REVISION"]],
        ["names", "names", "names-00001"]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn test_should_have_stdin_eof() {
    let ember = Ember::start().await;
    let app = ready(&ember, &service("stdin", &json!({}), &json!({}))).await;
    assert_eq!(app.info().await["eof"], true);
}

#[tokio::test(flavor = "multi_thread")]
async fn test_working_dir_service() {
    let ember = Ember::start().await;
    let app = ready(&ember, &service("dir", &json!({"workingDir": "/tmp"}), &json!({}))).await;
    assert_eq!(app.info().await["cwd"], "/tmp");
}

#[tokio::test(flavor = "multi_thread")]
async fn test_must_run_as_user() {
    let own = i64::from(nix::unistd::geteuid().as_raw());
    // Only root can become another user.
    let wanted = if own == 0 { 2020 } else { own };
    let ember = Ember::start().await;
    let container = json!({"securityContext": {"runAsUser": wanted}, "workingDir": "/"});
    let app = ready(&ember, &service("user", &container, &json!({}))).await;
    let info = app.info().await;
    assert_eq!((&info["uid"], &info["euid"]), (&json!(wanted), &json!(wanted)));
}

#[tokio::test(flavor = "multi_thread")]
async fn test_downward_api_via_env() {
    let ember = Ember::start().await;
    enable(&ember, &["kubernetes.podspec-fieldref"]).await;
    let field =
        |name: &str, path: &str| json!({"name": name, "valueFrom": {"fieldRef": {"fieldPath": path}}});
    let container = json!({
        "resources": {"limits": {"memory": "128Mi"}},
        "env": [
            field("NAME_OF_POD", "metadata.name"), field("NAMESPACE", "metadata.namespace"),
            {"name": "MEMORY", "valueFrom": {"resourceFieldRef": {"resource": "limits.memory", "divisor": "1Mi"}}},
            {"name": "BOTH", "value": "$(NAMESPACE)/$(MEMORY)"}
        ]
    });
    let app = ready(&ember, &service("fields", &container, &json!({}))).await;
    let env = app.info().await["env"].clone();
    assert_eq!(env["BOTH"], "default/128");
    assert!(env["NAME_OF_POD"].as_str().unwrap().starts_with("fields-00001-"), "{env}");
}
