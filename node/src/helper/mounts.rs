//! A file system of a container's own: a mount namespace in which the volumes of the pod lie where it wants them.
//!
//! The host keeps none of it. Where a mount point does not exist, the nearest folder that does is replaced, in the
//! namespace only, by one in memory that shows the same entries and has room for the mount point; what the container
//! writes directly into that folder is its own and ends with it.

use std::fs;
use std::io;
use std::os::fd::AsRawFd;
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::statvfs::{FsFlags, statvfs};

use super::protocol::{Mount, Mounts};

/// A folder with more entries is not rebuilt: each one is a mount.
const MOST_ENTRIES: usize = 4096;
/// What a mount is made with and without anything else.
const NOTHING: Option<&str> = None;

/// Gives this process a mount namespace and everything of `mounts` in it. The process must have one thread.
///
/// # Errors
/// What cannot be mounted, with the mount path and what to do about it.
pub(super) fn enter(mounts: &Mounts) -> Result<(), String> {
    separate().map_err(|e| {
        format!(
            "volumeMounts: this machine gives containers no file system of their own ({}): run Ember as root, or \
             allow user namespaces (sysctl user.max_user_namespaces)",
            e.desc().to_lowercase()
        )
    })?;
    let mut points: Vec<&Mount> = mounts.points.iter().collect();
    // Parents before what is mounted in them.
    points.sort_by_key(|point| Path::new(&point.target).components().count());
    let fail = |point: &Mount, e: &dyn std::fmt::Display| format!("mountPath {}: {e}", point.target);
    // First of all, because sources are then found by the same paths as before.
    if let Some(point) = points.iter().find(|p| lies_in_root(Path::new(&p.target))) {
        rebuild_root(Path::new(&mounts.stage)).map_err(|e| fail(point, &e))?;
    }
    // Held open: a mount may hide the path of the next one's source.
    let mut sources = Vec::new();
    for point in &points {
        let file = fs::File::options()
            .read(true)
            .custom_flags(OFlag::O_PATH.bits())
            .open(&point.source)
            .map_err(|e| fail(point, &format!("the volume: {e}")))?;
        sources.push(file);
    }
    let mut own = Own::default();
    for (point, source) in points.iter().zip(&sources) {
        let is_dir = source.metadata().map_err(|e| fail(point, &e))?.is_dir();
        let target = own.place(Path::new(&point.target), is_dir).map_err(|e| fail(point, &e))?;
        bind(&descriptor(source), &target).map_err(|e| fail(point, &e))?;
        own.mounted.push(target);
    }
    for (point, target) in points.iter().zip(&own.mounted).filter(|(point, _)| point.read_only) {
        make_read_only(target).map_err(|e| fail(point, &e))?;
    }
    Ok(())
}

/// A mount namespace, within a user namespace if this process is not root. The host's mounts and unmounts still
/// arrive, and nothing goes back.
fn separate() -> nix::Result<()> {
    let (uid, gid) = (nix::unistd::geteuid(), nix::unistd::getegid());
    if uid.is_root() {
        unshare(CloneFlags::CLONE_NEWNS)?;
    } else {
        unshare(CloneFlags::CLONE_NEWUSER | CloneFlags::CLONE_NEWNS)?;
        let write = |file: &str, text: String| {
            fs::write(format!("/proc/self/{file}"), text)
                .map_err(|e| e.raw_os_error().map_or(Errno::EPERM, Errno::from_raw))
        };
        write("setgroups", "deny".to_owned())?;
        write("uid_map", format!("{uid} {uid} 1"))?;
        write("gid_map", format!("{gid} {gid} 1"))?;
    }
    mount(NOTHING, "/", NOTHING, MsFlags::MS_SLAVE | MsFlags::MS_REC, NOTHING)
}

/// The nearest existing path above `path`, or `path` itself.
fn ancestor(path: &Path) -> &Path {
    path.ancestors().find(|p| p.exists()).unwrap_or(Path::new("/"))
}

/// Whether a mount point is missing directly below `/`.
fn lies_in_root(target: &Path) -> bool {
    let above = ancestor(target);
    above != target && fs::canonicalize(above).is_ok_and(|real| real == Path::new("/"))
}

