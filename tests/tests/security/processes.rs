//! What a program is given, and what it cannot reach.

use std::collections::BTreeSet;
use std::fs;
use std::os::unix::fs::{PermissionsExt, chown};

use ember_tests::http::{Client, host};
use ember_tests::instance::{Ember, folder, program};
use serde_json::{Value, json};

use crate::app::{facts, is_root, started};

#[tokio::test(flavor = "multi_thread")]
async fn a_program_gets_what_its_pod_declares_and_nothing_of_embers() {
    // Ember itself has secrets and open files, and is started by something like nohup.
    let leaky =
        "trap '' HUP INT QUIT USR1; exec 9</etc/passwd; EMBER_LOG=warn EMBER_SECRET=x SECRET=x exec \"$@\"";
    let ember = Ember::start_by(&["sh", "-c", leaky, "sh"], &[]).await;
    let fields = json!({"env": [{"name": "DECLARED", "value": "yes"}]});
    let facts = started(&ember, "given", &fields).await;

    let environment = facts["environment"].as_object().unwrap();
    let names: BTreeSet<&str> = environment.keys().map(String::as_str).collect();
    let expected =
        ["DECLARED", "HOSTNAME", "K_CONFIGURATION", "K_REVISION", "K_SERVICE", "PATH", "PORT"].into();
    assert_eq!(names, expected, "{facts}");
    assert_eq!(environment["DECLARED"], "yes");

    let descriptors = facts["descriptors"].as_object().unwrap();
    let numbers: BTreeSet<&str> = descriptors.keys().map(String::as_str).collect();
    assert_eq!(numbers, ["0", "1", "2"].into(), "{facts}");
    assert_eq!(descriptors["0"], "/dev/null");
    assert_eq!(facts["eof"], true);

    assert_eq!(facts["status"]["NoNewPrivs"], "1");
    assert_eq!(facts["leads"], true, "a session of its own");
    for signals in ["SigBlk", "SigIgn"] {
        let set = u64::from_str_radix(facts["status"][signals].as_str().unwrap(), 16).unwrap();
        // Python ignores SIGPIPE and SIGXFSZ by itself, and the C library the two signals it keeps for itself.
        let known = [13, 25, 32, 33].into_iter().fold(0, |known, signal| known | 1 << (signal - 1));
        assert_eq!(set & !known, 0, "{signals}: {set:x}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn services_have_users_of_their_own() {
    let mut ember = Ember::start().await;
    let own = nix::unistd::geteuid().as_raw();
    let (first, second) =
        (started(&ember, "first", &json!({})).await, started(&ember, "second", &json!({})).await);
    if !is_root() {
        assert_eq!((&first["uid"], &second["uid"]), (&json!(own), &json!(own)));
        return;
    }
    assert_ne!(first["uid"], second["uid"]);
    for facts in [&first, &second] {
        let uid = facts["uid"].as_u64().unwrap();
        assert!((200_000..=265_535).contains(&uid), "{uid}");
        assert_eq!(facts["gid"], facts["uid"]);
        assert_eq!(facts["groups"], json!([]));
        for set in ["CapInh", "CapPrm", "CapEff", "CapAmb"] {
            assert_eq!(facts["status"][set], "0000000000000000", "{set}");
        }
    }
    let declared = started(&ember, "declared", &json!({"securityContext": {"runAsUser": 2020}})).await;
    assert_eq!(declared["uid"], 2020);

    ember = ember.crash_and_restart().await;
    assert_eq!(facts(&ember, "first").await["uid"], first["uid"]);
    let change = json!({"env": [{"name": "REVISION", "value": "2"}]});
    assert_eq!(started(&ember, "first", &change).await["uid"], first["uid"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_program_of_another_user_reaches_neither_the_data_folder_nor_ember() {
    if !is_root() {
        println!("skipped: only root can start programs as another user");
        return;
    }
    let ember = Ember::start().await;
    // So that the data folder protects itself, and not what it lies in.
    let data = ember.data_dir();
    fs::set_permissions(data.parent().unwrap(), fs::Permissions::from_mode(0o755)).unwrap();
    started(&ember, "curious", &json!({})).await;
    let client = Client::new(ember.gateway);
    let curious = async |path: &str| client.ok(&host("curious"), path).await;
    assert_eq!(curious(data.parent().unwrap().to_str().unwrap()).await, "read");
    for path in ["", "kubeconfig", "pki/token", "pods"] {
        let path = data.join(path);
        assert_eq!(curious(path.to_str().unwrap()).await, "PermissionError", "{}", path.display());
    }
    let pid = ember.pid();
    for path in ["environ", "mem", "fd", "cwd/Cargo.toml"] {
        assert_eq!(curious(&format!("/proc/{pid}/{path}")).await, "PermissionError", "{path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn without_root_programs_run_as_the_user_that_ember_runs_as() {
    /// Nobody's, on most machines.
    const USER: u32 = 65_534;
    let user = USER.to_string();
    // As a service manager does that lets Ember listen on port 80.
    let capability = ["--inh-caps", "+net_bind_service", "--ambient-caps", "+net_bind_service"];
    let user_alone = ["setpriv", "--reuid", &user, "--regid", &user, "--clear-groups"];
    let starter = [&user_alone[..], &capability].concat();
    let reaches = |path: &str| {
        let tried =
            std::process::Command::new(starter[0]).args(&starter[1..]).args(["test", "-x", path]).status();
        tried.is_ok_and(|status| status.success())
    };
    if !is_root() || !reaches(program().to_str().unwrap()) {
        println!("skipped: this needs root, setpriv and a program that everyone may run");
        return;
    }
    let folder = folder();
    chown(folder.path(), Some(USER), Some(USER)).unwrap();
    let ember = Ember::start_on(folder, &starter).await;
    let facts: Value = started(&ember, "plain", &json!({})).await;
    assert_eq!((&facts["uid"], &facts["status"]["NoNewPrivs"]), (&json!(USER), &json!("1")));
    for set in ["CapPrm", "CapEff", "CapAmb"] {
        assert_eq!(facts["status"][set], "0000000000000000", "{set}");
    }
}
