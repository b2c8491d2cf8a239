//! `ember controller`: the controller as a container on Kubernetes runs it.

use std::net::{IpAddr, Ipv4Addr};

use clap::Args;
use ember_dataplane::io::Io;
use tokio_util::sync::CancellationToken;

use crate::container;
use crate::environment::Environment;
use crate::probes::{Figures, Ports, Readiness};

/// The component's name in `config-logging`.
const COMPONENT: &str = "controller";

/// What `ember controller` takes; the rest is in the environment.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    container: container::Container,
    /// Port of /health and /readiness
    #[arg(long, default_value_t = 8080, env = "KNATIVE_HEALTH_PROBES_PORT")]
    probes_port: u16,
    /// Work without Leases: there is no other replica
    #[arg(long)]
    disable_ha: bool,
}

/// Runs until a signal.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let environment = Environment::of_process()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = options.container.connect(&environment.kubernetes_min_version).await?;
        let namespace = &environment.system_namespace;
        let ended = CancellationToken::new();
        container::log(&client, namespace, &environment.logging_name, COMPONENT, ended.clone()).await?;
        let _ended = ended.drop_guard();
        let metrics = environment
            .prometheus(&container::data(&client, namespace, &environment.observability_name).await)?;
        let config = ember_controller::Config {
            system_namespace: namespace.clone(),
            cluster_domain: environment.cluster_domain.clone(),
            identity: (!options.disable_ha).then(|| environment.identity.clone()),
            leader_election_name: environment.leader_election_name.clone(),
            ..ember_controller::Config::default()
        };
        let ip = options.container.bind.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
        let readiness = Readiness::default();
        let figures = Figures { queues: config.queues.clone() };
        let place = (ip, options.probes_port);
        let ports = Ports::open(&Io::system(), place, &readiness, metrics.as_ref(), figures).await?;
        readiness.set(true);
        let shutdown = CancellationToken::new();
        let controller = ember_controller::run(config, client, shutdown.clone());
        // Boxed: it is large, and there is one.
        let result = container::until_signalled(Box::pin(controller), shutdown).await;
        ports.close().await;
        result
    })
}
