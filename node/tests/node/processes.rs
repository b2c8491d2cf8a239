//! The process runtime alone.

use std::time::{Duration, Instant};

use ember_node::{Identity, Process, ProcessRuntime, Runtime, Start, Stop};
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};

fn runtime() -> ProcessRuntime {
    ProcessRuntime::start_helper(std::env::current_exe().unwrap()).unwrap()
}

fn shell(script: &str) -> Start {
    program("sh", &["-c", script])
}

fn program(program: &str, args: &[&str]) -> Start {
    let path = "/usr/local/bin:/usr/bin:/bin";
    Start {
        program: Some(program.to_owned()),
        args: args.iter().map(|&a| a.to_owned()).collect(),
        env: vec![("PATH".into(), path.into()), ("HOSTNAME".into(), format!("pod-{}", fastrand::u64(..)))],
        dir: "/".to_owned(),
        ..Start::default()
    }
}

fn marked(mut start: Start) -> Start {
    start.mark = format!("HOSTNAME={}", start.env[1].1);
    start
}

/// Everything that the process writes, and its exit code.
async fn finish(process: Process) -> (String, i32) {
    let Process { mut output, exit, .. } = process;
    let mut text = String::new();
    output.read_to_string(&mut text).await.unwrap();
    (text, exit.await.unwrap())
}

async fn run(runtime: &ProcessRuntime, start: Start) -> (String, i32) {
    finish(runtime.start(start).await.unwrap()).await
}

/// Whether a process with this number runs (and is not only waiting to be collected).
fn is_alive(pid: i32) -> bool {
    std::fs::read_to_string(format!("/proc/{pid}/stat"))
        .is_ok_and(|stat| !stat.rsplit_once(") ").unwrap().1.starts_with(['Z', 'X']))
}

pub(crate) async fn gone(pid: i32) {
    let until = Instant::now() + Duration::from_secs(5);
    while is_alive(pid) {
        assert!(Instant::now() < until, "process {pid} is still there");
        tokio::task::yield_now().await;
    }
}

pub(crate) async fn runs_with_the_declared_environment_and_its_own_session() {
    let runtime = runtime();
    let mut start = shell(
        "env | sort; ls /proc/self/fd; cat; ps -o sid= -p $$; echo $$; grep NoNewPrivs /proc/$$/status; pwd; echo error >&2",
    );
    start.env.push(("A B".into(), "x=y\nz".into()));
    let host = start.env[1].1.clone();
    let (text, code) = run(&runtime, start).await;
    assert_eq!(code, 0);
    let lines: Vec<&str> = text.lines().collect();
    assert!(lines.contains(&format!("HOSTNAME={host}").as_str()), "{text}");
    assert!(!text.contains("CARGO"), "{text}");
    // The listing itself opens 3.
    let at = lines.iter().position(|l| *l == "0").unwrap();
    assert_eq!(&lines[at..at + 4], ["0", "1", "2", "3"], "{text}");
    assert_eq!(lines[at + 4].trim(), lines[at + 5], "leads its session: {text}");
    assert_eq!(lines[at + 6], "NoNewPrivs:\t1");
    assert_eq!(&lines[at + 7..], ["/", "error"], "{text}");
    runtime.close().await;
}

pub(crate) async fn tells_why_a_program_does_not_start() {
    let runtime = runtime();
    let error = async |start: Start| runtime.start(start).await.unwrap_err().to_string();
    assert_eq!(error(program("nope", &[])).await, "exec: \"nope\": executable file not found in $PATH");
    assert_eq!(error(program("/nope", &[])).await, "exec: \"/nope\": stat /nope: no such file or directory");
    assert_eq!(error(program("/etc/passwd", &[])).await, "exec: \"/etc/passwd\": permission denied");
    assert_eq!(error(program("/etc", &[])).await, "exec: \"/etc\": is a directory");
    let mut nowhere = shell("true");
    (nowhere.dir, nowhere.dir_is_declared) = ("/nowhere".into(), true);
    assert_eq!(error(nowhere).await, "chdir to cwd (\"/nowhere\") failed: no such file or directory");
    let huge = "x".repeat(3 << 20);
    assert_eq!(error(program("true", &[&huge])).await, "argument list too long");
    assert_eq!(run(&runtime, shell("echo still here")).await.0, "still here\n");
    runtime.close().await;
}

