//! What a proxied request costs: Ember's proxies and others before the same backend, under the same load, in turn.

pub(crate) mod activator;
mod answer;
pub(crate) mod app;
mod charts;
pub(crate) mod cluster;
mod connection;
mod h2;
mod isolation;
mod load;
mod page;
mod process;
mod report;
mod stop;
mod target;

use std::collections::HashSet;
use std::net::TcpStream;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::{Duration, Instant};

use anyhow::Context;
use clap::Args;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::time::ClockId;

use crate::programs::{PINGORA, TINY_APP, queue_proxy};
use crate::say;
use connection::Protocol;
use load::{Pace, Plan};
use process::Cpus;
use report::{Machine, Measured, Memory, Report};
use stop::Stop;
use target::{Kind, Known, Placement, Running, Site, Target};

/// The loads every target is put under that speaks their protocol.
const SCENARIOS: [Scenario; 7] = [
    Scenario::http1(1, Pace::Closed),
    Scenario::http1(16, Pace::Closed),
    Scenario::http1(128, Pace::Closed),
    Scenario::http1(16, Pace::Rate(300)),
    Scenario::h2c(1, 1),
    Scenario::h2c(16, 1),
    Scenario::h2c(8, 16),
];
/// How often each of them is repeated: in a run, in a quick one.
const ROUNDS: (u32, u32) = (5, 2);
/// How long load is measured in all: in a run, in a quick one.
const BUDGET: (Duration, Duration) = (Duration::from_secs(420), Duration::from_secs(40));
/// The shortest and the longest time under one load.
const SLICE: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(2));
/// Load before a measurement; the start of a slice takes no longer.
const WARM_UP: Duration = Duration::from_millis(150);
/// Connections that do nothing.
const IDLE_CONNECTIONS: usize = 1000;
/// How long memory is left to settle, and after the connections are closed.
const SETTLE: (Duration, Duration) = (Duration::from_millis(300), Duration::from_secs(1));

/// Our own names for targets.
const NAMES: [&str; 7] =
    ["direct", "nginx", "haproxy", "pingora", "queue-proxy", "activator", "activator-10000"];

/// Options of the scenario.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Short, for a first look: under 90 seconds
    #[arg(long)]
    quick: bool,
    /// File for the figures
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
    /// File for a page with charts
    #[arg(long, value_name = "FILE")]
    html: Option<PathBuf>,
    /// Another program to measure: it gets the environment of a queue-proxy, and has to listen on QUEUE_SERVING_PORT
    #[arg(long = "peer", value_name = "NAME=COMMAND")]
    peers: Vec<Peer>,
    /// Measure only these targets
    #[arg(long, value_name = "NAMES", value_delimiter = ',')]
    only: Vec<String>,
    /// The queue-proxy to measure [default: built now, as it ships]
    #[arg(long, value_name = "PATH")]
    queue_proxy: Option<PathBuf>,
}

#[derive(Debug, Clone)]
struct Peer {
    name: String,
    command: String,
}

impl FromStr for Peer {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (name, command) = text.split_once('=').ok_or("must be NAME=COMMAND")?;
        let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
        if name.is_empty() || !name.chars().all(plain) {
            return Err("the name must consist of letters, digits, '-', '_' and '.'".to_owned());
        }
        if NAMES.contains(&name) {
            return Err(format!("{name} is the name of another target"));
        }
        Ok(Self { name: name.to_owned(), command: command.to_owned() })
    }
}

/// A load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Scenario {
    protocol: Protocol,
    connections: usize,
    /// Requests at a time on each of them.
    streams: usize,
    pace: Pace,
}

impl Scenario {
    const fn http1(connections: usize, pace: Pace) -> Self {
        Self { protocol: Protocol::Http1, connections, streams: 1, pace }
    }

    const fn h2c(connections: usize, streams: usize) -> Self {
        Self { protocol: Protocol::H2c, connections, streams, pace: Pace::Closed }
    }

    fn name(self) -> &'static str {
        match self.pace {
            Pace::Closed => "closed-loop",
            Pace::Rate(_) => "constant-rate",
        }
    }
}

/// Runs the scenario.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    // Cargo may need the network, so that the programs come first.
    let targets = targets(&options)?;
    let tiny_app = TINY_APP.path()?;
    if let Err(error) = isolation::enter() {
        say(&format!("no network of its own ({error:#}): others on this machine may be in the way"))?;
    }
    let (soft, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    if soft < hard {
        setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    }
    let stop = Stop::default();
    let _stop_on_drop = stop.on_drop();
    let measuring = tokio::task::spawn_blocking(move || {
        let report = measure(&options, &targets, &tiny_app, &stop)?;
        say(&report.to_string())?;
        if let Some(path) = &options.json {
            let text = serde_json::to_string_pretty(&report)?;
            std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
        }
        if let Some(path) = &options.html {
            std::fs::write(path, page::render(&report))
                .with_context(|| format!("cannot write {}", path.display()))?;
        }
        Ok(())
    });
    measuring.await?
}

