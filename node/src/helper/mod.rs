//! The process helper: one small single-threaded process that starts the processes of pods and ends them with itself.
//!
//! It is this binary executed again, so the program's `main` calls [`main`] first when [`is_invoked`] says so, before
//! it starts any thread or runtime. All processes of pods are its descendants, also those that detached themselves
//! (it is a subreaper): when its socket to Ember closes, however Ember ended, it kills them all and ends.

pub(crate) mod hosts;
mod launcher;
mod launcher_maker;
mod mounts;
mod process_tree;
pub(crate) mod protocol;
mod signals;

use std::collections::{HashMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Command, Stdio};

use nix::errno::Errno;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, kill, killpg};
use nix::sys::signalfd::{SfdFlags, SignalFd};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::Pid;

use crate::runtime::StartError;
use launcher_maker::LauncherMaker;
pub use protocol::HELPER;
use protocol::{HOSTS_PROBE, Id, LAUNCHER, Order, Report, Start};

/// Launchers that wait for orders.
const SPARE_LAUNCHERS: usize = 4;
/// A spare is made when nothing else has happened for this long, so that it does not compete with a start.
const IDLE_BEFORE_SPARE_MS: u8 = 50;
/// With fewer spares than this there is no such patience.
const FEW_LAUNCHERS: usize = 2;
const IDLE_IF_FEW_MS: u8 = 5;

/// Whether this process was started to be the helper, or something that the node starts beside it.
#[must_use]
pub fn is_invoked() -> bool {
    std::env::args_os().nth(1).is_some_and(|arg| arg == HELPER || arg == LAUNCHER || arg == HOSTS_PROBE)
}

/// The life of the helper, or of what is started beside it. Call it before anything else when [`is_invoked`] says so,
/// then return.
pub fn main() {
    close_inherited();
    match std::env::args_os().nth(1) {
        Some(arg) if arg == LAUNCHER => return launcher::main(),
        Some(arg) if arg == HOSTS_PROBE => return hosts::probe(),
        _ => {}
    }
    if let Err(error) = Helper::new().and_then(|mut helper| helper.run()) {
        // Nobody else hears of it: the socket to Ember is what failed.
        let _ = io::Write::write_fmt(&mut io::stderr(), format_args!("process helper: {error}\n"));
    }
    end_all();
}

/// Closes what the shell or supervisor above left open. Nothing of this process is open yet.
fn close_inherited() {
    let numbers: Vec<i32> = std::fs::read_dir("/proc/self/fd")
        .into_iter()
        .flatten()
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    for number in numbers.into_iter().filter(|n| *n > 2) {
        let _ = nix::unistd::close(number);
    }
}

/// Kills every descendant and waits until there is none.
fn end_all() {
    let own = Pid::this();
    loop {
        for process in process_tree::descendants(own) {
            let _ = kill(process.pid, Signal::SIGKILL);
        }
        match waitpid(None, None) {
            Err(Errno::EINTR) | Ok(_) => {}
            Err(_) => return,
        }
    }
}

/// A launcher and the socket to it.
struct Launcher {
    pid: Pid,
    channel: OwnedFd,
}

struct Running {
    leader: Pid,
    mark: String,
}

struct Helper {
    control: OwnedFd,
    signals: SignalFd,
    spares: VecDeque<Launcher>,
    maker: LauncherMaker,
    /// Launchers that have their order but have not become the program yet.
    launching: Vec<(Id, Launcher)>,
    running: HashMap<Id, Running>,
    buffer: Vec<u8>,
}

