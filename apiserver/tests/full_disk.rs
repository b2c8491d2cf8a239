//! A disk that takes no more: the writer hears of it, nothing acknowledged is lost, and the rest goes on.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a panic is how a test fails")]

use std::path::PathBuf;
use std::process::Command;

use ember_apiserver::{ApiServer, Config};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{ListParams, PostParams};
use kube::{Api, Error, ResourceExt};
use serde_json::json;

const DATA: &str = "EMBER_TEST_DATA";
const FOLDER: &str = "EMBER_TEST_FOLDER";
/// In the shell's blocks of 512 bytes.
const FILE_LIMIT: u64 = 8192;

/// Runs in a process of its own whose files cannot grow past a limit.
#[tokio::test]
#[ignore = "started by the other test of this file"]
async fn with_little_room() {
    let folder = PathBuf::from(std::env::var_os(FOLDER).unwrap());
    let server = ApiServer::open(Config::new(&folder)).unwrap();
    let api: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let big = "x".repeat(200_000);
    let mut kept = Vec::new();
    let refused = loop {
        assert!(kept.len() < 100, "the limit has no effect");
        let name = format!("m{}", kept.len());
        let map =
            serde_json::from_value(json!({ "metadata": { "name": name }, "data": { "k": big } })).unwrap();
        match api.create(&PostParams::default(), &map).await {
            Ok(_) => kept.push(name),
            Err(Error::Api(status)) => {
                assert_eq!((status.code, status.reason.as_str()), (507, "InsufficientStorage"));
                assert!(status.message.contains("the disk is full"), "{}", status.message);
                break name;
            }
            Err(other) => panic!("{other}"),
        }
    };
    assert!(!kept.is_empty());
    assert!(matches!(api.get(&refused).await, Err(Error::Api(status)) if status.code == 404));
    assert_eq!(api.list(&ListParams::default()).await.unwrap().items.len(), kept.len());
    // What is acknowledged from memory does not ask the disk.
    let deployments: Api<Deployment> = Api::namespaced(server.client(), "default");
    let deployment = serde_json::from_value(json!({ "metadata": { "name": "d" },
        "spec": { "selector": { "matchLabels": { "app": "d" } }, "template": { "metadata": { "labels": { "app": "d" } },
            "spec": { "containers": [{ "name": "c", "image": "i" }] } } } }))
    .unwrap();
    deployments.create(&PostParams::default(), &deployment).await.unwrap();
    std::fs::write(std::env::var_os(DATA).unwrap(), kept.join("\n")).unwrap();
}

#[tokio::test]
async fn a_full_disk_is_the_writers_error_and_loses_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (data, report) = (folder.path().join("data"), folder.path().join("report"));
    // The shell ignores the signal for files over the limit, so that writes fail as on a full disk.
    let script =
        format!("trap '' XFSZ; ulimit -f {FILE_LIMIT}; exec \"$0\" --exact with_little_room --ignored");
    let output = Command::new("sh")
        .args(["-c", &script])
        .arg(std::env::current_exe().unwrap())
        .env(FOLDER, &data)
        .env(DATA, &report)
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    let mut kept: Vec<String> =
        std::fs::read_to_string(&report).unwrap().lines().map(str::to_owned).collect();
    kept.sort();
    let server = ApiServer::open(Config::new(&data)).unwrap();
    let api: Api<ConfigMap> = Api::namespaced(server.client(), "default");
    let found: Vec<String> =
        api.list(&ListParams::default()).await.unwrap().iter().map(ResourceExt::name_any).collect();
    assert_eq!(found, kept);
    // With room again writes go through.
    let map = serde_json::from_value(json!({ "metadata": { "name": "after" } })).unwrap();
    api.create(&PostParams::default(), &map).await.unwrap();
}
