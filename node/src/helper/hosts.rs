//! Whether this machine lets a file stand in for `/etc/hosts` in a container.

use std::ffi::OsStr;
use std::io::{self, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};

use super::mounts;
use super::protocol::{HOSTS_PROBE, Mount, Mounts};

/// Tries it in a process of its own, which is `program`.
///
/// # Errors
/// Why it is not possible.
pub fn hosts_file_fits(program: &Path, file: &Path) -> Result<(), String> {
    let arguments: [&OsStr; 2] = [HOSTS_PROBE.as_ref(), file.as_ref()];
    let output = Command::new(program).args(arguments).env_clear().stdin(Stdio::null()).output();
    match output {
        Ok(output) if output.status.success() && output.stdout.is_empty() => Ok(()),
        Ok(output) if output.stdout.is_empty() => Err(output.status.to_string()),
        Ok(output) => Err(String::from_utf8_lossy(&output.stdout).into_owned()),
        Err(error) => Err(error.to_string()),
    }
}

/// The process that tries: it says why not, or nothing.
pub(super) fn probe() {
    let Some(file) = std::env::args_os().nth(2) else { return };
    let point = Mount::hosts(Path::new(&file));
    if let Err(error) = mounts::enter(&Mounts { stage: String::new(), points: vec![point] }) {
        // Without a reader there is nobody to tell.
        let _ = io::stdout().write_all(error.as_bytes());
    }
}
