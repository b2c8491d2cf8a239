//! What is freed is given back.

use ember_allocator::{Allocator, give_back_at_once};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// Resident memory of this process that is no file's, in KiB.
fn resident() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:"))?;
    line.trim().trim_end_matches(" kB").parse().ok()
}

#[test]
fn what_is_freed_is_given_back_at_once() {
    give_back_at_once();
    let before = resident().unwrap();
    // As connections leave it: buffers among smaller pieces, of which some stay.
    let mut kept = Vec::new();
    let buffers: Vec<Vec<u8>> = (0..4096)
        .map(|number| {
            if number % 64 == 0 {
                kept.push(Box::new([1u8; 200]));
            }
            vec![1; 8192]
        })
        .collect();
    let held = resident().unwrap();
    assert!(held > before + 30_000, "{before} KiB, then {held}");
    drop(buffers);
    let after = resident().unwrap();
    assert!(after < before + 3_000, "{before} KiB, {held} in use, then {after}");
    drop(kept);
}
