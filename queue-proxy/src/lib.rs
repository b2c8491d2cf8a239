//! The sidecar of every Knative pod: counts and limits concurrency, probes, drains.
//!
//! It runs as tasks of the runtime that calls [`run`]; many sidecars may share one. Environment in, contract ports
//! out: data on 8012 or 8013, and on 8112 where there is a certificate, `/wait-for-drain` on 8022, statistics for the
//! autoscaler on 9090, Prometheus on 9091 where the cluster asks for it.

mod admin;
pub mod certificate;
pub mod config;
mod forwarded;
pub mod observability;
mod observation;
pub mod readiness;
mod reporter;
mod request;
mod request_log;
mod request_metrics;
mod resource;
mod route_tag;
pub mod threads;

use std::io;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::address::Address;
use ember_dataplane::breaker::{Breaker, InvalidBreaker};
use ember_dataplane::drain::{Drain, Quiet};
use ember_dataplane::io::{Io, Listener};
use ember_dataplane::metrics::Exposition;
use ember_dataplane::metrics::prometheus;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::protocol::Protocol;
use ember_dataplane::proxy::Proxy;
use ember_dataplane::server::{self, Handler, Options};
use ember_dataplane::worker::Workers;
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use config::{Config, ConfigError};

use admin::Admin;
use certificate::Certificate;
use observability::MetricsProtocol;
use observation::Observer;
use readiness::Readiness;
use reporter::{Reporter, StatEndpoint};
use request::Data;

/// Requests that may wait, for each that may run.
const QUEUE_DEPTH: usize = 10;
/// Idle connections to the app where concurrency is not limited.
const MAX_IDLE: usize = 1000;
/// How long the answers of the other ports may take at the end.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// The sidecar cannot run.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A port cannot be listened on.
    #[error("listening on {addr}: {source}")]
    Listen {
        /// Where.
        addr: SocketAddr,
        /// What the system says.
        source: io::Error,
    },
    /// There is a certificate, but no serving with it.
    #[error(transparent)]
    Certificate(#[from] certificate::Error),
    /// Metrics are to be served over TLS, but cannot be.
    #[error(transparent)]
    Prometheus(#[from] prometheus::Error),
    /// The concurrency limit makes no breaker.
    #[error(transparent)]
    Breaker(#[from] InvalidBreaker),
}

/// Cuts everything when the sidecar's future is dropped: its tasks do not outlive it.
struct AbortOnDrop(Vec<Drain>, CancellationToken);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.1.cancel();
        for drain in &self.0 {
            drain.abort();
        }
    }
}

/// Runs the sidecar on the calling runtime alone. See [`run_on`].
///
/// # Errors
/// A port that cannot be listened on, a certificate that cannot be used.
pub async fn run(
    config: Config,
    io: Io,
    readiness: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    run_on(&Workers::current(), config, io, readiness, shutdown).await
}

