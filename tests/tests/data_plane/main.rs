//! Clients of every kind through both hops of the data plane: the activator, on an API server of its own, and the
//! sidecar of a pod, in front of a real app. The autoscaler's end of things is played by the test.
#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod grpc;
mod hops;

mod web;
mod websocket;
