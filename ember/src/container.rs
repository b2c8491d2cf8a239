//! One component in a container of its own: what every such process does before and around its component.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use ember_api::configmaps::ConfigError;
use ember_api::configmaps::logging::Logging;
use ember_api::golang;
use ember_dataplane::io::{Io, SystemClock};
use ember_reconcile::config::{ConfigMapData, ConfigStore};
use ember_telemetry::logs;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Api, Client};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::network::ClusterNetwork;

/// How long the API server may take to answer at start, and the pause between attempts.
const API_PATIENCE: Duration = Duration::from_secs(60);
const API_PAUSE: Duration = Duration::from_secs(1);
/// As above, for the first look at a ConfigMap.
const READING_PATIENCE: Duration = Duration::from_secs(5);

/// A length of time on the command line, as `45s` or `1m30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, golang::ParseError> {
    golang::parse_duration(text).map(golang::GoDuration::to_std)
}

/// What every component's command takes.
#[derive(Debug, Args)]
pub(crate) struct Container {
    /// Kubeconfig of the API server [default: $KUBECONFIG, ~/.kube/config, or the pod's service account]
    #[arg(long)]
    kubeconfig: Option<PathBuf>,
    /// Address to listen on [default: all]
    #[arg(long)]
    pub(crate) bind: Option<IpAddr>,
    /// Find Services by the API's Endpoints, where no DNS of a cluster resolves their names
    #[arg(long)]
    without_dns: bool,
}

impl Container {
    /// The way to sockets and the clock: by the system's resolver, or by the API's Endpoints, which are followed until
    /// `stop`.
    pub(crate) async fn io(&self, client: &Client, cluster_domain: &str, stop: &CancellationToken) -> Io {
        if !self.without_dns {
            return Io::system();
        }
        let network = ClusterNetwork::follow(client, cluster_domain, stop).await;
        Io { clock: Arc::new(SystemClock), network: Arc::new(network) }
    }

    /// A client of the API server, once that answers and is new enough.
    ///
    /// # Errors
    /// When there is no usable configuration, no answer in time, or too old a server.
    pub(crate) async fn connect(&self, min_version: &str) -> anyhow::Result<Client> {
        let config = match &self.kubeconfig {
            Some(file) => {
                let content = Kubeconfig::read_from(file)
                    .with_context(|| format!("cannot use kubeconfig {}", file.display()))?;
                kube::Config::from_custom_kubeconfig(content, &KubeConfigOptions::default()).await?
            }
            None => kube::Config::infer().await.context("no API server is configured")?,
        };
        let client = Client::try_from(config).context("no API server is configured")?;
        let asking = async {
            loop {
                match client.apiserver_version().await {
                    Ok(version) => return version.git_version,
                    Err(error) => eprintln!("waiting for the API server: {error}"),
                }
                tokio::time::sleep(API_PAUSE).await;
            }
        };
        let version = tokio::time::timeout(API_PATIENCE, asking)
            .await
            .with_context(|| format!("the API server did not answer within {API_PATIENCE:?}"))?;
        if !at_least(&version, min_version) {
            bail!(
                "kubernetes version {version:?} is not compatible, need at least {min_version:?} \
                 (this can be overridden with the env var \"KUBERNETES_MIN_VERSION\")"
            );
        }
        Ok(client)
    }
}

/// What a ConfigMap holds at start; nothing if it cannot be read in time, and stderr tells so.
pub(crate) async fn data(client: &Client, namespace: &str, name: &str) -> BTreeMap<String, String> {
    let maps: Api<ConfigMap> = Api::namespaced(client.clone(), namespace);
    let map = match tokio::time::timeout(READING_PATIENCE, maps.get_opt(name)).await {
        Ok(Ok(map)) => map.unwrap_or_default(),
        Ok(Err(error)) => {
            eprintln!("cannot read ConfigMap {namespace}/{name}, going on with defaults: {error}");
            ConfigMap::default()
        }
        Err(_) => {
            eprintln!("cannot read ConfigMap {namespace}/{name} in time, going on with defaults");
            ConfigMap::default()
        }
    };
    map.data.unwrap_or_default()
}

