//! The whole system through its front doors: `ember up` as a process, its API, its gateway.

mod failures;
mod input;
mod kubectl;
mod lifecycle;
mod manifests;
mod scaling;
mod traffic;
