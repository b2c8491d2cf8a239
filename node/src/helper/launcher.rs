//! A launcher: a process that waits for one order and becomes the program that the order names.
//!
//! The helper keeps one waiting, so that starting a program costs neither a fork of a large process nor the loading
//! of a binary.

use std::fs::{self, Metadata};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal};
use nix::unistd::{Gid, Uid};

use super::mounts;
use super::protocol::{self, Identity, Order, Report, Start};
use crate::env::lookup;
use crate::runtime::StartError;

/// Waits for the order on standard input and carries it out; returns only if there is none or it fails.
pub(super) fn main() {
    // The helper takes its signals by descriptor; a program starts with none blocked.
    let _ = SigSet::empty().thread_set_mask();
    let stdin = io::stdin();
    // A copy that closes on exec: the helper knows by its end that the program runs.
    let Ok(channel) = stdin.as_fd().try_clone_to_owned() else { return };
    rehearse();
    let Ok(Some((Order::Start(start), Some(output)))) = protocol::receive(channel.as_fd(), &mut Vec::new())
    else {
        return;
    };
    let warn = |text: String| {
        let _ = protocol::send(channel.as_fd(), &Report::Warning(start.id, text), &[]);
    };
    // Not to be found any more once the program has a root of its own.
    let own = own_path();
    let error = match start.mounts.as_ref().map_or(Ok(()), mounts::enter) {
        Ok(()) => StartError::Program(run(&start, &own, output, warn)),
        Err(error) => StartError::Mounts(error),
    };
    let _ = protocol::send(channel.as_fd(), &Report::Failed(start.id, error), &[]);
}

/// Does everything once that an order asks for, in vain: what is run for the first time has yet to be mapped page by
/// page, and that is better done while nobody waits.
fn rehearse() {
    let start = Start {
        program: Some("/proc/self/exe".to_owned()),
        args: vec!["/".to_owned()],
        env: vec![("PATH".to_owned(), "/".to_owned())],
        dir: "/".to_owned(),
        identity: Some(Identity { uid: 0, gid: 0, required: false }),
        ..Start::default()
    };
    let text = serde_json::to_vec(&Order::Start(start)).unwrap_or_default();
    let Ok(Order::Start(start)) = serde_json::from_slice(&text) else { return };
    let Ok(program) = resolve(&start, &own_path()) else { return };
    let dir = Path::new(&start.dir);
    if names_relative_path(&start) || inaccessible(&start, &program, dir, 0).is_some() {
        return;
    }
    // No program has an empty name. Of this process it changes only what the order will set anyhow.
    let mut command = Command::new("");
    command.arg0("").args(&start.args).env_clear().envs(start.env.iter().map(|(n, v)| (n, v)));
    let _ = command.current_dir(dir).stdin(Stdio::null()).stdout(Stdio::null()).exec();
}

/// Becomes the program; returns why not, in the words of the container runtimes that Kubernetes uses.
fn run(start: &Start, own: &Path, output: fs::File, warn: impl Fn(String)) -> String {
    let _ = nix::unistd::setsid();
    if start.dir_is_declared
        && let Err(e) = fs::metadata(&start.dir)
    {
        return format!("chdir to cwd ({:?}) failed: {}", start.dir, reason(&e));
    }
    let program = match resolve(start, own) {
        Ok(program) => program,
        Err(error) => return error,
    };
    let mut dir = Path::new(&start.dir);
    let mut identity = start.identity;
    if let Some(wanted) = identity
        && !wanted.required
    {
        if !start.dir_is_declared && !is_accessible(dir, wanted.uid, 0o5) && !names_relative_path(start) {
            dir = Path::new("/");
        }
        if let Some(path) = inaccessible(start, &program, dir, wanted.uid) {
            warn(format!(
                "runs as the user that Ember runs as: {} is not accessible to a user of the service's own",
                path.display()
            ));
            identity = None;
        }
    }
    let Ok(stderr) = output.try_clone() else { return "no descriptor for the output".to_owned() };
    let mut command =
        Command::new(if start.program.is_none() { Path::new("/proc/self/exe") } else { &program });
    command.arg0(start.program.as_deref().unwrap_or("ember"));
    command.args(&start.args).env_clear().envs(start.env.iter().map(|(n, v)| (n, v))).current_dir(dir);
    if let Some(identity) = identity {
        let _ = nix::unistd::fchown(
            &output,
            Some(Uid::from_raw(identity.uid)),
            Some(Gid::from_raw(identity.gid)),
        );
        if let Err(e) = become_user(identity.uid, identity.gid) {
            return format!("runAsUser: {}: {e}", identity.uid);
        }
    }
    // Should the helper be killed, nothing else would end the program. A change of user takes it back: it comes last.
    let _ = prctl::set_pdeathsig(Signal::SIGKILL);
    command.stdin(Stdio::null()).stdout(output).stderr(stderr);
    let error = command.exec();
    format!("exec: {:?}: {}", start.program.as_deref().unwrap_or("ember"), reason(&error))
}