/// Sets logging up: JSON lines, at the level that ConfigMap `name` gives the component; info without one. The level
/// follows the ConfigMap until `shutdown`; one that cannot be read or does not parse changes nothing.
///
/// # Errors
/// When logging is set up already.
pub(crate) async fn log(
    client: &Client,
    namespace: &str,
    name: &str,
    component: &'static str,
    shutdown: CancellationToken,
) -> anyhow::Result<()> {
    let levels = ConfigStore::new(level(None, component));
    let filter = logs::init(logs::Format::Json, &levels.load())?;
    let map = name.to_owned();
    let parse = move |data: &ConfigMapData| {
        let settings = data.get(&map).map(Logging::parse).transpose()?;
        Ok::<_, ConfigError>(level(settings.as_ref(), component))
    };
    let mut changed = levels.subscribe();
    let mut following = tokio::spawn(levels.run(client.clone(), namespace, parse, shutdown));
    let apply = move |levels: &ConfigStore<&'static str>| {
        if let Err(error) = filter.set(*levels.load()) {
            tracing::error!(%error, "the log level stays as it was");
        }
    };
    if tokio::time::timeout(READING_PATIENCE, levels.synced()).await.is_err() {
        tracing::warn!("cannot read ConfigMap {namespace}/{name} in time, logging with defaults");
    }
    changed.borrow_and_update();
    apply(&levels);
    tokio::spawn(async move {
        loop {
            tokio::select! {
                // It ends at shutdown.
                _ = &mut following => return,
                _ = changed.changed() => apply(&levels),
            }
        }
    });
    Ok(())
}

/// The log filter of a component. Beyond errors zap has levels of its own.
fn level(settings: Option<&Logging>, component: &str) -> &'static str {
    match settings.and_then(|settings| settings.levels.get(component)).map(String::as_str) {
        Some("debug") => "debug",
        Some("warn") => "warn",
        Some("error" | "dpanic" | "panic" | "fatal") => "error",
        _ => "info",
    }
}

/// Runs until `component` ends. The first SIGTERM or SIGINT cancels `shutdown`, upon which it drains; a second one is an
/// error at once.
///
/// # Errors
/// The component's own, and the second signal.
pub(crate) async fn until_signalled<E>(
    component: impl Future<Output = Result<(), E>>,
    shutdown: CancellationToken,
) -> anyhow::Result<()>
where
    anyhow::Error: From<E>,
{
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut component = std::pin::pin!(component);
    loop {
        tokio::select! {
            ended = &mut component => return Ok(ended?),
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        if shutdown.is_cancelled() {
            bail!("second signal: exiting at once");
        }
        shutdown.cancel();
    }
}

/// Whether a version such as `v1.34.1+k3s1` is no older than another; pre-releases count as their release.
fn at_least(version: &str, min: &str) -> bool {
    fn numbers(version: &str) -> Vec<u64> {
        let core = version.trim_start_matches('v').split(['-', '+']).next().unwrap_or_default();
        core.split('.').map(|part| part.parse().unwrap_or(0)).collect()
    }
    numbers(version) >= numbers(min)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn versions_are_compared_by_number() {
        for (version, min, enough) in [
            ("v1.34.0", "v1.34.0", true),
            ("v1.34.1+k3s1", "v1.34.0", true),
            ("v1.34.0-gke.1", "v1.34.0", true),
            ("v1.9.9", "v1.34.0", false),
            ("v2.0.0", "v1.34.0", true),
            ("v1.33.7", "v1.34.0", false),
        ] {
            assert_eq!(at_least(version, min), enough, "{version} and {min}");
        }
    }
}
