//! What a program finds when it runs: `test/conformance/runtime`.

use std::net::IpAddr;

use ember_tests::instance::Ember;
use serde_json::{Value, json};

use crate::app::{App, enable, object, ready, service};

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

/// What the app says of a file: its mode as `ls` shows it, where a link leads, and whether the app may write it.
async fn file(app: &App, path: &str) -> Value {
    serde_json::from_str(&app.get(&format!("/file?{path}")).await).unwrap()
}

fn mode(file: &Value) -> &str {
    file["mode"].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn test_must_have_files() {
    let ember = Ember::start().await;
    let app = ready(&ember, &service("files", &json!({}), &json!({}))).await;
    for (link, target) in [("fd", ""), ("stdin", "/0"), ("stdout", "/1"), ("stderr", "/2")]
        .map(|(l, t)| (format!("/dev/{l}"), t))
    {
        assert_eq!(file(&app, &link).await["target"], format!("/proc/self/fd{target}"), "{link}");
    }
    for device in ["full", "null", "ptmx", "random", "tty", "urandom", "zero"] {
        let device = file(&app, &format!("/dev/{device}")).await;
        assert!(mode(&device).starts_with('c'), "{device}");
    }
    assert!(mode(&file(&app, "/proc/self/fd").await).starts_with('d'));
    assert!(mode(&file(&app, "/tmp").await).starts_with("drwxrwxrw"));
}

/// Without `/dev/console`, which the machine has or has not.
#[tokio::test(flavor = "multi_thread")]
async fn test_should_have_files() {
    let ember = Ember::start().await;
    let app = ready(&ember, &service("files", &json!({}), &json!({}))).await;
    let mode = mode(&file(&app, "/etc/resolv.conf").await).to_owned();
    assert!(mode.starts_with("-rw") && &mode[4..5] == "r" && &mode[7..8] == "r", "{mode}");
}

/// By the app's user: nothing is mounted anew.
#[tokio::test(flavor = "multi_thread")]
async fn test_should_have_sysctl_read_only() {
    let ember = Ember::start().await;
    let app = ready(&ember, &service("sysctl", &json!({}), &json!({}))).await;
    for path in ["kernel/hostname", "net/core/somaxconn", "vm/overcommit_memory"] {
        assert_eq!(file(&app, &format!("/proc/sys/{path}")).await["writable"], false, "{path}");
    }
}

/// The only value of a header that reached the app.
fn value<'a>(headers: &'a Value, name: &str) -> &'a str {
    assert_eq!(headers[name].as_array().map(Vec::len), Some(1), "{name}: {headers}");
    headers[name][0].as_str().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn test_must_have_headers_set() {
    let ember = Ember::start().await;
    let app = ready(&ember, &service("headers", &json!({}), &json!({}))).await;
    let headers: Value = serde_json::from_str(&app.get("/headers").await).unwrap();
    assert_eq!(value(&headers, "host"), app.host);
    // RFC 7239: elements of pairs, each a token and a token or a quoted string.
    let is_token = |text: &str| {
        !text.is_empty() && text.chars().all(|c| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c))
    };
    let forwarded = value(&headers, "forwarded");
    for pair in forwarded.split([',', ';']) {
        let (name, value) = pair.trim().split_once('=').unwrap();
        let quoted = value.len() > 1 && value.starts_with('"') && value.ends_with('"');
        assert!(["for", "by", "host", "proto"].contains(&name), "{forwarded}");
        assert!(quoted || is_token(value), "{forwarded}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn test_should_have_headers_set() {
    const TRACE: &str = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01";
    let ember = Ember::start().await;
    let app = ready(&ember, &service("headers", &json!({}), &json!({}))).await;
    let sent = [("foo-bar-baz", "Mixed Case, and=signs"), ("traceparent", TRACE)];
    let answer = app.client.get_with(&app.host, "/headers", &sent).await.unwrap();
    let headers: Value = serde_json::from_str(&answer.text).unwrap();
    assert_eq!(value(&headers, "foo-bar-baz"), "Mixed Case, and=signs");
    assert!(["http", "https"].contains(&value(&headers, "x-forwarded-proto")), "{headers}");
    for address in value(&headers, "x-forwarded-for").split(',') {
        assert!(address.trim().parse::<IpAddr>().is_ok(), "{headers}");
    }
    // Whoever makes spans may have put its own in the place of the client's.
    let parts: Vec<&str> = value(&headers, "traceparent").split('-').collect();
    assert_eq!(parts.iter().map(|part| part.len()).collect::<Vec<_>>(), [2, 32, 16, 2], "{headers}");
    assert_eq!(parts[1], "0af7651916cd43dd8448eb211c80319c");
}
