//! Data folders that cannot be used: the error says which, why, and what to do, and the exit code is 1.

use std::fs;
use std::path::Path;

use ember_tests::api;
use ember_tests::instance::{Ember, program, run};

use crate::small_disk::SmallDisk;

/// What `ember up` says on a data folder that it refuses.
fn refusal(data: &Path) -> String {
    let arguments =
        ["up", "--http", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
    let output = run(&program(), &arguments, &data.join("kubeconfig"), "");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains(data.to_str().unwrap()), "{error}");
    assert!(!error.contains("panicked"), "{error}");
    error
}

#[tokio::test(flavor = "multi_thread")]
async fn a_folder_in_use_names_its_process() {
    let ember = Ember::start().await;
    let error = refusal(&ember.data_dir());
    assert!(error.contains(&format!("is in use by process {}", ember.pid())), "{error}");
    // The one that was there first is none the worse.
    api::get(&ember.client, "/api/v1/namespaces/default").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_read_only_folder_is_told() {
    let Some(disk) = SmallDisk::mount("size=1m,ro") else { return };
    let error = refusal(&disk.data());
    assert!(error.contains("Read-only file system") && error.contains("--data-dir"), "{error}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_damaged_store_is_refused_and_left_as_it_is() {
    let remains = Ember::start().await.crash();
    let store = remains.data_dir().join("store.redb");
    let mut content = fs::read(&store).unwrap();
    // All that is in use, but for the header.
    for byte in content.iter_mut().skip(4096).filter(|byte| **byte != 0) {
        *byte ^= 0x55;
    }
    fs::write(&store, &content).unwrap();
    let error = refusal(&remains.data_dir());
    assert!(error.contains(&format!("mv {0} {0}.damaged", store.display())), "{error}");
    assert!(fs::read(&store).unwrap() == content, "the store was changed");
    // As it says.
    fs::rename(&store, store.with_extension("redb.damaged")).unwrap();
    remains.start().await;
}
