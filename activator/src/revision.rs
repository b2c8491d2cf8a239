//! The activator's view of one revision: its settings, its pods, its queue and its report.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use ember_api::configmaps::network::MeshCompatibilityMode;
use ember_api::labels;
use ember_api::names;
use ember_api::serving::v1::Revision;
use ember_dataplane::address::Address;
use ember_dataplane::header;
use ember_dataplane::probe::{self, Found};
use ember_dataplane::protocol::Protocol;
use ember_dataplane::proxy::Proxy;
use ember_dataplane::timeout::Timeouts;
use ember_dataplane::tls::Identity;
use ember_dataplane::worker::Workers;
use ember_reconcile::cache::{Cache, Key};
use ember_telemetry::request_log;
use http::HeaderValue;
use k8s_openapi::api::core::v1::{Endpoints, Service};
use kube::ResourceExt;
use parking_lot::Mutex;
use tokio::sync::Semaphore;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::assignment::{Position, assigned, shared_places};
use crate::clock::Clock;
use crate::coldstart::{Phases, Progress};
use crate::config::Config;
use crate::dispatcher::{Backend, Dispatcher};
use crate::metrics::RevisionMetrics;
use crate::pod_set::{PodSet, Policy};
use crate::reporter::Reporter;

/// What probing needs.
///
/// Probes run where requests do: the answer of a pod that has just woken is what a request waits for, and the control
/// plane is at its busiest then. All of them on one worker, for `proxy` keeps its connections to a runtime.
#[derive(Debug, Clone)]
pub(crate) struct Prober {
    pub(crate) workers: Workers,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
    pub(crate) proxy: Proxy,
    pub(crate) timeout: Duration,
    pub(crate) first_pause: Duration,
    pub(crate) longest_pause: Duration,
    pub(crate) clock: Clock,
    /// From `config-network`, as it was at start.
    pub(crate) mesh_mode: MeshCompatibilityMode,
    /// As above: whether a mesh is asked to pass requests through to the pod they name.
    pub(crate) passthrough: bool,
    pub(crate) services: Cache<Service>,
    /// Held by probes that begin: see [`MOST_BEGINNING`].
    pub(crate) beginning: Arc<Semaphore>,
}

impl Prober {
    /// Runs a probe until it ends or the activator does.
    fn spawn(&self, probing: impl Future<Output = ()> + Send + 'static) {
        let probing = self.tasks.track_future(probing);
        self.workers.spawn(PROBING_WORKER, move || probing);
    }
}

/// The index of the worker that probes.
const PROBING_WORKER: usize = 0;
/// Probes that begin at a time: at a start with thousands of pods all would be under way at once, with a connection
/// and buffers each.
pub(crate) const MOST_BEGINNING: usize = 256;
/// A probe that is held open for longer than this gives its place to another.
const BEGINNING: Duration = Duration::from_millis(50);

#[derive(Debug)]
struct Pods {
    set: PodSet,
    probes: HashMap<Address, CancellationToken>,
    /// The probe of the Service's address, while there is one.
    cluster_ip_probe: Option<CancellationToken>,
    /// The Service's address, once it has been proven.
    cluster_ip: Option<Address>,
    position: Option<Position>,
    /// The revision is gone: nothing is probed any more.
    closed: bool,
}

/// One revision.
#[derive(Debug)]
pub struct RevisionState {
    /// Namespace and name.
    pub key: Key,
    /// The uid it was made for.
    pub uid: String,
    /// The revision's timeouts; they run while a request waits, too.
    pub timeouts: Timeouts,
    /// The queue in front of the pods.
    pub dispatcher: Dispatcher,
    /// What the autoscaler is told.
    pub reporter: Reporter,
    /// The name of the data port: `http` or `http2`.
    pub port_name: &'static str,
    /// What its pods speak.
    pub protocol: Protocol,
    /// Who its pods prove to be, where they are spoken to by TLS.
    pub identity: Identity,
    /// What requests and probes carry as Host where a mesh is to pass them through.
    pub(crate) passthrough_host: Option<HeaderValue>,
    pub(crate) metrics: RevisionMetrics,
    /// Its name and what it belongs to, for the request log and metrics.
    pub(crate) described: Arc<request_log::Revision>,
    progress: Mutex<Progress>,
    pods: Mutex<Pods>,
    /// The revision is gone.
    gone: AtomicBool,
    prober: Prober,
}

