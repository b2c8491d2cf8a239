//! What Prometheus learns of the activator.
//!
//! Numbers live with the revision they are about and are collected when they are asked for: a request pays an atomic
//! addition, and what was counted for a revision goes with it.
//!
//! `kn_revision_cold_start_duration_seconds` is a histogram of the requests that found no usable pod, by namespace,
//! revision and [`Phase`] (`phase="total"` is the whole wait).

use std::borrow::Cow;
use std::fmt;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock, Weak};
use std::time::Duration;

use ember_api::configmaps::observability::Metrics as Wanted;
use ember_dataplane::drain::Drain;
use ember_dataplane::io::Io;
use ember_dataplane::metrics::text::Text;
use ember_dataplane::metrics::{Expose, Exposition, prometheus};
use ember_dataplane::server;
use ember_dataplane::tls::Server;
use ember_dataplane::worker::Workers;
use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry as Families;
use tokio_util::sync::CancellationToken;

use crate::coldstart::{Phase, Phases};
use crate::config::Config;
use crate::http_metrics::HttpMetrics;
use crate::link::Outbox;
use crate::registry::Registry;
use crate::revision::RevisionState;
use crate::settings::Settings;

const SCOPE: &str = "knative.dev/serving/pkg/activator";
const BUCKETS: [f64; 15] =
    [0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0];
/// How long a scrape may go on when the endpoint moves or ends.
const LAST_SCRAPE: Duration = Duration::from_secs(1);

/// The numbers of one revision.
#[derive(Debug, Default)]
pub(crate) struct RevisionMetrics {
    /// Whether there ever was a request: revisions without are not shown.
    used: AtomicBool,
    queued: AtomicI64,
    active: AtomicI64,
    /// The bits of the average that was reported last.
    concurrency: AtomicU64,
    cold_starts: OnceLock<Box<[Histogram; Phase::ALL.len()]>>,
}

impl RevisionMetrics {
    /// The average that is reported to the autoscaler.
    pub(crate) fn set_concurrency(&self, average: f64) {
        self.concurrency.store(average.to_bits(), Ordering::Relaxed);
    }

    pub(crate) fn observe(&self, phases: &Phases) {
        let histograms =
            self.cold_starts.get_or_init(|| Box::new(Phase::ALL.map(|_| Histogram::new(BUCKETS))));
        for (histogram, (_, seconds)) in histograms.iter().zip(phases.seconds()) {
            histogram.observe(seconds);
        }
    }
}

/// Counts a request that waits for a place, until dropped.
#[must_use]
pub(crate) struct Queued<'a>(&'a RevisionMetrics);

impl<'a> Queued<'a> {
    pub(crate) fn enter(metrics: &'a RevisionMetrics) -> Self {
        if !metrics.used.load(Ordering::Relaxed) {
            metrics.used.store(true, Ordering::Relaxed);
        }
        metrics.queued.fetch_add(1, Ordering::Relaxed);
        Self(metrics)
    }
}

impl Drop for Queued<'_> {
    fn drop(&mut self) {
        self.0.queued.fetch_sub(1, Ordering::Relaxed);
    }
}

/// Counts a request that has a place, until dropped.
#[must_use]
pub(crate) struct Active(Arc<RevisionState>);

impl Active {
    pub(crate) fn enter(revision: &Arc<RevisionState>) -> Self {
        revision.metrics.active.fetch_add(1, Ordering::Relaxed);
        Self(Arc::clone(revision))
    }
}

impl Drop for Active {
    fn drop(&mut self) {
        self.0.metrics.active.fetch_sub(1, Ordering::Relaxed);
    }
}

/// All metrics of the activator.
pub(crate) struct Exposed {
    families: Families,
    http: Arc<HttpMetrics>,
}

impl Exposed {
    pub(crate) fn new(registry: &Arc<Registry>, outbox: &Arc<Outbox>, http: &Arc<HttpMetrics>) -> Self {
        Self { families: families(registry, outbox), http: Arc::clone(http) }
    }
}

impl Expose for Exposed {
    fn expose(&self, text: &mut Text) {
        self.http.expose(text);
        // It writes the end.
        self.families.expose(text);
    }
}

/// What is counted for revisions and the link.
struct Collected {
    registry: Weak<Registry>,
    outbox: Arc<Outbox>,
}

impl fmt::Debug for Collected {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Collected").finish_non_exhaustive()
    }
}

