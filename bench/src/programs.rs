//! The programs a run needs, as built beside this one.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context, bail};

use crate::say;

/// A program of the workspace.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Program {
    /// Its file name.
    pub(crate) name: &'static str,
    /// The package that it is built from.
    pub(crate) package: &'static str,
    /// What has to be switched on to build it.
    pub(crate) features: &'static [&'static str],
}

/// The system under test.
pub(crate) const EMBER: Program = Program { name: "ember", package: "ember", features: &[] };
/// The app that starts in no time.
pub(crate) const TINY_APP: Program = Program { name: "tiny-app", package: "ember-bench", features: &[] };
/// Another proxy.
pub(crate) const PINGORA: Program =
    Program { name: "pingora-peer", package: "ember-bench", features: &["pingora"] };

/// The sidecar, as it runs in a container of its own.
pub(crate) const QUEUE_PROXY: Program =
    Program { name: "queue-proxy", package: "ember-queue-proxy", features: &[] };

impl Program {
    /// The file beside this program, built now if it is missing.
    pub(crate) fn path(self) -> anyhow::Result<PathBuf> {
        let own = std::env::current_exe().context("this program's own path is unknown")?;
        let folder = own.parent().context("this program lies in no folder")?;
        let path = folder.join(self.name);
        if !path.exists() {
            self.build(folder)?;
        }
        if !path.exists() {
            bail!("{} is missing, and building it did not help", path.display());
        }
        Ok(path)
    }

    fn build(self, folder: &Path) -> anyhow::Result<()> {
        let mut arguments = vec!["build", "--package", self.package, "--bin", self.name];
        arguments.extend(profile(folder));
        arguments.extend(self.features.iter().flat_map(|feature| ["--features", *feature]));
        let target = folder.parent().context("this program lies in no target folder")?;
        say(&format!("{} is not built: cargo {}", self.name, arguments.join(" ")))?;
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let status = Command::new(cargo)
            .args(&arguments)
            .arg("--manifest-path")
            .arg(manifest)
            .arg("--target-dir")
            .arg(target)
            .status();
        if !status.context("cannot run cargo")?.success() {
            bail!("cargo could not build {}", self.name);
        }
        Ok(())
    }
}

/// The arguments that make cargo build into `folder`.
fn profile(folder: &Path) -> Vec<&str> {
    match folder.file_name().and_then(|name| name.to_str()) {
        Some("debug") | None => Vec::new(),
        Some(profile) => vec!["--profile", profile],
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_is_named_after_its_profile() {
        assert!(profile(Path::new("/t/debug")).is_empty());
        assert_eq!(profile(Path::new("/t/release")), ["--profile", "release"]);
        assert_eq!(profile(Path::new("/t/dist")), ["--profile", "dist"]);
    }
}
