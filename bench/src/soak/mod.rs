//! Whether a request is ever lost or executed twice while everything under it comes and goes.
//!
//! The real components over real sockets, composed around an API server in this process: the gateway, two activators,
//! and sidecars before apps that count what they execute. Controllers and nodes are played by the run: it writes the
//! Endpoints as they would. While clients send requests, pods come and go, the activators are taken into the path and
//! out of it, and are restarted one after the other.

mod activator;
mod addresses;
mod app;
mod client;
mod cluster;
mod ledger;
mod pod;
mod report;
mod turmoil;
mod world;

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use anyhow::{Context, bail};
use clap::Args;
use tokio::task::JoinSet;

pub use report::{Row, Summary};

use crate::say;
use client::Load;
use world::World;

/// The limits of concurrency a run is made for, in turn.
const CONCURRENCIES: [u32; 3] = [0, 1, 10];

/// How many clients there are at most, each with one request at a time.
const MOST_CLIENTS: u32 = 24;
/// How many of them for each request that an app gets at a time: fewer than the queue of a single sidecar takes,
/// wherever requests happen to go, since one too many is answered with 503, by contract.
const CLIENTS_FOR_EACH: u32 = 8;

/// What `ember-bench soak` takes.
#[derive(Debug, Args)]
pub struct Options {
    /// How long requests are sent in all, in seconds: a third of it for each limit of concurrency
    #[arg(long, default_value_t = 600, value_parser = clap::value_parser!(u64).range(3..))]
    seconds: u64,
    /// Requests a second
    #[arg(long, default_value_t = 500, value_parser = clap::value_parser!(u32).range(1..))]
    rate: u32,
    /// Write the figures to this file
    #[arg(long, value_name = "FILE")]
    json: Option<PathBuf>,
}

/// One run, for one limit of concurrency.
#[derive(Debug, Clone, Copy)]
pub struct Plan {
    /// Requests that an app gets at a time; 0: as many as come.
    pub concurrency: u32,
    /// How long requests are sent.
    pub length: Duration,
    /// Requests a second.
    pub rate: u32,
    /// How long nothing may arrive at a pod that has SIGTERM before it ends: longer than routing may take to let go of
    /// it.
    pub quiet_period: Duration,
}

/// Runs for every limit of concurrency, prints what came of it.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let mut summary = Summary::default();
    for concurrency in CONCURRENCIES {
        let length = Duration::from_secs(options.seconds) / 3;
        say(&format!("containerConcurrency {concurrency}: {} s", length.as_secs()))?;
        let plan = Plan { concurrency, length, rate: options.rate, quiet_period: Duration::from_secs(2) };
        summary.rows.push(soak(plan).await?);
    }
    say(&summary.to_string())?;
    if let Some(path) = &options.json {
        let text = serde_json::to_string_pretty(&summary)?;
        std::fs::write(path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    if !summary.is_flawless() {
        bail!("requests were lost or repeated, or something did not end as it should");
    }
    Ok(())
}

/// One run.
///
/// # Errors
/// When it cannot be carried out. What it finds is in the row.
pub async fn soak(plan: Plan) -> anyhow::Result<Row> {
    let world = World::start(plan).await?;
    // Each client sends few requests, so that many are under way when answers take their time.
    let count = match plan.concurrency {
        0 => MOST_CLIENTS,
        limit => (limit * CLIENTS_FOR_EACH).min(MOST_CLIENTS),
    };
    let interval = Duration::from_secs(1).mul_f64(f64::from(count) / f64::from(plan.rate));
    let load = Arc::new(Load::new(world.gateway_address, Arc::clone(&world.ledger), interval));
    let mut clients = JoinSet::new();
    for _ in 0..count {
        clients.spawn(Arc::clone(&load).client());
    }
    turmoil::run(&world, plan.length).await;
    load.stop.store(true, Ordering::Relaxed);
    let mut seen = Vec::new();
    while let Some(client) = clients.join_next().await {
        seen.push(client??);
    }
    world.settle().await;
    world.end().await;
    report::row(plan, &world, &seen)
}