pub(crate) async fn tells_exit_codes_and_signals() {
    let runtime = runtime();
    assert_eq!(run(&runtime, shell("exit 7")).await.1, 7);
    // A shell would clear its own mask.
    let (status, _) = run(&runtime, program("cat", &["/proc/self/status"])).await;
    assert!(status.contains("SigBlk:\t0000000000000000"), "{status}");
    let Process { id, exit, output: _output, .. } = runtime.start(program("sleep", &["1000"])).await.unwrap();
    runtime.stop(id, Stop::Terminate).await;
    assert_eq!(exit.await.unwrap(), 143);
    assert_eq!(run(&runtime, shell("kill -9 $$")).await.1, 137);
    let large = format!("printf %s {} | wc -c", "x".repeat(100_000));
    assert_eq!(run(&runtime, shell(&large)).await.0.trim(), "100000");
    let polite = runtime
        .start(shell("trap 'echo bye; exit 3' TERM; echo up; while :; do sleep 0.01; done"))
        .await
        .unwrap();
    let Process { id, output, exit, .. } = polite;
    let mut lines = BufReader::new(output).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("up"));
    runtime.stop(id, Stop::Terminate).await;
    // The whole group is asked, so the shell may tell of its child's end first.
    while lines.next_line().await.unwrap().expect("a last word") != "bye" {}
    assert_eq!(exit.await.unwrap(), 3);
    let deaf = runtime.start(shell("trap '' TERM; echo up; while :; do sleep 0.01; done")).await.unwrap();
    let Process { id, output, exit, pid, .. } = deaf;
    let mut lines = BufReader::new(output).lines();
    assert_eq!(lines.next_line().await.unwrap().as_deref(), Some("up"));
    runtime.stop(id, Stop::Terminate).await;
    assert!(is_alive(pid));
    runtime.stop(id, Stop::Kill).await;
    assert_eq!(exit.await.unwrap(), 137);
    let many: Vec<_> = (0..40).map(|i| run(&runtime, shell(&format!("exit {i}"))).boxed_code()).collect();
    assert_eq!(futures::future::join_all(many).await, (0..40).collect::<Vec<i32>>());
    runtime.close().await;
}

/// The exit code alone.
trait Code: Future<Output = (String, i32)> + Sized {
    fn boxed_code(self) -> impl Future<Output = i32> {
        async { self.await.1 }
    }
}

impl<F: Future<Output = (String, i32)>> Code for F {}

/// Starts a program that leaves one child in its session and one that detached itself; their numbers.
async fn start_family(runtime: &ProcessRuntime, last: &str) -> (Process, Vec<i32>) {
    let script = format!("sleep 1000 & echo $!; setsid sh -c 'sleep 1001 & echo $!' & wait $!; {last}");
    let mut process = runtime.start(marked(shell(&script))).await.unwrap();
    let mut lines = BufReader::new(&mut process.output).lines();
    let mut children = Vec::new();
    for _ in 0..2 {
        children.push(lines.next_line().await.unwrap().unwrap().parse().unwrap());
    }
    assert!(children.iter().all(|pid| is_alive(*pid)));
    (process, children)
}

pub(crate) async fn ends_what_a_program_left_behind() {
    let runtime = runtime();
    let (sibling, others) = start_family(&runtime, "exec sleep 1002").await;
    // It ends only when it is told to, so that its children are seen alive before.
    let folder = tempfile::tempdir().unwrap();
    let go = folder.path().join("go");
    let until_told = format!("until [ -e {} ]; do sleep 0.01; done; exit 4", go.display());
    let (process, children) = start_family(&runtime, &until_told).await;
    std::fs::write(&go, "").unwrap();
    assert_eq!(process.exit.await.unwrap(), 4);
    for pid in children {
        gone(pid).await;
    }
    let (process, children) = start_family(&runtime, "exec sleep 1003").await;
    runtime.stop(process.id, Stop::Kill).await;
    assert_eq!(process.exit.await.unwrap(), 137);
    for pid in children {
        gone(pid).await;
    }
    assert!(is_alive(sibling.pid) && others.iter().all(|pid| is_alive(*pid)), "another pod is not touched");
    runtime.close().await;
    for pid in others {
        gone(pid).await;
    }
}

