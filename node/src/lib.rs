//! What a node and the built-in controllers do for pods on one machine.
//!
//! Deployments become pods, pods become processes of this host and tasks of this process (their sidecars), Services
//! get their Endpoints, and what lost its owner or namespace is collected. Everything goes through the Kubernetes
//! API; decisions are pure and live in files of their own.

pub mod address;
pub mod backoff;
mod cache;
mod config;
mod container;
pub mod deployment;
pub mod endpoints;
pub mod env;
mod event;
pub mod garbage;
pub mod helper;
mod ignored;
mod kubelet;
mod logs;
mod monitor;
mod pod;
pub mod pod_status;
pub mod ports;
mod probe;
mod process;
pub mod resource;
mod runtime;
mod sidecar;
pub mod volume;

use std::sync::Arc;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::{Api, Client};
use thiserror::Error;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::Config;
pub use helper::hosts::hosts_file_fits;
pub use helper::protocol::{Id, Identity, Mount, Mounts, Start};
pub use logs::{LogOptions, Logs};
pub use process::ProcessRuntime;
pub use runtime::{Process, Runtime, StartError, Stop};
pub use sidecar::{Sidecar, SidecarHandle, SidecarSpec};

use cache::Cache;
use event::Events;
use kubelet::Node;

/// Why a node does not run.
#[derive(Debug, Error)]
pub enum Error {
    /// The process helper cannot be started.
    #[error("cannot start the process helper: {0}")]
    Helper(#[source] std::io::Error),
}

/// Runs the node with the process runtime until `shutdown`; returns when every pod has ended, or after
/// [`Config::shutdown_grace`] and what the system needs to kill the rest.
///
/// # Errors
/// When the process helper cannot be started.
pub async fn run(
    config: Config,
    client: Client,
    sidecar: Arc<dyn Sidecar>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let runtime = ProcessRuntime::start_helper(config.program.clone()).map_err(Error::Helper)?;
    run_with(config, client, Arc::new(runtime), sidecar, shutdown).await;
    Ok(())
}

/// As [`run`], with a runtime of the caller's.
pub async fn run_with(
    config: Config,
    client: Client,
    runtime: Arc<dyn Runtime>,
    sidecar: Arc<dyn Sidecar>,
    shutdown: CancellationToken,
) {
    // Left by a node that was killed.
    volume::remove(&config.volumes).await;
    let (events, write_events) = Events::new(client.clone(), config.node_name.clone(), shutdown.clone());
    let node = Node::new(config, client.clone(), Arc::clone(&runtime), sidecar, events, shutdown.clone());
    let (deployments, services, endpoints) =
        (Cache::<Deployment>::new(), Cache::<Service>::new(), Cache::<Endpoints>::new());
    let tasks = TaskTracker::new();
    // The caches outlive the shutdown signal, so that pods can be followed to their end.
    let watches = CancellationToken::new();
    tasks.spawn(node.pods.clone().run(Api::all(client.clone()), watches.clone()));
    tasks.spawn(deployments.clone().run(Api::all(client.clone()), watches.clone()));
    tasks.spawn(services.clone().run(Api::all(client.clone()), watches.clone()));
    tasks.spawn(endpoints.clone().run(Api::all(client.clone()), watches.clone()));
    tasks.spawn(deployment::run(Arc::clone(&node), deployments));
    tasks.spawn(endpoints::run(Arc::clone(&node), services, endpoints));
    tasks.spawn(garbage::run(client, node.config.retry, shutdown));
    tasks.spawn(write_events);
    tasks.close();
    Arc::clone(&node).run().await;
    volume::remove(&node.config.volumes).await;
    watches.cancel();
    tasks.wait().await;
    runtime.close().await;
}
