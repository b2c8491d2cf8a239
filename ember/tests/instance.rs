//! The `ember` program as a person at a terminal meets it, beside a running instance.

#![expect(clippy::unwrap_used, reason = "a test may panic to fail")]

use std::io::{BufRead, BufReader, Write};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;

/// `ember up` with a data folder and ports of its own.
struct Instance {
    child: Child,
    data: TempDir,
}

impl Instance {
    fn start() -> Self {
        let data = tempfile::tempdir().unwrap();
        let mut child = Command::new(env!("CARGO_BIN_EXE_ember"))
            .args(["up", "--http", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data-dir"])
            .arg(data.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let up = lines.by_ref().map_while(Result::ok).any(|line| line.trim().starts_with("limits"));
        assert!(up, "it came up");
        // What it says later has to be taken, or it would find nobody to tell.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, data }
    }

    fn run(&self, arguments: &[&str], input: &str) -> Output {
        let mut child = Command::new(env!("CARGO_BIN_EXE_ember"))
            .args(arguments)
            .env("EMBER_KUBECONFIG", self.data.path().join("kubeconfig"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let mut stdin = child.stdin.take().unwrap();
        // A program that reads no input may be gone already.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        child.wait_with_output().unwrap()
    }

    fn ok(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert!(output.status.success(), "{arguments:?}: {}", text(&output.stderr));
        text(&output.stdout)
    }

    fn refusal(&self, arguments: &[&str], input: &str) -> String {
        let output = self.run(arguments, input);
        assert_eq!(output.status.code(), Some(1), "{arguments:?}: {}", text(&output.stdout));
        text(&output.stderr)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        let pid = Pid::from_raw(i32::try_from(self.child.id()).unwrap());
        let _ = kill(pid, Signal::SIGTERM);
        let _ = self.child.wait();
    }
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8_lossy(bytes).into_owned()
}

fn service(name: &str, image: &str, command: &str) -> String {
    format!(
        "apiVersion: serving.knative.dev/v1\nkind: Service\nmetadata: {{name: {name}}}\nspec:\n  template:\n    \
         spec:\n      containers:\n      - image: {image}\n        command: {command}\n"
    )
}

#[test]
fn wait_ends_when_the_condition_is_met_and_says_what_was_wrong_when_it_is_not() {
    let instance = Instance::start();
    let apply = |manifest: &str| instance.ok(&["apply", "-f", "-"], manifest);
    apply(&service("hello", "dev.local/host", "[ember, demo-app, hello]"));
    assert_eq!(
        instance.ok(&["wait", "ksvc/hello", "--for=condition=Ready"], ""),
        "service/hello condition met\n"
    );
    assert_eq!(instance.ok(&["wait", "ksvc", "--all"], ""), "service/hello condition met\n");
    let said =
        instance.ok(&["wait", "ksvc", "hello", "--for=condition=RoutesReady=True", "--timeout=0s"], "");
    assert_eq!(said, "service/hello condition met\n");

    apply(&service("foreign", "docker.io/library/nginx", "[nginx]"));
    let begun = Instant::now();
    let error = instance.refusal(&["wait", "ksvc/hello", "ksvc/foreign", "--timeout=1s"], "");
    assert!(begun.elapsed() >= Duration::from_secs(1));
    for part in ["service/foreign: Ready is False", "within 1s", "ember doctor"] {
        assert!(error.contains(part), "{part:?} in {error}");
    }
    assert!(!error.contains("service/hello"), "{error}");
    assert!(instance.refusal(&["wait", "ksvc/nobody"], "").contains("there is no object of that name"));

    let left = instance.refusal(&["wait", "ksvc/hello", "--for=delete", "--timeout=0s"], "");
    assert!(left.contains("service/hello: it is there"), "{left}");
    instance.ok(&["delete", "ksvc", "hello"], "");
    assert_eq!(instance.ok(&["wait", "ksvc/hello", "--for=delete"], ""), "service/hello deleted\n");
}

#[test]
fn the_doctor_finds_the_cause_and_knows_a_remedy() {
    let instance = Instance::start();
    let crash = "[sh, -c, \"echo last words; exit 3\"]";
    for (name, image, command) in [
        ("hello", "dev.local/host", "[ember, demo-app, hello]"),
        ("crash", "dev.local/host", crash),
        ("absent", "dev.local/host", "[/nonexistent/app]"),
        ("deaf", "dev.local/host", "[sleep, infinity]"),
        ("foreign", "docker.io/library/nginx", "[nginx]"),
    ] {
        instance.ok(&["apply", "-f", "-"], &service(name, image, command));
    }
    instance.ok(&["wait", "ksvc/hello"], "");
    let well = instance.ok(&["doctor", "ksvc", "hello"], "");
    assert!(well.contains("ok      service hello: ready at http://hello.default.localhost"), "{well}");
    for (name, cause, remedy) in [
        ("crash", "user-container ended with code 3", "| last words"),
        ("absent", "cannot be started", "check command"),
        ("deaf", "does not answer its readiness probe", "$PORT (8080)"),
        ("foreign", "does not pull images", "image dev.local/host"),
    ] {
        let deadline = Instant::now() + Duration::from_secs(60);
        loop {
            let output = instance.run(&["doctor", &format!("ksvc/{name}")], "");
            let said = text(&output.stdout);
            if output.status.code() == Some(1) && said.contains(cause) && said.contains(remedy) {
                break;
            }
            assert!(Instant::now() < deadline, "{name}: {said}");
        }
    }
    let machine = instance.run(&["doctor", "--output", "json"], "");
    assert_eq!(machine.status.code(), Some(1), "services are broken");
    let report: serde_json::Value = serde_json::from_slice(&machine.stdout).unwrap();
    let about: Vec<&str> =
        report["findings"].as_array().unwrap().iter().filter_map(|f| f["about"].as_str()).collect();
    for part in
        ["system", "open files", "data folder", "instances", "API server", "services", "service foreign"]
    {
        assert!(about.contains(&part), "{part} in {about:?}");
    }
    assert!(!about.contains(&"service hello"), "{about:?}");
    assert!(instance.refusal(&["doctor", "pod", "a"], "").contains("ember doctor ksvc hello"));
}

#[test]
fn errors_tell_what_to_do() {
    let instance = Instance::start();
    for (arguments, input, parts) in [
        (&["get", "kvsc"][..], "", &["\"kvsc\"", "did you mean Service of serving.knative.dev/v1"][..]),
        (
            &["apply", "-f", "-"],
            "apiVersion: serving.knative.dev/v1\nkind: Sevice\nmetadata: {name: a}\n",
            &["document 1 (line 1)", "did you mean Service of serving.knative.dev/v1"],
        ),
        (
            &["apply", "-f", "-"],
            "kind: A\n---\na: [\n",
            &["standard input, document 1", "apiVersion not set"],
        ),
        (&["wait", "ksvc"], "", &["ksvc/NAME", "ksvc --all"]),
    ] {
        let error = instance.refusal(arguments, input);
        for part in parts {
            assert!(error.contains(part), "{part:?} in {error}");
        }
    }

    // Two of one address, or of one folder.
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = listener.local_addr().unwrap().to_string();
    let other = tempfile::tempdir().unwrap();
    let folder = other.path().to_str().unwrap();
    for flag in ["--http", "--api"] {
        let rest = if flag == "--http" { "--api" } else { "--http" };
        let arguments = ["up", flag, &taken, rest, "127.0.0.1:0", "--data-dir", folder];
        let error = instance.refusal(&arguments, "");
        let who = format!("(process {}) listens there", std::process::id());
        assert!(
            error.contains(&format!("cannot listen on {taken} ({flag})")) && error.contains(&who),
            "{error}"
        );
        assert!(error.contains(&format!("{flag} 127.0.0.1:0 picks a free one")), "{error}");
    }

    let folder = instance.data.path().to_str().unwrap();
    let arguments = ["up", "--http", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data-dir", folder];
    let error = instance.refusal(&arguments, "");
    let who = format!("in use by process {}", instance.child.id());
    assert!(error.contains(&who) && error.contains("--kubeconfig"), "{error}");

    // Nobody there any more, but somebody else is.
    let gone = other.path().join("kubeconfig");
    let kubeconfig = std::fs::read_to_string(instance.data.path().join("kubeconfig")).unwrap();
    let server = kubeconfig.lines().find_map(|line| line.trim().strip_prefix("server: ")).unwrap();
    drop(listener);
    std::fs::write(&gone, kubeconfig.replace(server, &format!("https://{taken}"))).unwrap();
    let error = instance.refusal(&["get", "ksvc", "--kubeconfig", gone.to_str().unwrap()], "");
    let running = instance.data.path().join("kubeconfig").display().to_string();
    for part in
        ["nobody answers at", taken.as_str(), "is `ember up` running?", "runs elsewhere", running.as_str()]
    {
        assert!(error.contains(part), "{part:?} in {error}");
    }
}
