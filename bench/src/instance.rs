//! A running `ember up`, with a data folder and ports of its own.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Read};
use std::net::SocketAddr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, bail};
use kube::config::{KubeConfigOptions, Kubeconfig};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use tempfile::TempDir;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::phases::{self, Event, LOG_TARGET};

/// How long it may take to come up, and to end.
const PATIENCE: Duration = Duration::from_secs(60);
/// How long the last of its output may take to arrive once it has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);
/// How many of the last lines are kept that tell no phase.
const KEPT: usize = 50;
/// How long a quiet time has to last, and how long it is waited for.
const QUIET: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(60));
/// Most clock ticks (10 ms) of CPU in a quiet time: below a tenth of a core.
const QUIET_TICKS: u64 = 2;

/// A running instance; dropping it ends it.
pub(crate) struct Ember {
    child: Child,
    said: Arc<Mutex<Said>>,
    listeners: Vec<JoinHandle<()>>,
    /// Where the gateway listens.
    pub(crate) gateway: SocketAddr,
    /// A client of its API.
    pub(crate) client: kube::Client,
    /// Removed when everything else has ended.
    dir: Arc<TempDir>,
}

#[derive(Debug, Default)]
struct Said {
    events: Vec<Event>,
    /// The last of the other lines.
    other: VecDeque<String>,
}

impl Ember {
    /// Starts an instance that tells the phases of cold starts, and waits until its gateway listens.
    pub(crate) async fn start(program: &Path) -> anyhow::Result<Self> {
        let dir = tempfile::Builder::new().prefix("ember-bench-").tempdir()?;
        Self::start_in(program, Arc::new(dir)).await
    }

    async fn start_in(program: &Path, dir: Arc<TempDir>) -> anyhow::Result<Self> {
        let log = format!("warn,{LOG_TARGET}=debug");
        let mut child = Command::new(program)
            .args(["up", "--http", "127.0.0.1:0", "--api", "127.0.0.1:0", "--log", &log, "--data-dir"])
            .arg(dir.path().join("data"))
            .env("NO_COLOR", "1")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .with_context(|| format!("cannot start {}", program.display()))?;
        let said = Arc::new(Mutex::new(Said::default()));
        let (lines, mut out) = mpsc::unbounded_channel();
        let mut listeners = Vec::new();
        if let Some(stdout) = child.stdout.take() {
            listeners.push(listen(stdout, Arc::clone(&said), Some(lines)));
        }
        if let Some(stderr) = child.stderr.take() {
            listeners.push(listen(stderr, Arc::clone(&said), None));
        }
        let announced = timeout(PATIENCE, announced(&mut out)).await;
        let Some((gateway, kubeconfig)) = announced.ok().flatten() else {
            let _ = child.kill();
            let _ = child.wait();
            bail!("ember up did not come up; it said:\n{}", lock(&said).tail());
        };
        let config = Kubeconfig::read_from(&kubeconfig)?;
        let config = kube::Config::from_custom_kubeconfig(config, &KubeConfigOptions::default()).await?;
        let client = kube::Client::try_from(config)?;
        Ok(Self { child, said, listeners, gateway, client, dir })
    }

    /// Ctrl-C, and another one on the same data folder.
    pub(crate) async fn restart(self, program: &Path) -> anyhow::Result<Self> {
        let dir = Arc::clone(&self.dir);
        self.stop().await?;
        Self::start_in(program, dir).await
    }

    /// Resident memory of the process, in KiB.
    pub(crate) fn resident_kib(&self) -> anyhow::Result<u64> {
        let text = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.child.id()))?;
        let line = text.lines().find_map(|line| line.strip_prefix("Rss:"));
        let number = line.and_then(|line| line.split_ascii_whitespace().next());
        Ok(number.context("no resident memory in smaps_rollup")?.parse()?)
    }

    /// CPU time of its threads so far. None of them may have ended in between two calls.
    pub(crate) fn cpu_time(&self) -> anyhow::Result<Duration> {
        let mut nanos = 0;
        for task in std::fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = std::fs::read_to_string(task?.path().join("schedstat"))?;
            let on_cpu = text.split_ascii_whitespace().next().context("an empty schedstat")?;
            nanos += on_cpu.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanos))
    }

    /// The last lines it said, apart from phases.
    pub(crate) fn tail(&self) -> String {
        lock(&self.said).tail()
    }

    /// Waits until it does next to nothing; false if that takes too long.
    pub(crate) async fn quiet(&self) -> anyhow::Result<bool> {
        let (lasting, patience) = QUIET;
        let deadline = Instant::now() + patience;
        let mut before = self.cpu_ticks()?;
        while Instant::now() < deadline {
            sleep(lasting).await;
            let now = self.cpu_ticks()?;
            if now - before <= QUIET_TICKS {
                return Ok(true);
            }
            before = now;
        }
        Ok(false)
    }

    fn cpu_ticks(&self) -> anyhow::Result<u64> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        cpu_ticks(&stat).with_context(|| format!("unexpected process statistics {stat:?}"))
    }

    /// Ctrl-C; returns every phase it told.
    pub(crate) async fn stop(mut self) -> anyhow::Result<Vec<Event>> {
        kill(Pid::from_raw(i32::try_from(self.child.id())?), Signal::SIGINT)?;
        let deadline = Instant::now() + PATIENCE;
        while self.child.try_wait()?.is_none() {
            if Instant::now() > deadline {
                bail!("ember up did not end within {PATIENCE:?} of Ctrl-C; it said:\n{}", self.tail());
            }
            sleep(Duration::from_millis(10)).await;
        }
        let listeners = std::mem::take(&mut self.listeners);
        let heard = tokio::task::spawn_blocking(move || listeners.into_iter().all(|l| l.join().is_ok()));
        if !matches!(timeout(LAST_WORDS, heard).await, Ok(Ok(true))) {
            bail!("the output of ember up did not end with it");
        }
        Ok(std::mem::take(&mut lock(&self.said).events))
    }
}

