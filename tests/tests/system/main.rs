//! The whole system through its front doors: `ember up` as a process, its API, its gateway.

#![expect(clippy::expect_used, clippy::unwrap_used, reason = "a test may panic to fail")]

mod failures;
mod input;
mod kubectl;
mod lifecycle;
mod manifests;
mod resilience;
mod scaling;
mod traffic;
