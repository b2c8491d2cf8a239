//! The sidecar of a pod as this process runs it: the container named `queue-proxy` becomes tasks.

use std::net::IpAddr;

use futures::future::BoxFuture;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// Starts sidecars. The composition root supplies it.
pub trait Sidecar: Send + Sync + 'static {
    /// Starts the sidecar of a pod. It returns at once; what goes wrong later is told by [`SidecarHandle::stopped`].
    ///
    /// # Errors
    /// Why the sidecar cannot be started, such as an invalid environment.
    fn start(&self, spec: SidecarSpec) -> Result<SidecarHandle, String>;
}

/// Which sidecar to start.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SidecarSpec {
    /// The pod's namespace.
    pub namespace: String,
    /// The pod's name.
    pub pod: String,
    /// The pod's UID.
    pub uid: String,
    /// The address that the sidecar listens on.
    pub pod_ip: IpAddr,
    /// The `queue-proxy` container's environment, `USER_PORT` and the readiness probe already those of the app's
    /// process.
    pub env: Vec<(String, String)>,
}

/// A sidecar that runs.
pub struct SidecarHandle {
    /// Whether the app answers. It is the pod's readiness.
    pub readiness: watch::Receiver<bool>,
    /// SIGTERM: the sidecar goes on serving until it is drained, then stops.
    pub drain: CancellationToken,
    /// SIGKILL: the sidecar stops now. Dropping the handle does not stop it.
    pub kill: CancellationToken,
    /// Completes when the sidecar has stopped: drained, or with an error.
    pub stopped: BoxFuture<'static, Result<(), String>>,
}

impl std::fmt::Debug for SidecarHandle {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("SidecarHandle").field("ready", &*self.readiness.borrow()).finish_non_exhaustive()
    }
}
