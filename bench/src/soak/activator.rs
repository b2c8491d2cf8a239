//! The activators, and the autoscaler's end of their link.

use std::collections::HashMap;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use ember_dataplane::io::Io;
use ember_dataplane::stat::WireStatMessages;
use ember_dataplane::worker::Workers;
use futures::StreamExt;
use http::StatusCode;
use kube::Client;
use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use super::pod::get;

/// How long an activator may take to be ready.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long it goes on taking requests after SIGTERM.
const SETTLE: Duration = Duration::from_secs(2);
/// How long requests may take after that.
const DRAIN: Duration = Duration::from_secs(10);

/// Takes the activators' reports.
#[derive(Debug)]
pub(super) struct Autoscaler {
    address: SocketAddr,
    /// The last reported concurrency, by activator.
    last: Arc<Mutex<HashMap<String, f64>>>,
    _task: AbortOnDropHandle<()>,
}

impl Autoscaler {
    pub(super) async fn start() -> anyhow::Result<Self> {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await?;
        let address = listener.local_addr()?;
        let last: Arc<Mutex<HashMap<String, f64>>> = Arc::default();
        let reports = Arc::clone(&last);
        let task = tokio::spawn(async move {
            let mut links = tokio::task::JoinSet::new();
            while let Ok((stream, _)) = listener.accept().await {
                let reports = Arc::clone(&reports);
                links.spawn(async move {
                    let Ok(mut socket) = tokio_tungstenite::accept_async(stream).await else { return };
                    while let Some(Ok(message)) = socket.next().await {
                        let Message::Binary(bytes) = message else { continue };
                        let Ok(messages) = WireStatMessages::from_bytes(&bytes) else { continue };
                        for stat in messages.messages.into_iter().filter_map(|message| message.stat) {
                            reports.lock().insert(stat.pod_name, stat.average_concurrent_requests);
                        }
                    }
                });
            }
        });
        Ok(Self { address, last, _task: AbortOnDropHandle::new(task) })
    }

    /// What that activator has reported last.
    pub(super) fn last(&self, activator: &str) -> Option<f64> {
        self.last.lock().get(activator).copied()
    }
}

/// A running activator.
#[derive(Debug)]
pub(super) struct Activator {
    pub(super) name: String,
    pub(super) ip: IpAddr,
    terminate: CancellationToken,
    workers: Workers,
    task: JoinHandle<Result<(), ember_activator::Error>>,
}

impl Activator {
    /// Starts one and waits until its readiness probe succeeds.
    pub(super) async fn start(
        name: String,
        address: SocketAddr,
        autoscaler: &Autoscaler,
        client: Client,
    ) -> anyhow::Result<Self> {
        let config = ember_activator::Config {
            bind: address.ip(),
            ports: vec![address.port()],
            pod_name: name.clone(),
            pod_ip: address.ip().to_string(),
            autoscaler: (autoscaler.address.ip().to_string(), autoscaler.address.port()),
            drain_settle: SETTLE,
            drain_timeout: DRAIN,
            ..ember_activator::Config::default()
        };
        let (terminate, workers) = (CancellationToken::new(), Workers::start(1)?);
        let running = ember_activator::run(config, Io::system(), client, workers.clone(), terminate.clone());
        let ip = address.ip();
        let mut activator = Self { name, ip, terminate, workers, task: tokio::spawn(running) };
        let deadline = Instant::now() + READY_WITHIN;
        while !matches!(get(address, "/").await, Ok((StatusCode::OK, _))) {
            if activator.task.is_finished() {
                (&mut activator.task).await?.with_context(|| activator.name.clone())?;
                bail!("{} has ended", activator.name);
            }
            ensure!(Instant::now() < deadline, "{} does not become ready", activator.name);
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        Ok(activator)
    }

    /// SIGTERM. Resolves when nothing is left of it.
    ///
    /// # Errors
    /// It did not end by itself, or took as long as it may take at most: a request was still under way then.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.terminate.cancel();
        let ended = timeout((SETTLE + DRAIN) * 2, self.task).await;
        ended.map_err(|_| anyhow!("{} does not end", self.name))??.with_context(|| self.name.clone())?;
        self.workers.shutdown().await;
        ensure!(
            begun.elapsed() < SETTLE + DRAIN,
            "{} took {:?} to end: something was under way",
            self.name,
            begun.elapsed()
        );
        Ok(())
    }
}