/// What there is to measure on this machine.
fn targets(options: &Options) -> anyhow::Result<Vec<Target>> {
    let sidecar = match &options.queue_proxy {
        Some(path) => path.canonicalize().with_context(|| format!("no {}", path.display()))?,
        None => queue_proxy()?,
    };
    let mut targets = vec![Target { name: "direct".to_owned(), kind: Kind::Direct }];
    for name in ["nginx", "haproxy"] {
        match target::installed(name) {
            Some(program) => {
                let kind = if name == "nginx" { Kind::Nginx(program) } else { Kind::Haproxy(program) };
                targets.push(Target { name: name.to_owned(), kind });
            }
            None => say(&format!("{name} is not installed (apt-get install {name}): left out"))?,
        }
    }
    if cfg!(feature = "pingora") {
        targets.push(Target { name: "pingora".to_owned(), kind: Kind::QueueProxy(PINGORA.path()?) });
    } else {
        say("pingora is not built in (--features pingora): left out")?;
    }
    targets.push(Target { name: "queue-proxy".to_owned(), kind: Kind::QueueProxy(sidecar.clone()) });
    for (name, known) in [("activator", Known::ONE), ("activator-10000", Known::MANY)] {
        let kind = Kind::Activator(sidecar.clone(), known);
        targets.push(Target { name: name.to_owned(), kind });
    }
    for Peer { name, command } in options.peers.clone() {
        targets.push(Target { name, kind: Kind::Peer(command) });
    }
    for name in &options.only {
        anyhow::ensure!(targets.iter().any(|target| target.name == *name), "there is no target {name:?}");
    }
    targets.retain(|target| options.only.is_empty() || options.only.contains(&target.name));
    Ok(targets)
}

fn measure(
    options: &Options,
    targets: &[Target],
    tiny_app: &std::path::Path,
    stop: &Stop,
) -> anyhow::Result<Report> {
    let dir = tempfile::Builder::new().prefix("ember-bench-").tempdir()?;
    let nginx = target::installed("nginx");
    let all = Cpus::allowed()?;
    let mut placements = Vec::new();
    match *all.each()? {
        [first, second, ..] => placements.push((true, Placement { target: first, rest: second })),
        _ => say("there is but one CPU: nothing is pinned")?,
    }
    placements.push((false, Placement { target: all, rest: all }));

    let (rounds, budget) = if options.quick { (ROUNDS.1, BUDGET.1) } else { (ROUNDS.0, BUDGET.0) };
    let loads: usize = targets.iter().map(|target| scenarios(target).count()).sum();
    let slices = rounds * u32::try_from(loads * placements.len())?;
    let length = (budget / slices).saturating_sub(WARM_UP).clamp(SLICE.0, SLICE.1);
    say(&format!(
        "{} targets, up to {} loads, {rounds} rounds of {} ms each, pinned and not",
        targets.len(),
        SCENARIOS.len(),
        length.as_millis()
    ))?;

    let machine = Machine::here()?;
    let mut measured: Vec<Measured> = targets.iter().map(|target| Measured::new(&target.name)).collect();
    // Peers that turned out not to speak HTTP/2.
    let mut without_h2c = HashSet::new();
    for (at, (pinned, placement)) in placements.into_iter().enumerate() {
        let site = Site::new(dir.path(), placement, stop);
        placement.rest.bind()?;
        let backend = site.backend(nginx.as_deref(), tiny_app).context("the backend")?;
        let h2c_backend = site.h2c_backend().context("the backend for HTTP/2")?;
        if at == 0 {
            for (target, measured) in targets.iter().zip(&mut measured) {
                let running = site.start(target, &backend, Protocol::Http1)?;
                measured.memory = memory(target, &running, stop)?;
                measured.start(target, &running);
            }
        }
        for round in 0..rounds {
            say(&format!("{}, round {} of {rounds}", if pinned { "pinned" } else { "unpinned" }, round + 1))?;
            // Each goes first now and then.
            for n in 0..targets.len() {
                let n = (n + round as usize) % targets.len();
                let (target, measured) = (&targets[n], &mut measured[n]);
                for (protocol, backend) in [(Protocol::Http1, &backend), (Protocol::H2c, &h2c_backend)] {
                    if !target.kind.speaks(protocol)
                        || (protocol == Protocol::H2c && without_h2c.contains(&n))
                    {
                        continue;
                    }
                    let running = match site.start(target, backend, protocol) {
                        Ok(running) => running,
                        Err(error) if protocol == Protocol::H2c => {
                            stop.check()?;
                            say(&format!("{} over h2c is left out: {error:#}", target.name))?;
                            without_h2c.insert(n);
                            continue;
                        }
                        Err(error) => return Err(error),
                    };
                    if protocol == Protocol::Http1 {
                        measured.start(target, &running);
                    }
                    for scenario in SCENARIOS.into_iter().filter(|load| load.protocol == protocol) {
                        slice(&running, backend, scenario, length, pinned, measured, stop)
                            .with_context(|| format!("{}, {scenario:?}: {}", target.name, running.said()))?;
                    }
                }
            }
        }
    }
    all.bind()?;
    Report::new(machine, &measured)
}

