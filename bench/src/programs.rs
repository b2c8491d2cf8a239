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

/// The sidecar.
const QUEUE_PROXY: Program = Program { name: "queue-proxy", package: "ember-queue-proxy", features: &[] };
/// How it ships: one file, optimised whole.
const SHIPPED: (&str, &str) = ("dist", "-C target-feature=+crt-static");

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
        let target = folder.parent().context("this program lies in no target folder")?;
        let mut arguments = self.arguments();
        arguments.extend(profile(folder));
        say(&format!("{} is not built: cargo {}", self.name, arguments.join(" ")))?;
        self.cargo(&arguments, target, None)
    }

    fn arguments(self) -> Vec<&'static str> {
        let mut arguments = vec!["build", "--package", self.package, "--bin", self.name];
        arguments.extend(self.features.iter().flat_map(|feature| ["--features", *feature]));
        arguments
    }

    fn cargo(self, arguments: &[&str], target: &Path, flags: Option<&str>) -> anyhow::Result<()> {
        let cargo = std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into());
        let manifest = concat!(env!("CARGO_MANIFEST_DIR"), "/../Cargo.toml");
        let mut command = Command::new(cargo);
        command.args(arguments).args(["--manifest-path", manifest, "--target-dir"]).arg(target);
        command.envs(flags.map(|flags| ("RUSTFLAGS", flags)));
        if !command.status().context("cannot run cargo")?.success() {
            bail!("cargo could not build {}", self.name);
        }
        Ok(())
    }
}

/// The sidecar as it ships, built now if there is no such build of it as it is; beside a debug build of this program, a
/// debug build of it.
///
/// It has a target folder of its own: built with the rest of the workspace it would have what others need of its
/// libraries.
pub(crate) fn queue_proxy() -> anyhow::Result<PathBuf> {
    let own = std::env::current_exe().context("this program's own path is unknown")?;
    let folder = own.parent().context("this program lies in no folder")?;
    if profile(folder).is_empty() {
        return QUEUE_PROXY.path();
    }
    let target = folder.parent().context("this program lies in no target folder")?.join("sidecar");
    let (profile, flags) = SHIPPED;
    let triple = format!("{}-unknown-linux-gnu", std::env::consts::ARCH);
    let mut arguments = QUEUE_PROXY.arguments();
    arguments.extend(["--profile", profile, "--target", &triple]);
    say(&format!("RUSTFLAGS=\"{flags}\" cargo {}", arguments.join(" ")))?;
    QUEUE_PROXY.cargo(&arguments, &target, Some(flags))?;
    Ok(target.join(&triple).join(profile).join(QUEUE_PROXY.name))
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
