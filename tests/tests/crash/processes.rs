//! Processes of this machine that carry a mark in their environment, by `/proc`.

use std::collections::BTreeSet;
use std::fs;

use ember_tests::{PATIENCE, eventually};

/// All living processes whose environment holds `entry` (`NAME=value`).
pub(crate) fn marked(entry: &str) -> BTreeSet<i32> {
    let entries = fs::read_dir("/proc").unwrap().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter(|pid| {
            fs::read(format!("/proc/{pid}/environ"))
                .is_ok_and(|all| all.split(|byte| *byte == 0).any(|one| one == entry.as_bytes()))
        })
        .filter(|pid| parent(*pid).is_some())
        .collect()
}

/// Waits until every process with the mark is a descendant of `root`, or there is none where there is no `root`.
pub(crate) async fn no_orphans(entry: &str, root: Option<i32>) {
    eventually("no process of the dead instance", PATIENCE, || async {
        let orphans: Vec<String> = marked(entry)
            .into_iter()
            .filter(|pid| root.is_none_or(|root| !is_below(*pid, root)))
            .filter_map(|pid| {
                // Gone since, if it has no command line any more.
                let command = fs::read(format!("/proc/{pid}/cmdline")).ok().filter(|c| !c.is_empty())?;
                Some(format!("{pid} {}", String::from_utf8_lossy(&command).replace('\0', " ")))
            })
            .collect();
        if orphans.is_empty() { Ok(()) } else { Err(orphans) }
    })
    .await;
}

fn is_below(mut pid: i32, root: i32) -> bool {
    while let Some(parent) = parent(pid) {
        if parent == root {
            return true;
        }
        pid = parent;
    }
    false
}

/// The parent of a process; `None` for one that has ended.
fn parent(pid: i32) -> Option<i32> {
    let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let mut fields = stat.rsplit_once(") ")?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    (state != "Z" && state != "X").then_some(parent)
}
