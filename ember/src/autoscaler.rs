//! `ember autoscaler`: the autoscaler as a container on Kubernetes runs it, with the HPA class.

use clap::Args;
use ember_api::configmaps::observability::Observability;
use ember_autoscaler::{Environment, HpaClass};
use tokio_util::sync::CancellationToken;

use crate::container;

/// The component's name in `config-logging`.
const COMPONENT: &str = "autoscaler";

/// What `ember autoscaler` takes; the rest is in the environment.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    container: container::Container,
    /// Leave the class hpa.autoscaling.knative.dev to another process
    #[arg(long)]
    without_hpa: bool,
}

/// Runs until a signal.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let resolv_conf = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let environment = Environment::read(std::env::vars(), &resolv_conf)?;
    let mut config = environment.config.clone();
    if options.without_hpa {
        config.hpa_class = HpaClass::Elsewhere;
    }
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = options.container.connect(&environment.kubernetes_min_version).await?;
        let namespace = &config.system_namespace;
        let shutdown = CancellationToken::new();
        container::log(&client, namespace, &environment.logging_name, COMPONENT, shutdown.clone()).await?;
        let data = container::data(&client, namespace, &environment.observability_name).await;
        let observability = Observability::parse(&data).unwrap_or_else(|error| {
            tracing::warn!(config_map = %environment.observability_name, %error, "no metrics are served");
            Observability::default()
        });
        config.metrics_addr = environment.metrics_addr(&observability);
        if let Some(address) = options.container.bind {
            config.stats_addr.set_ip(address);
            config.metrics_addr = config.metrics_addr.map(|metrics| (address, metrics.port()).into());
        }
        let ended = CancellationToken::new();
        let io = options.container.io(&client, &config.cluster_domain, &ended).await;
        let _ended = ended.drop_guard();
        let autoscaler = ember_autoscaler::run(config, io, client, shutdown.clone());
        // Boxed: it is large, and there is one.
        container::until_signalled(Box::pin(autoscaler), shutdown).await
    })
}
