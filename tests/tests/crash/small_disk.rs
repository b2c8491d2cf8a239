//! A disk of a few MiB in memory, mounted where an instance has its data.

use std::fs::{self, File};
use std::io::Write;
use std::path::PathBuf;
use std::process::Command;
use std::sync::Arc;

use tempfile::TempDir;

/// A mounted disk; dropping it takes it away.
pub(crate) struct SmallDisk {
    /// The folder in which it is `data`.
    pub(crate) dir: Arc<TempDir>,
}

impl SmallDisk {
    /// Mounts one with `options`; `None`, and a line that says so, where this user may not mount.
    pub(crate) fn mount(options: &str) -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            eprintln!("not run: mounting a disk takes root");
            return None;
        }
        let dir = tempfile::Builder::new().prefix("ember-disk-").tempdir().unwrap();
        let disk = Self { dir: Arc::new(dir) };
        fs::create_dir(disk.data()).unwrap();
        let mount = Command::new("mount")
            .args(["-t", "tmpfs", "-o", options, "ember-test"])
            .arg(disk.data())
            .output()
            .unwrap();
        if !mount.status.success() {
            eprintln!("not run: {}", String::from_utf8_lossy(&mount.stderr));
            return None;
        }
        Some(disk)
    }

    pub(crate) fn data(&self) -> PathBuf {
        self.dir.path().join("data")
    }

    fn filler(&self) -> PathBuf {
        self.data().join("filler")
    }

    /// Takes all the room there is.
    pub(crate) fn fill(&self) {
        let mut file = File::options().create(true).append(true).open(self.filler()).unwrap();
        while file.write_all(&[1; 4096]).is_ok() {}
        // What is less than a block.
        while file.write_all(&[1]).is_ok() {}
    }

    /// Gives it back.
    pub(crate) fn free(&self) {
        fs::remove_file(self.filler()).unwrap();
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        // Also while a dying process still has files there.
        let _ = Command::new("umount").arg("-l").arg(self.data()).status();
    }
}
