//! A hop of the data plane over real sockets: client → server → proxy → backend. `hostile` has those who mean harm.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test")]

mod drain;
mod exchange;
mod failure;
mod frames;
mod h2c;
mod hop;
mod hostile;
mod idle;
mod limits;
mod tls;
mod upgrade;
mod wire;
