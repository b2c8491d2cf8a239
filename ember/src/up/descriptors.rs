//! File descriptors are a budget: every connection, pod and log takes some.

use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Raises the soft limit of open files to the hard one and returns what it is now.
pub(crate) fn raise() -> u64 {
    let Ok((soft, hard)) = getrlimit(Resource::RLIMIT_NOFILE) else { return 1024 };
    if soft >= hard {
        return soft;
    }
    match setrlimit(Resource::RLIMIT_NOFILE, hard, hard) {
        Ok(()) => hard,
        Err(_) => soft,
    }
}

/// How many connections the gateway takes, of `files` that this process may open: half, and no more than a gateway takes
/// anyhow. What else is open, towards pods above all, is not to depend on how many clients there are.
pub(crate) fn clients(files: u64) -> usize {
    let most = ember_dataplane::server::Options::default().max_connections;
    usize::try_from(files / 2).unwrap_or(most).clamp(1, most)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn clients_leave_files_for_everything_else() {
        assert_eq!(clients(1), 1);
        assert_eq!(clients(1024), 512);
        assert_eq!(clients(1 << 20), 65_536);
        assert_eq!(clients(u64::MAX), 65_536);
    }
}
