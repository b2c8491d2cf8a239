//! The README's commands do what it says.

#![expect(clippy::expect_used, reason = "a test may panic to fail")]

use std::process::Command;

use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;

/// The commands of the README's shell blocks, in order.
fn commands() -> Vec<String> {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../README.md");
    let text = std::fs::read_to_string(path).expect("the README");
    let mut commands = Vec::new();
    let mut inside = false;
    for line in text.lines() {
        match line {
            "```sh" => inside = true,
            "```" => inside = false,
            command if inside => commands.push(command.to_owned()),
            _ => {}
        }
    }
    commands
}

#[tokio::test(flavor = "multi_thread")]
async fn its_commands_work() {
    let commands = commands();
    let [up, curl, test] = commands.as_slice() else { panic!("{commands:?}") };
    assert_eq!(test, "cargo test --workspace");

    // The first command with this build instead of a release build, and free ports instead of the usual ones.
    let arguments = up.strip_prefix("cargo run --release -- up ").expect("README command 1");
    let root = concat!(env!("CARGO_MANIFEST_DIR"), "/..");
    let arguments: Vec<String> =
        arguments.split(' ').map(|word| word.replace("samples/", &format!("{root}/samples/"))).collect();
    let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
    let ember = Ember::start_with(&arguments).await;
    ember.ready("hello").await;

    let url = curl.strip_prefix("curl ").expect("README command 2");
    assert_eq!(url, "http://hello.default.localhost:8080");
    assert_eq!(Client::new(ember.gateway).ok(&host("hello"), "/").await, "Hello Ember!\n");
    let url = url.replace("8080", &ember.gateway.port().to_string());
    match Command::new("curl").args(["--silent", "--show-error", "--max-time", "30", &url]).output() {
        Ok(output) => assert_eq!(String::from_utf8_lossy(&output.stdout), "Hello Ember!\n", "{output:?}"),
        Err(error) => {
            println!("curl is not on this machine ({error}): its request was made by our own client only");
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_sample_becomes_ready() {
    let samples = concat!(env!("CARGO_MANIFEST_DIR"), "/../samples");
    let ember = Ember::start_with(&["-f", samples]).await;
    for service in ["autoscale", "blue-green", "canary", "hello"] {
        ember.ready(service).await;
        Client::new(ember.gateway).ok(&host(service), "/").await;
    }
}
