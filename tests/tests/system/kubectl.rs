//! The real kubectl against the one process, where it is installed.

use std::io::{BufRead, BufReader};
use std::process::{Child, Command, Output, Stdio};

use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;
use ember_tests::{PATIENCE, eventually};

use crate::manifests::sample;

struct Kubectl<'a> {
    ember: &'a Ember,
    home: tempfile::TempDir,
}

impl Kubectl<'_> {
    fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new("kubectl");
        // A home of its own: kubectl keeps what it has discovered by host and port for hours.
        command.args(arguments).env("HOME", self.home.path()).env("KUBECONFIG", &self.ember.kubeconfig);
        command
    }

    fn run(&self, arguments: &[&str]) -> Output {
        self.command(arguments).output().expect("kubectl runs")
    }

    fn refused(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(!output.status.success(), "{arguments:?} worked");
        String::from_utf8_lossy(&output.stderr).into_owned()
    }

    fn says(&self, arguments: &[&str]) -> String {
        let output = self.run(arguments);
        assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }
}

#[expect(clippy::print_stdout, reason = "a skip is told")]
fn kubectl_is_missing() -> bool {
    let found = Command::new("kubectl").args(["version", "--client"]).output();
    if let Err(error) = &found {
        println!("skipped: kubectl is not on this machine ({error})");
    }
    found.is_err()
}

/// Ends with the test.
struct Running(Child);

