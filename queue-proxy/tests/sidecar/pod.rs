//! A pod: the sidecar on its public ports, in front of an app of the test's own.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ember_dataplane::io::Io;
use ember_queue_proxy::{Config, Error};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::container::environment;

pub(crate) const LONG: Duration = Duration::from_secs(20);
pub(crate) const MS: Duration = Duration::from_millis(1);

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

/// Header lines of probes.
pub(crate) const ACTIVATOR: &str = "user-agent: Knative-Activator-Probe\r\nk-network-probe: queue\r\n";
pub(crate) const KUBELET: &str = "user-agent: kube-probe/1.34\r\nk-network-probe: queue\r\n";

/// An address of this test's own, so that the contract's ports are free.
fn own_ip() -> IpAddr {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let (process, test) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
    Ipv4Addr::new(127, 100 + (process >> 8 & 0x3f) as u8, process as u8, 1 + test as u8).into()
}

pub(crate) fn config(user_port: u16, more: &[(&str, &str)]) -> Config {
    let env = environment(user_port, more);
    Config { bind: own_ip(), drain_quiet_period: 50 * MS, ..Config::from_env(env).unwrap() }
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
    pub(crate) async fn start(config: Config) -> Self {
        let ip = config.bind;
        let (readiness, ready) = watch::channel(false);
        let shutdown = CancellationToken::new();
        let running = tokio::spawn(ember_queue_proxy::run(config, Io::system(), readiness, shutdown.clone()));
        // The ports open together, before anything is served.
        eventually("it listens", async || TcpStream::connect((ip, 9090)).await.is_ok()).await;
        Self { ip, ready, shutdown, running }
    }

    pub(crate) async fn until_ready(&mut self) {
        soon(self.ready.wait_for(|ready| *ready)).await.unwrap();
    }

    pub(crate) async fn connect(&self, port: u16) -> Wire {
        Wire::connect((self.ip, port).into()).await
    }

    /// Sends a head, and what else stands after it, and reads until the connection closes.
    pub(crate) async fn send(&self, port: u16, request: &str) -> String {
        let mut wire = self.connect(port).await;
        wire.send(request).await;
        wire.rest().await
    }

    /// A request with these header lines, each ended.
    pub(crate) async fn get(&self, port: u16, path: &str, headers: &str) -> String {
        let request = format!("GET {path} HTTP/1.1\r\nhost: app\r\nconnection: close\r\n{headers}\r\n");
        self.send(port, &request).await
    }

    /// What Prometheus reads.
    pub(crate) async fn metrics(&self) -> String {
        self.send(9091, "GET /metrics HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n").await
    }

    /// Waits until Prometheus would read this line.
    pub(crate) async fn until_line(&self, line: &str) {
        let begun = Instant::now();
        loop {
            let text = self.metrics().await;
            if text.lines().any(|found| found == line) {
                return;
            }
            assert!(begun.elapsed() < LONG, "never {line} in {text}");
            tokio::time::sleep(MS).await;
        }
    }

    /// SIGTERM, and the end.
    pub(crate) async fn end(self) {
        self.shutdown.cancel();
        self.ended().await;
    }

    /// Waits for the end.
    pub(crate) async fn ended(mut self) {
        soon(&mut self.running).await.unwrap().unwrap();
    }
}

pub(crate) async fn eventually(what: &str, mut done: impl AsyncFnMut() -> bool) {
    let begun = Instant::now();
    while !done().await {
        assert!(begun.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(MS).await;
    }
}

pub(crate) async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap()
}

/// Either end of a connection, in bytes.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    pub(crate) async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// What is read up to and including `text`, which has to come.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        self.try_until(text).await.unwrap_or_else(|seen| panic!("no {text:?} in {seen:?}"))
    }

    /// The same; where the connection ends before, what there was.
    pub(crate) async fn try_until(&mut self, text: &str) -> Result<String, String> {
        loop {
            let seen = String::from_utf8_lossy(&self.read).into_owned();
            if let Some(at) = seen.find(text) {
                let rest = self.read.split_off(at + text.len());
                return Ok(String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap());
            }
            match tokio::time::timeout(LONG, self.stream.read_buf(&mut self.read)).await {
                Ok(Ok(read)) if read > 0 => {}
                _ => return Err(seen),
            }
        }
    }

    /// Everything up to the end of the connection.
    pub(crate) async fn rest(&mut self) -> String {
        tokio::time::timeout(LONG, self.stream.read_to_end(&mut self.read)).await.unwrap().ok();
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }
}

/// An app on `addr` (port 0: any) that treats each connection with `serve`; its port.
pub(crate) async fn app_at<F, T>(addr: SocketAddr, serve: F) -> u16
where
    F: Fn(Wire) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind(addr).await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(serve(Wire { stream, read: Vec::new() }));
        }
    });
    port
}

/// The same on any port.
pub(crate) async fn app<F, T>(serve: F) -> u16
where
    F: Fn(Wire) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    app_at(([127, 0, 0, 1], 0).into(), serve).await
}

/// Answers every request with its own head, and reads no body.
pub(crate) async fn echo(mut wire: Wire) {
    while let Ok(head) = wire.try_until("\r\n\r\n").await {
        let status = if head.contains("/missing") { "404 Not Found" } else { "200 OK" };
        wire.send(&format!("HTTP/1.1 {status}\r\ncontent-length: {}\r\n\r\n{head}", head.len())).await;
    }
}