/// Runs the sidecar until `shutdown` is cancelled (SIGTERM) and traffic has drained; requests are carried by `workers`.
/// `readiness` is told whether the app answers. Dropping the future cuts everything off.
///
/// # Errors
/// A port that cannot be listened on, a certificate that cannot be used.
pub async fn run_on(
    workers: &Workers,
    config: Config,
    io: Io,
    readiness: watch::Sender<bool>,
    shutdown: CancellationToken,
) -> Result<(), Error> {
    let (data, streams, side) = (Drain::new(), Drain::new(), Drain::new());
    let stop_probing = CancellationToken::new();
    let _abort = AbortOnDrop(vec![data.clone(), streams.clone(), side.clone()], stop_probing.clone());
    // What is not a request stays here.
    let here = Workers::current();
    let options = config.server.clone();

    let certificate = match &config.certificate_directory {
        Some(directory) => Certificate::load(directory, &config.tls_settings).await?,
        None => None,
    };
    let observability = &config.observability;
    let metrics_tls = match &observability.prometheus.tls {
        Some(tls) => Some(tls.server().await?),
        None => None,
    };
    // Everything is listened on before anything is served: a sidecar runs whole or not at all.
    let listen = async |ip, port| listen(&io, ip, port).await;
    let data_listener = listen(config.bind, config.serving_port).await?;
    let tls = match certificate {
        Some(certificate) => Some((listen(config.bind, config.serving_tls_port).await?, certificate)),
        None => None,
    };
    let admin_listener = listen(config.bind, config.admin_port).await?;
    let stat_listener = listen(config.bind, config.stat_port).await?;
    let prometheus = match observability.request_metrics {
        MetricsProtocol::Prometheus => {
            let ip = observability.prometheus.host.unwrap_or(config.bind);
            Some(listen(ip, observability.port()).await?)
        }
        _ => None,
    };

    let breaker = match config.container_concurrency {
        Some(limit) => Some(Breaker::new(limit.saturating_mul(QUEUE_DEPTH), limit, limit)?),
        None => None,
    };
    let quiet = Quiet::new(config.drain_quiet_period);
    let drained = CancellationToken::new();
    let reporter = Arc::new(Reporter::new(config.pod.clone(), config.stat_period));
    let prober = Readiness::new(
        config.readiness_probes.clone(),
        io.clone(),
        config.app_host,
        config.http2_auto_detection,
        whose(&config),
        stop_probing.clone(),
    );
    let app = Address::from((config.app_host, config.user_port));
    let protocol = Protocol::of_data_port(config.serving_port);
    let observer = Observer::start(observability, &app, protocol, breaker.is_some());
    let flush = observer.finish();
    if let (Some(listener), Some(metrics)) = (prometheus, observer.metrics()) {
        let options = Options { tls: metrics_tls, ..options.clone() };
        serve(listener, &here, &options, &side, vec![Arc::new(Exposition::new(Arc::clone(metrics)))]);
    }
    // A connection stays on its worker: the limit is shared out.
    let max_idle = config.container_concurrency.unwrap_or(MAX_IDLE).div_ceil(workers.len());
    let pool_options = pool::Options { max_idle, max_idle_per_address: max_idle, ..pool::Options::default() };
    let pool = || Pool::new(io.clone(), pool_options.clone());
    let handler = Data {
        proxy: Proxy::new(pool(), streams.clone()),
        app,
        protocol,
        app_absence: config.app_absence,
        timeouts: config.timeouts,
        breaker,
        reporter: Arc::clone(&reporter),
        observer,
        readiness: prober.clone(),
        quiet: quiet.clone(),
        request_log: request_log::Log::new(&config),
    };
    let handlers: Vec<_> = (0..workers.len())
        .map(|_| Arc::new(Data { proxy: Proxy::new(pool(), streams.clone()), ..handler.clone() }))
        .collect();
    let admin = Admin {
        quiet: quiet.clone(),
        shutdown: shutdown.clone(),
        drained: drained.clone(),
        reset_after: config.drain_reset_after,
    };
    serve(data_listener, workers, &options, &data, handlers.clone());
    if let Some((listener, certificate)) = tls {
        let options = Options { tls: Some(certificate.server()), ..options.clone() };
        serve(listener, workers, &options, &data, handlers);
        let watching = certificate.watch(config.certificate_period);
        side.tasks().spawn(side.stopped().clone().run_until_cancelled_owned(watching));
    }
    serve(admin_listener, &here, &options, &side, vec![Arc::new(admin)]);
    serve(stat_listener, &here, &options, &side, vec![Arc::new(StatEndpoint(Arc::clone(&reporter)))]);
    let ticking = side.stopped().clone().run_until_cancelled_owned(reporter.run());
    side.tasks().spawn(ticking);
    let revision = format!("{}/{}", config.namespace, config.revision);
    let probing = tokio::spawn(prober.run(readiness, revision));
    tracing::info!(pod = config.pod, "starting queue-proxy");

    shutdown.cancelled().await;
    tracing::info!(pod = config.pod, "draining");
    // Probes are refused and answers announce the end from this moment; requests are served.
    quiet.begin();
    data.announce();
    stop_probing.cancel();
    let _ = probing.await;
    quiet.quiet().await;
    let until = Instant::now() + config.drain_timeout;
    let in_flight = async {
        tokio::join!(
            async {
                if tokio::time::timeout_at(until, quiet.idle()).await.is_err() {
                    tracing::warn!(in_flight = quiet.in_flight(), "cutting requests that outlast the drain");
                }
            },
            async {
                let upgraded = tokio::time::sleep(config.drain_upgraded_timeout.min(config.drain_timeout));
                tokio::select! {
                    () = upgraded => streams.abort(),
                    () = quiet.idle() => {}
                }
            }
        )
    };
    in_flight.await;
    drained.cancel();
    let rest = until.saturating_duration_since(Instant::now());
    data.finish(rest).await;
    streams.finish(Duration::ZERO).await;
    side.finish(LAST_ANSWERS).await;
    flush.await;
    tracing::info!(pod = config.pod, "drained");
    Ok(())
}

/// Whose app it is, for the log.
fn whose(config: &Config) -> String {
    let Config { namespace, service, revision, pod, .. } = config;
    let service = if service.is_empty() { String::new() } else { format!("service {service}, ") };
    format!("the app of pod {namespace}/{pod} ({service}revision {revision})")
}

/// Listens on `ip`; on a machine without IPv6, all addresses are all IPv4 addresses.
async fn listen(io: &Io, ip: IpAddr, port: u16) -> Result<Listener, Error> {
    let addr = SocketAddr::new(ip, port);
    match io.network.listen(addr).await {
        Ok(listener) => Ok(listener),
        Err(source) if source.kind() != io::ErrorKind::AddrInUse && ip.is_ipv6() && ip.is_unspecified() => {
            let addr = SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), port);
            io.network.listen(addr).await.map_err(|source| Error::Listen { addr, source })
        }
        Err(source) => Err(Error::Listen { addr, source }),
    }
}

/// Serves with a handler for each worker.
fn serve<H: Handler>(
    listener: Listener,
    workers: &Workers,
    options: &Options,
    drain: &Drain,
    handlers: Vec<Arc<H>>,
) {
    let (workers, options, drain) = (workers.clone(), options.clone(), drain.clone());
    let tasks = drain.tasks().clone();
    tasks.spawn(async move {
        server::serve(listener, &workers, &options, &drain, |worker| Arc::clone(&handlers[worker])).await;
    });
}
