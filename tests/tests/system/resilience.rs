//! Processes that are killed, apps that keep a client waiting, and streams, through all hops from gateway to app.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream as AppStream};

use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;
use ember_tests::load::Load;
use ember_tests::{PATIENCE, api, eventually};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::manifests::service;

/// A service whose app is [`app`], in this very program.
fn scripted(name: &str, annotations: &[(&str, &str)], spec: &Value) -> Value {
    let mut service = service(name, "hello", annotations);
    let template = &mut service["spec"]["template"]["spec"];
    for (key, value) in spec.as_object().into_iter().flatten() {
        template[key] = value.clone();
    }
    let program = std::env::current_exe().unwrap();
    template["containers"][0]["command"] = json!([program.to_str().unwrap()]);
    template["containers"][0]["args"] = json!(["--exact", "--ignored", "resilience::app"]);
    service
}

/// Not a test: the app that the tests of this file start as a service.
#[test]
#[ignore = "an app for the other tests, not a test"]
fn app() {
    let Ok(port) = std::env::var("PORT") else { return };
    let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).unwrap();
    for stream in listener.incoming() {
        let stream = stream.unwrap();
        // A client that goes away ends its exchange only.
        std::thread::spawn(move || drop(serve(&stream)));
    }
}

fn serve(stream: &AppStream) -> std::io::Result<()> {
    stream.set_nodelay(true)?;
    let (mut reader, mut writer) = (BufReader::new(stream), stream);
    loop {
        let mut head = String::new();
        while !head.ends_with("\r\n\r\n") {
            if reader.read_line(&mut head)? == 0 {
                return Ok(());
            }
        }
        match head.split(' ').nth(1).unwrap_or_default() {
            "/early" => {
                return writer.write_all(
                    b"HTTP/1.1 413 Too Large\r\nconnection: close\r\ncontent-length: 8\r\n\r\ntoo long",
                );
            }
            "/echo" => {
                // Chunks come back as they are.
                writer
                    .write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: seen\r\n\r\n")?;
                let mut line = String::new();
                while line != "0\r\n" {
                    line.clear();
                    reader.read_line(&mut line)?;
                    if line != "0\r\n" {
                        writer.write_all(line.as_bytes())?;
                    }
                }
                writer.write_all(b"0\r\nseen: all\r\n\r\n")?;
                reader.read_line(&mut line)?;
            }
            "/talk" => {
                writer.write_all(
                    b"HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
                )?;
                std::io::copy(&mut reader, &mut writer)?;
                return Ok(());
            }
            "/silent" => {
                reader.read_to_end(&mut Vec::new())?;
                return Ok(());
            }
            "/stall" => {
                writer.write_all(b"HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n5\r\nbegun\r\n")?;
                reader.read_to_end(&mut Vec::new())?;
                return Ok(());
            }
            path => {
                let length = head.to_lowercase().lines().find_map(|line| {
                    line.strip_prefix("content-length: ").and_then(|length| length.parse().ok())
                });
                reader.read_exact(&mut vec![0; length.unwrap_or(0)])?;
                let name = path.trim_start_matches('/');
                let text = match name {
                    "pid" => std::process::id().to_string(),
                    name => std::env::var(name).unwrap_or_else(|_| "unset".to_owned()),
                };
                write!(writer, "HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{text}", text.len())?;
            }
        }
    }
}

/// What a client sees that speaks for itself.
struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    async fn connect(ember: &Ember) -> Self {
        Self { stream: TcpStream::connect(ember.gateway).await.unwrap(), read: Vec::new() }
    }

    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads until `text` has come; returns everything up to it and forgets it.
    async fn until(&mut self, text: &str) -> String {
        let read = async {
            loop {
                let seen = String::from_utf8_lossy(&self.read).into_owned();
                if let Some(at) = seen.find(text) {
                    self.read.drain(..at + text.len());
                    return Ok(seen[..at + text.len()].to_owned());
                }
                match self.stream.read_buf(&mut self.read).await {
                    Ok(read) if read > 0 => {}
                    ended => return Err(format!("{ended:?} after {seen:?}")),
                }
            }
        };
        tokio::time::timeout(PATIENCE, read)
            .await
            .unwrap()
            .unwrap_or_else(|seen| panic!("no {text:?}: {seen}"))
    }
}

fn is_alive(pid: i32) -> bool {
    // What has ended and is not reaped yet is a zombie.
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.rsplit_once(") ").is_some_and(|(_, rest)| !rest.starts_with('Z'))
}