impl RevisionState {
    pub(crate) fn new(revision: &Revision, config: &Config, prober: Prober) -> Self {
        let spec = &revision.spec;
        let key = Key::of(revision);
        let host = format!("{}.{}", private_service(&key.name), key.namespace);
        let passthrough_host = prober.passthrough.then(|| HeaderValue::from_str(&host).ok()).flatten();
        let policy = Policy::new(prober.mesh_mode, prober.passthrough, usable_before_ready(revision));
        let limit = u32::try_from(spec.container_concurrency.unwrap_or(0)).unwrap_or(0);
        Self {
            key,
            passthrough_host,
            uid: revision.metadata.uid.clone().unwrap_or_default(),
            timeouts: timeouts(revision),
            dispatcher: Dispatcher::new(limit, config.queue_depth),
            reporter: Reporter::default(),
            port_name: port_name(revision),
            protocol: Protocol::of_service_port(Some(port_name(revision)), None),
            identity: Identity::of_namespace(revision.metadata.namespace.as_deref().unwrap_or_default()),
            metrics: RevisionMetrics::default(),
            described: described(revision),
            progress: Mutex::default(),
            pods: Mutex::new(Pods {
                set: PodSet::new(policy),
                probes: HashMap::new(),
                cluster_ip_probe: None,
                cluster_ip: None,
                position: None,
                closed: false,
            }),
            gone: AtomicBool::new(false),
            prober,
        }
    }

    /// Whether the revision is gone, so that nothing is counted for it any more.
    pub(crate) fn is_gone(&self) -> bool {
        self.gone.load(Ordering::Relaxed)
    }

    /// Takes over the private Endpoints; `None` when they are gone.
    pub(crate) fn set_endpoints(self: &Arc<Self>, endpoints: Option<&Endpoints>) {
        let (ready, not_ready) = endpoints.map(|e| addresses(e, self.port_name)).unwrap_or_default();
        let mut pods = self.pods.lock();
        if pods.closed {
            return;
        }
        let probes = pods.set.update(&ready, &not_ready);
        for address in probes.stop {
            if let Some(token) = pods.probes.remove(&address) {
                token.cancel();
            }
        }
        for address in probes.start {
            self.probe(&mut pods, address);
        }
        self.settle_cluster_ip(&mut pods);
        self.publish(&pods);
    }

    /// Takes over this activator's place among those that serve the revision.
    pub(crate) fn set_position(&self, position: Position) {
        let mut pods = self.pods.lock();
        if pods.position != Some(position) {
            pods.position = Some(position);
            self.publish(&pods);
        }
    }

    /// A request could not be delivered to a pod: it is not used again until it answers a probe.
    pub fn doubt(self: &Arc<Self>, address: &Address) {
        let mut pods = self.pods.lock();
        // Requests may outlive their revision.
        if pods.closed {
            return;
        }
        if pods.cluster_ip.as_ref() == Some(address) {
            pods.set.cluster_ip_doubted();
            self.settle_cluster_ip(&mut pods);
        } else if pods.set.doubted(address) {
            self.probe(&mut pods, address.clone());
        }
        self.publish(&pods);
    }

    /// The revision is gone.
    pub(crate) fn close(&self) {
        let mut pods = self.pods.lock();
        pods.closed = true;
        self.gone.store(true, Ordering::Relaxed);
        for (_, token) in pods.probes.drain() {
            token.cancel();
        }
        if let Some(token) = pods.cluster_ip_probe.take() {
            token.cancel();
        }
        drop(pods);
        self.dispatcher.close();
    }

    /// The autoscaler was told that there is a request.
    pub(crate) fn reported(&self) {
        self.progress.lock().reported(self.prober.clock.now());
    }

    /// Accounts for a request that found no usable pod at `queued` and has a place now.
    pub(crate) fn cold_start(&self, queued: u64) -> Phases {
        let phases = self.progress.lock().phases(queued, self.prober.clock.now());
        self.metrics.observe(&phases);
        phases
    }

    fn publish(&self, pods: &Pods) {
        let limit = self.dispatcher.limit();
        let backends: Vec<Backend> = match &pods.cluster_ip {
            Some(address) if pods.set.uses_cluster_ip() => {
                let ready = pods.set.ready();
                let places = shared_places(limit, ready, pods.position);
                let leads_somewhere = ready > 0;
                leads_somewhere.then(|| Backend { address: address.clone(), places }).into_iter().collect()
            }
            _ => {
                // Without a limit there are no places to share out.
                let position = pods.position.filter(|_| limit > 0);
                let mine = assigned(&pods.set.usable(), position);
                mine.into_iter().map(|address| Backend { address, places: limit }).collect()
            }
        };
        self.progress.lock().pods(!pods.set.is_empty(), !backends.is_empty(), self.prober.clock.now());
        self.dispatcher.set_backends(backends);
    }