impl Helper {
    fn new() -> io::Result<Self> {
        // A session of its own: the terminal's Ctrl-C is for Ember, which ends the pods in order.
        let _ = nix::unistd::setsid();
        prctl::set_child_subreaper(true)?;
        prctl::set_no_new_privs()?;
        // What a service manager lets Ember do without root, as to listen on port 80, is not for programs.
        rustix::thread::clear_ambient_capability_set()?;
        let _ = prctl::set_name(c"ember-helper");
        SigSet::all().thread_block()?;
        signals::stop_ignoring();
        let mut child = SigSet::empty();
        child.add(Signal::SIGCHLD);
        let signals = SignalFd::with_flags(&child, SfdFlags::SFD_NONBLOCK | SfdFlags::SFD_CLOEXEC)?;
        let control = io::stdin().as_fd().try_clone_to_owned()?;
        Ok(Self {
            control,
            signals,
            spares: VecDeque::new(),
            maker: LauncherMaker::start(SPARE_LAUNCHERS)?,
            launching: Vec::new(),
            running: HashMap::new(),
            buffer: Vec::new(),
        })
    }

    /// Serves until Ember's end of the socket is closed.
    fn run(&mut self) -> io::Result<()> {
        for _ in 0..SPARE_LAUNCHERS {
            self.maker.make();
        }
        loop {
            let timeout = match self.spares.len() {
                _ if self.maker.is_busy() => PollTimeout::NONE,
                0..FEW_LAUNCHERS => PollTimeout::from(IDLE_IF_FEW_MS),
                FEW_LAUNCHERS..SPARE_LAUNCHERS => PollTimeout::from(IDLE_BEFORE_SPARE_MS),
                _ => PollTimeout::NONE,
            };
            let (ordered, made, launched) = {
                let fds = [self.control.as_fd(), self.signals.as_fd(), self.maker.as_fd()];
                let launching = self.launching.iter().map(|(_, launcher)| launcher.channel.as_fd());
                let mut set: Vec<PollFd<'_>> =
                    fds.into_iter().chain(launching).map(|fd| PollFd::new(fd, PollFlags::POLLIN)).collect();
                match poll(&mut set, timeout) {
                    Err(Errno::EINTR) => continue,
                    Err(e) => return Err(e.into()),
                    Ok(0) => {
                        drop(set);
                        self.maker.make();
                        continue;
                    }
                    Ok(_) => {}
                }
                let any = |fd: &PollFd<'_>| fd.any().unwrap_or(true);
                (any(&set[0]), any(&set[2]), set[3..].iter().any(any))
            };
            if launched {
                self.hear_launchers()?;
            }
            if ordered && !self.obey()? {
                return Ok(());
            }
            if made {
                self.spares.extend(self.maker.take()?);
            }
            while self.signals.read_signal()?.is_some() {}
            self.reap()?;
        }
    }

    fn report(&self, report: &Report) -> io::Result<()> {
        protocol::send(self.control.as_fd(), report, &[])
    }

    /// Takes one order; false when Ember is gone.
    fn obey(&mut self) -> io::Result<bool> {
        let Some((order, output)) = protocol::receive::<Order>(self.control.as_fd(), &mut self.buffer)?
        else {
            return Ok(false);
        };
        match order {
            Order::Start(start) => self.start(start, output)?,
            Order::Terminate(id) => {
                if let Some(running) = self.running.get(&id) {
                    let _ = killpg(running.leader, Signal::SIGTERM);
                }
            }
            Order::Kill(id) => {
                if let Some(running) = self.running.get(&id) {
                    self.end_session(running);
                } else if let Some((_, launcher)) = self.launching.iter().find(|(other, _)| *other == id) {
                    let _ = kill(launcher.pid, Signal::SIGKILL);
                }
            }
        }
        Ok(true)
    }

    fn start(&mut self, start: Start, output: Option<File>) -> io::Result<()> {
        let id = start.id;
        let Some(output) = output else {
            return self
                .report(&Report::Failed(id, StartError::Program("no descriptor for the output".to_owned())));
        };
        let launcher = match self.spares.pop_front().map_or_else(launch, Ok) {
            Ok(launcher) => launcher,
            Err(e) => {
                return self.report(&Report::Failed(id, StartError::Program(format!("cannot fork: {e}"))));
            }
        };
        let mark = start.mark.clone();
        match protocol::send(launcher.channel.as_fd(), &Order::Start(start), &[output.as_raw_fd()]) {
            Ok(()) => {
                self.running.insert(id, Running { leader: launcher.pid, mark });
                self.launching.push((id, launcher));
                Ok(())
            }
            // The launcher ends by itself when its socket closes.
            Err(e) => {
                self.report(&Report::Failed(id, StartError::Program(format!("cannot order a launcher: {e}"))))
            }
        }
    }

