//! The activator's request log: as `config-observability` has it at the moment.

use std::io::Write;
use std::sync::Arc;

use ember_api::serving::v1::Revision;
use ember_telemetry::request_log::Output;
use http::StatusCode;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};

use crate::world::*;

/// What is written, write by write.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl Write for Lines {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.lock().push(String::from_utf8(bytes.to_vec()).unwrap());
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

impl Lines {
    /// The line that begins with `start`, once there is one.
    async fn line(&self, start: &str) -> String {
        eventually(start, async || self.0.lock().iter().find(|line| line.starts_with(start)).cloned()).await
    }
}

async fn configure(client: &Client, data: Value) {
    let mut map: ConfigMap =
        serde_json::from_value(json!({"metadata": {"name": "config-observability"}, "data": data})).unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), "knative-serving");
    match maps.get("config-observability").await {
        Ok(there) => {
            map.metadata.resource_version = there.resource_version();
            maps.replace("config-observability", &PostParams::default(), &map).await.unwrap();
        }
        Err(_) => drop(maps.create(&PostParams::default(), &map).await.unwrap()),
    }
}

/// Asks until a request is logged in a line that begins with `start`; before that the setting has not come through.
async fn until_logged(world: &World, lines: &Lines, path: &str, start: &str) -> String {
    eventually(start, async || {
        assert_eq!(world.request(path, &OF_REV, "").await.0, StatusCode::OK);
        lines.0.lock().iter().find(|line| line.starts_with(start)).cloned()
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_log_follows_the_configmap() {
    let lines = Lines::default();
    let output = Output::new(lines.clone());
    let world = World::start(json!({}), |config| config.request_log_output = Some(output.clone())).await;
    let pod = Pod::start("one").await;
    world.pods(&[&pod], &[]).await;
    assert_eq!(world.request("/before", &OF_REV, "").await, ok("one"));

    let template = |name: &str| {
        format!("{name} {{{{.Request.RequestURI}}}} {{{{.Response.Code}}}} {{{{.Response.Size}}}}")
    };
    configure(
        &world.client,
        json!({"logging.enable-request-log": "true", "logging.request-log-template": template("first")}),
    )
    .await;
    let line = until_logged(&world, &lines, "/live", "first").await;
    assert_eq!(line, "first /live 200 3\n");

    // Probes are none of it, nor is what names no revision.
    configure(
        &world.client,
        json!({
            "logging.enable-request-log": "true",
            "logging.enable-probe-request-log": "true",
            "logging.request-log-template": template("second"),
        }),
    )
    .await;
    until_logged(&world, &lines, "/live", "second").await;
    for headers in [
        &[("user-agent", "kube-probe/1.34")][..],
        &[("k-network-probe", "activator")],
        &[("k-network-probe", "probe"), ("k-network-hash", "x")],
        &[("knative-serving-namespace", "ns"), ("knative-serving-revision", "none")],
    ] {
        world.request("/unseen", headers, "").await;
    }
    assert_eq!(world.request("/still", &OF_REV, "body").await, ok("onebody"));
    lines.line("second /still 200 7\n").await;

    // Off again: requests go unlogged from some time on.
    configure(&world.client, json!({"logging.request-log-template": template("third")})).await;
    eventually("the log to end", async || {
        let before = lines.0.lock().len();
        world.request("/off", &OF_REV, "").await;
        assert!(output.flush(PATIENCE));
        (lines.0.lock().len() == before).then_some(())
    })
    .await;
    let lines = lines.0.lock().clone();
    let wrong: Vec<_> = lines
        .iter()
        .filter(|line| ["/before", "/unseen", "third"].iter().any(|text| line.contains(text)))
        .collect();
    assert!(wrong.is_empty(), "{wrong:?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_line_knows_the_revision_and_what_became_of_the_request() {
    let lines = Lines::default();
    let output = Output::new(lines.clone());
    let world = World::start(json!({}), |config| config.request_log_output = Some(output)).await;
    let revision: Revision = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Revision",
        "metadata": {
            "name": "labelled",
            "labels": {
                "serving.knative.dev/service": "shop",
                "serving.knative.dev/configuration": "shop-cfg",
            },
            "ownerReferences": [{
                "apiVersion": "serving.knative.dev/v1",
                "kind": "Configuration",
                "name": "shop-cfg",
                "uid": "1",
            }],
        },
        "spec": {
            "timeoutSeconds": 1,
            "containers": [{"name": "user-container", "image": "dev.local/host"}],
        },
    }))
    .unwrap();
    Api::namespaced(world.client.clone(), "ns").create(&PostParams::default(), &revision).await.unwrap();
    let template = "{{.Response.Code}} {{.Response.Size}} {{.Request.Host}} {{.TraceID}} \
                    {{with .Revision}}{{.Namespace}}/{{.Name}} {{.Service}} {{.Configuration}}[{{.PodName}}{{.PodIP}}]{{end}}";
    configure(
        &world.client,
        json!({"logging.enable-request-log": "true", "logging.request-log-template": template}),
    )
    .await;
    let of_labelled = [
        ("knative-serving-namespace", "ns"),
        ("knative-serving-revision", "labelled"),
        ("traceparent", "00-0123456789abcdef-01-01"),
    ];
    // Nobody serves it: it waits for its time to be up.
    let line = eventually("a line", async || {
        let (status, _) = world.request("/", &of_labelled, "").await;
        assert!(status == StatusCode::GATEWAY_TIMEOUT || status == StatusCode::NOT_FOUND, "{status}");
        lines.0.lock().first().cloned()
    })
    .await;
    let size = "activator request timeout".len();
    assert_eq!(line, format!("504 {size} hello.example.com 0123456789abcdef ns/labelled shop shop-cfg[]\n"));
    world.stop().await;
}
