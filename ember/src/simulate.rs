//! `ember simulate`: what the autoscaler would do about a load.

use std::fs::{self, File};
use std::io::{BufReader, IsTerminal, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, ensure};
use clap::{Args, ValueEnum};
use ember_api::golang::parse_duration;
use ember_simulate::azure::{self, Choice};
use ember_simulate::setting::World;
use ember_simulate::trace::Unit;
use ember_simulate::{History, Setting, Trace, chart, generator, page, report, simulate, table};
use indicatif::{ProgressBar, ProgressDrawTarget, ProgressStyle};

/// What `ember simulate` takes.
#[derive(Debug, Args)]
#[command(after_help = format!("What --generate takes:\n{}", generator::HELP))]
pub(crate) struct Options {
    #[command(flatten)]
    source: Source,
    /// Only this row of the --azure file, counted from 1 after the header [default: the sum of all]
    #[arg(long, value_parser = clap::value_parser!(u64).range(1..))]
    row: Option<u64>,
    /// What --generate counts
    #[arg(long, value_enum, default_value_t = Counted::Concurrency)]
    unit: Counted,
    /// How long a generated load is
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "10m")]
    duration: Duration,
    /// Seed of generated bursts: the same one gives the same load
    #[arg(long, default_value_t = 1)]
    seed: u64,
    /// Annotation of the revision, for instance target=50 or autoscaling.knative.dev/window=30s
    #[arg(long = "annotation", value_name = "K=V")]
    annotations: Vec<String>,
    /// Key of ConfigMap config-autoscaler, for instance max-scale-down-rate=1.5
    #[arg(long, value_name = "K=V")]
    config: Vec<String>,
    /// A second setting to show beside the first: its annotations over those of --annotation; may be repeated
    #[arg(long, value_name = "K=V,…")]
    compare: Vec<String>,
    /// From the creation of a pod to its readiness
    #[arg(long, value_name = "DURATION", value_parser = duration, default_value = "500ms")]
    pod_start: Duration,
    /// How long a request takes once it is worked on
    #[arg(long, value_name = "DURATION", value_parser = request_time, default_value = "100ms")]
    request_time: Duration,
    /// containerConcurrency of the revision; 0 is no limit
    #[arg(long, value_name = "N", default_value_t = 0, value_parser = clap::value_parser!(u32).range(0..=1000))]
    container_concurrency: u32,
    /// Write a page with table and charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Write the charts
    #[arg(long, value_name = "FILE")]
    svg: Option<PathBuf>,
    /// Write all figures
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

#[derive(Debug, Args)]
#[group(required = true, multiple = false)]
struct Source {
    /// CSV with the header time,concurrency or time,rps; time in seconds
    #[arg(long, value_name = "FILE.csv")]
    trace: Option<PathBuf>,
    /// A made-up load, see below
    #[arg(long, value_name = "SPEC")]
    generate: Option<String>,
    /// Invocations per minute: HashOwner,HashApp,HashFunction,Trigger,1,…,1440
    #[arg(long, value_name = "FILE.csv")]
    azure: Option<PathBuf>,
}

#[derive(Debug, Clone, Copy, ValueEnum)]
enum Counted {
    Concurrency,
    Rps,
}

fn duration(text: &str) -> Result<Duration, String> {
    match parse_duration(text) {
        Ok(duration) if duration.0 >= 0 => Ok(duration.to_std()),
        Ok(_) => Err("must not be negative".to_owned()),
        Err(_) => Err("must be a duration such as 500ms, 90s or 1h30m".to_owned()),
    }
}

fn request_time(text: &str) -> Result<Duration, String> {
    let duration = duration(text)?;
    if duration < Duration::from_millis(1) { Err("must be at least 1ms".to_owned()) } else { Ok(duration) }
}

/// Simulates, prints the table, writes the files.
pub(crate) fn run(options: &Options) -> anyhow::Result<()> {
    let settings = settings(options)?;
    let (title, trace) = load(options)?;
    let progress = progress(trace.duration() * u32::try_from(settings.len()).unwrap_or(u32::MAX));
    let mut histories: Vec<History> = Vec::with_capacity(settings.len());
    for setting in &settings {
        let before = trace.duration().as_secs() * histories.len() as u64;
        histories.push(simulate(setting, &trace, |done| progress.set_position(before + done.as_secs())));
    }
    progress.finish_and_clear();

    if let Some(path) = &options.svg {
        write(path, &chart::svg(&histories))?;
    }
    if let Some(path) = &options.html {
        write(path, &page::html(&title, &histories))?;
    }
    if let Some(path) = &options.json {
        write(path, &report::json(&histories)?)?;
    }
    std::io::stdout().write_all(table::text(&histories).as_bytes()).context("cannot print the table")
}

/// The setting of `--annotation`, and one for each `--compare`, which changes it.
fn settings(options: &Options) -> anyhow::Result<Vec<Setting>> {
    let world = World {
        pod_start: options.pod_start,
        request_time: options.request_time,
        container_concurrency: options.container_concurrency,
    };
    let annotations = &options.annotations;
    let name = if annotations.is_empty() { "defaults".to_owned() } else { annotations.join(", ") };
    let mut settings = vec![Setting::parse(&name, annotations, &options.config, world)?];
    for other in &options.compare {
        let changed: Vec<String> = other.split(',').map(|pair| pair.trim().to_owned()).collect();
        let all: Vec<String> = annotations.iter().chain(&changed).cloned().collect();
        settings
            .push(Setting::parse(&changed.join(", "), &all, &options.config, world).context("--compare")?);
    }
    Ok(settings)
}

/// The load, and what to call it.
fn load(options: &Options) -> anyhow::Result<(String, Trace)> {
    let source = &options.source;
    ensure!(
        options.row.is_none() || source.azure.is_some(),
        "--row: only a file of --azure has rows to choose from"
    );
    if let Some(path) = &source.trace {
        let (name, file) = open(path)?;
        return Ok((name.clone(), Trace::from_csv(&name, file)?));
    }
    if let Some(path) = &source.azure {
        let (name, file) = open(path)?;
        let choice = options.row.map_or(Choice::Sum, Choice::Row);
        return Ok((name.clone(), azure::from_csv(&name, file, choice)?));
    }
    let unit = match options.unit {
        Counted::Concurrency => Unit::Concurrency,
        Counted::Rps => Unit::Rps,
    };
    let spec = source.generate.as_deref().unwrap_or_default();
    Ok((spec.to_owned(), generator::generate(spec, unit, options.duration, options.seed)?))
}

fn open(path: &Path) -> anyhow::Result<(String, BufReader<File>)> {
    let name = path.display().to_string();
    let file = File::open(path).with_context(|| format!("cannot read {name}"))?;
    Ok((name, BufReader::new(file)))
}

fn write(path: &Path, text: &str) -> anyhow::Result<()> {
    fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))
}

/// A bar over `simulated` time, where somebody watches.
fn progress(simulated: Duration) -> ProgressBar {
    let target = if std::io::stderr().is_terminal() {
        ProgressDrawTarget::stderr()
    } else {
        ProgressDrawTarget::hidden()
    };
    let bar = ProgressBar::with_draw_target(Some(simulated.as_secs()), target);
    match ProgressStyle::with_template("simulating {wide_bar} {percent:>3} % {eta}") {
        Ok(style) => bar.with_style(style),
        Err(_) => bar,
    }
}
