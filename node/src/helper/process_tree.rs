//! The processes below a process, from /proc.

use std::collections::BTreeSet;
use std::fs;

use nix::unistd::Pid;

/// A process that has not ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Process {
    /// Its number.
    pub(super) pid: Pid,
    parent: Pid,
    session: Pid,
}

/// All living descendants of `root`.
pub(super) fn descendants(root: Pid) -> Vec<Process> {
    let mut found = Vec::new();
    let mut parents = vec![root];
    while let Some(parent) = parents.pop() {
        for pid in children(parent) {
            parents.push(pid);
            found.extend(read(pid));
        }
    }
    found
}

/// The living processes below `root` that belong to the session of `leader`: members, descendants of members, and
/// detached ones (children of `root` by now, in no session of `others`) whose environment has the entry `mark`.
pub(super) fn family(root: Pid, leader: Pid, mark: &str, others: &BTreeSet<Pid>) -> Vec<Pid> {
    let all = descendants(root);
    let detached = |p: &Process| p.parent == root && !others.contains(&p.session) && is_marked(p.pid, mark);
    let mut family: BTreeSet<Pid> =
        all.iter().filter(|p| p.pid == leader || p.session == leader || detached(p)).map(|p| p.pid).collect();
    loop {
        let more: Vec<Pid> = all
            .iter()
            .filter(|p| family.contains(&p.parent) && !family.contains(&p.pid))
            .map(|p| p.pid)
            .collect();
        if more.is_empty() {
            return family.into_iter().collect();
        }
        family.extend(more);
    }
}

fn is_marked(pid: Pid, mark: &str) -> bool {
    !mark.is_empty()
        && fs::read(format!("/proc/{pid}/environ"))
            .is_ok_and(|environment| environment.split(|b| *b == 0).any(|entry| entry == mark.as_bytes()))
}

/// The children that any thread of `parent` made.
fn children(parent: Pid) -> Vec<Pid> {
    let threads = fs::read_dir(format!("/proc/{parent}/task")).into_iter().flatten().flatten();
    let mut found = Vec::new();
    for thread in threads {
        match fs::read_to_string(thread.path().join("children")) {
            Ok(list) => {
                found.extend(list.split_ascii_whitespace().filter_map(|n| n.parse().ok()).map(Pid::from_raw));
            }
            // A kernel without these files.
            Err(_) => return all().into_iter().filter(|p| p.parent == parent).map(|p| p.pid).collect(),
        }
    }
    found
}

fn all() -> Vec<Process> {
    let entries = fs::read_dir("/proc").into_iter().flatten().flatten();
    entries
        .filter_map(|e| e.file_name().to_str()?.parse().ok())
        .filter_map(|n| read(Pid::from_raw(n)))
        .collect()
}

fn read(pid: Pid) -> Option<Process> {
    parse(pid, &fs::read_to_string(format!("/proc/{pid}/stat")).ok()?)
}

/// Reads /proc/PID/stat; `None` for a process that has ended and waits to be collected.
fn parse(pid: Pid, stat: &str) -> Option<Process> {
    // The name, in parentheses, may hold anything.
    let mut fields = stat.rsplit_once(") ")?.1.split_ascii_whitespace();
    let state = fields.next()?;
    let parent = fields.next()?.parse().ok()?;
    let session = fields.nth(1)?.parse().ok()?;
    (state != "Z" && state != "X").then_some(Process {
        pid,
        parent: Pid::from_raw(parent),
        session: Pid::from_raw(session),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_stat() {
        let pid = Pid::from_raw(7);
        let process = parse(pid, "7 (a ) b) S 3 5 4 0 -1").unwrap();
        assert_eq!((process.parent, process.session), (Pid::from_raw(3), Pid::from_raw(4)));
        assert_eq!(parse(pid, "7 (a) Z 3 5 4 0 -1"), None);
        assert_eq!(parse(pid, "nonsense"), None);
    }
}
