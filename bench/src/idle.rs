//! What many services that sleep cost, and how soon many that are declared at once are Ready.

use std::collections::BTreeMap;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use clap::Args;
use futures::{StreamExt, TryStreamExt, stream};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, ResourceExt};
use serde_json::Value;
use tokio::time::{Instant, sleep, timeout};

use crate::instance::Ember;
use crate::programs::EMBER;
use crate::say;
use crate::services::{Services, ready_revision};

/// How long one step may take.
const PATIENCE: Duration = Duration::from_secs(300);

/// What `ember-bench idle` takes.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// How many services sleep in the end
    #[arg(long, default_value_t = 1000, value_parser = clap::value_parser!(u32).range(1..))]
    count: u32,
    /// How many of them are created at once, first of all
    #[arg(long, default_value_t = 50, value_parser = clap::value_parser!(u32).range(1..))]
    at_once: u32,
    /// For how many seconds nothing happens
    #[arg(long, default_value_t = 60)]
    seconds: u32,
    /// The ember program [default: the one beside this program, built if missing]
    #[arg(long)]
    ember: Option<PathBuf>,
}

/// Runs the scenario and reports.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let program = match options.ember {
        Some(path) => path,
        None => EMBER.path()?,
    };
    ensure!(options.at_once <= options.count, "--at-once is more than --count");
    let begun = Instant::now();
    let ember = Ember::start(&program).await?;
    let alone = begun.elapsed();
    quiet(&ember).await?;
    let empty = ember.resident_kib()?;
    say(&format!("no services: up after {} ms, {empty} KiB resident", alone.as_millis()))?;

    let command = ["ember", "demo-app", "hello"].map(str::to_owned);
    let names: Vec<String> = (1..=options.count).map(|n| format!("idle-{n:05}")).collect();
    let (first, rest) = names.split_at(usize::try_from(options.at_once)?);
    let services = Services::new(&ember.client);
    let mut times = times_to_ready(&services, first, &command).await?;
    times.sort_unstable();
    let at = |percent: usize| times[(times.len() - 1) * percent / 100].as_millis();
    say(&format!(
        "{} services created at once: Ready after p50 {} ms, p95 {} ms, max {} ms",
        first.len(),
        at(50),
        at(95),
        at(100)
    ))?;

    let begun = Instant::now();
    services.create(rest, &command).await?;
    services.ready(rest).await?;
    say(&format!("{} more: all Ready after {:.2} s", rest.len(), begun.elapsed().as_secs_f64()))?;
    quiet(&ember).await?;
    rest_figures(&ember, empty, options.count).await?;

    let begun = Instant::now();
    let ember = ember.restart(&program).await?;
    // Ctrl-C included.
    let up = begun.elapsed();
    Services::new(&ember.client).ready(&names).await?;
    say(&format!("restarted: up {} ms after Ctrl-C, with all services Ready", up.as_millis()))?;
    quiet(&ember).await?;
    rest_figures(&ember, empty, options.count).await?;

    let span = Duration::from_secs(options.seconds.into());
    let (cpu, version) = (ember.cpu_time()?, version(&ember.client).await?);
    sleep(span).await;
    let (used, writes) = (ember.cpu_time()? - cpu, self::version(&ember.client).await? - version);
    say(&format!(
        "nothing happens for {} s: {:.2} % of a core, {writes} writes",
        span.as_secs(),
        100.0 * used.as_secs_f64() / span.as_secs_f64()
    ))?;
    ember.stop().await?;
    Ok(())
}

async fn rest_figures(ember: &Ember, empty: u64, count: u32) -> anyhow::Result<()> {
    let resident = ember.resident_kib()?;
    let each = resident.saturating_sub(empty) as f64 / f64::from(count);
    say(&format!("{count} services asleep: {resident} KiB resident, {each:.1} KiB for each"))?;
    let pods = Services::new(&ember.client).pod_count().await?;
    ensure!(pods == 0, "{pods} pods run: the services are not asleep");
    Ok(())
}

async fn quiet(ember: &Ember) -> anyhow::Result<()> {
    ensure!(ember.quiet().await?, "ember up does not come to rest; it said:\n{}", ember.tail());
    Ok(())
}

/// The version of the whole store: every write raises it.
async fn version(client: &Client) -> anyhow::Result<u64> {
    let request = http::Request::get("/api/v1/namespaces?limit=1").body(Vec::new())?;
    let list: Value = client.request(request).await?;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap_or_default();
    version.parse().with_context(|| format!("no version but {version:?}"))
}

/// Creates them all at once; how long each took from its request until it was seen Ready.
async fn times_to_ready(
    services: &Services,
    names: &[String],
    command: &[String],
) -> anyhow::Result<Vec<Duration>> {
    let changes = watcher(services.api().clone(), watcher::Config::default()).default_backoff();
    let mut changes = changes.applied_objects().boxed();
    let begun = Instant::now();
    let mut ready: BTreeMap<String, Duration> = BTreeMap::new();
    let watching = async {
        while ready.len() < names.len() {
            let service = changes.next().await.context("the watch ended")??;
            if ready_revision(&service).is_some() {
                ready.entry(service.name_any()).or_insert_with(|| begun.elapsed());
            }
        }
        anyhow::Ok(())
    };
    let creating = stream::iter(names)
        .map(|name| services.create(std::slice::from_ref(name), command))
        .buffer_unordered(names.len())
        .try_collect::<()>();
    let both = async { tokio::try_join!(creating, watching) };
    match timeout(PATIENCE, both).await {
        Ok(done) => done?,
        Err(_) => bail!("only {} of {} services got Ready", ready.len(), names.len()),
    };
    Ok(ready.into_values().collect())
}
