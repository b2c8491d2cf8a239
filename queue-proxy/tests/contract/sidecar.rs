//! A running sidecar.

use std::net::{IpAddr, Ipv4Addr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ember_dataplane::io::Io;
use ember_queue_proxy::{Config, Error};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::container::environment;
use crate::network::Memory;
use crate::wire::Wire;

pub(crate) const MS: Duration = Duration::from_millis(1);
pub(crate) const S: Duration = Duration::from_secs(1);
const LONG: Duration = Duration::from_secs(20);

pub(crate) const ACTIVATOR: &str = "user-agent: Knative-Activator-Probe\r\nk-network-probe: queue\r\n";
pub(crate) const AUTOSCALER: &str = "user-agent: Knative-Autoscaling-Probe\r\nk-network-probe: queue\r\n";
pub(crate) const KUBELET: &str = "user-agent: kube-probe/1.34\r\nk-network-probe: queue\r\n";

/// What the program would run with.
pub(crate) fn config(user_port: u16, more: &[(&str, &str)]) -> Config {
    Config::from_env(environment(user_port, more)).unwrap()
}

pub(crate) struct Sidecar {
    pub(crate) ip: IpAddr,
    pub(crate) ready: watch::Receiver<bool>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) running: JoinHandle<Result<(), Error>>,
}

impl Drop for Sidecar {
    fn drop(&mut self) {
        self.running.abort();
    }
}

impl Sidecar {
    fn run(config: Config, io: Io) -> Self {
        let ip = config.bind;
        let (readiness, ready) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(ember_queue_proxy::run(config, io, readiness, shutdown.clone()));
        Self { ip, ready, shutdown, running }
    }

    /// On real sockets, on an address of its own.
    pub(crate) async fn start(config: Config) -> Self {
        static NEXT: AtomicUsize = AtomicUsize::new(0);
        let (process, test) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let ip = Ipv4Addr::new(127, 20 + (process >> 8 & 0x3f) as u8, process as u8, 1 + test as u8);
        let sidecar = Self::run(Config { bind: ip.into(), ..config }, Io::system());
        // The ports open together, before anything is served.
        eventually("it listens", async || {
            let open = TcpStream::connect((ip, 9090)).await.is_ok();
            assert!(!sidecar.running.is_finished(), "another program has one of the ports on every address");
            open
        })
        .await;
        sidecar
    }

    /// In memory, where time jumps.
    pub(crate) async fn simulate(config: Config, memory: &Arc<Memory>) -> Self {
        let sidecar = Self::run(config, memory.io());
        while !memory.listens(9090) {
            tokio::task::yield_now().await;
        }
        sidecar
    }

    pub(crate) async fn until_ready(&mut self) {
        tokio::time::timeout(100 * LONG, self.ready.wait_for(|ready| *ready)).await.unwrap().unwrap();
    }

    pub(crate) async fn connect(&self, port: u16) -> Wire {
        Wire::of_socket(TcpStream::connect((self.ip, port)).await.unwrap())
    }

    /// One exchange on real sockets.
    pub(crate) async fn get(&self, port: u16, path: &str, headers: &str) -> String {
        self.connect(port).await.exchange("GET", path, headers).await
    }

    /// SIGTERM, and the end.
    pub(crate) async fn end(&mut self) {
        self.shutdown.cancel();
        (&mut self.running).await.unwrap().unwrap();
    }
}

/// Asks until it holds. On a clock that jumps, a millisecond passes between two questions.
pub(crate) async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(MS).await;
    }
}

/// An app on a real socket that treats each connection with `serve`; its port.
pub(crate) async fn app<F, T>(serve: F) -> u16
where
    F: Fn(Wire) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(Wire::of_socket(stream)));
        }
    });
    port
}
