//! The sidecar's contract, statement by statement (docs/data-plane-contract.md): over real sockets, in memory on a
//! clock that jumps where only times matter, and as the program where the process matters. On that clock a pause is over
//! when nothing else is left to do.
#![expect(clippy::unwrap_used, reason = "a test")]

mod admission;
#[path = "../sidecar/container.rs"]
mod container;
mod drain;
mod environment;
mod headers;
mod network;
mod peers;
mod probes;
mod process;
mod proxying;
mod readiness;
mod sidecar;
mod statistics;
mod timeouts;
mod wire;
