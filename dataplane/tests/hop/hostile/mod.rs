//! What clients and backends that mean harm can do to a hop: what gets through to the backend, what it costs, and that
//! others are served meanwhile. Over real sockets, except for the mutated requests.

mod backends;
mod clients;
mod heads;
mod http2;
mod mutation;
mod neighbours;
mod recording;
mod smuggling;
mod windows;
