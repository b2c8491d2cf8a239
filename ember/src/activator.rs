//! `ember activator`: the activator as a container on Kubernetes runs it.

use std::time::Duration;

use clap::Args;
use ember_dataplane::worker::Workers;
use tokio_util::sync::CancellationToken;

use crate::container;

/// The component's name in `config-logging`.
const COMPONENT: &str = "activator";

/// What `ember activator` takes; the rest is in the environment.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    container: container::Container,
    /// How long new requests are still taken after SIGTERM, for instance 45s [default: 45s]
    #[arg(long, value_parser = container::duration)]
    drain_settle: Option<Duration>,
}

/// Runs until a signal has drained it.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let mut config = ember_activator::Config::from_env(std::env::vars(), &resolv_conf)?;
    if let Some(address) = options.container.bind {
        config.bind = address;
        config.metrics.set_ip(address);
    }
    config.drain_settle = options.drain_settle.unwrap_or(config.drain_settle);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = options.container.connect(&config.kubernetes_min_version).await?;
        // Levels are followed to the very end, which may be long after the signal.
        let ended = CancellationToken::new();
        let (namespace, map) = (&config.system_namespace, &config.logging_name);
        container::log(&client, namespace, map, COMPONENT, ended.clone()).await?;
        let io = options.container.io(&client, &config.cluster_domain, &ended).await;
        let _ended = ended.drop_guard();
        let workers = Workers::start(std::thread::available_parallelism().map_or(1, usize::from))?;
        let shutdown = CancellationToken::new();
        let activator = ember_activator::run(config, io, client, workers.clone(), shutdown.clone());
        // Boxed: it is large, and there is one.
        let result = container::until_signalled(Box::pin(activator), shutdown).await;
        workers.shutdown().await;
        result
    })
}
