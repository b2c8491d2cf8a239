//! One running `ember up`, with a data folder and ports of its own.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use serde_json::json;
use tempfile::TempDir;

use crate::{PATIENCE, api, eventually};

/// The built `ember`: `$EMBER_BIN`, or the one beside the running test.
#[must_use]
pub fn program() -> PathBuf {
    if let Some(path) = std::env::var_os("EMBER_BIN") {
        return path.into();
    }
    let test = std::env::current_exe().expect("the test's own path");
    let profile = test.ancestors().nth(2).expect("a test lies in target/<profile>/deps");
    let program = profile.join("ember");
    assert!(
        program.exists(),
        "{} is missing: run `cargo test --workspace`, or build it first",
        program.display()
    );
    program
}

/// A running instance. Dropping it ends it, and shows what it said if the test is failing.
pub struct Ember {
    child: Child,
    dir: Arc<TempDir>,
    said: Arc<Mutex<VecDeque<String>>>,
    /// Where the gateway listens.
    pub gateway: SocketAddr,
    /// The kubeconfig it wrote.
    pub kubeconfig: PathBuf,
    /// A client of its API.
    pub client: kube::Client,
}

/// How many of the last lines of output are kept.
const KEPT: usize = 400;

impl Ember {
    /// Starts an instance on a new data folder and waits until its gateway listens.
    pub async fn start() -> Self {
        Self::start_with(&[]).await
    }

    /// The same with further arguments of `ember up`.
    pub async fn start_with(arguments: &[&str]) -> Self {
        Self::start_by(&[], arguments).await
    }

    /// The same by another program, which gets the command line as further arguments and has to become what they say,
    /// as `env` does.
    pub async fn start_by(starter: &[&str], arguments: &[&str]) -> Self {
        Self::start_by_in(Arc::new(folder()), starter, arguments).await
    }

    /// The same on a folder of the caller's, in which the data folder is made.
    pub async fn start_on(folder: TempDir, starter: &[&str]) -> Self {
        Self::start_by_in(Arc::new(folder), starter, &[]).await
    }

    /// The same on the data folder `data` in `dir`, which may be one of before.
    pub async fn start_in(dir: Arc<TempDir>, arguments: &[&str]) -> Self {
        Self::start_by_in(dir, &[], arguments).await
    }

    async fn start_by_in(dir: Arc<TempDir>, starter: &[&str], arguments: &[&str]) -> Self {
        let gateway: &[&str] = if arguments.contains(&"--http") { &[] } else { &["--http", "127.0.0.1:0"] };
        let mut child = command(dir.path(), starter, gateway)
            .args(arguments)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("ember starts");
        let said = Arc::new(Mutex::new(VecDeque::new()));
        let (lines, out) = mpsc::channel();
        listen(child.stdout.take().expect("piped"), "out", Arc::clone(&said), Some(lines));
        listen(child.stderr.take().expect("piped"), "err", Arc::clone(&said), None);
        let (mut gateway, mut kubeconfig) = (None, None);
        let told = tokio::task::spawn_blocking(move || {
            while gateway.is_none() || kubeconfig.is_none() {
                let line = out.recv_timeout(PATIENCE).ok()?;
                let mut words = line.split_whitespace();
                match (words.next(), words.next()) {
                    (Some("gateway"), Some(url)) => {
                        gateway = url.strip_prefix("http://").and_then(|a| a.parse().ok());
                    }
                    (Some("kubeconfig"), Some(path)) => kubeconfig = Some(PathBuf::from(path)),
                    _ => {}
                }
            }
            Some((gateway?, kubeconfig?))
        });
        let Some((gateway, kubeconfig)) = told.await.expect("no panic") else {
            let _ = child.kill();
            panic!("ember up did not come up:\n{}", text(&said));
        };
        let config = Kubeconfig::read_from(&kubeconfig).expect("a kubeconfig");
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await;
        let client = kube::Client::try_from(config.expect("a usable kubeconfig")).expect("a client");
        Self { child, dir, said, gateway, kubeconfig, client }
    }

    /// Ends the process with SIGKILL and starts another on the same data folder.
    pub async fn crash_and_restart(self) -> Self {
        self.crash().start().await
    }

    /// Ends the process with SIGKILL; what is left of it is its folder.
    pub fn crash(mut self) -> Remains {
        self.child.kill().expect("a running process");
        self.child.wait().expect("a child");
        Remains { dir: Arc::clone(&self.dir) }
    }

    /// Ctrl-C; returns how long it took, and whether it ended well.
    pub fn interrupt(&mut self) -> (Duration, bool) {
        let begun = std::time::Instant::now();
        kill(self.pid(), Signal::SIGINT).expect("a running process");
        let status = self.child.wait().expect("a child");
        (begun.elapsed(), status.success())
    }

