//! What `ember up` needs of a machine, and whether it is there.

use std::io::ErrorKind;
use std::net::{IpAddr, SocketAddr, TcpListener, ToSocketAddrs};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use ember_node::address::Block;
use nix::sys::resource::{Resource, getrlimit};
use nix::sys::statvfs::statvfs;

use super::finding::Finding;
use crate::machine::instances::{self, Instance};
use crate::machine::listeners::{self, Process};

/// The addresses that `ember up` listens on unless told otherwise, and the option that tells it.
const PORTS: [(&str, [u8; 4], u16); 2] = [("--http", [127, 0, 0, 1], 8080), ("--api", [127, 0, 0, 1], 6443)];
/// Files that a small instance opens; each pod takes some more, each connection two.
const ENOUGH_FILES: u64 = 4096;
/// The store grows by little; less than this is about to be none.
const ENOUGH_BYTES: u64 = 100 << 20;
/// Any name below `localhost`.
const LOCAL_NAME: &str = "ember-doctor.default.localhost";

/// What was seen of the machine.
#[derive(Debug, Clone)]
pub(crate) struct Facts {
    /// The operating system and its kernel's version.
    system: String,
    /// Whether that is one with Linux's process control.
    linux: bool,
    /// The most files that a process may open.
    files: u64,
    /// The usual ports that are taken: option, address and who has it.
    taken: Vec<(&'static str, SocketAddr, Option<Process>)>,
    /// Whether a block of loopback addresses can be had for pods.
    block: Result<(), String>,
    /// What names below `localhost` resolve to.
    resolved: Result<Vec<IpAddr>, String>,
    /// The data folder.
    folder: Folder,
    /// Instances that run.
    instances: Vec<Instance>,
}

#[derive(Debug, Clone)]
struct Folder {
    path: PathBuf,
    state: FolderState,
}

#[derive(Debug, Clone)]
enum FolderState {
    /// It is made at the first start, if its parents allow that.
    Absent { writable: bool },
    /// There.
    Present { mode: u32, owned: bool, free: Option<u64> },
    /// Something else.
    Unusable(String),
}

impl Facts {
    /// Looks at the machine.
    pub(crate) fn look(data_dir: &Path) -> Self {
        let read = |file: &str| std::fs::read_to_string(file).unwrap_or_default().trim().to_owned();
        let taken = PORTS.iter().filter_map(|(flag, ip, port)| {
            let address = SocketAddr::from((*ip, *port));
            let error = TcpListener::bind(address).err()?;
            (error.kind() == ErrorKind::AddrInUse).then(|| (*flag, address, listeners::holder(address)))
        });
        let resolved =
            (LOCAL_NAME, 80).to_socket_addrs().map(|found| found.map(|address| address.ip()).collect());
        Self {
            system: format!("{} {}", std::env::consts::OS, read("/proc/sys/kernel/osrelease")),
            linux: cfg!(target_os = "linux") && Path::new("/proc/self/stat").exists(),
            files: getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard),
            taken: taken.collect(),
            block: Block::claim().map(drop).map_err(|error| error.to_string()),
            resolved: resolved.map_err(|error| error.to_string()),
            folder: Folder { path: data_dir.to_owned(), state: FolderState::look(data_dir) },
            instances: instances::running(),
        }
    }

    /// The kubeconfigs of instances that run.
    pub(crate) fn kubeconfigs(&self) -> impl Iterator<Item = &Path> {
        self.instances.iter().map(|instance| instance.kubeconfig.as_path())
    }

