//! The command line.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};

use crate::activator;
use crate::autoscaler;
use crate::client::commands::Output;
use crate::client::wait::Wanted;
use crate::container;
use crate::controller;
use crate::demo_app::App;
use crate::doctor;
use crate::ingress;
use crate::simulate;

/// Knative Serving in one program: HTTP services that scale to zero, wake on the next request and split traffic.
#[derive(Debug, Parser)]
#[command(name = "ember", version, disable_help_subcommand = true)]
pub(crate) struct Cli {
    #[command(subcommand)]
    pub(crate) command: Command,
}

#[derive(Debug, Subcommand)]
pub(crate) enum Command {
    /// Run everything on this machine, without Kubernetes
    Up(Up),
    /// Create or change what manifests describe
    Apply {
        /// YAML or JSON file, folder of such files, or - for standard input
        #[arg(short, long = "filename", required = true)]
        file: Vec<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Show objects
    Get {
        /// Kind of object, for instance ksvc, revisions or pods
        kind: String,
        /// Only this object
        name: Option<String>,
        /// How to print
        #[arg(short, long, value_enum, default_value_t = Output::Table)]
        output: Output,
        /// In all namespaces
        #[arg(short = 'A', long, conflicts_with = "name")]
        all_namespaces: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Delete objects
    Delete {
        /// Kind of object, for instance ksvc
        #[arg(required_unless_present = "file")]
        kind: Option<String>,
        /// Names of the objects
        #[arg(required_unless_present = "file")]
        names: Vec<String>,
        /// What these manifests describe: file, folder, or - for standard input
        #[arg(short, long = "filename", conflicts_with_all = ["kind", "names"])]
        file: Vec<PathBuf>,
        #[command(flatten)]
        target: Target,
    },
    /// Print what a pod, or the newest pod of a service, has logged
    Logs {
        /// Name of a pod or of a service
        name: String,
        /// Container; by default the service's own
        #[arg(short, long)]
        container: Option<String>,
        #[command(flatten)]
        lines: crate::client::commands::Lines,
        #[command(flatten)]
        target: Target,
    },
    /// Wait until objects have a condition, or are gone
    Wait {
        /// KIND/NAME, for instance ksvc/hello; or a kind and names
        #[arg(required = true)]
        objects: Vec<String>,
        /// condition=TYPE, condition=TYPE=STATUS or delete
        #[arg(long = "for", default_value = "condition=Ready")]
        wanted: Wanted,
        /// How long, for instance 60s
        #[arg(long, value_parser = container::duration, default_value = "60s")]
        timeout: Duration,
        /// All objects of the kind in the namespace
        #[arg(long)]
        all: bool,
        #[command(flatten)]
        target: Target,
    },
    /// Find out what is wrong with a service or with this machine
    Doctor(doctor::Options),
    /// Print what makes a shell complete commands and options
    Completions {
        /// The shell
        #[arg(value_enum)]
        shell: clap_complete::Shell,
    },
    /// Run the activator, configured as its container on Kubernetes
    Activator(activator::Options),
    /// Run the autoscaler, configured as its container on Kubernetes
    Autoscaler(autoscaler::Options),
    /// Run the controller, configured as its container on Kubernetes
    Controller(controller::Options),
    /// Run the gateway by itself
    Ingress(ingress::Options),
    /// Print the definitions of Knative's kinds for a Kubernetes API server
    Crds,
    /// Show what the autoscaler would do about a load
    Simulate(simulate::Options),
    /// Serve a small app to try things with
    DemoApp {
        /// Which app
        #[arg(value_enum)]
        app: App,
    },
}

/// Which API server, which namespace.
#[derive(Debug, Args)]
pub(crate) struct Target {
    /// Namespace
    #[arg(short, long, default_value = "default")]
    pub(crate) namespace: String,
    /// Kubeconfig of the API server [default: the one `ember up` writes]
    #[arg(long, env = "EMBER_KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
}

impl Target {
    pub(crate) fn kubeconfig(&self) -> PathBuf {
        self.kubeconfig.clone().unwrap_or_else(|| crate::client::default_data_dir().join("kubeconfig"))
    }
}

/// A component that may run as a process of its own.
#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub(crate) enum Role {
    Activator,
    Autoscaler,
    Controller,
    Ingress,
}

/// What `ember up` takes.
#[derive(Debug, Args)]
pub(crate) struct Up {
    /// Manifests to apply at start: file, folder, or - for standard input
    #[arg(short, long = "filename")]
    pub(crate) file: Vec<PathBuf>,
    /// Folder for state, keys and the kubeconfig [default: ~/.local/share/ember]
    #[arg(long)]
    pub(crate) data_dir: Option<PathBuf>,
    /// Where the gateway listens; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:8080")]
    pub(crate) http: SocketAddr,
    /// Where the API server listens; port 0 picks a free one
    #[arg(long, default_value = "127.0.0.1:6443")]
    pub(crate) api: SocketAddr,
    /// Where to write the kubeconfig [default: kubeconfig in the data folder]
    #[arg(long)]
    pub(crate) kubeconfig: Option<PathBuf>,
    /// Threads that carry requests [default: one per core]
    #[arg(long)]
    pub(crate) workers: Option<usize>,
    /// Roles to leave out: they run as processes of their own, for instance controller,ingress
    #[arg(long, value_enum, value_delimiter = ',')]
    pub(crate) without: Vec<Role>,
    /// What to log, as RUST_LOG does, for instance info or ember_autoscaler=debug
    #[arg(long, default_value = "warn", env = "EMBER_LOG")]
    pub(crate) log: String,
}
