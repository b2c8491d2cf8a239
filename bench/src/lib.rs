//! Measures Ember as its users meet it: the real program, its real API, real sockets.

mod coldstart;
mod dataplane;
mod distribution;
mod idle;
mod instance;
mod phases;
mod programs;
mod report;
mod services;
pub mod soak;

use std::io::Write;
use std::process::ExitCode;

use anyhow::bail;
use clap::{Parser, Subcommand};
use tokio::signal::unix::{SignalKind, signal};

/// Benchmarks of Ember.
#[derive(Debug, Parser)]
#[command(name = "ember-bench", version, disable_help_subcommand = true)]
struct Cli {
    #[command(subcommand)]
    command: Scenario,
}

#[derive(Debug, Subcommand)]
enum Scenario {
    /// Time from a request to a sleeping service until its answer, phase by phase
    Coldstart(coldstart::Options),
    /// What services that sleep cost: memory, CPU time, writes, time to start
    Idle(idle::Options),
    /// What a proxied request costs: the proxies of Ember against others
    Dataplane(dataplane::Options),
    /// Whether a request is ever lost or repeated while everything under it comes and goes
    Soak(soak::Options),
    /// The activator by itself; what `dataplane` starts
    #[command(hide = true)]
    Activator(dataplane::activator::Options),
    /// What is around it
    #[command(hide = true)]
    Cluster(dataplane::cluster::Options),
    /// A backend that speaks HTTP/2
    #[command(hide = true)]
    App(dataplane::app::Options),
}

/// The program: parses the command line, runs what it names.
#[must_use]
pub fn main() -> ExitCode {
    match run(Cli::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody to tell if standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    // One thread: the client is to take as little as possible from what it measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(async {
        let scenario = async {
            match cli.command {
                Scenario::Coldstart(options) => coldstart::run(options).await,
                Scenario::Idle(options) => idle::run(options).await,
                Scenario::Dataplane(options) => dataplane::run(options).await,
                Scenario::Soak(options) => soak::run(options).await,
                Scenario::Activator(options) => dataplane::activator::run(options).await,
                Scenario::Cluster(options) => dataplane::cluster::run(options).await,
                Scenario::App(options) => dataplane::app::run(options).await,
            }
        };
        let mut terminate = signal(SignalKind::terminate())?;
        // A scenario that is dropped ends what it has started.
        tokio::select! {
            result = scenario => result,
            _ = tokio::signal::ctrl_c() => bail!("interrupted"),
            _ = terminate.recv() => bail!("terminated"),
        }
    })
}

/// Prints a line.
fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