/// The loads that a target is put under.
fn scenarios(target: &Target) -> impl Iterator<Item = Scenario> + '_ {
    SCENARIOS.into_iter().filter(|load| target.kind.speaks(load.protocol))
}

/// One time under load.
fn slice(
    running: &Running,
    backend: &Running,
    scenario: Scenario,
    length: Duration,
    pinned: bool,
    measured: &mut Measured,
    stop: &Stop,
) -> anyhow::Result<()> {
    let plan = Plan {
        address: running.address,
        protocol: scenario.protocol,
        connections: scenario.connections,
        streams: scenario.streams,
        pace: scenario.pace,
        warm_up: WARM_UP,
        length,
    };
    let meter = || {
        let mut cpu = running.cpu()?;
        cpu.extend(backend.cpu()?);
        cpu.push(("load".to_owned(), Duration::from(ClockId::CLOCK_THREAD_CPUTIME_ID.now()?)));
        Ok(cpu)
    };
    let outcome = load::drive(&plan, stop, meter)?;
    // Its connections are still open.
    if !running.processes.is_empty() && scenario.protocol == Protocol::Http1 {
        let rss = running.rss_kib()?;
        let memory = &mut measured.memory;
        memory.rss_loaded_kib = memory.rss_loaded_kib.max(Some(rss));
    }
    let load = measured.load(scenario, pinned)?;
    load.latencies.add(&outcome.latencies)?;
    load.errors += outcome.errors;
    load.elapsed += outcome.elapsed;
    let (before, after) = outcome.meter;
    for ((name, before), (_, after)) in before.into_iter().zip(after) {
        *load.cpu.entry(name).or_default() += after.saturating_sub(before);
    }
    Ok(())
}

/// Memory of a target that has done nothing yet, and what idle connections take.
fn memory(target: &Target, running: &Running, stop: &Stop) -> anyhow::Result<Memory> {
    let mut memory = Memory::default();
    if running.processes.is_empty() {
        return Ok(memory);
    }
    stop.pause(SETTLE.0)?;
    memory.rss_idle_kib = Some(running.rss_kib()?);
    match idle_connections(running, stop) {
        Ok(connections) => {
            stop.pause(SETTLE.0)?;
            memory.rss_1000_idle_kib = Some(running.rss_kib()?);
            drop(connections);
            stop.pause(SETTLE.1)?;
            memory.rss_after_1000_idle_kib = Some(running.rss_kib()?);
        }
        Err(error) => {
            stop.check()?;
            say(&format!("{}: no {IDLE_CONNECTIONS} idle connections: {error:#}", target.name))?;
        }
    }
    Ok(memory)
}

/// Connections that have served a request each, one after another.
fn idle_connections(running: &Running, stop: &Stop) -> anyhow::Result<Vec<TcpStream>> {
    let deadline = Instant::now() + Duration::from_secs(20);
    let mut connections = Vec::with_capacity(IDLE_CONNECTIONS);
    for n in 0..IDLE_CONNECTIONS {
        stop.check()?;
        let exchanged = connection::exchange(running.address, Protocol::Http1);
        let (ok, stream) = exchanged.with_context(|| format!("connection {n}"))?;
        anyhow::ensure!(ok, "request {n} failed");
        anyhow::ensure!(Instant::now() < deadline, "it takes too long");
        connections.push(stream);
    }
    Ok(connections)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn peers_are_named() {
        let peer: Peer = "go-1.17=/opt/queue proxy --x=1".parse().unwrap();
        assert_eq!((peer.name.as_str(), peer.command.as_str()), ("go-1.17", "/opt/queue proxy --x=1"));
        for wrong in ["x", "=x", "nginx=x", "a b=x"] {
            assert!(wrong.parse::<Peer>().is_err(), "{wrong}");
        }
    }
}
