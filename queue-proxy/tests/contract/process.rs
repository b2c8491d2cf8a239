//! The program: QP-ENV-1, QP-ENV-6, QP-DRN-6, and what a listener that cannot be opened means.
//!
//! Its ports are the contract's, on every address. So each test runs in a network of its own where the machine allows
//! that: in this very program, started again by `unshare`. Elsewhere they run one after the other.

use std::fs::Permissions;
use std::net::Ipv4Addr;
use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::process::{Output, Stdio};
use std::time::Duration;

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};
use tokio::process::{Child, Command};
use tokio::sync::mpsc;

use crate::container::environment;
use crate::sidecar::{KUBELET, eventually};
use crate::wire::{OK, Wire, body, ok, status};

const PROGRAM: &str = env!("CARGO_BIN_EXE_queue-proxy");
/// Set in a network of one's own.
const INSIDE: &str = "EMBER_TEST_NETWORK";
const LONG: Duration = Duration::from_secs(30);
/// Ends without waiting for traffic to cease.
const AT_ONCE: (&str, &str) = ("QUEUE_PROXY_DRAIN_QUIET_SECONDS", "0");

fn is_root() -> bool {
    std::fs::metadata("/proc/self").unwrap().uid() == 0
}

/// A command in a network of its own, whose loopback is up.
fn unshared() -> std::process::Command {
    let mut command = std::process::Command::new("unshare");
    if !is_root() {
        command.args(["--user", "--map-root-user"]);
    }
    command.args(["--net", "--", "sh", "-c", r#"ip link set lo up && exec "$@""#, "sh"]);
    command
}

/// Runs a test of this file in a network of its own.
fn isolated(name: &str, test: impl Future<Output = ()>) {
    let allowed = || unshared().arg("true").output().is_ok_and(|output| output.status.success());
    if std::env::var_os(INSIDE).is_none() && allowed() {
        let mut command = unshared();
        command.arg(std::env::current_exe().unwrap());
        command.args([&format!("process::{name}"), "--exact", "--nocapture"]).env(INSIDE, "1");
        let output = command.output().unwrap();
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        assert!(output.status.success(), "{}\n{}", text(&output.stdout), text(&output.stderr));
        return;
    }
    static ONE: Mutex<()> = Mutex::new(());
    let _one = ONE.lock();
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(test);
}

/// The program as a process.
struct Program(Child);

impl Program {
    fn spawn(mut command: Command, env: impl IntoIterator<Item = (String, String)>) -> Self {
        command.env_clear().envs(env).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Self(command.kill_on_drop(true).spawn().unwrap())
    }

    /// In front of an app on that port, once it listens.
    async fn start(user_port: u16, more: &[(&str, &str)]) -> Self {
        let program = Self::spawn(Command::new(PROGRAM), environment(user_port, more));
        program.until_it_listens().await;
        program
    }

    async fn until_it_listens(&self) {
        eventually("it listens", async || TcpStream::connect((Ipv4Addr::LOCALHOST, 9090)).await.is_ok())
            .await;
    }

    fn signal(&self, signal: Signal) {
        kill(Pid::from_raw(self.0.id().unwrap().try_into().unwrap()), signal).unwrap();
    }

    /// Its exit code and its last words.
    async fn end(self) -> (Option<i32>, String) {
        let Output { status, stdout, stderr } =
            tokio::time::timeout(LONG, self.0.wait_with_output()).await.unwrap().unwrap();
        assert!(stdout.is_empty(), "{}", String::from_utf8_lossy(&stdout));
        (status.code(), String::from_utf8_lossy(&stderr).into_owned())
    }
}

async fn connect(port: u16) -> Wire {
    Wire::of_socket(TcpStream::connect((Ipv4Addr::LOCALHOST, port)).await.unwrap())
}

async fn get(port: u16, path: &str, headers: &str) -> String {
    connect(port).await.exchange("GET", path, headers).await
}

/// An app that tells of each request, answers a POST when its client says so, and switches protocols when asked.
async fn app() -> (u16, mpsc::UnboundedReceiver<()>) {
    let (arrive, arrived) = mpsc::unbounded_channel();
    let port = crate::sidecar::app(move |mut wire| {
        let arrive = arrive.clone();
        async move {
            while let Some(head) = wire.head().await {
                arrive.send(()).ok();
                if head.contains("upgrade: websocket") {
                    wire.send(
                        "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
                    )
                    .await;
                    while wire.try_until("ping").await.is_ok() {
                        wire.send("pong").await;
                    }
                    return;
                }
                if head.starts_with("POST") && wire.try_until("go on").await.is_err() {
                    return;
                }
                wire.send(OK).await;
            }
        }
    });
    (port.await, arrived)
}

const POST: &str = "POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 5\r\n\r\n";

#[tokio::test]
async fn what_is_missing_or_wrong_is_named_and_the_code_is_one() {
    for (name, value) in [
        ("CONTAINER_CONCURRENCY", ""),
        ("QUEUE_SERVING_PORT", "http"),
        ("REVISION_TIMEOUT_SECONDS", "5m"),
        ("SERVING_READINESS_PROBE", "{"),
        ("OBSERVABILITY_CONFIG", "{"),
        ("ENABLE_HTTP_FULL_DUPLEX", "yes"),
    ] {
        let program = Program::spawn(Command::new(PROGRAM), environment(8080, &[(name, value)]));
        let (code, words) = program.end().await;
        assert_eq!(code, Some(1), "{name}");
        assert!(words.contains(name), "{name}: {words}");
    }
    let complete = environment(8080, &[]);
    for (missing, _) in &complete {
        let env = complete.iter().filter(|(name, _)| name != missing).cloned();
        let (code, words) = Program::spawn(Command::new(PROGRAM), env).end().await;
        assert_eq!((code, words.trim_end()), (Some(1), &*format!("required key {missing} missing value")));
    }
}

#[test]
fn sigterm_and_sigint_end_it_with_code_zero() {
    isolated("sigterm_and_sigint_end_it_with_code_zero", async {
        let (user_port, mut arrived) = app().await;
        for signal in [Signal::SIGTERM, Signal::SIGINT] {
            let program = Program::start(user_port, &[AT_ONCE]).await;
            assert_eq!(body(&get(8012, "/", KUBELET).await), "queue");
            let mut slow = connect(8012).await;
            slow.send(POST).await;
            arrived.recv().await.unwrap();
            program.signal(signal);
            eventually("probes fail", async || status(&get(8012, "/", KUBELET).await) == 503).await;
            let mut hook = connect(8022).await;
            hook.send("GET /wait-for-drain HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
            // Answered behind the hook, which has arrived then.
            assert_eq!(status(&get(8022, "/", "").await), 404);
            // What runs is waited for; the hook is told last.
            slow.send("go on").await;
            assert_eq!(body(&slow.rest().await), "ok");
            assert_eq!(status(&hook.rest().await), 200);
            let (code, words) = program.end().await;
            assert_eq!(code, Some(0), "{words}");
        }
    });
}

#[test]
fn a_second_signal_ends_it_at_once_with_code_one() {
    isolated("a_second_signal_ends_it_at_once_with_code_one", async {
        let (user_port, mut arrived) = app().await;
        let program = Program::start(user_port, &[]).await;
        let mut stream = connect(8012).await;
        stream.send(POST).await;
        arrived.recv().await.unwrap();
        program.signal(Signal::SIGTERM);
        eventually("probes fail", async || status(&get(8012, "/", KUBELET).await) == 503).await;
        program.signal(Signal::SIGTERM);
        let (code, words) = program.end().await;
        assert_eq!(code, Some(1));
        assert!(words.contains("second signal"), "{words}");
        assert_eq!(stream.rest().await, "", "nothing was waited for");
    });
}

#[test]
fn an_upgraded_stream_outlives_sigterm() {
    isolated("an_upgraded_stream_outlives_sigterm", async {
        let program = Program::start(app().await.0, &[AT_ONCE]).await;
        let mut stream = connect(8012).await;
        stream.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        stream.until("\r\n\r\n").await;
        program.signal(Signal::SIGTERM);
        eventually("probes fail", async || status(&get(8012, "/", KUBELET).await) == 503).await;
        for _ in 0..3 {
            stream.send("ping").await;
            stream.until("pong").await;
        }
        drop(stream);
        assert_eq!(program.end().await.0, Some(0));
    });
}

#[test]
fn a_probe_that_fails_is_told_of_once_and_one_that_succeeds_is_not() {
    isolated("a_probe_that_fails_is_told_of_once_and_one_that_succeeds_is_not", async {
        let reserved = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
        let closed = reserved.local_addr().unwrap().port();
        drop(reserved);
        for (port, lines) in [(closed, 1), (app().await.0, 0)] {
            let probe =
                format!(r#"{{"tcpSocket":{{"port":{port},"host":"127.0.0.1"}},"successThreshold":1}}"#);
            let program = Program::start(port, &[AT_ONCE, ("SERVING_READINESS_PROBE", &probe)]).await;
            if lines == 0 {
                assert_eq!(body(&get(8012, "/", KUBELET).await), "queue");
            } else {
                // What is served is served by the thread that probes: it has begun.
                assert!(get(9090, "/metrics", "").await.contains("pod-1"));
            }
            program.signal(Signal::SIGTERM);
            let (code, words) = program.end().await;
            assert_eq!(
                (code, words.matches("aggressive probe error (failed ").count()),
                (Some(0), lines),
                "{words}"
            );
        }
    });
}

#[test]
fn a_port_that_is_taken_ends_it_with_code_one() {
    isolated("a_port_that_is_taken_ends_it_with_code_one", async {
        for port in [8012, 8022, 9090] {
            let taken = TcpListener::bind((Ipv4Addr::UNSPECIFIED, port)).await.unwrap();
            let program = Program::spawn(Command::new(PROGRAM), environment(8080, &[]));
            let (code, words) = program.end().await;
            assert_eq!(code, Some(1));
            assert!(words.contains(&format!(":{port}: ")) && words.contains("in use"), "{words}");
            drop(taken);
        }
    });
}

#[test]
fn it_runs_without_root_capabilities_or_a_place_to_write() {
    isolated("it_runs_without_root_capabilities_or_a_place_to_write", async {
        // Where another user can read it.
        let folder = tempfile::tempdir().unwrap();
        let copy = folder.path().join("queue-proxy");
        std::fs::copy(PROGRAM, &copy).unwrap();
        std::fs::set_permissions(folder.path(), Permissions::from_mode(0o755)).unwrap();
        let read_only = "mount --make-rprivate / && mount -o remount,bind,ro / && ! touch /etc/written 2>&- && exec \"$@\"";
        let mut command = Command::new("unshare");
        command.args(["--mount", "--", "sh", "-c", read_only, "sh"]);
        command.args(["setpriv", "--no-new-privs", "--inh-caps=-all", "--bounding-set=-all"]);
        // In a user namespace root is nobody outside; there is no other user to become.
        let outside = std::fs::read_to_string("/proc/self/uid_map").unwrap();
        let is_root = is_root() && outside.split_whitespace().nth(1) == Some("0");
        if is_root {
            command.args(["--reuid=65532", "--regid=65532", "--clear-groups"]);
        }
        command.arg(&copy).current_dir("/");
        let path = ("PATH".to_owned(), std::env::var("PATH").unwrap());
        let env = environment(crate::sidecar::app(ok).await, &[AT_ONCE]);
        let program = Program::spawn(command, env.into_iter().chain([path]));
        program.until_it_listens().await;
        let facts = std::fs::read_to_string(format!("/proc/{}/status", program.0.id().unwrap())).unwrap();
        let fact =
            |name: &str| facts.lines().find_map(|line| line.strip_prefix(name)).unwrap().trim().to_owned();
        if is_root {
            assert_eq!(fact("Uid:"), "65532\t65532\t65532\t65532");
            assert_eq!(fact("CapEff:"), "0000000000000000");
        }
        assert_eq!((fact("CapBnd:"), fact("NoNewPrivs:")), ("0000000000000000".to_owned(), "1".to_owned()));
        assert_eq!(body(&get(8012, "/", "").await), "ok");
        assert_eq!(body(&get(8012, "/", KUBELET).await), "queue");
        assert!(get(9090, "/metrics", "").await.contains("pod-1"));
        program.signal(Signal::SIGTERM);
        assert_eq!(program.end().await.0, Some(0));
    });
}
