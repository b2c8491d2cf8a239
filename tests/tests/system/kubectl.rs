//! The real kubectl against the one process, where it is installed.

use std::process::{Command, Output};

use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;

use crate::manifests::sample;

struct Kubectl<'a> {
    ember: &'a Ember,
    home: tempfile::TempDir,
}

impl Kubectl<'_> {
    fn run(&self, arguments: &[&str]) -> Output {
        // A home of its own: kubectl keeps what it has discovered by host and port for hours.
        Command::new("kubectl")
            .args(arguments)
            .env("HOME", self.home.path())
            .env("KUBECONFIG", &self.ember.kubeconfig)
            .output()
            .expect("kubectl runs")
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_applies_waits_shows_and_deletes() {
    if let Err(error) = Command::new("kubectl").args(["version", "--client"]).output() {
        println!("skipped: kubectl is not on this machine ({error})");
        return;
    }
    let ember = Ember::start().await;
    let kubectl = Kubectl { ember: &ember, home: tempfile::tempdir().unwrap() };
    let file = kubectl.home.path().join("hello.yaml");
    std::fs::write(&file, sample("hello.yaml")).unwrap();
    let file = file.to_str().unwrap();

    assert_eq!(kubectl.says(&["apply", "-f", file]), "service.serving.knative.dev/hello created\n");
    kubectl.says(&["wait", "--for=condition=Ready", "ksvc/hello", "--timeout=60s"]);
    let table = kubectl.says(&["get", "ksvc"]);
    assert!(table.starts_with("NAME") && table.contains("hello-00001"), "{table}");
    assert!(kubectl.says(&["get", "pods"]).contains("2/2"), "{table}");
    let url = kubectl.says(&["get", "ksvc", "hello", "-o", "jsonpath={.status.url}"]);
    assert_eq!(url, format!("http://hello.default.localhost:{}", ember.gateway.port()));
    assert_eq!(Client::new(ember.gateway).ok(&host("hello"), "/").await, "Hello Ember!\n");

    std::fs::write(file, sample("hello.yaml").replace("value: Ember", "value: you")).unwrap();
    assert_eq!(kubectl.says(&["apply", "-f", file]), "service.serving.knative.dev/hello configured\n");
    ember.ready("hello").await;
    assert_eq!(Client::new(ember.gateway).ok(&host("hello"), "/").await, "Hello you!\n");

    std::fs::write(
        file,
        sample("hello.yaml").replace("        - image", "        - imagine: x\n          image"),
    )
    .unwrap();
    let refused = kubectl.run(&["apply", "-f", file]);
    let error = String::from_utf8_lossy(&refused.stderr);
    assert!(error.contains("unknown field \"spec.template.spec.containers[0].imagine\""), "{error}");

    kubectl.says(&["delete", "ksvc", "hello"]);
    assert_eq!(kubectl.says(&["get", "ksvc"]), "");
}
