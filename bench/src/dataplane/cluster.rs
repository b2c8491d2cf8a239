//! What is around an activator: an API server, who takes its reports, and pods that are known and get no requests.

use std::collections::HashSet;
use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::Context;
use clap::Args;
use ember_api::serving::v1::Revision;
use ember_apiserver::ApiServer;
use ember_dataplane::header::NETWORK_PROBE;
use futures::{StreamExt, TryStreamExt, stream};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace};
use kube::api::PostParams;
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::json;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

const NAMESPACE: &str = "default";
const SYSTEM_NAMESPACE: &str = "knative-serving";
/// The revision that gets the requests.
const REVISION: &str = "bench";
/// How many revisions are written at a time.
const WRITES: usize = 64;

/// How many pods have been probed since that was last forgotten, in the answer.
pub(super) const PROBED: &str = "/probed";
/// Forgets it.
pub(super) const FORGET: &str = "/forget";

/// What there is, and where.
#[derive(Debug, Args)]
pub(crate) struct Options {
    /// Folder for the API server
    #[arg(long)]
    data_dir: PathBuf,
    /// File that says how to reach the API server; written when everything is there
    #[arg(long)]
    kubeconfig: PathBuf,
    /// Port of the queue-proxy that gets the requests
    #[arg(long)]
    pod: u16,
    /// It speaks HTTP/2
    #[arg(long)]
    h2c: bool,
    /// How many revisions there are, the one that gets requests included
    #[arg(long, default_value_t = 1)]
    revisions: u32,
    /// How many pods they have in all
    #[arg(long, default_value_t = 1)]
    pods: u32,
    /// Port of the pods that get no requests
    #[arg(long)]
    idle_port: u16,
    /// Port for the activator's reports
    #[arg(long)]
    reports: u16,
}

/// Runs until it is killed.
pub(crate) async fn run(options: Options) -> anyhow::Result<()> {
    // One listener on all addresses is any number of pods.
    let idle = TcpListener::bind((Ipv4Addr::UNSPECIFIED, options.idle_port)).await?;
    let reports = TcpListener::bind((Ipv4Addr::LOCALHOST, options.reports)).await?;
    let api = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
    let server = ApiServer::open(ember_apiserver::Config::new(&options.data_dir))?;
    write(&options, server.client()).await?;
    server.write_kubeconfig(&options.kubeconfig, api.local_addr()?)?;
    tokio::select! {
        () = server.serve(api, CancellationToken::new()) => Ok(()),
        ended = take_reports(reports) => ended.context("reports"),
        ended = answer_probes(idle) => ended.context("probes"),
    }
}

/// Writes the settings, the revisions and their Endpoints.
async fn write(options: &Options, client: Client) -> anyhow::Result<()> {
    let system: Namespace = serde_json::from_value(json!({"metadata": {"name": SYSTEM_NAMESPACE}}))?;
    Api::all(client.clone()).create(&PostParams::default(), &system).await.context("the namespace")?;
    let network: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "config-network"}}))?;
    let maps = Api::namespaced(client.clone(), SYSTEM_NAMESPACE);
    maps.create(&PostParams::default(), &network).await.context("its settings")?;
    let busy = vec![(IpAddr::from(Ipv4Addr::LOCALHOST), options.pod)];
    write_revision(&client, REVISION.to_owned(), options.h2c, busy).await.context(REVISION)?;
    let others = options.revisions.saturating_sub(1);
    stream::iter(0..others)
        .map(|revision| {
            // As many as the others have, or one more.
            let pods = (0..options.pods.saturating_sub(1)).skip(revision as usize).step_by(others as usize);
            let pods = pods.map(|pod| (idle_pod(pod), options.idle_port)).collect();
            write_revision(&client, format!("idle-{revision}"), false, pods)
        })
        .buffer_unordered(WRITES)
        .try_collect::<()>()
        .await
        .context("the other revisions")
}

/// From 127.1.0.1 on.
fn idle_pod(pod: u32) -> IpAddr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(127, 1, 0, 1)) + pod).into()
}

async fn write_revision(
    client: &Client,
    name: String,
    h2c: bool,
    pods: Vec<(IpAddr, u16)>,
) -> anyhow::Result<()> {
    let mut container = json!({"name": "user-container", "image": "dev.local/host"});
    if h2c {
        container["ports"] = json!([{"name": "h2c", "containerPort": 8080}]);
    }
    let revision: Revision = serde_json::from_value(json!({
        "apiVersion": "serving.knative.dev/v1", "kind": "Revision", "metadata": {"name": name},
        "spec": {"containers": [container]},
    }))?;
    let revisions: Api<Revision> = Api::namespaced(client.clone(), NAMESPACE);
    let revision = revisions.create(&PostParams::default(), &revision).await?;
    let Some((_, port)) = pods.first().copied() else { return Ok(()) };
    let addresses: Vec<_> = pods.iter().map(|(ip, _)| json!({"ip": ip})).collect();
    let endpoints: Endpoints = serde_json::from_value(json!({
        "metadata": {"name": format!("{name}-private"), "labels": {
            "serving.knative.dev/revision": name,
            "serving.knative.dev/revisionUID": revision.uid().unwrap_or_default(),
            "networking.internal.knative.dev/serviceType": "Private",
        }},
        "subsets": [{
            "addresses": addresses,
            "ports": [{"name": if h2c { "http2" } else { "http" }, "port": port}],
        }],
    }))?;
    let api: Api<Endpoints> = Api::namespaced(client.clone(), NAMESPACE);
    api.create(&PostParams::default(), &endpoints).await?;
    Ok(())
}

/// The autoscaler's end of the link.
async fn take_reports(listener: TcpListener) -> anyhow::Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        tokio::spawn(async move {
            let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
            // Reading answers pings too.
            while let Some(Ok(_)) = socket.next().await {}
        });
    }
}

/// Answers as queue-proxies of pods that are ready, and says how many of them have been asked.
async fn answer_probes(listener: TcpListener) -> anyhow::Result<()> {
    let probed: Arc<Mutex<HashSet<IpAddr>>> = Arc::default();
    loop {
        let (stream, _) = listener.accept().await?;
        let (probed, own) = (Arc::clone(&probed), stream.local_addr()?.ip());
        tokio::spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let text = if request.headers().contains_key(NETWORK_PROBE) {
                    probed.lock().insert(own);
                    "queue".to_owned()
                } else {
                    if request.uri().path() == FORGET {
                        probed.lock().clear();
                    }
                    probed.lock().len().to_string()
                };
                async move { Ok::<_, Infallible>(Response::new(Full::<bytes::Bytes>::from(text))) }
            });
            // The pods get no requests: their connections are not to count against whom is measured.
            let mut builder = http1::Builder::new();
            let serving = builder.keep_alive(false).serve_connection(TokioIo::new(stream), service);
            // Who asked is gone.
            let _ = serving.await;
        });
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_have_addresses_of_their_own() {
        let addresses: HashSet<IpAddr> = (0..9_999).map(idle_pod).collect();
        assert_eq!(addresses.len(), 9_999);
        assert!(addresses.iter().all(IpAddr::is_loopback));
    }
}
