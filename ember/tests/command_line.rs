//! The `ember` program as a person at a terminal meets it, without a running instance.

#![expect(clippy::expect_used, reason = "a test may panic to fail")]

use std::process::{Command, Output, Stdio};

fn ember(arguments: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_ember"))
        .args(arguments)
        .env("XDG_DATA_HOME", "/nonexistent")
        .env_remove("EMBER_KUBECONFIG")
        .output()
        .expect("ember runs")
}

fn refusal(arguments: &[&str]) -> String {
    let output = ember(arguments);
    assert!(!output.status.success(), "{arguments:?} was accepted");
    String::from_utf8_lossy(&output.stderr).into_owned()
}

#[test]
fn help_names_every_command() {
    let output = ember(&["--help"]);
    let help = String::from_utf8_lossy(&output.stdout);
    for command in [
        "up",
        "apply",
        "get",
        "delete",
        "logs",
        "wait",
        "completions",
        "activator",
        "autoscaler",
        "controller",
        "ingress",
        "crds",
        "simulate",
        "demo-app",
    ] {
        assert!(help.contains(&format!("\n  {command}")), "{command} in {help}");
    }
}

#[test]
fn without_an_instance_the_kubeconfig_is_named() {
    for arguments in [vec!["get", "ksvc"], vec!["delete", "ksvc", "a"], vec!["logs", "a"]] {
        let error = refusal(&arguments);
        assert!(error.contains("/nonexistent/ember/kubeconfig") && error.contains("ember up"), "{error}");
    }
}

#[test]
fn bad_arguments_are_named() {
    for (arguments, part) in [
        (vec!["up", "--http", "nowhere"], "--http"),
        (vec!["up", "--workers", "none"], "--workers"),
        (vec!["up", "--log", "=x"], "log"),
        (vec!["up", "-f", "/nonexistent/hello.yaml"], "/nonexistent/hello.yaml"),
        (vec!["apply", "-f", "/nonexistent"], "/nonexistent"),
        (vec!["apply", "-f", "/dev/null"], "there is no object in /dev/null"),
        (vec!["up", "--data-dir", "/proc/ember"], "--data-dir"),
        (vec!["up", "--without", "kubelet"], "controller"),
        (vec!["up", "--without", "ingress", "--http", "127.0.0.1:0"], "a port is needed"),
        (vec!["wait", "ksvc/a", "--for", "jsonpath={.a}"], "condition=TYPE"),
        (vec!["wait", "ksvc/a", "--timeout", "5"], "--timeout"),
        (vec!["doctor", "pod", "a"], "ember doctor ksvc hello"),
        (vec!["demo-app", "nothing"], "nothing"),
    ] {
        let error = refusal(&arguments);
        assert!(error.contains(part), "{part:?} in {error}");
    }
}

#[test]
fn the_demo_app_says_which_variable_is_wrong() {
    for (name, value) in [("PORT", "many"), ("HOST", "here")] {
        let output = Command::new(env!("CARGO_BIN_EXE_ember"))
            .args(["demo-app", "hello"])
            .env(name, value)
            .output()
            .expect("ember runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains(name) && error.contains(value), "{error}");
    }
}

#[test]
fn shells_are_told_every_command() {
    for shell in ["bash", "zsh", "fish"] {
        let output = ember(&["completions", shell]);
        let script = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success());
        for word in ["simulate", "wait", "kubeconfig", "without"] {
            assert!(script.contains(word), "{word} for {shell}");
        }
    }
    assert!(refusal(&["completions", "cmd"]).contains("bash"));
}

#[test]
fn a_reader_that_leaves_is_no_panic() {
    for arguments in [&["completions", "bash"][..], &["crds"]] {
        let mut command = Command::new(env!("CARGO_BIN_EXE_ember"));
        let mut child =
            command.args(arguments).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        drop(child.stdout.take());
        let output = child.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(!said.contains("panicked"), "{arguments:?}: {said}");
    }
}

#[test]
fn roles_name_what_they_lack() {
    for role in ["controller", "ingress"] {
        let output = Command::new(env!("CARGO_BIN_EXE_ember"))
            .arg(role)
            .env_remove("SYSTEM_NAMESPACE")
            .output()
            .expect("ember runs");
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success() && error.contains("SYSTEM_NAMESPACE"), "{error}");
    }
}

#[test]
fn the_definitions_are_yaml_documents_of_every_kind() {
    let output = ember(&["crds"]);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text.matches("\nkind: CustomResourceDefinition\n").count(), text.matches("---\n").count());
    for name in ["services.serving.knative.dev", "podautoscalers.autoscaling.internal.knative.dev"] {
        assert!(text.contains(&format!("  name: {name}\n")), "{name}");
    }
}