/// The families of the activator, with the labels of its instrumentation scope.
fn families(registry: &Arc<Registry>, outbox: &Arc<Outbox>) -> Families {
    let labels = [("otel_scope_name", SCOPE), ("otel_scope_version", ""), ("otel_scope_schema_url", "")];
    let labels = labels.map(|(name, value)| (Cow::Borrowed(name), Cow::Borrowed(value)));
    let mut families = Families::with_labels(labels.into_iter());
    let collected = Collected { registry: Arc::downgrade(registry), outbox: Arc::clone(outbox) };
    families.register_collector(Box::new(collected));
    families
}

impl Collector for Collected {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> Result<(), fmt::Error> {
        let mut revisions = self.registry.upgrade().map(|registry| registry.all()).unwrap_or_default();
        revisions.retain(|revision| revision.metrics.used.load(Ordering::Relaxed));

        let mut family = encoder.encode_descriptor(
            "kn_revision_request_concurrency",
            "Concurrent requests that are routed to this activator, as reported last",
            None,
            MetricType::Gauge,
        )?;
        for revision in &revisions {
            let average = f64::from_bits(revision.metrics.concurrency.load(Ordering::Relaxed));
            let labels = [
                ("kn_service_name", revision.described.service.as_str()),
                ("kn_configuration_name", revision.described.configuration.as_str()),
                ("kn_revision_name", revision.key.name.as_str()),
                ("k8s_namespace_name", revision.key.namespace.as_str()),
            ];
            ConstGauge::new(average).encode(family.encode_family(&labels)?)?;
        }

        type Count = fn(&RevisionMetrics) -> &AtomicI64;
        let counts: [(_, _, Count); 2] = [
            ("kn_revision_request_queued", "Requests that wait for a place in a pod", |m| &m.queued),
            ("kn_revision_request_active", "Requests that have a place in a pod", |m| &m.active),
        ];
        for (name, help, count) in counts {
            let mut family = encoder.encode_descriptor(name, help, None, MetricType::Gauge)?;
            for revision in &revisions {
                let labels = [
                    ("k8s_namespace_name", revision.key.namespace.as_str()),
                    ("kn_revision_name", revision.key.name.as_str()),
                ];
                let count = count(&revision.metrics).load(Ordering::Relaxed);
                ConstGauge::new(count).encode(family.encode_family(&labels)?)?;
            }
        }

        let mut family = encoder.encode_descriptor(
            "kn_revision_cold_start_duration_seconds",
            "How long requests that found no usable pod waited, by phase",
            None,
            MetricType::Histogram,
        )?;
        for revision in &revisions {
            let Some(histograms) = revision.metrics.cold_starts.get() else { continue };
            for (phase, histogram) in Phase::ALL.iter().zip(histograms.iter()) {
                let labels = [
                    ("namespace", revision.key.namespace.as_str()),
                    ("revision", revision.key.name.as_str()),
                    ("phase", phase.name()),
                ];
                histogram.encode(family.encode_family(&labels)?)?;
            }
        }

        let peer = [("peer", "autoscaler")];
        let mut family = encoder.encode_descriptor(
            "kn_activator_stats_conn_reachable",
            "Whether the autoscaler can be reached",
            None,
            MetricType::Gauge,
        )?;
        let reachable = i64::from(self.outbox.is_connected());
        ConstGauge::new(reachable).encode(family.encode_family(&peer)?)?;
        let mut family = encoder.encode_descriptor(
            "kn_activator_stats_conn_errors",
            "Connections to the autoscaler that were lost",
            None,
            MetricType::Counter,
        )?;
        ConstCounter::new(self.outbox.lost()).encode(family.encode_family(&peer)?)
    }
}

/// Why metrics cannot be served where they should be.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("metrics-endpoint {0:?}: expected an IP address and a port between 1024 and 65535")]
struct InvalidEndpoint(String);

/// Where Prometheus is to find the metrics; `None` when they go elsewhere, or nowhere.
fn endpoint(wanted: &Wanted, config: &Config) -> Result<Option<SocketAddr>, InvalidEndpoint> {
    if wanted.protocol != "prometheus" {
        return Ok(None);
    }
    let invalid = || InvalidEndpoint(wanted.endpoint.clone());
    let (host, port) = match wanted.endpoint.rsplit_once(':') {
        Some((host, port)) => (host.trim_matches(['[', ']']), port),
        None => ("", wanted.endpoint.as_str()),
    };
    let mut addr = config.metrics;
    if !host.is_empty() {
        addr.set_ip(host.parse::<IpAddr>().map_err(|_| invalid())?);
    }
    if !port.is_empty() {
        addr.set_port(port.parse().ok().filter(|port| *port >= 1024).ok_or_else(invalid)?);
    }
    addr.set_ip(config.metrics_host.unwrap_or(addr.ip()));
    addr.set_port(config.metrics_port.unwrap_or(addr.port()));
    Ok(Some(addr))
}

