//! Where a program's memory comes from, and how soon it is given back.
//!
//! A sidecar holds memory in every pod of a cluster: what a burst of connections has needed is not to stay with it. The
//! C library's allocator keeps nearly all of it, since some small piece that is still in use lies above what is free.

use libmimalloc_sys::{mi_option_set, mi_option_t};

/// The allocator: `#[global_allocator] static ALLOCATOR: Allocator = Allocator;`.
pub use mimalloc::MiMalloc as Allocator;

/// `mi_option_purge_delay` of mimalloc.h, which the bindings have no name for.
const PURGE_DELAY: mi_option_t = 15;

/// Has free memory go back to the system at once instead of after a second, if the program still allocates by then: a
/// thousand idle connections take half as much. Call it when the program starts.
#[allow(unsafe_code, reason = "there is no safe way to set an option; bench/ shows what it saves")]
pub fn give_back_at_once() {
    // SAFETY: it takes two numbers and stores one of them in a table that it checks the other against. No other thread
    // runs yet, or if one does it reads the old value or the new one.
    unsafe { mi_option_set(PURGE_DELAY, 0) };
}
