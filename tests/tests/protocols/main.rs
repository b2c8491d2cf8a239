//! Every kind of traffic through all hops of a running `ember up`: gateway, activator, sidecar, app. Each test's service
//! begins at zero, so that its first exchange is also what wakes it.

#![expect(clippy::unwrap_used, reason = "a test may panic to fail")]

mod app;
mod between;
mod bodies;
mod grpc;
mod tags;
mod websocket;
mod wire;
