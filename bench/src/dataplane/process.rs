//! Processes under measurement: where they run, what they take.

use std::fs::File;
use std::os::unix::process::CommandExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::Context;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::signal::{Signal, killpg};
use nix::time::ClockId;
use nix::unistd::Pid;

/// The CPUs something may use.
#[derive(Debug, Clone, Copy)]
pub(super) struct Cpus(CpuSet);

impl Cpus {
    /// Those this thread may use.
    pub(super) fn allowed() -> anyhow::Result<Self> {
        Ok(Self(sched_getaffinity(Pid::from_raw(0))?))
    }

    /// Each of them by itself.
    pub(super) fn each(self) -> anyhow::Result<Vec<Self>> {
        let mut each = Vec::new();
        for cpu in 0..CpuSet::count() {
            if self.0.is_set(cpu)? {
                let mut set = CpuSet::new();
                set.set(cpu)?;
                each.push(Self(set));
            }
        }
        Ok(each)
    }

    /// Keeps this thread, and what it starts, on them.
    pub(super) fn bind(self) -> anyhow::Result<()> {
        sched_setaffinity(Pid::from_raw(0), &self.0).context("sched_setaffinity")
    }
}

/// A running command and whatever it has started; dropping it kills them.
#[derive(Debug)]
pub(super) struct Process {
    pub(super) name: String,
    child: Child,
    output: PathBuf,
}

impl Process {
    /// Starts `command` on `cpus`, with its output in the file `output`. This thread is on `own` afterwards.
    pub(super) fn start(
        name: &str,
        mut command: Command,
        output: PathBuf,
        cpus: Cpus,
        own: Cpus,
    ) -> anyhow::Result<Self> {
        let log = File::create(&output)?;
        command.stdin(Stdio::null()).stdout(log.try_clone()?).stderr(log).process_group(0);
        // Affinity is inherited: set before the start, there is no moment in which the child is elsewhere.
        cpus.bind()?;
        let child = command.spawn();
        own.bind()?;
        let child = child.with_context(|| format!("cannot start {name}"))?;
        Ok(Self { name: name.to_owned(), child, output })
    }

    /// The command and its descendants.
    fn pids(&self) -> Vec<Pid> {
        let mut open = vec![self.child.id()];
        let mut pids = Vec::new();
        while let Some(pid) = open.pop() {
            pids.push(Pid::from_raw(pid.cast_signed()));
            let Ok(tasks) = std::fs::read_dir(format!("/proc/{pid}/task")) else { continue };
            for task in tasks.flatten() {
                let children = std::fs::read_to_string(task.path().join("children")).unwrap_or_default();
                open.extend(children.split_ascii_whitespace().filter_map(|pid| pid.parse::<u32>().ok()));
            }
        }
        pids
    }

    /// CPU time taken so far, to the nanosecond, by all threads there are and were.
    pub(super) fn cpu(&self) -> anyhow::Result<Duration> {
        let mut sum = Duration::ZERO;
        for pid in self.pids() {
            // A process that has just ended is its parent's to account for.
            let Ok(clock) = ClockId::pid_cpu_clock_id(pid) else { continue };
            sum += Duration::from(clock.now().with_context(|| format!("CPU time of {}", self.name))?);
        }
        Ok(sum)
    }

    /// Resident memory.
    pub(super) fn rss_kib(&self) -> anyhow::Result<u64> {
        let mut sum = 0;
        for pid in self.pids() {
            // Exact, other than what /proc/PID/status says.
            let Ok(text) = std::fs::read_to_string(format!("/proc/{pid}/smaps_rollup")) else { continue };
            sum += resident(&text).with_context(|| format!("resident memory of {}", self.name))?;
        }
        Ok(sum)
    }

    /// Whether it has ended by itself.
    pub(super) fn has_ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// The end of what it printed.
    pub(super) fn said(&self) -> String {
        let output = std::fs::read(&self.output).unwrap_or_default();
        let tail = &output[output.len().saturating_sub(2000)..];
        format!("{} said:\n{}", self.name, String::from_utf8_lossy(tail))
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        // Fails only if everything has ended already.
        let _ = killpg(Pid::from_raw(self.child.id().cast_signed()), Signal::SIGKILL);
        let _ = self.child.wait();
    }
}

/// `Rss` of `/proc/PID/smaps_rollup`.
fn resident(rollup: &str) -> Option<u64> {
    let line = rollup.lines().find_map(|line| line.strip_prefix("Rss:"))?;
    line.split_ascii_whitespace().next()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn resident_memory() {
        let text =
            "55d0c0a000-7ffd0 ---p 00000000 00:00 0   [rollup]\nRss:                1234 kB\nPss: 1 kB\n";
        assert_eq!(resident(text), Some(1234));
        assert_eq!(resident(""), None);
    }

    #[test]
    fn a_process_with_children_is_measured_and_killed_whole() {
        let dir = tempfile::tempdir().unwrap();
        let own = Cpus::allowed().unwrap();
        let mut command = Command::new("sh");
        command.args([
            "-c",
            "sleep 1000 & echo started; i=0; while [ $i -lt 10000 ]; do i=$((i+1)); done; wait",
        ]);
        let process =
            Process::start("it", command, dir.path().join("out"), own.each().unwrap()[0], own).unwrap();
        let deadline = std::time::Instant::now() + Duration::from_secs(30);
        while process.pids().len() < 2
            || process.cpu().unwrap() < Duration::from_millis(1)
            || !process.said().contains("started")
        {
            assert!(std::time::Instant::now() < deadline, "{}", process.said());
            std::thread::yield_now();
        }
        assert!(process.rss_kib().unwrap() > 500);
        let pids = process.pids();
        drop(process);
        // The orphan's new parent may take a moment to bury it.
        let alive = |pid: &Pid| {
            std::fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
        };
        while pids.iter().any(alive) {
            assert!(std::time::Instant::now() < deadline);
            std::thread::yield_now();
        }
    }
}
