//! Pods: an app and the sidecar before it, started and ended as a node does it.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use bytes::Bytes;
use ember_dataplane::io::Io;
use ember_dataplane::stat::Stat;
use ember_dataplane::worker::Workers;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Empty};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};
use tokio_util::sync::CancellationToken;

use super::addresses::Ports;
use super::app::App;
use super::ledger::Ledger;

/// How long a pod may take to become ready.
const READY_WITHIN: Duration = Duration::from_secs(20);
/// How long a question to a pod may take.
const ANSWER_WITHIN: Duration = Duration::from_secs(5);

/// How pods end.
#[derive(Debug, Clone, Copy)]
pub(super) struct Drains {
    /// How long no request may arrive before the sidecar ends.
    pub(super) quiet_period: Duration,
    /// How long requests may take after that.
    pub(super) timeout: Duration,
}

/// Where a pod is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    pub(super) ip: IpAddr,
    pub(super) ports: Ports,
}

/// A running pod.
#[derive(Debug)]
pub(super) struct Pod {
    pub(super) name: Arc<str>,
    pub(super) place: Place,
    drains: Drains,
    app: App,
    readiness: watch::Receiver<bool>,
    terminate: CancellationToken,
    sidecar: JoinHandle<Result<(), ember_queue_proxy::Error>>,
}

impl Pod {
    /// Starts the sidecar, and the app a moment later. `worker`: where its tasks run.
    pub(super) async fn start(
        name: Arc<str>,
        place: Place,
        concurrency: u32,
        drains: Drains,
        workers: &Workers,
        ledger: Arc<Ledger>,
    ) -> anyhow::Result<Self> {
        let config = sidecar(&name, place, concurrency, drains)?;
        let terminate = CancellationToken::new();
        let (ready, readiness) = watch::channel(false);
        let worker = workers.next();
        let token = terminate.clone();
        let sidecar =
            workers.spawn(worker, move || ember_queue_proxy::run(config, Io::system(), ready, token));
        let address = SocketAddr::new(place.ip, place.ports.app);
        let app_name = Arc::clone(&name);
        let app = workers.spawn(worker, move || async move {
            tokio::time::sleep(Duration::from_millis(fastrand::u64(0..50))).await;
            App::start(address, app_name, ledger).await
        });
        let app = app.await?.with_context(|| format!("the app of {name} cannot listen on {address}"))?;
        Ok(Self { name, place, drains, app, readiness, terminate, sidecar })
    }

    /// Waits until the sidecar has seen the app.
    pub(super) async fn ready(&mut self) -> anyhow::Result<()> {
        let ready = timeout(READY_WITHIN, self.readiness.wait_for(|ready| *ready)).await;
        match ready {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) => bail!("the sidecar of {} has ended", self.name),
            Err(_) => bail!("{} is not ready after {READY_WITHIN:?}", self.name),
        }
    }

    /// Tells the pod to end: SIGTERM to the sidecar, the preStop hook to the app, and once that returns the end of
    /// the app. Resolves when nothing is left of it.
    ///
    /// # Errors
    /// It did not end by itself, or took as long as it may take at most: a request was still counted then.
    pub(super) async fn end(self) -> anyhow::Result<()> {
        let begun = Instant::now();
        self.terminate.cancel();
        let longest = self.drains.quiet_period + self.drains.timeout;
        // Traffic may restart the quiet period for as long as routing has not let go.
        let bound = longest * 3;
        let hook = self.hook(bound).await;
        let drained_after = begun.elapsed();
        // Whatever the hook said, as a kubelet does.
        self.app.kill().await;
        hook.with_context(|| format!("the preStop hook of {}", self.name))?;
        let ended = timeout(bound, self.sidecar).await;
        let ended = ended.map_err(|_| anyhow!("the sidecar of {} does not end", self.name))?;
        ended?.with_context(|| format!("the sidecar of {}", self.name))?;
        ensure!(
            begun.elapsed() < longest,
            "the sidecar of {} took {:?} to end ({drained_after:?} to drain): something was counted as in flight",
            self.name,
            begun.elapsed()
        );
        Ok(())
    }

    async fn hook(&self, bound: Duration) -> anyhow::Result<()> {
        let asked = get(SocketAddr::new(self.place.ip, self.place.ports.admin), "/wait-for-drain");
        let (status, _) = timeout(bound, asked).await.context("no answer")??;
        ensure!(status == StatusCode::OK, "{status}");
        Ok(())
    }

    /// What is still in flight, in words: in the app, by the sidecar's statistics.
    pub(super) async fn in_flight(&self) -> anyhow::Result<Option<String>> {
        let running = self.app.in_flight();
        if running > 0 {
            return Ok(Some(format!("the app of {} has {running} requests", self.name)));
        }
        let asked = get(SocketAddr::new(self.place.ip, self.place.ports.statistics), "/metrics");
        let (_, body) = timeout(ANSWER_WITHIN, asked).await.context("statistics")??;
        let stat = Stat::from_bytes(&body)?;
        let still = stat.average_concurrent_requests > 0.0 || stat.average_proxied_concurrent_requests > 0.0;
        Ok(still.then(|| format!("the sidecar of {} reports {stat:?}", self.name)))
    }
}

