//! Buffers requests for revisions without capacity, reports them to the autoscaler, and shares them out fairly among
//! a revision's pods.

mod absence;
pub mod assignment;
pub mod clock;
pub mod coldstart;
pub mod config;
pub mod dispatcher;
mod handler;
mod http_metrics;
pub mod link;
mod metrics;
pub mod pod_set;
pub mod registry;
pub mod reporter;
mod request_log;
pub mod revision;
pub mod settings;
pub mod tls;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ember_api::configmaps::network::{self, Network};
use ember_dataplane::drain::Drain;
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::proxy::Proxy;
use ember_dataplane::server;
use ember_dataplane::worker::Workers;
use ember_reconcile::cache::Cache;
use kube::Client;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use clock::Clock;
pub use config::Config;
use handler::{Activation, Shared};
use http_metrics::HttpMetrics;
use link::Outbox;
use registry::Registry;
use revision::Prober;
use settings::Settings;
use tls::Tls;

/// How long a pod may be silent on a shared connection before it is asked for a sign of life: its node may be gone.
const PING_INTERVAL: Duration = Duration::from_secs(10);

/// Why the activator ended.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// An address cannot be listened on.
    #[error("the activator cannot listen on {addr}: {source}")]
    Listen {
        /// The address.
        addr: SocketAddr,
        /// What the system says.
        #[source]
        source: std::io::Error,
    },
    /// A ConfigMap that has to be there is not, or does not parse.
    #[error("ConfigMap {namespace}/{name} is missing or cannot be used")]
    ConfigMap {
        /// The system namespace.
        namespace: String,
        /// The ConfigMap.
        name: &'static str,
    },
    /// TLS is asked for, but cannot be spoken.
    #[error(transparent)]
    Tls(#[from] tls::Error),
}

/// Serves until `shutdown`; then goes on for [`Config::drain_settle`] while routing lets go of it, and waits for what
/// is under way. Watches and the link to the autoscaler run on the calling runtime, requests and probes on `workers`.
///
/// # Errors
/// [`Error`].
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
    let clock = Clock::start();
    let settings = Settings::new();
    tasks.spawn(settings.run(
        client.clone(),
        &config.system_namespace,
        &config.observability_name,
        control.clone(),
    ));
    let network = tokio::select! {
        () = shutdown.cancelled() => None,
        network = network_settings(&config, &settings) => Some(network),
    };
    let result = match network {
        None => Ok(()),
        Some(Err(error)) => Err(error),
        Some(Ok(network)) => {
            let prober = Prober {
                workers: workers.clone(),
                tasks: tasks.clone(),
                stop: control.clone(),
                proxy: Proxy::new(Pool::new(io.clone(), pool::Options::default()), drain.clone()),
                timeout: config.probe_timeout,
                first_pause: config.probe_first_pause,
                longest_pause: config.probe_longest_pause,
                clock,
                mesh_mode: network.mesh_compatibility_mode,
                passthrough: network.enable_mesh_pod_addressability,
                beginning: Arc::new(Semaphore::new(revision::MOST_BEGINNING)),
                services: Cache::new(),
            };
            let registry = Registry::new(config.clone(), prober);
            let outbox = Outbox::new(&config.pod_name, clock);
            let http = Arc::new(HttpMetrics::new(workers.len(), &registry));
            tasks.spawn(metrics::serve(
                config.clone(),
                io.clone(),
                settings.clone(),
                metrics::Exposed::new(&registry, &outbox, &http),
                control.clone(),
            ));
            tasks.spawn(Arc::clone(&registry).run(client.clone(), control.clone()));
            tasks.spawn(link::run(
                config.clone(),
                io.clone(),
                Arc::clone(&registry),
                Arc::clone(&outbox),
                control.clone(),
            ));
            let request_log = Arc::new(request_log::Log::new(&settings, config.request_log_output.clone()));
            tasks.spawn(Arc::clone(&request_log).follow(settings.clone(), control.clone()));
            let terminating = shutdown.clone();
            let shared =
                Arc::new(Shared { config, settings, registry, outbox, http, request_log, terminating });
            let ready = async {
                let tls = Tls::wanted(&shared.config, &network, client, &tasks, &control).await?;
                shared.registry.synced().await;
                Ok(tls)
            };
            let ready = tokio::select! {
                () = shutdown.cancelled() => None,
                ready = ready => Some(ready),
            };
            match ready {
                None => Ok(()),
                Some(Ok(tls)) => serve(&shared, &io, &workers, &drain, tls).await,
                Some(Err(error)) => Err(error),
            }
        }
    };
    control.cancel();
    tasks.close();
    // Every task ends with `control`; the bound is for one that does not.
    let _ = tokio::time::timeout(Duration::from_secs(5), tasks.wait()).await;
    result
}

/// `config-network` as it is at start, once it is known.
async fn network_settings(config: &Config, settings: &Settings) -> Result<Network, Error> {
    settings.synced().await;
    let snapshot = settings.load();
    if snapshot.has_network {
        return Ok(snapshot.network.clone());
    }
    let namespace = config.system_namespace.clone();
    Err(Error::ConfigMap { namespace, name: network::NAME })
}

async fn serve(
    shared: &Arc<Shared>,
    io: &Io,
    workers: &Workers,
    drain: &Drain,
    tls: Option<Tls>,
) -> Result<(), Error> {
    let config = &shared.config;
    let mut serving = tokio::task::JoinSet::new();
    let (server, client) = tls.map(|tls| (tls.server, tls.client)).unzip();
    let secured = config.tls_port.zip(server).map(|(port, server)| (port, Some(server)));
    for (port, tls) in config.ports.iter().map(|port| (*port, None)).chain(secured) {
        let addr = SocketAddr::new(config.bind, port);
        let listener = io.network.listen(addr).await.map_err(|source| Error::Listen { addr, source })?;
        let client = client.clone();
        let (shared, io, workers, drain) = (Arc::clone(shared), io.clone(), workers.clone(), drain.clone());
        serving.spawn(async move {
            let options = server::Options { tls, ..shared.config.server.clone() };
            server::serve(listener, &workers, &options, &drain, |_worker| {
                // A connection stays on its worker: the limits are shared out.
                let share = |all: usize| all.div_ceil(workers.len());
                let options = pool::Options {
                    max_idle: share(shared.config.max_idle_connections),
                    max_idle_per_address: share(shared.config.max_idle_connections_per_pod),
                    ping_interval: Some(PING_INTERVAL),
                    tls: client.clone(),
                    ..pool::Options::default()
                };
                let pool = Pool::new(io.clone(), options);
                Arc::new(Activation::new(Arc::clone(&shared), pool, drain.clone(), client.is_some()))
            })
            .await;
        });
    }
    shared.terminating.cancelled().await;
    drain.announce();
    tokio::time::sleep(config.drain_settle).await;
    drain.finish(config.drain_timeout).await;
    // They end with the drain.
    let _ = tokio::time::timeout(Duration::from_secs(1), serving.join_all()).await;
    Ok(())
}
