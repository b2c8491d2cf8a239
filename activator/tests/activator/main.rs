//! The activator over real sockets, against an API server. What others do, the tests do: the autoscaler's end of the
//! websocket, the pods' queue-proxies, the Endpoints.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod link;
mod loss;
mod mesh;
mod metrics_tls;
mod request_log;
mod requests;
mod tls;
mod waiting;
#[path = "../world/mod.rs"]
mod world;