    /// Takes what launchers say: warnings, failures, and the end of the socket, which means that the program runs.
    fn hear_launchers(&mut self) -> io::Result<()> {
        let mut waiting = Vec::new();
        for (id, launcher) in std::mem::take(&mut self.launching) {
            if self.hear(id, &launcher, false)? {
                waiting.push((id, launcher));
            }
        }
        self.launching = waiting;
        Ok(())
    }

    /// Takes what one launcher has said so far; false when it has nothing more to say.
    fn hear(&mut self, id: Id, launcher: &Launcher, ended: bool) -> io::Result<bool> {
        while ended || is_readable(launcher.channel.as_fd()) {
            match protocol::receive::<Report>(launcher.channel.as_fd(), &mut self.buffer) {
                Ok(Some((report @ Report::Failed(..), _))) => {
                    self.running.remove(&id);
                    self.report(&report)?;
                    return Ok(false);
                }
                Ok(Some((report, _))) => self.report(&report)?,
                Ok(None) | Err(_) => {
                    self.report(&Report::Started(id, launcher.pid.as_raw()))?;
                    return Ok(false);
                }
            }
        }
        Ok(true)
    }

    /// Collects what ended, kills what it left behind, reports.
    fn reap(&mut self) -> io::Result<()> {
        loop {
            let (pid, code) = match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::Exited(pid, code)) => (pid, code),
                Ok(WaitStatus::Signaled(pid, signal, _)) => (pid, 128 + signal as i32),
                Err(Errno::EINTR) => continue,
                Ok(WaitStatus::StillAlive) | Err(_) => return Ok(()),
                Ok(_) => continue,
            };
            self.spares.retain(|spare| spare.pid != pid);
            if let Some(at) = self.launching.iter().position(|(_, launcher)| launcher.pid == pid) {
                let (id, launcher) = self.launching.swap_remove(at);
                self.hear(id, &launcher, true)?;
            }
            let Some(id) = self.running.iter().find(|(_, r)| r.leader == pid).map(|(id, _)| *id) else {
                continue;
            };
            if let Some(running) = self.running.remove(&id) {
                self.end_session(&running);
            }
            self.report(&Report::Exited(id, code))?;
        }
    }

    /// Kills a session: its members, their descendants, and what left it but carries its mark.
    fn end_session(&self, running: &Running) {
        let others =
            self.running.values().map(|r| r.leader).filter(|leader| *leader != running.leader).collect();
        // Whoever forks while it is being killed is found in a later round.
        for _ in 0..8 {
            let family = process_tree::family(Pid::this(), running.leader, &running.mark, &others);
            if family.is_empty() {
                return;
            }
            for pid in family {
                let _ = kill(pid, Signal::SIGKILL);
            }
        }
    }
}

fn is_readable(fd: BorrowedFd<'_>) -> bool {
    poll(&mut [PollFd::new(fd, PollFlags::POLLIN)], PollTimeout::ZERO).is_ok_and(|n| n > 0)
}

fn launch() -> io::Result<Launcher> {
    let (ours, theirs) = protocol::pair()?;
    let child = Command::new("/proc/self/exe")
        .arg0("ember-launcher")
        .arg(LAUNCHER)
        .env_clear()
        .stdin(Stdio::from(theirs))
        .stdout(Stdio::null())
        .spawn()?;
    let pid = i32::try_from(child.id()).map_err(io::Error::other)?;
    Ok(Launcher { pid: Pid::from_raw(pid), channel: ours })
}
