//! `ember ingress`: the gateway as a process of its own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use clap::Args;
use ember_controller::Queues;
use ember_dataplane::io::Io;
use ember_dataplane::worker::Workers;
use tokio_util::sync::CancellationToken;

use crate::container;
use crate::environment::Environment;
use crate::probes::{Figures, Ports, Readiness};

/// The component's name in `config-logging`.
const COMPONENT: &str = "ingress";
/// Pause between looks at whether the gateway listens yet.
const LOOK_AGAIN: Duration = Duration::from_millis(10);

/// What `ember ingress` takes; the rest is in the environment.
#[derive(Debug, Args)]
pub(crate) struct Options {
    #[command(flatten)]
    container: container::Container,
    /// Where hosts of the outside are served, in place of the address of --bind
    #[arg(long)]
    http: Option<SocketAddr>,
    /// Port of the inside: hosts that are cluster-local, too
    #[arg(long, default_value_t = 8081)]
    internal_port: u16,
    /// Port of /health and /readiness
    #[arg(long, default_value_t = 8082, env = "KNATIVE_HEALTH_PROBES_PORT")]
    probes_port: u16,
    /// The class of the Ingresses that are served
    #[arg(long, default_value = "ember.ingress.networking.knative.dev")]
    ingress_class: String,
    /// Name of the gateway's own Service in the system namespace
    #[arg(long, default_value = "ember-gateway")]
    service: String,
    /// How long new requests are still taken after SIGTERM, for instance 15s
    #[arg(long, value_parser = container::duration, default_value = "15s")]
    drain_settle: Duration,
    /// How long requests under way may take after that, for instance 30s
    #[arg(long, value_parser = container::duration, default_value = "30s")]
    drain_timeout: Duration,
    /// Threads that carry requests [default: one per core]
    #[arg(long)]
    workers: Option<usize>,
}

/// Runs until a signal has drained it.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let environment = Environment::of_process()?;
    let (namespace, domain) = (&environment.system_namespace, &environment.cluster_domain);
    let ip = options.container.bind.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let config = ember_ingress::Config {
        listen: options.http.unwrap_or(SocketAddr::new(ip, 8080)),
        listen_internal: Some(SocketAddr::new(ip, options.internal_port)),
        ingress_class: options.ingress_class.clone(),
        service_host: format!("{}.{namespace}.svc.{domain}", options.service),
        system_namespace: namespace.clone(),
        drain_timeout: options.drain_timeout,
        ..ember_ingress::Config::default()
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let client = options.container.connect(&environment.kubernetes_min_version).await?;
        let ended = CancellationToken::new();
        container::log(&client, namespace, &environment.logging_name, COMPONENT, ended.clone()).await?;
        let metrics =
            environment.prometheus(&container::data(&client, namespace, &environment.observability_name).await)?;
        let io = options.container.io(&client, domain, &ended).await;
        let _ended = ended.drop_guard();
        let readiness = Readiness::default();
        let figures = Figures { queues: Queues::default() };
        let place = (ip, options.probes_port);
        let ports = Ports::open(&io, place, &readiness, metrics.as_ref(), figures).await?;
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let workers = Workers::start(options.workers.unwrap_or(cores))?;
        let (shutdown, settled) = (CancellationToken::new(), CancellationToken::new());
        let (inside, asked) = (config.listen_internal, shutdown.clone());
        let gateway = ember_ingress::run(config, io.clone(), client, workers.clone(), settled.clone());
        let serving = async {
            tokio::select! {
                result = gateway => result,
                never = follow(&io, inside, &readiness, options.drain_settle, (&asked, &settled)) => match never {},
            }
        };
        // Boxed: it is large, and there is one.
        let result = container::until_signalled(Box::pin(serving), shutdown).await;
        workers.shutdown().await;
        ports.close().await;
        result
    })
}

/// Says that the gateway is ready once it listens, and that it is not as soon as it is asked to end; it does when others
/// had time to hear of that.
async fn follow(
    io: &Io,
    inside: Option<SocketAddr>,
    readiness: &Readiness,
    settle: Duration,
    (asked, settled): (&CancellationToken, &CancellationToken),
) -> std::convert::Infallible {
    let listening = async {
        let Some(address) = inside else { return };
        let address = reachable(address);
        while io.network.connect(&address.ip().to_string(), address.port()).await.is_err() {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    };
    if asked.run_until_cancelled(listening).await.is_some() {
        readiness.set(true);
        asked.cancelled().await;
        readiness.set(false);
        tokio::time::sleep(settle).await;
    }
    settled.cancel();
    std::future::pending().await
}

/// Where a listener is reached from this host.
fn reachable(address: SocketAddr) -> SocketAddr {
    match address.ip() {
        IpAddr::V4(ip) if ip.is_unspecified() => (Ipv4Addr::LOCALHOST, address.port()).into(),
        IpAddr::V6(ip) if ip.is_unspecified() => (std::net::Ipv6Addr::LOCALHOST, address.port()).into(),
        _ => address,
    }
}