fn descriptor(file: &fs::File) -> PathBuf {
    PathBuf::from(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

fn bind(source: &Path, target: &Path) -> nix::Result<()> {
    mount(Some(source), target, NOTHING, MsFlags::MS_BIND | MsFlags::MS_REC, NOTHING)
}

/// The other restrictions of the mount stay: a user namespace may not lift them.
fn make_read_only(target: &Path) -> nix::Result<()> {
    let mut flags = MsFlags::MS_BIND | MsFlags::MS_REMOUNT | MsFlags::MS_RDONLY;
    let current = statvfs(target)?.flags();
    for (has, keep) in [
        (FsFlags::ST_NOSUID, MsFlags::MS_NOSUID),
        (FsFlags::ST_NODEV, MsFlags::MS_NODEV),
        (FsFlags::ST_NOEXEC, MsFlags::MS_NOEXEC),
        (FsFlags::ST_NOATIME, MsFlags::MS_NOATIME),
        (FsFlags::ST_NODIRATIME, MsFlags::MS_NODIRATIME),
        (FsFlags::ST_RELATIME, MsFlags::MS_RELATIME),
    ] {
        if current.contains(has) {
            flags |= keep;
        }
    }
    mount(NOTHING, target, NOTHING, flags, NOTHING)
}

/// What of the namespace is the container's own.
#[derive(Default)]
struct Own {
    /// Devices of the folders in memory.
    folders: Vec<u64>,
    /// Where volumes are mounted, in the order of mounting.
    mounted: Vec<PathBuf>,
}

impl Own {
    /// The real path of a mount point, which is made if it does not exist.
    fn place(&mut self, target: &Path, is_dir: bool) -> io::Result<PathBuf> {
        let above = ancestor(target);
        let real = fs::canonicalize(above)?;
        if above == target {
            if fs::metadata(&real)?.is_dir() != is_dir {
                let (is, wanted) = if is_dir { ("a file", "folder") } else { ("a folder", "file") };
                return Err(io::Error::other(format!(
                    "is {is} on this machine; the volume has a {wanted} there"
                )));
            }
            return Ok(real);
        }
        let missing = target.strip_prefix(above).map_err(io::Error::other)?;
        let found = fs::metadata(&real)?;
        if !found.is_dir() {
            return Err(io::Error::other(format!("{} is no folder on this machine", above.display())));
        }
        let is_ours = self.folders.contains(&found.dev()) || self.mounted.iter().any(|m| real.starts_with(m));
        if !is_ours && real == Path::new("/") {
            // `enter` has rebuilt it.
            self.folders.push(found.dev());
        } else if !is_ours {
            rebuild(&real)?;
            self.folders.push(fs::metadata(&real)?.dev());
        }
        let path = real.join(missing);
        let folder = if is_dir { Some(path.as_path()) } else { path.parent() };
        if let Some(folder) = folder {
            fs::DirBuilder::new().recursive(true).mode(0o755).create(folder)?;
        }
        if !is_dir {
            fs::File::create(&path)?;
        }
        Ok(path)
    }
}

/// Puts a folder in memory in the place of `path`, with the same entries.
fn rebuild(path: &Path) -> io::Result<()> {
    let below = fs::File::options().read(true).custom_flags(OFlag::O_PATH.bits()).open(path)?;
    let entries = entries(path)?;
    in_memory(path, path)?;
    show(&entries, &descriptor(&below), path)
}

/// The same for `/`, which takes a change of root.
fn rebuild_root(stage: &Path) -> io::Result<()> {
    let entries = entries(Path::new("/"))?;
    in_memory(stage, Path::new("/"))?;
    show(&entries, Path::new("/"), stage)?;
    std::env::set_current_dir(stage)?;
    if nix::unistd::pivot_root(".", ".").is_ok() {
        // The old root ended up on top of the new one, and goes.
        umount2(".", MntFlags::MNT_DETACH)?;
    } else {
        // The first root of a machine cannot be left.
        nix::unistd::chroot(".")?;
    }
    std::env::set_current_dir("/")
}

fn entries(path: &Path) -> io::Result<Vec<fs::DirEntry>> {
    let entries: Vec<_> = fs::read_dir(path)?.take(MOST_ENTRIES + 1).collect::<io::Result<_>>()?;
    if entries.len() > MOST_ENTRIES {
        return Err(io::Error::other(format!(
            "does not exist on this machine, and {} has too many entries to add it there for the container alone: \
             make the folder",
            path.display()
        )));
    }
    Ok(entries)
}

/// Mounts an empty folder at `at` that is as accessible as `like`.
fn in_memory(at: &Path, like: &Path) -> io::Result<()> {
    let found = fs::metadata(like)?;
    let flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(Some("ember"), at, Some("tmpfs"), flags, Some("mode=0755"))?;
    // A user namespace has but one user: there, others' folders become its own.
    let _ = std::os::unix::fs::chown(at, Some(found.uid()), Some(found.gid()));
    fs::set_permissions(at, fs::Permissions::from_mode(found.mode() & 0o7777))
}

fn show(entries: &[fs::DirEntry], from: &Path, at: &Path) -> io::Result<()> {
    for entry in entries {
        let (kind, target, source) =
            (entry.file_type()?, at.join(entry.file_name()), from.join(entry.file_name()));
        if kind.is_symlink() {
            symlink(fs::read_link(&source)?, &target)?;
            continue;
        }
        if kind.is_dir() {
            fs::create_dir(&target)?;
        } else {
            fs::File::create(&target)?;
        }
        match bind(&source, &target) {
            Ok(()) => {}
            // It went meanwhile.
            Err(Errno::ENOENT) if kind.is_dir() => fs::remove_dir(&target)?,
            Err(Errno::ENOENT) => fs::remove_file(&target)?,
            Err(e) => return Err(e.into()),
        }
    }
    Ok(())
}