/// The sidecar's configuration, from the environment the controller writes.
fn sidecar(
    name: &str,
    place: Place,
    concurrency: u32,
    drains: Drains,
) -> anyhow::Result<ember_queue_proxy::Config> {
    let Place { ip, ports } = place;
    let app = ports.app;
    let probe = format!(r#"{{"tcpSocket":{{"port":{app},"host":"{ip}"}},"successThreshold":1}}"#);
    let env = [
        ("CONTAINER_CONCURRENCY", concurrency.to_string()),
        ("QUEUE_SERVING_PORT", ports.data.to_string()),
        ("QUEUE_SERVING_TLS_PORT", "8112".to_owned()),
        ("REVISION_TIMEOUT_SECONDS", "300".to_owned()),
        ("SERVING_CONFIGURATION", "soak".to_owned()),
        ("SERVING_LOGGING_CONFIG", String::new()),
        ("SERVING_LOGGING_LEVEL", String::new()),
        ("SERVING_NAMESPACE", super::cluster::NAMESPACE.to_owned()),
        ("SERVING_POD", name.to_owned()),
        ("SERVING_POD_IP", ip.to_string()),
        ("SERVING_READINESS_PROBE", probe),
        ("SERVING_REVISION", super::cluster::REVISION.to_owned()),
        ("USER_PORT", app.to_string()),
    ];
    let env = env.map(|(name, value)| (name.to_owned(), value));
    Ok(ember_queue_proxy::Config {
        bind: ip,
        app_host: ip,
        admin_port: ports.admin,
        stat_port: ports.statistics,
        drain_quiet_period: drains.quiet_period,
        drain_timeout: drains.timeout,
        ..ember_queue_proxy::Config::from_env(env)?
    })
}

/// One GET over a connection of its own.
pub(super) async fn get(address: SocketAddr, path: &'static str) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = TcpStream::connect(address).await?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::get(path)
        .header("host", "soak")
        .header("user-agent", "kube-probe/1.34")
        .body(Empty::<Bytes>::new())?;
    let exchange = async {
        let response = sender.send_request(request).await?;
        let status = response.status();
        anyhow::Ok((status, response.into_body().collect().await?.to_bytes()))
    };
    // The connection lives in this future, so that it ends with it.
    let (mut connection, mut exchange) = (std::pin::pin!(connection), std::pin::pin!(exchange));
    tokio::select! {
        biased;
        answer = &mut exchange => answer,
        ended = &mut connection => {
            ended?;
            exchange.await
        }
    }
}
