//! The README's commands do what it says, and so do those of docs/getting-started.md.

#![expect(clippy::expect_used, reason = "a test may panic to fail")]

use std::process::Command;

use ember_tests::http::{Client, host};
use ember_tests::instance::{Ember, folder};
use ember_tests::{PATIENCE, eventually};
use http::StatusCode;

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

/// The blocks of a document with that language, in order.
fn blocks(text: &str, language: &str) -> Vec<String> {
    let begin = format!("```{language}\n");
    text.split(&begin).skip(1).filter_map(|rest| rest.split("```").next()).map(str::to_owned).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn getting_started_works() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/getting-started.md");
    let text = std::fs::read_to_string(path).expect("the document");
    let folder = folder();
    let place = folder.path().to_str().expect("a path of text");
    // The files it shows begin with their names.
    for file in [blocks(&text, "python"), blocks(&text, "yaml")].concat() {
        let name = file.lines().next().and_then(|line| line.strip_prefix("# ")).expect("the file's name");
        let content = file.replace("/srv/greeter", place);
        std::fs::write(folder.path().join(name), content).expect("the file");
    }
    let commands = blocks(&text, "sh");
    let commands: Vec<&str> = commands.iter().flat_map(|block| block.lines()).collect();
    let answers: Vec<&str> =
        text.split("The answer is `").skip(1).filter_map(|rest| rest.split('`').next()).collect();
    assert_eq!(commands.first(), Some(&"ember up"));
    let ember = Ember::start().await;
    let client = Client::new(ember.gateway);
    let mut answers = answers.into_iter();
    for command in &commands[1..] {
        let words: Vec<&str> = command.split(' ').collect();
        if let ["ember", arguments @ ..] = &words[..] {
            let path = |word: &str| {
                if word.ends_with(".yaml") { format!("{place}/{word}") } else { word.to_owned() }
            };
            let arguments: Vec<String> = arguments.iter().map(|word| path(word)).collect();
            let arguments: Vec<&str> = arguments.iter().map(String::as_str).collect();
            let output = ember.run(&arguments, "");
            assert!(output.status.success(), "{command}: {}", String::from_utf8_lossy(&output.stderr));
        } else {
            let host = command.strip_prefix("curl http://").and_then(|url| url.strip_suffix(":8080"));
            let answer = client.ok(host.expect("a request to the gateway"), "/").await;
            assert_eq!(Some(answer.trim_end()), answers.next(), "{command}");
        }
    }
    assert_eq!(answers.next(), None);
    let output = ember.run(&["apply", "-f", &format!("{place}/settings.yaml")], "");
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let url = text.split("the service above is `").nth(1).and_then(|rest| rest.split('`').next());
    let url = url.expect("its URL on a server");
    let shown = async || {
        let shown = ember.run(&["get", "ksvc", "greeter", "-o", "json"], "");
        let shown: serde_json::Value = serde_json::from_slice(&shown.stdout).unwrap_or_default();
        if shown["status"]["url"] == url { Ok(()) } else { Err(shown) }
    };
    eventually("the URL of the settings", PATIENCE, shown).await;
    let host = url.strip_prefix("https://").expect("a URL of HTTPS");
    let asked = async || match client.get(host, "/").await {
        Ok(answer) if answer.status == StatusCode::OK => Ok(()),
        other => Err(other),
    };
    eventually("the gateway's new host", PATIENCE, asked).await;
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