/// Serves the metrics wherever the settings of the moment ask for them, until `shutdown`. That they cannot be served is
/// said, and keeps nobody from serving requests.
pub(crate) async fn serve(
    config: Config,
    io: Io,
    settings: Settings,
    exposed: Exposed,
    shutdown: CancellationToken,
) {
    let exposed = Arc::new(exposed);
    let mut changed = settings.subscribe();
    loop {
        changed.borrow_and_update();
        let wanted = settings.load().observability.metrics.clone();
        let drain = Drain::new();
        let serving = async {
            let addr = match endpoint(&wanted, &config) {
                Ok(Some(addr)) => addr,
                Ok(None) => return std::future::pending().await,
                Err(error) => {
                    tracing::error!(%error, "metrics cannot be served");
                    return std::future::pending().await;
                }
            };
            let tls = match secured(&config).await {
                Ok(tls) => tls,
                Err(error) => {
                    tracing::error!(%error, "metrics cannot be served");
                    return std::future::pending().await;
                }
            };
            match io.network.listen(addr).await {
                Ok(listener) => {
                    exposed.http.set_exposed(true);
                    let exposition = Arc::new(Exposition::new(Arc::clone(&exposed)));
                    let options = server::Options { tls, ..server::Options::default() };
                    server::serve(listener, &Workers::current(), &options, &drain, |_| {
                        Arc::clone(&exposition)
                    })
                    .await;
                }
                Err(error) => {
                    tracing::error!(%addr, %error, "metrics cannot be served");
                    std::future::pending::<()>().await;
                }
            }
        };
        let ended = tokio::select! {
            () = serving => false,
            () = shutdown.cancelled() => true,
            () = moved(&settings, &wanted, &mut changed) => false,
        };
        exposed.http.set_exposed(false);
        drain.finish(LAST_SCRAPE).await;
        if ended {
            return;
        }
    }
}

/// What the port proves itself with, where TLS is spoken there.
async fn secured(config: &Config) -> Result<Option<Server>, prometheus::Error> {
    Ok(match &config.metrics_tls {
        Some(tls) => Some(tls.server().await?),
        None => None,
    })
}

/// Waits until the settings want something else.
async fn moved(settings: &Settings, wanted: &Wanted, changed: &mut tokio::sync::watch::Receiver<u64>) {
    while settings.load().observability.metrics == *wanted {
        if changed.changed().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wanted(protocol: &str, endpoint: &str) -> Wanted {
        Wanted { protocol: protocol.to_owned(), endpoint: endpoint.to_owned(), ..Wanted::default() }
    }

    #[test]
    fn where_metrics_are_served() {
        let config = Config::default();
        let text = |wanted: &Wanted, config: &Config| {
            endpoint(wanted, config).map(|addr| addr.map(|addr| addr.to_string()).unwrap_or_default())
        };
        for (protocol, endpoint, expected) in [
            ("none", "", ""),
            ("grpc", "otel:4317", ""),
            ("prometheus", "", "0.0.0.0:9090"),
            ("prometheus", ":9191", "0.0.0.0:9191"),
            ("prometheus", "127.0.0.1:9191", "127.0.0.1:9191"),
            ("prometheus", "[::1]:9191", "[::1]:9191"),
        ] {
            assert_eq!(text(&wanted(protocol, endpoint), &config).unwrap(), expected, "{endpoint}");
        }
        for endpoint in ["localhost:80", "127.0.0.1:80", "127.0.0.1:many"] {
            assert!(text(&wanted("prometheus", endpoint), &config).is_err(), "{endpoint}");
        }
        let own = Config {
            metrics_host: Some([127, 0, 0, 9].into()),
            metrics_port: Some(2000),
            ..Config::default()
        };
        assert_eq!(text(&wanted("prometheus", "127.0.0.1:9191"), &own).unwrap(), "127.0.0.9:2000");
    }
}
