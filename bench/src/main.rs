//! Measures Ember as its users meet it: the real program, its real API, real sockets.

mod coldstart;
mod distribution;
mod instance;
mod phases;
mod programs;
mod report;
mod services;

use std::io::Write;

use clap::{Parser, Subcommand};

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
}

fn main() -> anyhow::Result<()> {
    let cli = Cli::parse();
    // One thread: the client is to take as little as possible from what it measures.
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    match cli.command {
        Scenario::Coldstart(options) => runtime.block_on(coldstart::run(options)),
    }
}

/// Prints a line.
fn say(line: &str) -> std::io::Result<()> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{line}")?;
    out.flush()
}
