//! What a kubelet and Prometheus ask a component of: whether it lives, whether it is ready, its figures.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use anyhow::Context;
use ember_controller::Queues;
use ember_dataplane::body::Body;
use ember_dataplane::drain::Drain;
use ember_dataplane::error::http_error;
use ember_dataplane::io::Io;
use ember_dataplane::metrics::prometheus::Prometheus;
use ember_dataplane::metrics::text::{Kind, Labels, Text, Value};
use ember_dataplane::metrics::{Expose, Exposition};
use ember_dataplane::server::{self, Conn, Handler};
use ember_dataplane::worker::Workers;
use http::{Request, Response, StatusCode};

/// Where Prometheus scrapes unless told otherwise.
const METRICS_PORT: u16 = 9090;
/// How long an answer under way has at the end.
const LAST_ANSWER: Duration = Duration::from_millis(200);

/// Whether a component is ready. Clones are the same.
#[derive(Debug, Clone, Default)]
pub(crate) struct Readiness(Arc<AtomicBool>);

impl Readiness {
    /// Says so from now on.
    pub(crate) fn set(&self, ready: bool) {
        self.0.store(ready, Ordering::Relaxed);
    }
}

impl Handler for Readiness {
    async fn handle(&self, request: Request<Body>, _: &Arc<Conn>) -> Response<Body> {
        match request.uri().path() {
            "/health" | "/livez" => Response::new(Body::full("ok\n")),
            "/readiness" | "/readyz" if self.0.load(Ordering::Relaxed) => Response::new(Body::full("ok\n")),
            "/readiness" | "/readyz" => http_error(StatusCode::SERVICE_UNAVAILABLE, "not ready"),
            _ => http_error(StatusCode::NOT_FOUND, "404 page not found"),
        }
    }
}

/// What a process without a data path of its own measures.
#[derive(Debug)]
pub(crate) struct Figures {
    /// The queues of reconcilers, where there are any.
    pub(crate) queues: Queues,
}

impl Expose for Figures {
    fn expose(&self, text: &mut Text) {
        let queues = self.queues.list();
        if !queues.is_empty() {
            let name = "kn_workqueue_depth";
            text.family(name, "Objects that wait for a reconciler", Kind::Gauge);
            for queue in queues {
                text.sample(name, &Labels::new(&[("name", Value::from(queue.name))]), queue.depth);
            }
        }
        let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
        if let Some(bytes) = resident_bytes(&status) {
            text.family("process_resident_memory_bytes", "Memory that is in use", Kind::Gauge);
            text.sample("process_resident_memory_bytes", &Labels::default(), bytes);
        }
        if let Ok(files) = std::fs::read_dir("/proc/self/fd") {
            text.family("process_open_fds", "Files that are open", Kind::Gauge);
            text.sample("process_open_fds", &Labels::default(), files.count());
        }
        text.family("ember_build_info", "1, and which version this is", Kind::Gauge);
        let version = [("version", Value::from(ember_telemetry::build::VERSION))];
        text.sample("ember_build_info", &Labels::new(&version), 1);
    }
}

/// What is resident, from `/proc/self/status`.
fn resident_bytes(status: &str) -> Option<u64> {
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    line.split_whitespace().next()?.parse::<u64>().ok().map(|kilobytes| kilobytes * 1024)
}

/// The ports that serve them, until [`Ports::close`].
pub(crate) struct Ports(Drain);

impl Ports {
    /// Serves probes at `address`, and metrics where they are asked for, on `ip` unless a host is named.
    ///
    /// # Errors
    /// When an address cannot be listened on, or TLS is asked for and cannot be spoken.
    pub(crate) async fn open(
        io: &Io,
        (ip, port): (IpAddr, u16),
        readiness: &Readiness,
        metrics: Option<&Prometheus>,
        figures: Figures,
    ) -> anyhow::Result<Self> {
        let drain = Drain::new();
        let address = SocketAddr::new(ip, port);
        serve(io, address, server::Options::default(), &drain, Arc::new(readiness.clone())).await?;
        if let Some(metrics) = metrics {
            let address = SocketAddr::new(metrics.host.unwrap_or(ip), metrics.port.unwrap_or(METRICS_PORT));
            let tls = match &metrics.tls {
                Some(tls) => Some(tls.server().await?),
                None => None,
            };
            let options = server::Options { tls, ..server::Options::default() };
            serve(io, address, options, &drain, Arc::new(Exposition::new(Arc::new(figures)))).await?;
        }
        Ok(Self(drain))
    }

    /// Closes them.
    pub(crate) async fn close(self) {
        self.0.finish(LAST_ANSWER).await;
    }
}

async fn serve<H: Handler>(
    io: &Io,
    address: SocketAddr,
    options: server::Options,
    drain: &Drain,
    handler: Arc<H>,
) -> anyhow::Result<()> {
    let listener = io.network.listen(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let drain = drain.clone();
    tokio::spawn(async move {
        server::serve(listener, &Workers::current(), &options, &drain, |_| Arc::clone(&handler)).await;
    });
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn memory_is_read_in_bytes() {
        assert_eq!(resident_bytes("Name:\tember\nVmRSS:\t    1234 kB\n"), Some(1234 * 1024));
        assert_eq!(resident_bytes("Name:\tember\n"), None);
    }
}
