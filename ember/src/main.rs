//! The `ember` command: Knative Serving in one process, and its command line.

mod activator;
mod autoscaler;
mod cli;
mod client;
mod container;
mod controller;
mod crds;
mod demo_app;
mod doctor;
mod environment;
mod ingress;
mod machine;
mod network;
mod probes;
mod simulate;
mod up;

use std::io::Write as _;
use std::process::ExitCode;
use std::time::Duration;

use clap::{CommandFactory, Parser};
use ember_allocator::Allocator;
use ember_telemetry::request_log::Output;

use cli::{Cli, Command};
use client::{commands, wait};

#[global_allocator]
static ALLOCATOR: Allocator = Allocator;

/// How long the last requests may take to be logged.
const LAST_LINES: Duration = Duration::from_secs(1);

fn main() -> ExitCode {
    // The helper starts the processes of pods: it has to be in place before there is any thread.
    if ember_node::helper::is_invoked() {
        ember_node::helper::main();
        return ExitCode::SUCCESS;
    }
    let ended = run(Cli::parse());
    Output::flush_stdout(LAST_LINES);
    match ended {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {}", client::apply::describe(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(cli: Cli) -> anyhow::Result<()> {
    // Only the first call in a process can install it; there is no other.
    let _ = rustls::crypto::ring::default_provider().install_default();
    match cli.command {
        Command::Up(options) => up::run(&options),
        Command::Wait { objects, wanted, timeout, all, target } => {
            block_on(wait::run(target.kubeconfig(), &objects, all, &wanted, timeout, &target.namespace))
        }
        Command::Doctor(options) => block_on(doctor::run(&options)),
        Command::Completions { shell } => {
            let mut script = Vec::new();
            clap_complete::generate(shell, &mut Cli::command(), "ember", &mut script);
            Ok(std::io::stdout().write_all(&script)?)
        }
        Command::Activator(options) => activator::run(&options),
        Command::Autoscaler(options) => autoscaler::run(&options),
        Command::Controller(options) => controller::run(&options),
        Command::Ingress(options) => ingress::run(&options),
        Command::Crds => crds::run(),
        Command::Simulate(options) => simulate::run(&options),
        Command::DemoApp { app } => demo_app::run(app),
        Command::Apply { file, target } => {
            block_on(commands::run_apply(target.kubeconfig(), &file, &target.namespace))
        }
        Command::Get { kind, name, output, all_namespaces, target } => {
            let namespace = (!all_namespaces).then_some(target.namespace.as_str());
            block_on(commands::run_get(target.kubeconfig(), &kind, name.as_deref(), namespace, output))
        }
        Command::Delete { kind, names, file, target } => {
            let kind = kind.as_deref();
            block_on(commands::run_delete(target.kubeconfig(), kind, &names, &file, &target.namespace))
        }
        Command::Logs { name, container, lines, target } => {
            block_on(commands::run_logs(target.kubeconfig(), &name, &target.namespace, container, &lines))
        }
    }
}

fn block_on(command: impl Future<Output = anyhow::Result<()>>) -> anyhow::Result<()> {
    tokio::runtime::Builder::new_current_thread().enable_all().build()?.block_on(command)
}