async fn gone(pid: i32) {
    eventually(&format!("process {pid} ended"), PATIENCE, || async move {
        if is_alive(pid) { Err(pid) } else { Ok(()) }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn an_app_that_is_killed_under_load_costs_at_most_what_was_in_flight_on_it() {
    const CLIENTS: usize = 6;
    let ember = Ember::start().await;
    ember.apply(&scripted("mortal", &[("min-scale", "2"), ("max-scale", "2")], &json!({})).to_string());
    ember.ready("mortal").await;
    let load = Load::start(ember.gateway, &host("mortal"), "/pid", CLIENTS);
    let client = Client::new(ember.gateway);
    let mut killed = Vec::new();
    for _ in 0..2 {
        let pid: i32 = client.ok(&host("mortal"), "/pid").await.parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        gone(pid).await;
        killed.push(pid.to_string());
        eventually("its successor answers", PATIENCE, || async {
            let answers = load.tally().answers;
            if answers.len() >= 2 + killed.len() { Ok(()) } else { Err(answers) }
        })
        .await;
    }
    let tally = load.stop().await;
    let lost = tally.failures.len();
    assert!(
        lost <= CLIENTS * killed.len() && tally.failures.iter().all(|failure| failure.ends_with("EOF")),
        "{lost} of {}: {:?}",
        tally.answered(),
        tally.failures
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn requests_go_around_an_app_that_crashes_again_and_again() {
    const CLIENTS: usize = 8;
    let ember = Ember::start().await;
    ember.apply(&scripted("looping", &[("min-scale", "2"), ("max-scale", "2")], &json!({})).to_string());
    ember.ready("looping").await;
    let load = Load::post(ember.gateway, &host("looping"), "/pid", "some body", CLIENTS);
    let pids = async |count: usize| {
        eventually("every app has answered", PATIENCE, || async {
            let answers = load.tally().answers;
            if answers.len() >= count { Ok(()) } else { Err(answers) }
        })
        .await;
        load.tally().answers.into_keys().collect::<Vec<_>>()
    };
    let both = pids(2).await;
    let (mut mortal, other) = (both[0].clone(), both[1].clone());
    let mut known = both;
    for count in 3..=4 {
        let pid = mortal.parse().unwrap();
        kill(Pid::from_raw(pid), Signal::SIGKILL).unwrap();
        gone(pid).await;
        // The first successor comes at once, the second after a back-off.
        let now = pids(count).await;
        mortal = now.iter().find(|pid| !known.contains(pid)).unwrap().clone();
        known = now;
    }
    let tally = load.stop().await;
    assert!(tally.answers[&other] > 100, "the other app has served meanwhile: {tally:?}");
    // What was under way in the app when it ended is lost.
    assert!(
        tally.failures.len() <= 2 * CLIENTS && tally.failures.iter().all(|failure| failure.ends_with("EOF")),
        "{tally:?}"
    );
    assert!(tally.slowest < std::time::Duration::from_secs(3), "{tally:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn no_app_outlives_its_helper_or_ember() {
    let mut ember = Ember::start().await;
    let window = [("window", "6s")];
    ember.apply(&scripted("tied", &window, &json!({})).to_string());
    ember.ready("tied").await;
    let first: i32 = Client::new(ember.gateway).ok(&host("tied"), "/pid").await.parse().unwrap();
    let helper = parent(first);
    kill(Pid::from_raw(helper), Signal::SIGKILL).unwrap();
    gone(first).await;

    let second: i32 = Client::new(ember.gateway).ok(&host("tied"), "/pid").await.parse().unwrap();
    ember = ember.crash_and_restart().await;
    gone(second).await;
    let third: i32 = Client::new(ember.gateway).ok(&host("tied"), "/pid").await.parse().unwrap();
    assert!(third != first && third != second);
}

fn parent(pid: i32) -> i32 {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_timeout_has_its_answer() {
    let ember = Ember::start().await;
    for (name, spec) in [
        ("total", json!({"timeoutSeconds": 1, "responseStartTimeoutSeconds": 1, "idleTimeoutSeconds": 1})),
        ("start", json!({"responseStartTimeoutSeconds": 1})),
        ("idle", json!({"idleTimeoutSeconds": 1})),
    ] {
        ember.apply(&scripted(name, &[], &spec).to_string());
    }
    let client = Client::new(ember.gateway);
    for (name, path, status, begun) in [
        ("total", "/silent", 504, ""),
        ("total", "/stall", 200, "begun"),
        ("start", "/silent", 504, ""),
        ("idle", "/silent", 504, ""),
        ("idle", "/stall", 200, "begun"),
    ] {
        ember.ready(name).await;
        let answer = client.get(&host(name), path).await.unwrap();
        // The activator and the sidecar hold the request to the same limits; who is first says so.
        let words = ["request timeout", "activator request timeout"].map(|words| format!("{begun}{words}"));
        assert_eq!(answer.status.as_u16(), status, "{name}{path}: {}", answer.text);
        assert!(words.contains(&answer.text), "{name}{path}: {}", answer.text);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn streams_flow_both_ways_and_upgrades_pass() {
    let ember = Ember::start().await;
    ember.apply(&scripted("stream", &[], &json!({})).to_string());
    ember.ready("stream").await;
    let start = |method: &str, path: &str, headers: &str| {
        format!("{method} {path} HTTP/1.1\r\nhost: {}\r\n{headers}\r\n", host("stream"))
    };

    // Every chunk comes back before the next is sent, the trailers at the end.
    let mut wire = Wire::connect(&ember).await;
    wire.send(&start("POST", "/echo", "transfer-encoding: chunked\r\nte: trailers\r\nconnection: te\r\n"))
        .await;
    for round in 0..20 {
        let chunk = format!("6\r\nping{round:02}\r\n");
        wire.send(&chunk).await;
        wire.until(&format!("ping{round:02}")).await;
    }
    wire.send("0\r\n\r\n").await;
    wire.until("seen: all\r\n").await;

    let mut wire = Wire::connect(&ember).await;
    wire.send(&start("GET", "/talk", "connection: upgrade\r\nupgrade: websocket\r\n")).await;
    let head = wire.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 101 "), "{head}");
    for round in 0..20 {
        wire.send(&format!("hello{round:02}")).await;
        wire.until(&format!("hello{round:02}")).await;
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_answer_before_the_end_of_a_long_request_arrives() {
    const LENGTH: usize = 20 << 20;
    let ember = Ember::start().await;
    ember.apply(&scripted("early", &[("min-scale", "1")], &json!({})).to_string());
    ember.ready("early").await;
    for _ in 0..10 {
        let mut wire = Wire::connect(&ember).await;
        wire.send(&format!(
            "POST /early HTTP/1.1\r\nhost: {}\r\ncontent-length: {LENGTH}\r\n\r\n",
            host("early")
        ))
        .await;
        let (mut read, mut write) = wire.stream.split();
        let upload = async {
            let piece = vec![b'x'; 1 << 16];
            // Cut off once the answer is there.
            while write.write_all(&piece).await.is_ok() {}
            std::future::pending::<()>().await;
        };
        let mut answer = vec![0; 24];
        let answered = async { read.read_exact(&mut answer).await };
        tokio::select! {
            read = tokio::time::timeout(PATIENCE, answered) => { read.unwrap().unwrap(); }
            () = upload => {}
        }
        assert!(answer.starts_with(b"HTTP/1.1 413 "), "{}", String::from_utf8_lossy(&answer));
        // Nobody else waits behind what was not read.
        assert_eq!(Client::new(ember.gateway).ok(&host("early"), "/K_SERVICE").await, "early");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn an_environment_comes_from_config_maps_and_secrets() {
    let ember = Ember::start().await;
    let objects = [
        (
            "configmaps",
            json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "settings"},
                              "data": {"COLOR": "green", "SIZE": "9"}}),
        ),
        (
            "secrets",
            json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "keys"},
                           "stringData": {"TOKEN": "hush"}}),
        ),
    ];
    for (plural, object) in &objects {
        api::create(&ember.client, &format!("/api/v1/namespaces/default/{plural}"), object).await.unwrap();
    }
    let mut service = scripted("environment", &[], &json!({}));
    let container = &mut service["spec"]["template"]["spec"]["containers"][0];
    container["envFrom"] = json!([{"prefix": "CFG_", "configMapRef": {"name": "settings"}},
                                  {"secretRef": {"name": "keys"}}]);
    container["env"] = json!([
        {"name": "SHADE", "valueFrom": {"configMapKeyRef": {"name": "settings", "key": "COLOR"}}},
        {"name": "KEY", "valueFrom": {"secretKeyRef": {"name": "keys", "key": "TOKEN"}}},
        {"name": "BOTH", "value": "$(CFG_COLOR)-$(KEY)"},
    ]);
    ember.apply(&service.to_string());
    ember.ready("environment").await;
    let client = Client::new(ember.gateway);
    for (name, value) in [
        ("CFG_COLOR", "green"),
        ("CFG_SIZE", "9"),
        ("TOKEN", "hush"),
        ("SHADE", "green"),
        ("KEY", "hush"),
        ("BOTH", "green-hush"),
        ("K_SERVICE", "environment"),
        ("COLOR", "unset"),
    ] {
        assert_eq!(client.ok(&host("environment"), &format!("/{name}")).await, value, "{name}");
    }
}