    fn probe(self: &Arc<Self>, pods: &mut Pods, address: Address) {
        let token = self.prober.stop.child_token();
        if let Some(before) = pods.probes.insert(address.clone(), token.clone()) {
            before.cancel();
        }
        let state = Arc::clone(self);
        let probing = async move {
            tokio::select! {
                () = token.cancelled() => {}
                () = state.probe_until_ready(&address, &token) => {
                    let mut pods = state.pods.lock();
                    // Cancelled meanwhile: what was learnt concerns a pod that is gone.
                    if !token.is_cancelled() {
                        pods.probes.remove(&address);
                        if pods.set.proven(&address) {
                            tracing::debug!(target: "ember::coldstart", phase = "ready", revision = %state.key);
                            state.settle_cluster_ip(&mut pods);
                            state.publish(&pods);
                        }
                    }
                }
            }
        };
        self.prober.spawn(probing);
    }

    async fn probe_until_ready(self: &Arc<Self>, address: &Address, token: &CancellationToken) {
        let mut pause = self.prober.first_pause;
        loop {
            let found = self.ask(address).await;
            if found.is_ready() {
                return;
            }
            tracing::trace!(revision = %self.key, %address, ?found, "not ready yet");
            {
                let mut pods = self.pods.lock();
                if !token.is_cancelled() {
                    pods.set.failed(address, found.is_not_mesh());
                    self.settle_cluster_ip(&mut pods);
                }
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.prober.longest_pause);
        }
    }

    async fn ask(&self, address: &Address) -> Found {
        let headers = self.passthrough_host.as_ref().map(|host| {
            [(http::header::HOST, host.clone()), (header::PASSTHROUGH_LB, HeaderValue::from_static("true"))]
        });
        let headers = headers.as_ref().map_or(&[][..], |headers| &headers[..]);
        // Never closed.
        let place = self.prober.beginning.acquire().await;
        let asking = probe::queue(&self.prober.proxy, address, headers, self.prober.timeout);
        tokio::pin!(asking);
        tokio::select! {
            biased;
            found = &mut asking => return found,
            () = tokio::time::sleep(BEGINNING) => drop(place),
        }
        asking.await
    }

    /// Starts or ends the probe of the Service's address, whichever is called for.
    fn settle_cluster_ip(self: &Arc<Self>, pods: &mut Pods) {
        if !pods.set.wants_cluster_ip() {
            if let Some(token) = pods.cluster_ip_probe.take() {
                token.cancel();
            }
            return;
        }
        if pods.cluster_ip_probe.is_some() {
            return;
        }
        let token = self.prober.stop.child_token();
        pods.cluster_ip_probe = Some(token.clone());
        let state = Arc::clone(self);
        let probing = async move {
            let address = tokio::select! {
                () = token.cancelled() => return,
                address = state.probe_cluster_ip() => address,
            };
            let mut pods = state.pods.lock();
            if token.is_cancelled() {
                return;
            }
            pods.cluster_ip_probe = None;
            pods.cluster_ip = Some(address);
            for address in pods.set.cluster_ip_proven() {
                if let Some(token) = pods.probes.remove(&address) {
                    token.cancel();
                }
            }
            tracing::debug!(target: "ember::coldstart", phase = "ready", revision = %state.key);
            state.publish(&pods);
        };
        self.prober.spawn(probing);
    }

