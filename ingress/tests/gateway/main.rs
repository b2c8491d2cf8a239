//! The gateway over real sockets, against an API server. Pods and the activator are small servers of the test.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod backends;
mod pod;
mod routing;
mod world;
