//! The activator by itself: with an API server that knows one revision of one pod, and somebody who takes reports.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::path::PathBuf;

use anyhow::Context;
use clap::Args;
use ember_api::serving::v1::Revision;
use ember_apiserver::ApiServer;
use ember_dataplane::io::Io;
use ember_dataplane::worker::Workers;
use futures::StreamExt;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace};
use kube::api::PostParams;
use kube::{Api, ResourceExt};
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "default";
const SYSTEM_NAMESPACE: &str = "knative-serving";
const REVISION: &str = "bench";

/// Where it is.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Port to listen on
    #[arg(long)]
    port: u16,
    /// Port of the pod's queue-proxy
    #[arg(long)]
    pod: u16,
    /// Folder for the API server
    #[arg(long)]
    data_dir: PathBuf,
}

/// Runs until it is killed.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    let server = ApiServer::open(ember_apiserver::Config::new(&options.data_dir))?;
    let client = server.client();
    let system: Namespace = serde_json::from_value(json!({"metadata": {"name": SYSTEM_NAMESPACE}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &system).await.context("the namespace")?;
    let network: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "config-network"}}))?;
    let maps = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    maps.create(&PostParams::default(), &network).await.context("its settings")?;
    let revision: Revision = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": {"name": REVISION},
        "spec": {"containers": [{"name": "user-container", "image": "dev.local/host"}]},
    }))?;
    let revisions: Api<Revision> = Api::namespaced(client.clone(), NAMESPACE);
    let revision = revisions.create(&PostParams::default(), &revision).await.context("the revision")?;
    let endpoints: Endpoints = serde_json::from_value(json!({
        "metadata": {"name": format!("{REVISION}-private"), "labels": {
            "serving.knative.dev/revision": REVISION,
            "serving.knative.dev/revisionUID": revision.uid().unwrap_or_default(),
            "networking.internal.knative.dev/serviceType": "Private",
        }},
        "subsets": [{
            "addresses": [{"ip": Ipv4Addr::LOCALHOST}],
            "ports": [{"name": "http", "port": options.pod}],
        }],
    }))?;
    let api: Api<Endpoints> = Api::namespaced(client.clone(), NAMESPACE);
    api.create(&PostParams::default(), &endpoints).await.context("its endpoints")?;

    let autoscaler = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let config = ember_activator::Config {
        bind: IpAddr::from(Ipv4Addr::LOCALHOST),
        ports: vec![options.port],
        autoscaler: (Ipv4Addr::LOCALHOST.to_string(), autoscaler.local_addr()?.port()),
        ..ember_activator::Config::default()
    };
    // One worker: as many threads for requests as its peers have.
    let workers = Workers::start(1)?;
    let activator = ember_activator::run(config, Io::system(), client, workers, CancellationToken::new());
    tokio::select! {
        ended = activator => ended.context("the activator"),
        ended = take_reports(autoscaler) => ended.context("the autoscaler"),
    }
}

/// The autoscaler's end of the link.
async fn take_reports(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (stream, _): (_, SocketAddr) = listener.accept().await?;
        let mut socket = tokio_tungstenite::accept_async(stream).await?;
        // Reading answers pings too.
        while let Some(Ok(_)) = socket.next().await {}
    }
}
