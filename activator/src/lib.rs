//! Buffers requests for revisions without capacity, reports them to the autoscaler, and shares them out fairly among
//! a revision's pods.

pub mod assignment;
pub mod config;
pub mod dispatcher;
mod handler;
pub mod link;
pub mod pod_set;
pub mod registry;
pub mod reporter;
pub mod revision;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::drain::Drain;
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::proxy::Proxy;
use ember_dataplane::server;
use ember_dataplane::worker::Workers;
use kube::Client;
use tokio::runtime::Handle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

pub use config::Config;
use handler::Activation;
use link::Outbox;
use registry::Registry;
use revision::Prober;

/// How long a pod may be silent on a shared connection before it is asked for a sign of life: its node may be gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Why the activator ended.
#[derive(Debug, thiserror::Error)]
#[error("the activator cannot listen on {addr}: {source}")]
pub struct Error {
    addr: SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Serves until `shutdown`; then goes on for [`Config::drain_settle`] while routing lets go of it, and waits for what
/// is under way. Watches, probes and the link to the autoscaler run on the calling runtime, requests on `workers`.
///
/// # Errors
/// When an address cannot be listened on.
pub async fn run(
    config: Config,
    io: Io,
    client: Client,
    workers: Workers,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let control = CancellationToken::new();
    let tasks = TaskTracker::new();
    let drain = Drain::new();
    let prober = Prober {
        runtime: Handle::current(),
        tasks: tasks.clone(),
        stop: control.clone(),
        proxy: Proxy::new(Pool::new(io.clone(), pool::Options::default()), drain.clone()),
        timeout: config.probe_timeout,
        first_pause: config.probe_first_pause,
        longest_pause: config.probe_longest_pause,
    };
    let registry = Registry::new(config.clone(), prober);
    let outbox = Outbox::new(&config.pod_name);
    tasks.spawn(Arc::clone(&registry).run(client, control.clone()));
    tasks.spawn(link::run(
        config.clone(),
        io.clone(),
        Arc::clone(&registry),
        Arc::clone(&outbox),
        control.clone(),
    ));
    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = registry.synced() => serve(&config, &io, &registry, &outbox, &workers, &drain, &shutdown).await,
    };
    control.cancel();
    tasks.close();
    // Every task ends with `control`; the bound is for one that does not.
    let _ = tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await;
    result
}

async fn serve(
    config: &Config,
    io: &Io,
    registry: &Arc<Registry>,
    outbox: &Arc<Outbox>,
    workers: &Workers,
    drain: &Drain,
    shutdown: &CancellationToken,
) -> Result<(), Error> {
    let mut serving = tokio::task::JoinSet::new();
    for port in &config.ports {
        let addr = SocketAddr::new(config.bind, *port);
        let listener = io.network.listen(addr).await.map_err(|source| Error { addr, source })?;
        let (config, io, workers, drain) = (config.clone(), io.clone(), workers.clone(), drain.clone());
        let (registry, outbox, terminating) = (Arc::clone(registry), Arc::clone(outbox), shutdown.clone());
        serving.spawn(async move {
            server::serve(listener, &workers, &config.server, &drain, |_worker| {
                let options =
                    pool::Options { ping_interval: Some(PING_INTERVAL), ..pool::Options::default() };
                let pool = Pool::new(io.clone(), options);
                Arc::new(Activation::new(
                    Arc::clone(&registry),
                    Arc::clone(&outbox),
                    pool,
                    drain.clone(),
                    &config,
                    terminating.clone(),
                ))
            })
            .await;
        });
    }
    shutdown.cancelled().await;
    drain.announce();
    tokio::time::sleep(config.drain_settle).await;
    drain.finish(config.drain_timeout).await;
    // They end with the drain.
    let _ = tokio::time::timeout(Duration::from_secs(1), serving.join_all()).await;
    Ok(())
}
