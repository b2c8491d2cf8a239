//! The server through its in-process client: what controllers rely on.

#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    unreachable_pub,
    reason = "a panic is how a test fails, and the harness is shared"
)]

mod apply;
mod deletion;
mod durability;
mod harness;
mod reading;
mod writing;
