//! The sidecar of a pod as tasks of this process: the same library, configured from the same environment, as the
//! container on Kubernetes.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use ember_dataplane::io::Io;
use ember_dataplane::worker::Workers;
use ember_node::{Sidecar, SidecarHandle, SidecarSpec};
use ember_queue_proxy::Config;
use futures::FutureExt;
use tokio::sync::{oneshot, watch};
use tokio_util::sync::CancellationToken;

use crate::network::SharedNetwork;

/// How long a draining sidecar waits for stragglers: routing in this process lets go of a pod within milliseconds.
const QUIET_PERIOD: Duration = Duration::from_millis(100);

/// How long a request waits for an app that has ended and is started again: a little longer than the first back-off.
const APP_ABSENCE: Duration = Duration::from_secs(12);

/// Starts sidecars on the request workers, one worker each.
pub(crate) struct InProcess {
    pub(crate) io: Io,
    pub(crate) network: SharedNetwork,
    pub(crate) workers: Workers,
}

impl Sidecar for InProcess {
    fn start(&self, spec: SidecarSpec) -> Result<SidecarHandle, String> {
        let mut config = Config::from_env(spec.env).map_err(|error| error.to_string())?;
        config.bind = spec.pod_ip;
        config.app_host = IpAddr::V4(Ipv4Addr::LOCALHOST);
        config.drain_quiet_period = QUIET_PERIOD;
        config.app_absence = APP_ABSENCE;
        // A path of the container's, which has no files of its own here.
        config.certificate_directory = None;
        // Open before anyone is told of the pod: a probe that comes first waits in the backlog and is not refused.
        let data = SocketAddr::new(spec.pod_ip, config.serving_port);
        self.network.open(data).map_err(|error| format!("cannot listen on {data}: {error}"))?;
        let network = SharedNetwork::clone(&self.network);
        let (ready, readiness) = watch::channel(false);
        let (drain, kill) = (CancellationToken::new(), CancellationToken::new());
        let (end, ended) = oneshot::channel();
        let (io, draining, killed) = (self.io.clone(), drain.clone(), kill.clone());
        self.workers.spawn(self.workers.next(), move || async move {
            let result = tokio::select! {
                () = killed.cancelled() => Ok(()),
                result = ember_queue_proxy::run(config, io, ready, draining) => result.map_err(|e| e.to_string()),
            };
            // Still there if it ended before it came to listen.
            network.discard(data);
            // Nobody may be waiting any more.
            let _ = end.send(result);
        });
        let stopped =
            ended.map(|result| result.unwrap_or_else(|_| Err("the sidecar's task failed".to_owned())));
        Ok(SidecarHandle { readiness, drain, kill, stopped: stopped.boxed() })
    }
}