    /// What to think of it.
    pub(crate) fn judge(&self) -> Vec<Finding> {
        let mut findings = vec![self.judge_system(), self.judge_files()];
        findings.extend(self.judge_ports());
        findings.push(match &self.block {
            Ok(()) => Finding::ok("addresses of pods", "a block of 127.0.0.0/8 is free"),
            Err(why) => Finding::problem("addresses of pods", why.clone()).advise(
                "ember up needs the loopback network 127.0.0.0/8; in a container or sandbox allow it",
            ),
        });
        findings.push(self.judge_names());
        findings.push(self.folder.judge());
        findings.push(match &self.instances[..] {
            [] => {
                Finding::note("instances", "none runs that this user may see").advise("`ember up` starts one")
            }
            all => {
                let each = all.iter().map(|i| format!("process {} ({})", i.pid, i.kubeconfig.display()));
                Finding::ok("instances", each.collect::<Vec<_>>().join(", "))
            }
        });
        findings
    }

    fn judge_system(&self) -> Finding {
        if self.linux {
            return Finding::ok("system", self.system.clone());
        }
        Finding::problem("system", self.system.clone()).advise(
            "ember up runs on Linux with /proc only; run it there, or in a container or virtual machine",
        )
    }

    fn judge_files(&self) -> Finding {
        let what = format!("a process may open {}", self.files);
        if self.files >= ENOUGH_FILES {
            return Finding::ok("open files", what);
        }
        let advice = format!(
            "raise the hard limit (`ulimit -Hn {}`, or LimitNOFILE= of the unit): every connection and every pod takes \
             some",
            ENOUGH_FILES * 4
        );
        Finding::note("open files", what).advise(advice)
    }

    fn judge_ports(&self) -> Vec<Finding> {
        let judge = |(flag, address, who): &(&'static str, SocketAddr, Option<Process>)| {
            let about = format!("port {}", address.port());
            let ours = who.as_ref().is_some_and(|who| self.instances.iter().any(|i| i.pid == who.pid));
            let who = who.as_ref().map_or_else(|| "another program".to_owned(), ToString::to_string);
            if ours {
                return Finding::ok(about, format!("{who}, an instance of ember, listens there"));
            }
            Finding::note(about, format!("{who} listens at {address}"))
                .advise(format!("`ember up {flag} {}:0` picks a free port", address.ip()))
        };
        if self.taken.is_empty() {
            return vec![Finding::ok("ports", "8080 and 6443 are free")];
        }
        self.taken.iter().map(judge).collect()
    }

    fn judge_names(&self) -> Finding {
        let about = "names below localhost";
        let advice = "use `curl -H 'Host: NAME.default.localhost' http://127.0.0.1:8080`, a browser, or a resolver that \
                      knows them (systemd-resolved, or nss-myhostname in /etc/nsswitch.conf)";
        match &self.resolved {
            Ok(ips) if !ips.is_empty() && ips.iter().all(IpAddr::is_loopback) => {
                Finding::ok(about, "they resolve to this machine")
            }
            Ok(ips) => Finding::note(about, format!("they resolve to {ips:?}")).advise(advice),
            Err(why) => Finding::note(about, format!("they do not resolve: {why}")).advise(advice),
        }
    }
}

impl FolderState {
    fn look(path: &Path) -> Self {
        match std::fs::metadata(path) {
            Ok(about) if about.is_dir() => Self::Present {
                mode: about.mode() & 0o777,
                owned: about.uid() == nix::unistd::geteuid().as_raw() && is_writable(path),
                free: statvfs(path).ok().map(|of| of.blocks_available().saturating_mul(of.fragment_size())),
            },
            Ok(_) => Self::Unusable("it is no folder".to_owned()),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                let parent = path.ancestors().find(|parent| parent.exists());
                Self::Absent { writable: parent.is_some_and(is_writable) }
            }
            Err(error) => Self::Unusable(error.to_string()),
        }
    }
}

fn is_writable(path: &Path) -> bool {
    nix::unistd::access(path, nix::unistd::AccessFlags::W_OK | nix::unistd::AccessFlags::X_OK).is_ok()
}