/// Changes user and group for good, without supplementary groups.
fn become_user(uid: u32, gid: u32) -> nix::Result<()> {
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    if nix::unistd::geteuid().is_root() {
        nix::unistd::setgroups(&[])?;
    }
    nix::unistd::setresgid(gid, gid, gid)?;
    nix::unistd::setresuid(uid, uid, uid)
}

/// Where this binary lies.
fn own_path() -> PathBuf {
    std::env::current_exe().unwrap_or_else(|_| PathBuf::from("/proc/self/exe"))
}

/// Finds the program as a container runtime does.
fn resolve(start: &Start, own: &Path) -> Result<PathBuf, String> {
    let Some(name) = &start.program else { return Ok(own.to_owned()) };
    if name.contains('/') {
        let path = Path::new(&start.dir).join(name);
        return match fs::metadata(&path) {
            Err(e) => Err(format!("exec: {name:?}: stat {name}: {}", reason(&e))),
            Ok(found) if found.is_dir() => Err(format!("exec: {name:?}: is a directory")),
            Ok(found) if !is_executable(&found) => Err(format!("exec: {name:?}: permission denied")),
            Ok(_) => Ok(path),
        };
    }
    lookup(&start.env, "PATH")
        .unwrap_or_default()
        .split(':')
        .filter(|dir| !dir.is_empty())
        .map(|dir| Path::new(&start.dir).join(dir).join(name))
        .find(|path| fs::metadata(path).is_ok_and(|found| found.is_file() && is_executable(&found)))
        .ok_or_else(|| format!("exec: {name:?}: executable file not found in $PATH"))
}

fn is_executable(file: &Metadata) -> bool {
    file.permissions().mode() & 0o111 != 0
}

/// The system's words without Rust's number.
fn reason(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(code) => nix::errno::Errno::from_raw(code).desc().to_lowercase(),
        None => error.to_string(),
    }
}

fn names_relative_path(start: &Start) -> bool {
    let relative = |text: &str| !text.starts_with('/') && Path::new(&start.dir).join(text).exists();
    start.program.as_deref().is_some_and(|p| p.contains('/') && relative(p))
        || start.args.iter().any(|a| relative(a))
}

/// The first thing that the start needs and the user cannot reach: the directory, the program, files among the
/// arguments.
fn inaccessible(start: &Start, program: &Path, dir: &Path, uid: u32) -> Option<PathBuf> {
    if !is_accessible(dir, uid, 0o5) {
        return Some(dir.to_owned());
    }
    // This very binary is started through the kernel's link to it, whatever directory it lies in.
    let needed = if start.program.is_none() {
        fs::metadata(program).is_ok_and(|found| may(&found, uid, 0o1))
    } else {
        is_accessible(program, uid, 0o1)
    };
    if !needed {
        return Some(program.to_owned());
    }
    start
        .args
        .iter()
        .filter(|a| !a.is_empty())
        .map(|a| dir.join(a))
        .find(|path| path.exists() && !is_accessible(path, uid, 0o4))
}

/// Whether the user reaches `path`, also through symbolic links, and may do `wanted` (r = 4, x = 1) with it.
fn is_accessible(path: &Path, uid: u32, wanted: u32) -> bool {
    let Ok(real) = fs::canonicalize(path) else { return false };
    let searchable = |path: &Path| {
        path.ancestors()
            .skip(1)
            .filter(|dir| !dir.as_os_str().is_empty())
            .all(|dir| fs::metadata(dir).is_ok_and(|found| may(&found, uid, 0o1)))
    };
    searchable(path) && searchable(&real) && fs::metadata(&real).is_ok_and(|found| may(&found, uid, wanted))
}

fn may(file: &Metadata, uid: u32, wanted: u32) -> bool {
    let mode = file.permissions().mode();
    let granted = if file.uid() == uid { mode >> 6 } else { mode };
    granted & wanted == wanted
}
