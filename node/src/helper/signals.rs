//! Signals that whoever started Ember had it ignore, as `nohup` does: programs are not to inherit that.

use std::fs;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use signal_hook::consts::{FORBIDDEN, SIGPIPE};

/// Has this process catch what it ignores. A signal that is caught is back at its default in the programs that the
/// process becomes or starts, where one that is ignored stays so. Call it with all signals blocked: nothing is meant
/// to be caught.
pub(super) fn stop_ignoring() {
    let caught = Arc::new(AtomicBool::new(false));
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    for signal in ignored(&status) {
        // The C library refuses those that it keeps for itself.
        let _ = signal_hook::flag::register(signal, Arc::clone(&caught));
    }
}

/// The signals that a process ignores, without those that cannot be caught, and without SIGPIPE, which this program
/// ignores itself and its children do not.
fn ignored(status: &str) -> Vec<i32> {
    let set = status.lines().find_map(|line| line.strip_prefix("SigIgn:"));
    let set = set.and_then(|set| u64::from_str_radix(set.trim(), 16).ok()).unwrap_or(0);
    (1..=64)
        .filter(|signal| set >> (signal - 1) & 1 == 1)
        .filter(|signal| *signal != SIGPIPE && !FORBIDDEN.contains(signal))
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_is_ignored() {
        // SIGHUP, SIGQUIT, SIGPIPE and 32.
        assert_eq!(ignored("SigBlk:\t0000000000000000\nSigIgn:\t0000000080001005\n"), [1, 3, 32]);
        // SIGILL, SIGKILL.
        assert_eq!(ignored("SigIgn:\t0000000000000108\n"), [0; 0]);
        assert_eq!(ignored(""), [0; 0]);
    }
}
