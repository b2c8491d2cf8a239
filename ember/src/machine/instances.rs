//! Instances of `ember up` on this machine, by `/proc`.

use std::path::{Path, PathBuf};

/// A running `ember up`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Instance {
    /// Its process.
    pub(crate) pid: u32,
    /// The kubeconfig it wrote.
    pub(crate) kubeconfig: PathBuf,
}

/// All that this user may see.
pub(crate) fn running() -> Vec<Instance> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
        let Some(pid) = entry.file_name().to_str().and_then(|name| name.parse().ok()) else { continue };
        let Ok(command) = std::fs::read(entry.path().join("cmdline")) else { continue };
        let folder = std::fs::read_link(entry.path().join("cwd")).unwrap_or_default();
        if let Some(kubeconfig) = kubeconfig(&command, &folder) {
            found.push(Instance { pid, kubeconfig });
        }
    }
    found.sort_by_key(|instance| instance.pid);
    found
}

/// Where the instance with this command line, started in `folder`, writes its kubeconfig; `None` for other programs.
/// One that says nothing of it uses the default folder, taken to be that of this user.
fn kubeconfig(command: &[u8], folder: &Path) -> Option<PathBuf> {
    let words: Vec<&str> =
        command.split(|byte| *byte == 0).filter_map(|word| std::str::from_utf8(word).ok()).collect();
    let program = Path::new(words.first()?).file_name()?.to_str()?;
    if program != "ember" || words.get(1) != Some(&"up") {
        return None;
    }
    let option = |name: &str| {
        words.iter().enumerate().find_map(|(at, word)| {
            let value = word.strip_prefix(name)?;
            if value.is_empty() { words.get(at + 1).copied() } else { value.strip_prefix('=') }
        })
    };
    let file = match (option("--kubeconfig"), option("--data-dir")) {
        (Some(file), _) => PathBuf::from(file),
        (None, Some(data)) => Path::new(data).join("kubeconfig"),
        (None, None) => crate::client::default_data_dir().join("kubeconfig"),
    };
    Some(folder.join(file))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instance_is_known_by_its_command_line() {
        let of = |words: &[&str]| kubeconfig(words.join("\0").as_bytes(), Path::new("/home"));
        assert_eq!(of(&["/bin/ember", "up", "--data-dir", "/d"]), Some("/d/kubeconfig".into()));
        assert_eq!(of(&["ember", "up", "--data-dir=d"]), Some("/home/d/kubeconfig".into()));
        assert_eq!(of(&["ember", "up", "--kubeconfig", "k", "--data-dir", "d"]), Some("/home/k".into()));
        assert!(of(&["ember", "up"]).is_some());
        assert_eq!(of(&["ember", "get", "ksvc"]), None);
        assert_eq!(of(&["bash", "up"]), None);
        assert_eq!(of(&[]), None);
    }
}
