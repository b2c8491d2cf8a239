//! What clients and backends that mean harm can do to a hop: what gets through to the backend, what it costs, and that
//! others are served meanwhile. Over real sockets, except for the mutated requests.
#![expect(clippy::unwrap_used, reason = "a test")]

mod backends;
mod clients;
mod frames;
mod heads;
mod http2;
mod mutation;
mod smuggling;
mod wire;
