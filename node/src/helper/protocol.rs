//! What Ember, the process helper and its launchers say to each other: one JSON document a datagram, over Unix
//! sockets that keep message boundaries. An order to start carries one descriptor, the process's output.

use std::fs::File;
use std::io::{self, IoSlice, IoSliceMut};
use std::os::fd::{AsRawFd, BorrowedFd, OwnedFd, RawFd};
use std::path::Path;

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, UnixAddr, recv,
    recvmsg, sendmsg, setsockopt, socketpair, sockopt,
};
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use crate::runtime::StartError;

/// `argv[1]` of the process helper.
pub const HELPER: &str = "ember-process-helper";
/// `argv[1]` of a launcher.
pub(crate) const LAUNCHER: &str = "ember-process-launcher";
/// `argv[1]` of a process that finds out whether a file can stand in for `/etc/hosts`; `argv[2]` is the file.
pub(crate) const HOSTS_PROBE: &str = "ember-hosts-probe";
/// The largest message: room for an environment as large as a ConfigMap may be, if the system grants the buffer.
const MAX_MESSAGE: usize = 2 << 20;

/// Where programs look names up before they ask anybody.
pub(crate) const HOSTS: &str = "/etc/hosts";

/// Names a process for the life of the helper.
pub type Id = u64;

/// From Ember to the helper.
#[derive(Debug, Serialize, Deserialize)]
pub(crate) enum Order {
    /// Start a process; with the descriptor of its output.
    Start(Start),
    /// Ask the process group of a process to end.
    Terminate(Id),
    /// End everything that a process started.
    Kill(Id),
}

/// What to start.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Start {
    /// Chosen by Ember.
    pub id: Id,
    /// The program as the pod names it; searched in `PATH` of `env` unless it has a slash. `None`: this very binary.
    pub program: Option<String>,
    /// Without the program itself.
    pub args: Vec<String>,
    /// The whole environment.
    pub env: Vec<(String, String)>,
    /// The directory that the pod declares, or the one that Ember runs in.
    pub dir: String,
    /// Whether the pod declares `dir`.
    pub dir_is_declared: bool,
    /// What is mounted for the program alone.
    pub mounts: Option<Mounts>,
    /// The identity to take on.
    pub identity: Option<Identity>,
    /// An environment entry by which processes that left the session are known, `NAME=value`.
    pub mark: String,
}

/// A file system of a program's own: this machine's, with volumes in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mounts {
    /// An empty folder, to prepare a new root in.
    pub stage: String,
    /// What is mounted.
    pub points: Vec<Mount>,
}

/// A file or folder of this machine, mounted somewhere else.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// What is mounted.
    pub source: String,
    /// Where; an absolute path, which need not exist.
    pub target: String,
    /// Whether it can only be read there.
    pub read_only: bool,
}

impl Mount {
    /// A file that stands in for this machine's `/etc/hosts`.
    pub(crate) fn hosts(file: &Path) -> Self {
        Self { source: file.to_string_lossy().into_owned(), target: HOSTS.to_owned(), read_only: true }
    }
}

/// A user and group to run as.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Identity {
    /// User.
    pub uid: u32,
    /// Group.
    pub gid: u32,
    /// Whether the pod asks for it. What the node chose itself is left out where files are not accessible with it.
    pub required: bool,
}

/// From the helper to Ember, and (all but `Started` and `Exited`) from a launcher to the helper.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Report {
    /// Something that the user should know.
    Warning(Id, String),
    /// The program runs.
    Started(Id, i32),
    /// The program could not be run.
    Failed(Id, StartError),
    /// The program ended, and everything it left behind was killed. Exit code, or 128 + signal.
    Exited(Id, i32),
}

/// A pair of connected sockets, closed on exec, with as large a buffer as the system grants.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    let (a, b) = socketpair(AddressFamily::Unix, SockType::SeqPacket, None, SockFlag::SOCK_CLOEXEC)?;
    for socket in [&a, &b] {
        // Beyond the system's limit as root, up to it otherwise.
        if setsockopt(socket, sockopt::SndBufForce, &MAX_MESSAGE).is_err() {
            let _ = setsockopt(socket, sockopt::SndBuf, &MAX_MESSAGE);
        }
    }
    Ok((a, b))
}

/// Sends one message, with descriptors.
pub(crate) fn send(to: BorrowedFd<'_>, message: &impl Serialize, fds: &[RawFd]) -> io::Result<()> {
    let bytes = serde_json::to_vec(message)?;
    if bytes.len() > MAX_MESSAGE {
        return Err(Errno::EMSGSIZE.into());
    }
    let rights = [ControlMessage::ScmRights(fds)];
    let control = if fds.is_empty() { &[][..] } else { &rights[..] };
    loop {
        match sendmsg::<UnixAddr>(
            to.as_raw_fd(),
            &[IoSlice::new(&bytes)],
            control,
            MsgFlags::MSG_NOSIGNAL,
            None,
        ) {
            Err(Errno::EINTR) => {}
            Ok(_) => return Ok(()),
            Err(e) => return Err(e.into()),
        }
    }
}

/// Receives one message; `None` when the other side is gone.
pub(crate) fn receive<T: DeserializeOwned>(
    from: BorrowedFd<'_>,
    buffer: &mut Vec<u8>,
) -> io::Result<Option<(T, Option<File>)>> {
    // No more memory than the message needs: a launcher would touch megabytes for nothing, in the way of every start.
    let length = loop {
        match recv(from.as_raw_fd(), &mut [], MsgFlags::MSG_PEEK | MsgFlags::MSG_TRUNC) {
            Err(Errno::EINTR) => {}
            Err(Errno::ECONNRESET) => return Ok(None),
            Err(e) => return Err(e.into()),
            Ok(length) => break length,
        }
    };
    buffer.resize(length.max(1), 0);
    let mut control = nix::cmsg_space!([RawFd; 1]);
    let mut iov = [IoSliceMut::new(buffer)];
    let (length, raw) = {
        let flags = MsgFlags::MSG_CMSG_CLOEXEC;
        let message = loop {
            match recvmsg::<UnixAddr>(from.as_raw_fd(), &mut iov, Some(&mut control), flags) {
                Err(Errno::EINTR) => {}
                Err(Errno::ECONNRESET) => return Ok(None),
                Err(e) => return Err(e.into()),
                Ok(message) => break message,
            }
        };
        let mut raw = None;
        for item in message.cmsgs()? {
            if let ControlMessageOwned::ScmRights(fds) = item {
                raw = fds.first().copied();
            }
        }
        (message.bytes, raw)
    };
    let file = raw.map(own).transpose()?;
    if length == 0 {
        return Ok(None);
    }
    Ok(Some((serde_json::from_slice(&buffer[..length])?, file)))
}

/// Takes possession of the write end of a pipe that was received as a number. Opening it anew gives an owned
/// descriptor (and one that blocks, as programs expect of their output).
fn own(raw: RawFd) -> io::Result<File> {
    let file = File::options().write(true).open(format!("/proc/self/fd/{raw}"));
    nix::unistd::close(raw)?;
    file
}