impl Drop for Running {
    fn drop(&mut self) {
        // It may have ended by itself.
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn kubectl_applies_waits_shows_and_deletes() {
    if kubectl_is_missing() {
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

#[tokio::test(flavor = "multi_thread")]
async fn a_namespace_is_made_filled_watched_and_emptied() {
    if kubectl_is_missing() {
        return;
    }
    let ember = Ember::start().await;
    let kubectl = Kubectl { ember: &ember, home: tempfile::tempdir().unwrap() };
    assert_eq!(kubectl.says(&["create", "namespace", "team"]), "namespace/team created\n");
    kubectl.says(&["create", "configmap", "greeting", "-n", "team", "--from-literal=words=hello there"]);
    let file = kubectl.home.path().join("talker.yaml");
    let manifest = r#"
apiVersion: serving.knative.dev/v1
kind: Service
metadata: { name: talker, namespace: team }
spec:
  template:
    metadata: { annotations: { autoscaling.knative.dev/min-scale: "1" } }
    spec:
      containers:
      - { name: web, image: dev.local/host, command: [ember, demo-app, hello], ports: [{ containerPort: 8080 }] }
      - name: app
        image: dev.local/host
        command: [sh, -c, "echo first; echo $WORDS; exec sleep 1000"]
        env: [{ name: WORDS, valueFrom: { configMapKeyRef: { name: greeting, key: words } } }]
"#;
    std::fs::write(&file, manifest).unwrap();
    kubectl.says(&["apply", "-f", file.to_str().unwrap()]);
    kubectl.says(&["wait", "--for=condition=Ready", "ksvc/talker", "-n", "team", "--timeout=60s"]);

    let pod = kubectl.says(&["get", "pods", "-n", "team", "-o", "jsonpath={.items[0].metadata.name}"]);
    let logs = |more: &[&str]| kubectl.says(&[&["logs", &pod, "-n", "team", "-c", "app"], more].concat());
    assert!(logs(&[]).starts_with("first\nhello there\n"));
    assert!(logs(&["--limit-bytes=3"]).starts_with("fir"));
    assert!(logs(&["--timestamps"]).lines().next().unwrap().ends_with("Z first"));
    assert!(logs(&["--since=1h"]).contains("hello there"));
    assert_eq!(logs(&["--since-time=2100-01-01T00:00:00Z"]), "");
    let error = kubectl.refused(&["logs", &pod, "-n", "team", "-c", "app", "--previous"]);
    assert!(error.contains("previous terminated container \"app\" in pod"), "{error}");
    let path = format!("/api/v1/namespaces/team/pods/{pod}/log?container=no");
    let error = kubectl.refused(&["get", "--raw", &path]);
    assert!(error.contains("choose one of: [web app queue-proxy]"), "{error}");

    let mut follow = kubectl.command(&["logs", "-f", &pod, "-n", "team", "-c", "app"]);
    let mut follow = Running(follow.stdout(Stdio::piped()).spawn().unwrap());
    let mut lines = BufReader::new(follow.0.stdout.take().unwrap()).lines();
    assert_eq!(lines.next().unwrap().unwrap(), "first");

    let events = kubectl.says(&["get", "events", "-n", "team"]);
    assert!(events.contains("Created Configuration \"talker\""), "{events}");
    let described = kubectl.says(&["describe", "ksvc", "talker", "-n", "team"]);
    assert!(described.contains("Events:") && described.contains("Created Route \"talker\""), "{described}");
    for (kinds, heading) in [
        ("revisions", "CONFIG NAME"),
        ("kpa", "DESIREDSCALE"),
        ("sks", "PRIVATESERVICENAME"),
        ("king", "READY"),
        ("pods", "NODE"),
        ("deployments", "SELECTOR"),
        ("endpoints", "ENDPOINTS"),
    ] {
        let table = kubectl.says(&["get", kinds, "-n", "team", "-o", "wide"]);
        assert!(table.contains(heading), "{table}");
    }

    // An object that somebody holds back is told of; the rest goes.
    kubectl.says(&[
        "patch",
        "cm",
        "greeting",
        "-n",
        "team",
        "-p",
        r#"{"metadata":{"finalizers":["test/held"]}}"#,
    ]);
    let deleted = kubectl.command(&["delete", "ns", "team", "--timeout=60s"]).stdout(Stdio::piped()).spawn();
    let mut deleted = Running(deleted.unwrap());
    let condition = "--for=condition=NamespaceFinalizersRemaining";
    kubectl.says(&["wait", condition, "ns/team", "--timeout=60s"]);
    let path = "jsonpath={.status.conditions[?(@.type=='NamespaceFinalizersRemaining')].message}";
    // What the controllers hold back goes by itself.
    eventually("what is held back alone is left", PATIENCE, || async {
        let message = kubectl.says(&["get", "ns", "team", "-o", path]);
        let is_left = message.ends_with("finalizers remaining: test/held in 1 resource instances");
        if is_left { Ok(()) } else { Err(message) }
    })
    .await;
    let error = kubectl.refused(&["create", "configmap", "late", "-n", "team"]);
    assert!(error.contains("because it is being terminated"), "{error}");
    kubectl.says(&[
        "patch",
        "cm",
        "greeting",
        "-n",
        "team",
        "--type=merge",
        "-p",
        r#"{"metadata":{"finalizers":null}}"#,
    ]);
    assert!(deleted.0.wait().unwrap().success());
    assert_eq!(kubectl.says(&["get", "cm,secrets,ksvc,revisions,pods,events", "-n", "team"]), "");
    // The log that was followed ended with its container.
    assert!(lines.all(|line| line.is_ok()));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_pod_in_trouble_is_shown_and_described() {
    if kubectl_is_missing() {
        return;
    }
    let ember = Ember::start().await;
    let kubectl = Kubectl { ember: &ember, home: tempfile::tempdir().unwrap() };
    let file = kubectl.home.path().join("pod.yaml");
    let manifest = r#"
apiVersion: apps/v1
kind: Deployment
metadata:
  name: troubled
spec:
  replicas: 1
  selector: {matchLabels: {app: troubled}}
  template:
    metadata: {labels: {app: troubled}}
    spec:
      initContainers:
      - {name: first, image: dev.local/host, command: [sh, -c, "echo nope; exit 5"]}
      containers:
      - {name: app, image: dev.local/host, command: [sleep, "100"]}
"#;
    std::fs::write(&file, manifest).unwrap();
    kubectl.says(&["apply", "-f", file.to_str().unwrap()]);
    let shown = async |what: &str, arguments: &[&str], parts: &[&str]| {
        eventually(what, PATIENCE, || async {
            let text = kubectl.says(arguments);
            if parts.iter().all(|part| text.contains(part)) { Ok(()) } else { Err(text) }
        })
        .await;
    };
    shown("its state", &["get", "pods"], &["Init:CrashLoopBackOff"]).await;
    let told =
        ["Exit Code:    5", "nope", "BackOff", "kubelet", "Back-off restarting failed container first"];
    shown("its events", &["describe", "pods"], &told).await;
    shown("all events", &["get", "events"], &["pod/troubled-"]).await;
}
