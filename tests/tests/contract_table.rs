//! What the tables of `docs/` that go by statements say is tested, is: every test they name is there, and no statement
//! is named twice.

#![expect(clippy::unwrap_used, reason = "a test")]

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};

fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("..")
}

fn sources(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).into_iter().flatten() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

/// The functions of the workspace's tests, by name, with the files they are in.
fn functions() -> BTreeMap<String, BTreeSet<String>> {
    let mut files = Vec::new();
    for entry in fs::read_dir(root()).unwrap() {
        let member = entry.unwrap().path();
        for part in ["src", "tests"] {
            sources(&member.join(part), &mut files);
        }
    }
    let mut functions = BTreeMap::<String, BTreeSet<String>>::new();
    for file in files {
        let text = fs::read_to_string(&file).unwrap();
        for line in text.lines() {
            let line = line.trim_start().trim_start_matches("async ");
            if let Some((name, _)) = line.strip_prefix("fn ").and_then(|rest| rest.split_once('(')) {
                functions.entry(name.to_owned()).or_default().insert(file.display().to_string());
            }
        }
    }
    functions
}

#[test]
fn what_the_table_names_is_there() {
    check("docs/data-plane-contract.md", |id| ["QP-", "AC-", "SH-"].iter().any(|p| id.starts_with(p)), 135);
}

#[test]
fn what_the_autoscalers_table_names_is_there() {
    let is_id = |id: &str| id.len() == 3 && id[1..].bytes().all(|b| b.is_ascii_digit());
    check("docs/autoscaler-contract.md", is_id, 104);
}

#[test]
fn what_is_said_of_security_is_tested() {
    check("docs/security.md", |id| id.starts_with("S-"), 12);
}

#[test]
fn upstreams_conformance_tests_are_ours_or_say_why_not() {
    let table = fs::read_to_string(root().join("docs/compatibility.md")).unwrap();
    let functions = functions();
    let (mut tests, mut wrong) = (BTreeSet::new(), Vec::new());
    for line in table.lines().filter(|line| line.starts_with("| Test")) {
        let cells: Vec<&str> = line.split('|').map(str::trim).collect();
        let [_, upstream, ours, remarks, _] = cells[..] else { panic!("three cells: {line}") };
        if !tests.insert(upstream.to_owned()) {
            wrong.push(format!("{upstream} stands twice"));
        }
        let is_there = match ours.strip_prefix('`').and_then(|rest| rest.strip_suffix('`')) {
            Some(name) => functions
                .get(name)
                .is_some_and(|files| files.iter().any(|file| file.contains("/tests/tests/"))),
            None => ours == "none" && !remarks.is_empty(),
        };
        if !is_there {
            wrong.push(format!("{upstream}: {ours}"));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(tests.len(), 51, "tests");
}

fn check(table: &str, is_id: impl Fn(&str) -> bool, statements: usize) {
    let table = fs::read_to_string(root().join(table)).unwrap();
    let functions = functions();
    let (mut ids, mut wrong) = (BTreeSet::new(), Vec::new());
    for line in table.lines() {
        if let Some((id, _)) = line.strip_prefix("| ").and_then(|rest| rest.split_once(" | "))
            && is_id(id)
            && !ids.insert(id.to_owned())
        {
            wrong.push(format!("{id} stands twice"));
        }
        for name in line.split('`').skip(1).step_by(2).filter(|code| code.contains("::")) {
            let (module, test) = name.rsplit_once("::").unwrap();
            // The last part of the module is the name of the file, or the file's only one.
            let file = module.rsplit("::").next().unwrap();
            let file = match file {
                "qp-h2c" => "queue-proxy/tests/sidecar/h2c.rs".to_owned(),
                "hop-tls" => "dataplane/tests/hop/tls/".to_owned(),
                "activator-tls" => "activator/tests/activator/tls/".to_owned(),
                "activator-log" => "activator/tests/activator/request_log.rs".to_owned(),
                "ember-activator" => "ember/tests/activator.rs".to_owned(),
                file => format!("/{}", file.rsplit('/').next().unwrap()),
            };
            let there =
                functions.get(test).is_some_and(|files| files.iter().any(|found| found.contains(&file)));
            if !there && !["file::module::test", "crate::module::test"].contains(&name) {
                wrong.push(name.to_owned());
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(ids.len(), statements, "statements");
}