pub(crate) async fn no_orphan_survives_the_helpers_socket() {
    // What happens when Ember is killed: its end of the socket closes and nothing else is said.
    let runtime = runtime();
    let (process, mut pids) = start_family(&runtime, "trap '' TERM HUP; while :; do sleep 0.1; done").await;
    pids.push(process.pid);
    runtime.close().await;
    for pid in pids {
        gone(pid).await;
    }
}

pub(crate) async fn recovers_from_a_killed_helper() {
    let runtime = runtime();
    let process = runtime.start(shell("exec sleep 1000")).await.unwrap();
    let stat = std::fs::read_to_string(format!("/proc/{}/stat", process.pid)).unwrap();
    let helper: i32 = stat.rsplit_once(") ").unwrap().1.split(' ').nth(1).unwrap().parse().unwrap();
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(helper), nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(process.exit.await.is_err(), "the end is told without a code");
    gone(process.pid).await;
    assert_eq!(run(&runtime, shell("echo again")).await.0, "again\n");
    runtime.close().await;
}

pub(crate) async fn starts_at_once() {
    let runtime = runtime();
    run(&runtime, shell("true")).await;
    let mut times = Vec::new();
    for _ in 0..30 {
        // As far apart as cold starts are: the helper makes up its spare launcher meanwhile.
        tokio::time::sleep(Duration::from_millis(30)).await;
        let began = Instant::now();
        let process = runtime.start(program("true", &[])).await.unwrap();
        times.push(began.elapsed());
        finish(process).await;
    }
    times.sort_unstable();
    let median = times[times.len() / 2];
    println!("start of a process: median {median:?}, fastest {:?}, slowest {:?}", times[0], times[29]);
    // The fastest says what the way costs, whatever else the machine does: no timer or poll is on it.
    assert!(times[0] < Duration::from_millis(5), "{times:?}");
    runtime.close().await;
}

pub(crate) async fn runs_as_another_user_where_files_allow_it() {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: not root");
        return;
    }
    let runtime = runtime();
    let other = Identity { uid: 200_123, gid: 200_123, required: false };
    let start = |script: &str| Start { identity: Some(other), ..shell(script) };
    let (text, _) = run(&runtime, start("id -u; id -g; id -G; echo to-fd > /dev/stderr")).await;
    assert_eq!(text, "200123\n200123\n200123\nto-fd\n");
    // A private directory, such as root's home.
    let private = tempfile::tempdir().unwrap();
    let script = private.path().join("app");
    std::fs::write(&script, "#!/bin/sh\nid -u\n").unwrap();
    let mode = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&script, mode).unwrap();
    std::fs::set_permissions(private.path(), std::os::unix::fs::PermissionsExt::from_mode(0o700)).unwrap();
    let path = script.to_str().unwrap();
    let private_program = Start { identity: Some(other), ..program(path, &[]) };
    assert_eq!(run(&runtime, private_program.clone()).await.0, "0\n", "falls back");
    let argument = Start { identity: Some(other), ..program("sh", &[path]) };
    assert_eq!(run(&runtime, argument).await.0, "0\n", "falls back");
    let in_private = Start { dir: private.path().to_str().unwrap().into(), ..start("id -u; pwd") };
    assert_eq!(run(&runtime, in_private).await.0, "200123\n/\n", "an undeclared directory gives way");
    let required = Identity { required: true, ..other };
    let error = runtime.start(Start { identity: Some(required), ..private_program }).await.unwrap_err();
    assert_eq!(error.to_string(), format!("exec: {path:?}: permission denied"));
    runtime.close().await;
}
