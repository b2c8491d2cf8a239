//! `ember simulate` as a person at a terminal meets it.

#![expect(clippy::expect_used, reason = "a test may panic to fail")]

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

fn ember(folder: &Path, arguments: &[&str]) -> Output {
    let mut command = Command::new(env!("CARGO_BIN_EXE_ember"));
    command.arg("simulate").args(arguments).current_dir(folder).output().expect("ember runs")
}

#[test]
fn a_trace_gives_a_table_and_files() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("load.csv"), "time,concurrency\n0,10\n60,300\n120,0\n").expect("written");
    let files = ["--html", "a.html", "--svg", "a.svg", "--json", "a.json"];
    let arguments = ["--trace", "load.csv", "--annotation", "target=50", "--compare", "target=20,window=30s"];
    let output = ember(folder.path(), &[&arguments[..], &files[..]].concat());
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    let table = String::from_utf8_lossy(&output.stdout);
    for part in ["target=50", "target=20, window=30s", "pod-seconds paid", "mean wait"] {
        assert!(table.contains(part), "{part} in {table}");
    }
    let read = |name: &str| fs::read_to_string(folder.path().join(name)).expect("it was written");
    assert!(read("a.html").contains("<svg") && read("a.svg").starts_with("<svg"));
    let report: serde_json::Value = serde_json::from_str(&read("a.json")).expect("JSON");
    assert_eq!(report["histories"][1]["setting"], "target=20, window=30s");
}

#[test]
fn what_is_wrong_is_named() {
    let folder = tempfile::tempdir().expect("a folder");
    fs::write(folder.path().join("bad.csv"), "time,rps\n0,1\n1,many\n").expect("written");
    let load = ["--generate", "constant:value=1"];
    for (arguments, parts) in [
        (vec![], vec!["--trace", "--generate", "--azure"]),
        (vec!["--trace", "missing.csv"], vec!["missing.csv"]),
        (
            vec!["--trace", "bad.csv"],
            vec!["bad.csv: line 3, column 2", "many", "rps: a number of at least 0"],
        ),
        (vec!["--azure", "bad.csv"], vec!["bad.csv: line 1, column 1", "HashOwner"]),
        (vec!["--generate", "wave"], vec!["wave", "sine"]),
        ([&load[..], &["--annotation", "target=x"]].concat(), vec!["autoscaling.knative.dev/target", "x"]),
        (
            [&load[..], &["--compare", "window=1s"]].concat(),
            vec!["--compare", "autoscaling.knative.dev/window"],
        ),
        ([&load[..], &["--config", "stable-window=1s"]].concat(), vec!["stable-window"]),
        ([&load[..], &["--pod-start", "fast"]].concat(), vec!["--pod-start", "must be a duration"]),
        ([&load[..], &["--row", "1"]].concat(), vec!["--azure"]),
        ([&load[..], &["--svg", "no/such/folder.svg"]].concat(), vec!["no/such/folder.svg"]),
    ] {
        let output = ember(folder.path(), &arguments);
        let error = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{arguments:?} was accepted");
        for part in parts {
            assert!(error.contains(part), "{part:?} in {error}");
        }
    }
}

/// The commands of docs/tuning.md run, and make the charts that it shows.
#[test]
fn the_charts_of_the_documentation_can_be_made_again() {
    let docs = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs");
    let text = fs::read_to_string(format!("{docs}/tuning.md")).expect("the page is there");
    let folder = tempfile::tempdir().expect("a folder");
    fs::create_dir_all(folder.path().join("docs/tuning")).expect("a folder for charts");
    fs::write(folder.path().join("load.csv"), "time,rps\n0,10\n60,300\n").expect("a load of the reader's");
    let mut made = 0;
    // A command may go on in the next line.
    for line in text.replace("\\\n", " ").lines() {
        let Some(arguments) = line.strip_prefix("ember simulate ") else { continue };
        let arguments: Vec<&str> = arguments.split_whitespace().collect();
        let output = ember(folder.path(), &arguments);
        assert!(output.status.success(), "{line}: {}", String::from_utf8_lossy(&output.stderr));
        let Some(svg) = arguments.iter().skip_while(|a| **a != "--svg").nth(1) else { continue };
        let name = svg.strip_prefix("docs/").expect("charts are in docs/");
        assert!(text.contains(&format!("]({name})")), "{name} is shown");
        let new = fs::read_to_string(folder.path().join(svg)).expect("it was written");
        assert_eq!(
            new,
            fs::read_to_string(format!("{docs}/{name}")).expect("it is kept"),
            "{name} is current"
        );
        made += 1;
    }
    assert_eq!(made, text.matches("](tuning/").count(), "every chart has its command");
}
