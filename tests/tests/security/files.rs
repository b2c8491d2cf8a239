//! The data folder is its owner's alone.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use ember_tests::instance::Ember;
use serde_json::json;

use crate::app::started;

/// Everything in a folder, with its permissions.
fn modes(folder: &Path, found: &mut Vec<(PathBuf, u32)>) {
    for entry in fs::read_dir(folder).unwrap() {
        let entry = entry.unwrap();
        let metadata = entry.metadata().unwrap();
        found.push((entry.path(), metadata.permissions().mode() & 0o7777));
        if metadata.is_dir() {
            modes(&entry.path(), found);
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_owner_reads_the_data_folder_and_what_it_holds() {
    // Whatever the shell would have files be.
    let mut ember = Ember::start_by(&["sh", "-c", "umask 0; exec \"$@\"", "sh"], &[]).await;
    started(&ember, "private", &json!({})).await;
    // Also after what was there has been read and written anew.
    for _ in 0..2 {
        let data = ember.data_dir();
        assert_eq!(fs::metadata(&data).unwrap().permissions().mode() & 0o7777, 0o700);
        let mut found = Vec::new();
        modes(&data, &mut found);
        let pods = data.join("pods");
        for (path, mode) in &found {
            // Folders of pods are seen by their own users, in folders that nobody else may enter.
            let below_pods = path.strip_prefix(&pods).is_ok_and(|rest| rest != Path::new(""));
            let wanted = match path.strip_prefix(&data) {
                _ if path.is_dir() => 0o700,
                // Mounted in containers, whose users read it there.
                Ok(name) if name == Path::new("hosts") => 0o644,
                _ => 0o600,
            };
            assert!(below_pods || *mode == wanted, "{}: {mode:o}", path.display());
        }
        for name in ["kubeconfig", "token", "ca.key", "server.key"] {
            assert!(found.iter().any(|(path, _)| path.ends_with(name)), "{name}: {found:?}");
        }
        ember = ember.crash_and_restart().await;
    }
}
