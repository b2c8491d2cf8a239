//! What the node is told at its start.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::time::Duration;

use crate::address::Block;
use crate::backoff::BackOffConfig;
use crate::logs::Logs;

/// The configuration of a node.
#[derive(Debug, Clone)]
pub struct Config {
    /// Name of the node in pods. Default `ember`.
    pub node_name: String,
    /// Addresses of pods are taken from here.
    pub block: Block,
    /// Addresses of `block` that are not for pods.
    pub reserved: Vec<Ipv4Addr>,
    /// `status.hostIP` of pods. Default 127.0.0.1.
    pub host_ip: IpAddr,
    /// Ports for the processes of pods. Default: those of `block`.
    pub app_ports: RangeInclusive<u16>,
    /// The program that becomes the process helper when it is executed with [`crate::helper::HELPER`], and that
    /// `command: ["ember"]` means. Default: this binary.
    pub program: PathBuf,
    /// `PATH` of pods that do not declare one. Default: that of this process.
    pub path: String,
    /// Where pods run that declare no `workingDir`. Default: where this process runs.
    pub working_dir: PathBuf,
    /// Where volumes lie while their pods are there; this folder is removed at start and at the end. Default
    /// `ember-pods-PID` among the system's temporary files.
    pub volumes: PathBuf,
    /// Stands in for `/etc/hosts` in every container that mounts nothing there itself; see [`crate::hosts_file_fits`].
    /// It may be written while containers run, but not be replaced. Default: none, containers see this machine's.
    pub hosts_file: Option<PathBuf>,
    /// Users for services, one each, if this process is root. `None` leaves every pod with root. Default
    /// 200000–265535, if this user namespace has them.
    pub service_uids: Option<RangeInclusive<u32>>,
    /// Restarts of containers.
    pub back_off: BackOffConfig,
    /// How long pods may take to end when the node is shut down. Default 10 s.
    pub shutdown_grace: Duration,
    /// The longest that a pod without `terminationGracePeriodSeconds` may take to end. Default 30 s.
    pub termination_grace: Duration,
    /// The first wait before something that failed at the API is tried again; it doubles up to 100 times that.
    /// Default 50 ms.
    pub retry: Duration,
    /// Where what containers write goes. Default: 1 MiB for each run.
    pub logs: Logs,
}

impl Config {
    /// The defaults, with addresses from `block`.
    ///
    /// # Errors
    /// When the system cannot tell this binary's path or the current directory.
    pub fn new(block: Block) -> io::Result<Self> {
        let service_uids = 200_000..=265_535;
        Ok(Self {
            node_name: "ember".to_owned(),
            block,
            reserved: Vec::new(),
            host_ip: IpAddr::V4(Ipv4Addr::LOCALHOST),
            app_ports: block.app_ports(),
            program: std::env::current_exe()?,
            path: std::env::var("PATH").unwrap_or_else(|_| {
                "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".to_owned()
            }),
            working_dir: std::env::current_dir()?,
            volumes: std::env::temp_dir().join(format!("ember-pods-{}", std::process::id())),
            hosts_file: None,
            service_uids: may_become(&service_uids).then_some(service_uids),
            back_off: BackOffConfig::default(),
            shutdown_grace: Duration::from_secs(10),
            termination_grace: Duration::from_secs(30),
            retry: Duration::from_millis(50),
            logs: Logs::new(1 << 20),
        })
    }
}

/// Whether this process can start others as these users.
fn may_become(uids: &RangeInclusive<u32>) -> bool {
    let map = std::fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    nix::unistd::geteuid().is_root() && maps(&map, uids)
}

fn maps(uid_map: &str, uids: &RangeInclusive<u32>) -> bool {
    uid_map.lines().any(|line| {
        let mut fields = line.split_ascii_whitespace().map(str::parse::<u64>);
        let (Some(Ok(inside)), Some(Ok(_)), Some(Ok(length))) = (fields.next(), fields.next(), fields.next())
        else {
            return false;
        };
        inside <= u64::from(*uids.start()) && u64::from(*uids.end()) < inside + length
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn user_namespaces() {
        let uids = 200_000..=265_535;
        assert!(maps("         0          0 4294967295\n", &uids));
        assert!(!maps("         0     100000      65536\n", &uids));
        assert!(!maps("", &uids));
    }
}
