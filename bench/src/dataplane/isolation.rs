//! A network of the run's own: a loopback interface that nothing else uses, on which every port is free.

use std::os::fd::AsRawFd;

use anyhow::{Context, bail};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockProtocol, SockType, recv, send, setsockopt, socket, sockopt,
};
use nix::sys::time::{TimeVal, TimeValLike};
use nix::unistd::getuid;

/// Moves this thread, and what it starts from now on, to a network namespace with nothing but loopback. Only in a
/// process of one thread can someone other than root do that.
pub(super) fn enter() -> anyhow::Result<()> {
    if unshare(CloneFlags::CLONE_NEWNET).is_err() {
        let user = getuid();
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNET).context("unshare")?;
        std::fs::write("/proc/self/uid_map", format!("{user} {user} 1")).context("/proc/self/uid_map")?;
    }
    bring_up_loopback()
}

/// Netlink, as `ip link set lo up` speaks it.
fn bring_up_loopback() -> anyhow::Result<()> {
    const RTM_NEWLINK: u16 = 16;
    const NLM_F_REQUEST_AND_ACK: u16 = 5;
    const IFF_UP: u32 = 1;
    /// The first interface of every namespace.
    const LOOPBACK: i32 = 1;
    let mut message = Vec::with_capacity(32);
    message.extend(32_u32.to_ne_bytes());
    message.extend(RTM_NEWLINK.to_ne_bytes());
    message.extend(NLM_F_REQUEST_AND_ACK.to_ne_bytes());
    // Sequence number and sender; then any address family, any type.
    message.extend([0; 8]);
    message.extend([0; 4]);
    message.extend(LOOPBACK.to_ne_bytes());
    // The flags, and which of them are meant.
    message.extend(IFF_UP.to_ne_bytes());
    message.extend(IFF_UP.to_ne_bytes());

    let netlink =
        socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, SockProtocol::NetlinkRoute)
            .context("netlink")?;
    setsockopt(&netlink, sockopt::ReceiveTimeout, &TimeVal::seconds(5))?;
    send(netlink.as_raw_fd(), &message, MsgFlags::empty()).context("netlink")?;
    let mut answer = [0; 256];
    let length = recv(netlink.as_raw_fd(), &mut answer, MsgFlags::empty()).context("netlink")?;
    // An acknowledgement is an error message with the error 0, behind the header.
    match answer[..length].get(16..20) {
        Some([0, 0, 0, 0]) => Ok(()),
        other => bail!("the loopback interface does not come up: {other:?}"),
    }
}
