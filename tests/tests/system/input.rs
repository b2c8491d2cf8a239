//! Bad input is refused with an error that names the field, and nothing of it is stored.

use ember_tests::api;
use ember_tests::instance::Ember;
use serde_json::Value;

/// A valid service with one line replaced or added.
fn manifest(metadata: &str, annotations: &str, container: &str, spec: &str, traffic: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{{metadata}}}\nspec:\n  template:\n    \
         metadata: {{annotations: {{{annotations}}}}}\n    spec: {{containers: [{{{container}}}]{spec}}}\n{traffic}"
    )
}

fn with_container(container: &str) -> String {
    manifest("name: bad", "", container, "", "")
}

fn with_spec(spec: &str) -> String {
    manifest("name: bad", "", "image: dev.local/host", spec, "")
}

fn with_annotation(annotation: &str) -> String {
    manifest("name: bad", annotation, "image: dev.local/host", "", "")
}

fn with_traffic(traffic: &str) -> String {
    manifest("name: bad", "", "image: dev.local/host", "", &format!("  traffic: [{traffic}]\n"))
}

#[tokio::test(flavor = "multi_thread")]
async fn malformed_input_is_refused_by_field_and_leaves_nothing_behind() {
    let ember = Ember::start().await;
    let cases: Vec<(&str, String, &[&str])> = vec![
        ("unknown field", with_spec(", replicas: 3"), &["unknown field", "spec.template.spec.replicas"]),
        (
            "bad min-scale",
            with_annotation("autoscaling.knative.dev/min-scale: \"-1\""),
            &["expected 0 <= -1 <= 2147483647: ", "autoscaling.knative.dev/min-scale"],
        ),
        (
            "bad window",
            with_annotation("autoscaling.knative.dev/window: \"1s\""),
            &["expected 6s <= 1s <= 1h0m0s", "autoscaling.knative.dev/window"],
        ),
        (
            "percent sum",
            with_traffic("{latestRevision: true, percent: 90}"),
            &["Traffic targets sum to 90, want 100", "spec.traffic"],
        ),
        (
            "two targets with one tag",
            with_traffic(
                "{latestRevision: true, percent: 50, tag: a}, {revisionName: bad-00001, percent: 50, tag: a}",
            ),
            &["Multiple definitions for ", "spec.traffic[0].tag", "spec.traffic[1].tag"],
        ),
        (
            "missing image",
            with_container("name: app"),
            &["missing field(s): spec.template.spec.containers[0].image"],
        ),
        (
            "bad name",
            manifest("name: Bad_Name", "", "image: dev.local/host", "", ""),
            &["metadata.name", "RFC 1123", "Bad_Name"],
        ),
        (
            "bad port name",
            with_container("image: dev.local/host, ports: [{name: web, containerPort: 8080}]"),
            &["Port name web is not allowed", "spec.template.spec.containers[0].ports", "h2c", "http1"],
        ),
        (
            "negative concurrency",
            with_spec(", containerConcurrency: -1"),
            &["expected 0 <= -1 <= 1000: spec.template.spec.containerConcurrency"],
        ),
        (
            "timeout over the maximum",
            with_spec(", timeoutSeconds: 601"),
            &["expected 0 <= 601 <= 600: spec.template.spec.timeoutSeconds"],
        ),
        (
            "reserved environment name",
            with_container("image: dev.local/host, env: [{name: PORT, value: '1'}]"),
            &["\"PORT\" is a reserved environment variable", "spec.template.spec.containers[0].env[0].name"],
        ),
        (
            "wrong kind",
            with_spec("").replace("kind: Service", "kind: Servise"),
            &["no matches for kind \"Servise\" in version \"serving.knative.dev/v1\""],
        ),
        (
            "broken YAML",
            "apiVersion: serving.knative.dev/v1\nkind: [Service\n".to_owned(),
            &["document 1", "not valid YAML"],
        ),
    ];
    let mut wrong = Vec::new();
    for (name, manifest, parts) in &cases {
        let output = ember.run(&["apply", "-f", "-"], manifest);
        let error = String::from_utf8_lossy(&output.stderr);
        if output.status.success() {
            wrong.push(format!("{name}: accepted"));
        }
        for part in *parts {
            if !error.contains(part) {
                wrong.push(format!("{name}: {part:?} is not in: {error}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    for collection in ["services", "configurations", "routes", "revisions"] {
        let path = format!("/apis/serving.knative.dev/v1/{collection}");
        let list = api::get(&ember.client, &path).await.unwrap();
        assert_eq!(list["items"], Value::Array(Vec::new()), "{collection}");
    }
}