impl Drop for Ember {
    fn drop(&mut self) {
        // Fails only if it has ended already.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Said {
    fn hear(&mut self, line: &str) {
        if let Some(event) = phases::parse(line) {
            self.events.push(event);
            return;
        }
        if self.other.len() == KEPT {
            self.other.pop_front();
        }
        self.other.push_back(line.to_owned());
    }

    fn tail(&self) -> String {
        self.other.iter().map(String::as_str).collect::<Vec<_>>().join("\n")
    }
}

fn lock(said: &Mutex<Said>) -> MutexGuard<'_, Said> {
    // A list of lines is as good after a panic as before.
    said.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A thread of its own, so that listening takes no time from the client that measures.
fn listen(
    stream: impl Read + Send + 'static,
    said: Arc<Mutex<Said>>,
    lines: Option<mpsc::UnboundedSender<String>>,
) -> JoinHandle<()> {
    std::thread::spawn(move || {
        for line in BufReader::new(stream).lines().map_while(Result::ok) {
            lock(&said).hear(&line);
            if let Some(lines) = &lines {
                // Nobody listens any more once the instance is up.
                let _ = lines.send(line);
            }
        }
    })
}

/// The gateway's address and the kubeconfig's path, as `ember up` prints them; `None` if it ends before.
async fn announced(out: &mut mpsc::UnboundedReceiver<String>) -> Option<(SocketAddr, PathBuf)> {
    let (mut gateway, mut kubeconfig) = (None, None);
    loop {
        let line = out.recv().await?;
        let Some((name, value)) = line.trim().split_once(char::is_whitespace) else { continue };
        match name {
            "gateway" => gateway = value.trim().strip_prefix("http://").and_then(|a| a.parse().ok()),
            "kubeconfig" => kubeconfig = Some(PathBuf::from(value.trim())),
            _ => continue,
        }
        if let (Some(gateway), Some(kubeconfig)) = (gateway, &kubeconfig) {
            return Some((gateway, kubeconfig.clone()));
        }
    }
}

/// User and system time from `/proc/PID/stat`. The name, in brackets, may hold anything.
fn cpu_ticks(stat: &str) -> Option<u64> {
    let (_, fields) = stat.rsplit_once(')')?;
    let mut fields = fields.split_ascii_whitespace().skip(11);
    let (user, system) = (fields.next()?, fields.next()?);
    Some(user.parse::<u64>().ok()? + system.parse::<u64>().ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn what_ember_up_announces() {
        let (lines, mut out) = mpsc::unbounded_channel();
        for line in ["Ember 0.1.0", "  gateway     http://127.0.0.1:4711", "kubeconfig  /tmp/a b/kubeconfig"]
        {
            lines.send(line.to_owned()).unwrap();
        }
        let (gateway, kubeconfig) = announced(&mut out).await.unwrap();
        assert_eq!(gateway, "127.0.0.1:4711".parse().unwrap());
        assert_eq!(kubeconfig, Path::new("/tmp/a b/kubeconfig"));
        drop(lines);
        assert_eq!(announced(&mut out).await, None);
    }

    #[test]
    fn cpu_time_of_a_process() {
        let stat = "42 (a) b) S 1 42 42 0 -1 4194560 1 0 0 0 7 5 0 0 20 0 1 0 9 1 1";
        assert_eq!(cpu_ticks(stat), Some(12));
        assert_eq!(cpu_ticks("42"), None);
    }

    #[test]
    fn the_last_lines_are_kept_and_phases_apart() {
        let mut said = Said::default();
        for n in 0..KEPT + 2 {
            said.hear(&format!("line {n}"));
        }
        said.hear(r#"2026-01-02T03:04:05.678901Z DEBUG phase="ready" revision=n/r"#);
        assert_eq!(said.events.len(), 1);
        assert!(said.tail().starts_with("line 2\n"), "{}", said.tail());
    }
}