impl Folder {
    fn judge(&self) -> Finding {
        let (about, path) = ("data folder", self.path.display());
        let elsewhere = "make it this user's, or name another with --data-dir";
        match &self.state {
            FolderState::Absent { writable: true } => {
                Finding::ok(about, format!("{path} will be made at the first start"))
            }
            FolderState::Absent { writable: false } => {
                Finding::problem(about, format!("{path} cannot be made")).advise(elsewhere)
            }
            FolderState::Unusable(why) => Finding::problem(about, format!("{path}: {why}")).advise(elsewhere),
            FolderState::Present { owned: false, .. } => {
                Finding::problem(about, format!("{path} cannot be written by this user")).advise(elsewhere)
            }
            FolderState::Present { free: Some(free), .. } if *free < ENOUGH_BYTES => {
                Finding::problem(about, format!("{path}: {} MiB are free there", free >> 20))
                    .advise("make room: what cannot be written is refused")
            }
            FolderState::Present { mode, .. } if mode & 0o077 != 0 => {
                Finding::note(about, format!("others may look into {path} (mode {mode:o})"))
                    .advise(format!("chmod 700 {path}: it holds keys"))
            }
            FolderState::Present { .. } => Finding::ok(about, path.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::{Level, problems};

    fn facts() -> Facts {
        Facts {
            system: "linux 6".into(),
            linux: true,
            files: 1 << 20,
            taken: Vec::new(),
            block: Ok(()),
            resolved: Ok(vec!["127.0.0.1".parse().unwrap()]),
            folder: Folder {
                path: "/d".into(),
                state: FolderState::Present { mode: 0o700, owned: true, free: Some(1 << 40) },
            },
            instances: vec![Instance { pid: 7, kubeconfig: "/d/kubeconfig".into() }],
        }
    }

    #[test]
    fn all_is_well() {
        assert!(facts().judge().iter().all(|finding| finding.level == Level::Ok), "{:?}", facts().judge());
    }

    #[test]
    fn what_is_wrong_is_told_with_advice() {
        let folder = |state| Folder { path: "/d".into(), state };
        let process = |pid| Some(Process { pid, name: "nginx".into() });
        let port = |who| vec![("--http", "127.0.0.1:8080".parse().unwrap(), who)];
        let absent = |writable| folder(FolderState::Absent { writable });
        let present = |mode, owned, free| folder(FolderState::Present { mode, owned, free: Some(free) });
        for (facts, level, part) in [
            (Facts { linux: false, ..facts() }, Level::Problem, "linux 6"),
            (Facts { files: 1024, ..facts() }, Level::Note, "may open 1024"),
            (
                Facts { taken: port(process(3)), ..facts() },
                Level::Note,
                "nginx (process 3) listens at 127.0.0.1:8080",
            ),
            (Facts { taken: port(None), ..facts() }, Level::Note, "another program"),
            (Facts { block: Err("no".into()), ..facts() }, Level::Problem, "no"),
            (Facts { resolved: Err("unknown".into()), ..facts() }, Level::Note, "do not resolve: unknown"),
            (Facts { folder: absent(false), ..facts() }, Level::Problem, "/d cannot be made"),
            (
                Facts { folder: present(0o700, false, 1 << 40), ..facts() },
                Level::Problem,
                "cannot be written",
            ),
            (Facts { folder: present(0o700, true, 1 << 20), ..facts() }, Level::Problem, "1 MiB are free"),
            (Facts { folder: present(0o755, true, 1 << 40), ..facts() }, Level::Note, "mode 755"),
            (Facts { instances: Vec::new(), ..facts() }, Level::Note, "none runs"),
        ] {
            let findings = facts.judge();
            let found = findings.iter().find(|finding| finding.level != Level::Ok).unwrap();
            assert_eq!(found.level, level, "{found:?}");
            assert!(found.what.contains(part) && found.advice.is_some(), "{found:?}");
        }
        let ours = Facts { taken: port(process(7)), ..facts() };
        assert_eq!(problems(&ours.judge()), 0);
        assert!(ours.judge().iter().all(|finding| finding.level == Level::Ok));
    }
}