    /// The process.
    #[must_use]
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).expect("a pid"))
    }

    /// The data folder.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// What it has printed so far, errors included.
    #[must_use]
    pub fn output(&self) -> String {
        text(&self.said)
    }

    /// Runs a command of the `ember` program against this instance, with `input` as standard input.
    #[must_use]
    pub fn run(&self, arguments: &[&str], input: &str) -> Output {
        run(&program(), arguments, &self.kubeconfig, input)
    }

    /// `ember apply -f -`; panics when it fails.
    pub fn apply(&self, manifest: &str) {
        let output = self.run(&["apply", "-f", "-"], manifest);
        assert!(output.status.success(), "apply: {}\n{manifest}", String::from_utf8_lossy(&output.stderr));
    }

    /// Sets keys of config-autoscaler.
    pub async fn configure_autoscaler(&self, data: &serde_json::Value) {
        api::merge(
            &self.client,
            "/api/v1/namespaces/knative-serving/configmaps/config-autoscaler",
            &json!({"data": data}),
        )
        .await
        .expect("config-autoscaler takes the keys");
    }

    /// Waits until a service of namespace `default` is Ready.
    pub async fn ready(&self, service: &str) {
        let path = format!("/apis/serving.knative.dev/v1/namespaces/default/services/{service}");
        eventually(&format!("{service} Ready"), PATIENCE, || async {
            let object = api::get(&self.client, &path).await.map_err(|e| e.to_string())?;
            let current = object["status"]["observedGeneration"] == object["metadata"]["generation"];
            match api::condition(&object, "Ready") {
                Some(ready) if current && ready["status"] == "True" => Ok(()),
                other => Err(format!("{other:?}")),
            }
        })
        .await;
    }

    /// Waits until exactly `count` pods of a service's current or older revisions are there and none is ending.
    pub async fn pods(&self, service: &str, count: usize) {
        self.pods_within(service, count..=count, PATIENCE).await;
    }

    /// The same for a range, with a deadline.
    pub async fn pods_within(
        &self,
        service: &str,
        range: std::ops::RangeInclusive<usize>,
        patience: Duration,
    ) {
        eventually(&format!("{service} with {range:?} pods"), patience, || async {
            let pods = self.running(service).await;
            if range.contains(&pods.len()) { Ok(()) } else { Err(pods) }
        })
        .await;
    }

    /// Names of a service's pods that are not ending.
    pub async fn running(&self, service: &str) -> Vec<String> {
        let path = format!(
            "/api/v1/namespaces/default/pods?labelSelector=serving.knative.dev%2Fservice%3D{service}"
        );
        let list = api::get(&self.client, &path).await.unwrap_or_default();
        let pods = list["items"].as_array().cloned().unwrap_or_default();
        let alive = pods.iter().filter(|pod| pod["metadata"]["deletionTimestamp"].is_null());
        alive.filter_map(|pod| pod["metadata"]["name"].as_str().map(str::to_owned)).collect()
    }
}

/// What an instance that was killed has left.
pub struct Remains {
    dir: Arc<TempDir>,
}

impl Remains {
    /// The data folder.
    #[must_use]
    pub fn data_dir(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    /// Starts another instance on the same data folder.
    pub async fn start(self) -> Ember {
        Ember::start_in(self.dir, &[]).await
    }

    /// Starts another instance and ends it with SIGKILL after `life`, wherever its start has got to by then.
    pub async fn start_and_crash(&self, life: Duration) {
        let mut child = command(self.dir.path(), &[], &["--http", "127.0.0.1:0"])
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn()
            .expect("ember starts");
        tokio::time::sleep(life).await;
        child.kill().expect("a child");
        child.wait().expect("a child");
    }
}

/// `ember up` on the data folder in `dir`, by `starter` if there is one.
fn command(dir: &Path, starter: &[&str], arguments: &[&str]) -> Command {
    let mut command = match starter {
        [] => Command::new(program()),
        [starter, first @ ..] => {
            let mut command = Command::new(starter);
            command.args(first).arg(program());
            command
        }
    };
    command.args(["up", "--api", "127.0.0.1:0", "--data-dir"]).arg(dir.join("data")).args(arguments);
    command.stdin(Stdio::null());
    command
}

impl Drop for Ember {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("what ember said:\n{}", self.output());
        }
    }
}

/// A folder for an instance.
#[must_use]
pub fn folder() -> TempDir {
    tempfile::Builder::new().prefix("ember-test-").tempdir().expect("a temporary folder")
}

/// Runs a program with a kubeconfig for `ember` and kubectl alike.
#[must_use]
pub fn run(program: &Path, arguments: &[&str], kubeconfig: &Path, input: &str) -> Output {
    let mut child = Command::new(program)
        .args(arguments)
        .env("EMBER_KUBECONFIG", kubeconfig)
        .env("KUBECONFIG", kubeconfig)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("the program starts");
    let mut stdin = child.stdin.take().expect("piped");
    // A program that reads no input may be gone already.
    let _ = stdin.write_all(input.as_bytes());
    drop(stdin);
    child.wait_with_output().expect("a child")
}

fn text(said: &Mutex<VecDeque<String>>) -> String {
    said.lock().map(|lines| lines.iter().cloned().collect::<Vec<_>>().join("\n")).unwrap_or_default()
}

fn listen(
    stream: impl Read + Send + 'static,
    name: &'static str,
    said: Arc<Mutex<VecDeque<String>>>,
    lines: Option<mpsc::Sender<String>>,
) {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            if let Ok(mut said) = said.lock() {
                if said.len() == KEPT {
                    said.pop_front();
                }
                said.push_back(format!("{name}: {line}"));
            }
            if let Some(lines) = &lines {
                let _ = lines.send(line);
            }
        }
    });
}
