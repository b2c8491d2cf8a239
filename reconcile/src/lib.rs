//! What every control loop shares: caches of watched objects, the work queue, the applier of plans, typed ConfigMap
//! snapshots, the event recorder and leader election by Leases.
//!
//! A reconciler is `observe → plan → apply`: it is woken through a [`queue::WorkQueue`] by changes seen by its
//! [`cache::Cache`]s, reads only caches, decides with a pure function, and writes only through [`apply::Applier`].

pub mod apply;
pub mod cache;
pub mod cluster;
pub mod config;
pub mod election;
pub mod event;
pub mod lease;
pub mod queue;
mod shared;

/// The namespace that Knative's own objects live in.
pub const SYSTEM_NAMESPACE: &str = "knative-serving";
