//! One pod's life: accepted, run, reported, drained, ended.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};
use kube::Api;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use serde_json::Value;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::{Instant, interval_at, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::backoff::BackOff;
use crate::cache::{refused, status_patch};
use crate::container::{End, PodContext};
use crate::env;
use crate::event::Kind;
use crate::kubelet::{Lease, Node};
use crate::pod_status::{Change, Index, PodFacts, Terminated};
use crate::ports::{self, QUEUE_PROXY};
use crate::sidecar::SidecarSpec;
use crate::volume::Volumes;

/// How much longer than its grace period a pod may take until it is given up.
const AFTER_KILL: Duration = Duration::from_secs(5);
/// The grace of a pod that vanished from the API without being drained: it was deleted by force.
const VANISHED_GRACE: Duration = Duration::from_secs(2);
/// How often an Event tells that a pod is not ready; as often as a kubelet probes.
const NOT_READY_EVENT: Duration = Duration::from_secs(10);

/// Namespace and name of the Revision that a pod belongs to, for the log.
pub(crate) fn revision(pod: &Pod) -> String {
    let name = pod.metadata.labels.as_ref().and_then(|labels| labels.get(ember_api::labels::REVISION));
    format!("{}/{}", pod.metadata.namespace.as_deref().unwrap_or_default(), name.map_or("", String::as_str))
}

/// Runs a pod until it is deleted or the node shuts down. `updates` has the pod as it is in the API, `None` once it
/// is gone from there.
pub(crate) async fn run(
    node: Arc<Node>,
    pod: Arc<Pod>,
    mut updates: watch::Receiver<Option<Arc<Pod>>>,
    shutdown: CancellationToken,
) {
    // Nothing was ever started for it.
    if pod.metadata.deletion_timestamp.is_some() {
        remove(&node, &pod).await;
        return;
    }
    let lease = loop {
        if let Some(lease) = node.lease(&pod) {
            break lease;
        }
        tracing::warn!(pod = pod.metadata.name, "no address or port is free");
        tokio::select! {
            () = node.freed() => {}
            _ = updates.changed() => {}
            () = shutdown.cancelled() => return,
        }
        if updates.borrow().as_ref().is_none_or(|p| p.metadata.deletion_timestamp.is_some()) {
            remove(&node, &pod).await;
            return;
        }
    };
    let mut worker = Worker::new(node, pod, lease);
    worker.run(&mut updates, &shutdown).await;
    if !shutdown.is_cancelled() && updates.borrow().is_some() {
        remove(&worker.context.node, &worker.context.pod).await;
    }
    worker.volumes.shutdown().await;
    worker.context.volumes.remove().await;
    worker.context.node.config.logs.remove(worker.context.namespace(), worker.context.name());
}

/// What is under way to the pod's end.
enum Stage {
    Running,
    /// The sidecar finishes what it has; the pod is killed at this time.
    Draining(Instant),
    /// Processes have been asked to end; the pod is killed at this time.
    Terminating(Instant),
    /// Everything has been killed; whatever is left is given up at this time.
    Killed(Instant),
}

struct Worker {
    context: Arc<PodContext>,
    facts: PodFacts,
    events: mpsc::Receiver<(Index, Change)>,
    stage: Stage,
    sidecars: JoinSet<()>,
    init: JoinSet<End>,
    apps: JoinSet<End>,
    /// What keeps volumes up to date; it ends with the worker.
    volumes: JoinSet<()>,
    /// The status that the API has, as far as it is known.
    written: Value,
    retry_at: Option<Instant>,
    retry: Duration,
    _lease: Lease,
}

impl Worker {
    fn new(node: Arc<Node>, pod: Arc<Pod>, lease: Lease) -> Self {
        let declared = pod.spec.clone().unwrap_or_default();
        let spec = ports::rewrite(&declared, lease.ports());
        node.warn_of_ignored(&pod, &declared);
        let (sender, events) = mpsc::channel(64);
        let ip = IpAddr::V4(lease.ip());
        let facts = PodFacts::new(&declared, ip, node.config.host_ip, Timestamp::now());
        let grace = declared.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok());
        let context = Arc::new(PodContext {
            facts: env::PodFacts {
                pod_ip: ip.to_string(),
                host_ip: node.config.host_ip.to_string(),
                node_name: node.config.node_name.clone(),
                machine: node.machine,
            },
            pod_ip: ip,
            grace: grace.map_or(node.config.termination_grace, Duration::from_secs),
            spec,
            events: sender,
            volumes: Volumes::new(node.config.volumes.join(pod.metadata.uid.as_deref().unwrap_or_default())),
            drain: CancellationToken::new(),
            terminate: CancellationToken::new(),
            kill: CancellationToken::new(),
            pod,
            node,
        });
        let written = serde_json::to_value(&context.pod.status).unwrap_or_default();
        let retry = context.node.config.retry;
        Self {
            context,
            facts,
            events,
            stage: Stage::Running,
            sidecars: JoinSet::new(),
            init: JoinSet::new(),
            apps: JoinSet::new(),
            volumes: JoinSet::new(),
            written,
            retry_at: None,
            retry,
            _lease: lease,
        }
    }

    async fn run(&mut self, updates: &mut watch::Receiver<Option<Arc<Pod>>>, shutdown: &CancellationToken) {
        // Processes start while the status with the address is on its way.
        self.start();
        if self.context.spec.volumes.as_ref().is_some_and(|v| !v.is_empty()) {
            self.volumes.spawn(Arc::clone(&self.context).follow_volumes());
        }
        self.write_status().await;
        let mut in_api = true;
        loop {
            if in_api && matches!(self.stage, Stage::Running) {
                let update = updates.borrow_and_update().clone();
                match update {
                    None => {
                        in_api = false;
                        self.stop(self.context.grace.min(VANISHED_GRACE));
                    }
                    Some(pod) if pod.metadata.deletion_timestamp.is_some() => {
                        let asked =
                            pod.metadata.deletion_grace_period_seconds.and_then(|s| u64::try_from(s).ok());
                        self.stop(asked.map_or(self.context.grace, Duration::from_secs));
                    }
                    Some(_) => {}
                }
            }
            let ended = self.sidecars.is_empty() && self.apps.is_empty() && self.init.is_empty();
            let deadline = match self.stage {
                Stage::Running => None,
                _ if ended => return,
                Stage::Draining(at) | Stage::Terminating(at) | Stage::Killed(at) => Some(at),
            };
            tokio::select! {
                event = self.events.recv() => self.hear(event).await,
                Some(_) = self.sidecars.join_next(), if !self.sidecars.is_empty() => self.drained(),
                Some(end) = self.init.join_next(), if !self.init.is_empty() => {
                    // What the container told comes before its end.
                    while let Ok((index, change)) = self.events.try_recv() {
                        self.facts.apply(index, change, Timestamp::now());
                    }
                    if matches!((end, &self.stage), (Ok(End::Exited(0)), Stage::Running)) {
                        self.start_next();
                    }
                }
                Some(_) = self.apps.join_next(), if !self.apps.is_empty() => {}
                changed = updates.changed(), if in_api => {
                    in_api &= changed.is_ok() && updates.borrow().is_some();
                    if !in_api {
                        self.stop(self.context.grace.min(VANISHED_GRACE));
                    }
                }
                () = shutdown.cancelled(), if matches!(self.stage, Stage::Running) => {
                    self.stop(self.context.grace.min(self.context.node.config.shutdown_grace));
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() => {
                    if self.expired() {
                        return;
                    }
                }
                () = sleep_until(self.retry_at.unwrap_or_else(Instant::now)), if self.retry_at.is_some() => {
                    self.write_status().await;
                }
            }
        }
    }

    /// Starts the init containers one after another, or, with none left, all others at once.
    fn start(&mut self) {
        if self.context.spec.init_containers.iter().flatten().next().is_some() {
            self.start_init(0);
        } else {
            self.start_main();
        }
    }

    fn start_init(&mut self, at: usize) {
        let container = self.context.spec.init_containers.iter().flatten().nth(at).cloned();
        if let Some(container) = container {
            self.init.spawn(Arc::clone(&self.context).run(Index::Init(at), container));
        }
    }

    fn start_next(&mut self) {
        let done = self.facts.init_completed();
        if done < self.context.spec.init_containers.iter().flatten().count() {
            self.start_init(done);
        } else {
            self.start_main();
        }
    }

    fn start_main(&mut self) {
        for (at, container) in self.context.spec.containers.clone().into_iter().enumerate() {
            let context = Arc::clone(&self.context);
            if container.name == QUEUE_PROXY {
                self.sidecars.spawn(run_sidecar(context, Index::Main(at), container));
            } else {
                self.apps.spawn(context.run(Index::Main(at), container));
            }
        }
    }

    /// Takes note of everything that has happened so far, then tells it in one write.
    async fn hear(&mut self, first: Option<(Index, Change)>) {
        let mut next = first;
        while let Some((index, change)) = next {
            self.facts.apply(index, change, Timestamp::now());
            next = self.events.try_recv().ok();
        }
        self.write_status().await;
    }

    /// The sidecar drains while the app goes on; then the app is asked to end. This is what the app's preStop hook
    /// (`/wait-for-drain` at the sidecar) amounts to.
    fn stop(&mut self, grace: Duration) {
        let at = Instant::now() + grace;
        match self.stage {
            Stage::Running => {}
            // A later, shorter request.
            Stage::Draining(_) => {
                self.stage = Stage::Draining(at);
                return;
            }
            _ => return,
        }
        self.stage = Stage::Draining(at);
        self.context.drain.cancel();
        self.init.abort_all();
        self.drained();
    }

    fn drained(&mut self) {
        if let Stage::Draining(at) = self.stage
            && self.sidecars.is_empty()
        {
            self.stage = Stage::Terminating(at);
            self.context.terminate.cancel();
        }
    }

    /// The time of a stage is over; true when nothing more can be waited for.
    fn expired(&mut self) -> bool {
        if let Stage::Killed(_) = self.stage {
            tracing::error!(pod = self.context.name(), "containers do not end");
            return true;
        }
        self.stage = Stage::Killed(Instant::now() + AFTER_KILL);
        self.context.kill.cancel();
        false
    }

    async fn write_status(&mut self) {
        self.retry_at = None;
        let wanted = serde_json::to_value(self.facts.status()).unwrap_or_default();
        let Some(patch) = status_patch(&self.written, &wanted) else { return };
        let node = &self.context.node;
        let api = Api::<Pod>::namespaced(node.client.clone(), self.context.namespace());
        match api.patch_status(self.context.name(), &PatchParams::default(), &Patch::Merge(patch)).await {
            Ok(pod) => {
                self.written = wanted;
                self.retry = node.config.retry;
                node.pods.observe(pod);
            }
            Err(error) if refused(&error, 404) => self.written = wanted,
            Err(error) => {
                tracing::warn!(pod = self.context.name(), %error, "cannot write the pod's status");
                self.retry_at = Some(Instant::now() + self.retry);
                self.retry = (self.retry * 2).min(node.config.retry * 100);
            }
        }
    }
}

/// Takes the pod out of the API, now that nothing of it is left.
async fn remove(node: &Node, pod: &Pod) {
    let (Some(namespace), Some(name)) = (&pod.metadata.namespace, &pod.metadata.name) else { return };
    let api = Api::<Pod>::namespaced(node.client.clone(), namespace);
    let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
    let params = DeleteParams::default().grace_period(0).preconditions(preconditions);
    let mut retry = node.config.retry;
    loop {
        match api.delete(name, &params).await {
            Ok(_) => return node.pods.forget(pod),
            // Gone, or another pod by now.
            Err(error) if refused(&error, 404) || refused(&error, 409) => return node.pods.forget(pod),
            Err(error) => tracing::warn!(pod = name, %error, "cannot remove the pod"),
        }
        tokio::select! {
            () = node.shutdown.cancelled() => return,
            () = tokio::time::sleep(retry) => {}
        }
        retry = (retry * 2).min(node.config.retry * 100);
    }
}

/// Runs the sidecar until it has drained, or is killed; starts it again when it fails.
async fn run_sidecar(context: Arc<PodContext>, index: Index, container: Container) {
    let mut back_off = BackOff::new(context.node.config.back_off);
    loop {
        let env = match context.environment(&container).await {
            Ok(env) => env,
            Err(message) => {
                let reason = "CreateContainerConfigError";
                context.record(index, &container.name, Kind::Warning, "Failed", format!("Error: {message}"));
                context.tell(index, Change::Waiting { reason, message: Some(message) }).await;
                tokio::select! {
                    () = tokio::time::sleep(context.node.config.back_off.initial) => continue,
                    () = context.drain.cancelled() => return,
                }
            }
        };
        let spec = SidecarSpec {
            namespace: context.namespace().to_owned(),
            pod: context.name().to_owned(),
            uid: context.pod.metadata.uid.clone().unwrap_or_default(),
            pod_ip: context.pod_ip,
            env,
        };
        let (began, started_at) = (Instant::now(), Timestamp::now());
        let outcome = match context.node.sidecar.start(spec) {
            Ok(handle) => {
                let id = format!(
                    "ember://{}-{QUEUE_PROXY}",
                    context.pod.metadata.uid.as_deref().unwrap_or_default()
                );
                context.tell(index, Change::Running { id }).await;
                context.tell(index, Change::Started).await;
                follow(&context, index, handle).await
            }
            Err(error) => Err(error),
        };
        let terminated = Terminated {
            exit_code: i32::from(outcome.is_err()),
            reason: if outcome.is_ok() { "Completed" } else { "Error" }.to_owned(),
            message: outcome.err(),
            started_at,
            finished_at: Timestamp::now(),
        };
        context.tell(index, Change::Terminated(terminated)).await;
        if context.drain.is_cancelled() || context.kill.is_cancelled() {
            return;
        }
        tokio::select! {
            again = context.wait(index, &container.name, back_off.after_run(began.elapsed())) => if !again { return },
            () = context.drain.cancelled() => return,
        }
    }
}

/// Passes readiness on and stop signals down until the sidecar has stopped.
async fn follow(
    context: &PodContext,
    index: Index,
    mut handle: crate::sidecar::SidecarHandle,
) -> Result<(), String> {
    let (mut draining, mut readable) = (false, true);
    let mut late = interval_at(Instant::now() + NOT_READY_EVENT, NOT_READY_EVENT);
    let mut known = false;
    loop {
        let ready = *handle.readiness.borrow_and_update();
        if ready != known {
            known = ready;
            late.reset();
            context.tell(index, Change::Ready(ready)).await;
        }
        tokio::select! {
            outcome = &mut handle.stopped => return outcome,
            changed = handle.readiness.changed(), if readable => readable = changed.is_ok(),
            _ = late.tick(), if !known && !draining => {
                let message = "Readiness probe failed: the app does not pass the sidecar's probe";
                context.record(index, QUEUE_PROXY, Kind::Warning, "Unhealthy", message.to_owned());
            }
            () = context.drain.cancelled(), if !draining => {
                draining = true;
                handle.drain.cancel();
            }
            () = context.kill.cancelled() => {
                handle.kill.cancel();
                return Err("killed at the end of the grace period".to_owned());
            }
        }
    }
}
