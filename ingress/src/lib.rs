//! The gateway: implements Knative's Ingress contract on the data-plane engine.
//!
//! Ingress objects of our class become an immutable routing [`table`]; requests load it once. Backends are resolved
//! from Services and Endpoints, so neither kube-proxy nor the cluster's DNS is on the path of a request; a backend
//! without a usable address is the activator's affair.

pub mod backend;
pub mod config;
pub mod fingerprint;
pub mod gateway;
pub mod publisher;
pub mod split;
pub mod status;
pub mod table;

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ember_dataplane::drain::Drain;
use ember_dataplane::io::Io;
use ember_dataplane::worker::Workers;
use ember_dataplane::{pool, server};
use kube::Client;
use tokio_util::sync::CancellationToken;

pub use config::Config;
use gateway::Gateway;
use publisher::Publisher;
use table::{Table, Visibility};

/// How long a backend may be silent on a shared connection before it is asked for a sign of life: its node may be gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Why the gateway ended.
#[derive(Debug, thiserror::Error)]
#[error("the gateway cannot listen on {addr}: {source}")]
pub struct Error {
    addr: std::net::SocketAddr,
    #[source]
    source: std::io::Error,
}

/// Serves until `shutdown`, then finishes what is under way, no longer than [`Config::drain_timeout`]. Listens only
/// once the routing table holds every Ingress there is.
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
    let table = Arc::new(ArcSwap::from_pointee(Table::default()));
    let control = CancellationToken::new();
    let publisher = Publisher::new(&config, client, io.clone(), Arc::clone(&table));
    let publishing = tokio::spawn(publisher.clone().run(control.clone()));
    let result = tokio::select! {
        () = shutdown.cancelled() => Ok(()),
        () = publisher.synced() => listen(&config, io, table, &publisher, workers, shutdown).await,
    };
    control.cancel();
    // The publisher ends with `control`; if it panicked, that has been reported already.
    let _ = publishing.await;
    result
}

async fn listen(
    config: &Config,
    io: Io,
    table: Arc<ArcSwap<Table>>,
    publisher: &Publisher,
    workers: Workers,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let addresses =
        [(Some(config.listen), Visibility::External), (config.listen_internal, Visibility::Internal)];
    // All before any is served: an address that is taken must not leave the others behind.
    let mut listeners = Vec::new();
    for (addr, visibility) in addresses {
        let Some(addr) = addr else { continue };
        let listener = io.network.listen(addr).await.map_err(|source| Error { addr, source })?;
        listeners.push((listener, visibility));
    }
    let drain = Drain::new();
    let mut serving = Vec::new();
    for (listener, visibility) in listeners {
        let (workers, drain, io) = (workers.clone(), drain.clone(), io.clone());
        let (table, activator) = (Arc::clone(&table), publisher.activator());
        let options = config.server.clone();
        serving.push(tokio::spawn(async move {
            server::serve(listener, &workers, &options, &drain, |_worker| {
                let options =
                    pool::Options { ping_interval: Some(PING_INTERVAL), ..pool::Options::default() };
                let pool = pool::Pool::new(io.clone(), options);
                Arc::new(Gateway::new(visibility, Arc::clone(&table), activator.clone(), pool, drain.clone()))
            })
            .await;
        }));
    }
    shutdown.cancelled().await;
    drain.announce();
    drain.finish(config.drain_timeout).await;
    for task in serving {
        // Ends with the drain; a panic has been reported already.
        let _ = tokio::time::timeout(Duration::from_secs(1), task).await;
    }
    Ok(())
}
