//! The activator by itself, against an API server in another process.

use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use ember_dataplane::io::Io;
use ember_dataplane::worker::Workers;
use kube::config::{KubeConfigOptions, Kubeconfig};
use tokio_util::sync::CancellationToken;

/// Where it is, and where others are.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Port to listen on
    #[arg(long)]
    port: u16,
    /// How to reach the API server
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Port of who takes reports
    #[arg(long)]
    autoscaler: u16,
}

/// Runs until it is killed.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let kubeconfig = Kubeconfig::read_from(&options.kubeconfig)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let client = kube::Client::try_from(config)?;
    let config = ember_activator::Config {
        bind: IpAddr::from(Ipv4Addr::LOCALHOST),
        ports: vec![options.port],
        autoscaler: (Ipv4Addr::LOCALHOST.to_string(), options.autoscaler),
        ..ember_activator::Config::default()
    };
    // One worker: as many threads for requests as its peers have.
    let workers = Workers::start(1)?;
    ember_activator::run(config, Io::system(), client, workers, CancellationToken::new())
        .await
        .context("the activator")
}