    /// Returns the Service's address once its pods answer there. A Service that is missing may still come.
    async fn probe_cluster_ip(&self) -> Address {
        let mut pause = self.prober.first_pause;
        loop {
            if let Some(address) = self.service_address() {
                let found = self.ask(&address).await;
                if found.is_ready() {
                    return address;
                }
                tracing::trace!(revision = %self.key, %address, ?found, "the Service does not answer yet");
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(self.prober.longest_pause);
        }
    }

    fn service_address(&self) -> Option<Address> {
        let service = self.prober.services.get(&self.key.namespace, &private_service(&self.key.name))?;
        let spec = service.spec.as_ref()?;
        let ip = spec.cluster_ip.as_deref().filter(|ip| !ip.is_empty() && *ip != "None")?;
        let port = spec.ports.iter().flatten().find(|port| port.name.as_deref() == Some(self.port_name))?;
        Some(Address::new(ip, u16::try_from(port.port).ok()?))
    }
}

/// The name of the Service that leads to the pods of a revision.
pub(crate) fn private_service(revision: &str) -> String {
    names::private_service(&names::pod_autoscaler(revision))
}

/// Which pod serves a request is not known when its record begins.
fn described(revision: &Revision) -> Arc<request_log::Revision> {
    let label = |name: &str| revision.labels().get(name).cloned().unwrap_or_default();
    Arc::new(request_log::Revision {
        name: revision.name_any(),
        namespace: revision.namespace().unwrap_or_default(),
        service: label(labels::SERVICE),
        configuration: label(labels::CONFIGURATION),
        ..request_log::Revision::default()
    })
}

fn timeouts(revision: &Revision) -> Timeouts {
    let seconds = |value: Option<i64>| {
        value.and_then(|v| u64::try_from(v).ok()).filter(|v| *v > 0).map(Duration::from_secs)
    };
    let spec = &revision.spec;
    Timeouts {
        total: seconds(spec.timeout_seconds),
        response_start: seconds(spec.response_start_timeout_seconds),
        idle: seconds(spec.idle_timeout_seconds),
    }
}

/// The revision's protocol is told by the name of its container's port.
fn port_name(revision: &Revision) -> &'static str {
    let ports = revision.spec.pod_spec.containers.iter().flat_map(|c| c.ports.iter().flatten());
    let mut names = ports.filter_map(|port| port.name.as_deref());
    let h2c = names.any(|name| name == "h2c" || name.starts_with("h2c-"));
    if h2c { ember_dataplane::port::NAME_HTTP2 } else { ember_dataplane::port::NAME_HTTP1 }
}

/// Probes that only the kubelet runs, of any container, make its word count.
fn usable_before_ready(revision: &Revision) -> bool {
    revision.spec.pod_spec.containers.iter().all(|container| {
        let exec = container.readiness_probe.as_ref().is_some_and(|probe| probe.exec.is_some());
        !exec && container.startup_probe.is_none()
    })
}

/// Ready and not ready addresses on the port of that name.
fn addresses(endpoints: &Endpoints, port_name: &str) -> (Vec<Address>, Vec<Address>) {
    let (mut ready, mut not_ready) = (Vec::new(), Vec::new());
    for subset in endpoints.subsets.iter().flatten() {
        let port = subset.ports.iter().flatten().find(|port| port.name.as_deref() == Some(port_name));
        let Some(port) = port.and_then(|port| u16::try_from(port.port).ok()) else { continue };
        ready.extend(subset.addresses.iter().flatten().map(|a| Address::new(&a.ip, port)));
        not_ready.extend(subset.not_ready_addresses.iter().flatten().map(|a| Address::new(&a.ip, port)));
    }
    (ready, not_ready)
}

/// The ready IPs on the port of that name: who answers for the revision's public Service.
pub(crate) fn ready_ips(endpoints: &Endpoints, port_name: &str) -> Vec<String> {
    addresses(endpoints, port_name).0.iter().map(|address| address.host().to_owned()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn revision(spec: &serde_json::Value) -> Revision {
        serde_json::from_value(json!({"apiVersion": "serving.knative.dev/v1", "kind": "Revision",
            "metadata": {"name": "r", "namespace": "n"}, "spec": spec}))
        .unwrap()
    }

    #[test]
    fn settings_of_a_revision() {
        let plain = revision(&json!({"timeoutSeconds": 300, "idleTimeoutSeconds": 0,
            "containers": [{"name": "c", "readinessProbe": {"tcpSocket": {"port": 0}}}]}));
        assert_eq!(timeouts(&plain).total, Some(Duration::from_secs(300)));
        assert_eq!(timeouts(&plain).idle, None);
        assert_eq!(port_name(&plain), "http");
        assert!(usable_before_ready(&plain));
        let special =
            revision(&json!({"containers": [{"name": "c", "ports": [{"name": "h2c", "containerPort": 80}],
            "readinessProbe": {"exec": {"command": ["x"]}}}]}));
        assert_eq!(port_name(&special), "http2");
        assert!(!usable_before_ready(&special));
        for probes in [
            json!({"readinessProbe": {"exec": {"command": ["x"]}}}),
            json!({"startupProbe": {"tcpSocket": {"port": 1}}}),
        ] {
            let mut sidecar = json!({"name": "sidecar"});
            sidecar.as_object_mut().unwrap().extend(probes.as_object().unwrap().clone());
            let containers = json!([{"name": "c", "ports": [{"containerPort": 80}]}, sidecar]);
            assert!(!usable_before_ready(&revision(&json!({"containers": containers}))));
        }
    }
}
