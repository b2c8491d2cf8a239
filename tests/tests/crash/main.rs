//! `ember up` is killed, its disk fills up, its store is torn: what was acknowledged is still there, and nothing of the
//! dead instance is left running.

#![expect(
    clippy::expect_used,
    clippy::unwrap_used,
    clippy::print_stderr,
    reason = "a test may panic to fail, and tells the seed it was run with"
)]

mod declarations;
mod folders;
mod full_disk;
mod processes;
mod rounds;
mod small_disk;
mod versions;
