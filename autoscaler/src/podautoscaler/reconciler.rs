//! Carries out plans for PodAutoscalers, and wakes revisions.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use ember_api::annotations;
use ember_api::autoscaling::v1alpha1::{Metric, PodAutoscaler, PodAutoscalerStatus};
use ember_api::networking::v1alpha1::ServerlessService;
use ember_api::status::Status;
use ember_api::{labels, names};
use ember_dataplane::io::Io;
use ember_dataplane::stat::Stat;
use ember_reconcile::apply::{Action, Applier, ApplyError};
use ember_reconcile::cache::{Cache, Key};
use ember_reconcile::config::ConfigStore;
use ember_reconcile::event::{EventRecorder, EventType};
use ember_reconcile::queue::{Next as Look, WorkQueue};
use jiff::Timestamp;
use kube::ResourceExt;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::plan::{self, Next, Observed, Plan};
use super::scale_target::ScaleTargets;
use crate::buckets::Buckets;
use crate::config::Config;
use crate::decider::DeciderStatus;
use crate::pace;
use crate::pods::{PodCounts, PodIndex};
use crate::probe;
use crate::resolution::{Resolved, Settings, resolve};
use crate::revisions::{Revision, RevisionLabels, Revisions};
use crate::scaler::{self, Step};
use crate::stat_server::StatSink;

/// What the loop reads and writes.
pub(crate) struct Reconciler {
    pub(crate) config: Arc<Config>,
    pub(crate) io: Io,
    pub(crate) settings: ConfigStore<Settings>,
    pub(crate) podautoscalers: Cache<PodAutoscaler>,
    pub(crate) services: Cache<ServerlessService>,
    pub(crate) metrics: Cache<Metric>,
    pub(crate) pods: PodIndex,
    pub(crate) targets: ScaleTargets,
    pub(crate) applier: Applier,
    pub(crate) events: EventRecorder,
    pub(crate) buckets: Arc<Buckets>,
    pub(crate) revisions: Arc<Revisions>,
    pub(crate) queue: WorkQueue<Key>,
    pub(crate) tasks: TaskTracker,
    pub(crate) stop: CancellationToken,
}

/// Why a PodAutoscaler has to be tried again.
#[derive(Debug, thiserror::Error)]
pub(crate) enum Error {
    /// Somebody has to know.
    #[error("{0}")]
    Internal(String),
    /// Our view was outdated; the next try sees more.
    #[error(transparent)]
    Outdated(ApplyError),
    /// It took too long.
    #[error("the reconcile took too long")]
    Deadline,
}

/// Whether a PodAutoscaler is of the class that is scaled here.
pub(crate) fn is_ours(annotations: &std::collections::BTreeMap<String, String>) -> bool {
    annotations.get(annotations::CLASS).is_some_and(|class| class == names::KPA_CLASS)
}

impl StatSink for Reconciler {
    fn accept(&self, key: Key, stat: Stat) {
        if let Some(status) = self.revisions.accept(&key, stat) {
            self.decided(&key, status);
        }
    }
}

impl Reconciler {
    /// Reacts to a decision that concerns the scale: by a wake-up at once, and by a reconcile.
    pub(crate) fn decided(&self, key: &Key, status: DeciderStatus) {
        if !self.buckets.owns(key) {
            return;
        }
        if status.desired_scale > 0
            && let Some(pa) = self.podautoscalers.get_key(key)
            && let Some(revision) = self.revisions.get(key)
        {
            self.wake(key.clone(), pa, revision, status);
        } else {
            self.queue.add(key.clone());
        }
    }

    /// Writes the scale straight from the decision, before and beside the reconcile, which may be busy with an
    /// earlier state of affairs.
    fn wake(&self, key: Key, pa: Arc<PodAutoscaler>, revision: Arc<Revision>, status: DeciderStatus) {
        let resolved = self.resolve(&pa);
        let observed = Observed {
            pa: &pa,
            resolved: &resolved,
            sks: None,
            metric: None,
            decider: status,
            pods: PodCounts::default(),
            replicas: None,
            probe: None,
            now: self.timestamp(),
        };
        let input = plan::scale_input(&observed, &pa.status.clone().unwrap_or_default());
        let Step::Scale(scale) = scaler::scale(&input) else { return self.queue.add(key) };
        if !scale.apply || scale.want <= 0 {
            return self.queue.add(key);
        }
        let (targets, revisions, queue) =
            (self.targets.clone(), Arc::clone(&self.revisions), self.queue.clone());
        let timeout = self.config.reconcile_timeout;
        self.tasks.spawn(async move {
            let write = write_scale(&targets, &revisions, &revision, &key, &pa, scale.want, status);
            match tokio::time::timeout(timeout, write).await {
                Ok(Ok(_)) => {}
                // The reconcile that follows tries again, and reports.
                Ok(Err(error)) => tracing::warn!(revision = %key, %error, "a revision was not woken"),
                Err(_) => tracing::warn!(revision = %key, "a revision was not woken in time"),
            }
            queue.add(key);
        });
    }

    pub(crate) fn resolve(&self, pa: &PodAutoscaler) -> Resolved {
        let settings = self.settings.load();
        resolve(pa.annotations(), &pa.spec, &settings, self.config.activation_timeout_buffer)
    }

    pub(crate) fn timestamp(&self) -> Timestamp {
        Timestamp::from_millisecond(self.revisions.now().as_millis()).unwrap_or(Timestamp::MAX)
    }

    /// Brings one PodAutoscaler in order, if it is this replica's.
    pub(crate) async fn reconcile(&self, key: Key) -> Result<Look, Error> {
        if !self.buckets.owns(&key) {
            return Ok(Look::Wait);
        }
        let live = match self.podautoscalers.get_key(&key) {
            Some(pa) if is_ours(pa.annotations()) => pa,
            _ => {
                self.revisions.remove_decider(&key);
                return Ok(Look::Wait);
            }
        };
        if live.metadata.deletion_timestamp.is_some() {
            return Ok(Look::Wait);
        }
        let result = tokio::time::timeout(self.config.reconcile_timeout, self.work(&key, &live)).await;
        let result = result.unwrap_or(Err(Error::Deadline));
        if let Err(error @ (Error::Internal(_) | Error::Deadline)) = &result {
            tracing::warn!(revision = %key, %error, "a PodAutoscaler is not in order");
            self.events.record(
                &*live,
                EventType::Warning,
                "InternalError",
                &error.to_string(),
                self.timestamp(),
            );
        }
        result
    }

    async fn work(&self, key: &Key, live: &PodAutoscaler) -> Result<Look, Error> {
        let pa = plan::defaulted(live);
        let resolved = self.resolve(&pa);
        let sks = self.services.get_key(key);
        let metric = self.metrics.get_key(key);
        let written = match self.revisions.get(key) {
            Some(revision) => *revision.scale.lock().await,
            None => None,
        };
        // Without a target there is nothing to write to: the write says so, if it comes to one.
        let replicas = self.targets.read(&key.namespace, &pa.spec.scale_target_ref).await;
        let replicas = replicas.map(|replicas| replicas.or_newer(written));
        let decider = if plan::private_service(sks.as_deref()).is_some() {
            let labels = revision_labels(&pa).map_err(Error::Internal)?;
            let ran = pa.status.as_ref().is_some_and(|status| {
                status.conditions.is_true(PodAutoscalerStatus::SCALE_TARGET_INITIALIZED)
            });
            let found = replicas.as_ref().ok().filter(|_| ran).map(|replicas| replicas.unwrap_or(1));
            self.revisions.ensure_decider(key, labels, &resolved.decider, found)
        } else {
            DeciderStatus::initial(&resolved.decider)
        };
        let revision = self.revisions.get(key);
        let pods = self.pods.counts(key);
        let nothing_to_take = matches!(replicas, Ok(Some(0))) && pods == PodCounts::default();
        let mut observed = Observed {
            pa: &pa,
            resolved: &resolved,
            sks: sks.as_deref(),
            metric: metric.as_deref(),
            decider,
            pods,
            replicas: replicas.as_ref().copied().unwrap_or_default(),
            // Where no pod is left, nothing depends on the path.
            probe: nothing_to_take.then_some(true),
            now: self.timestamp(),
        };
        let mut next = plan::plan(&observed);
        if next == Next::ProbeActivator {
            let (host, port) = plan::probe_host(&pa, &self.config.cluster_domain);
            let named = pa.status.as_ref().is_some_and(|status| !status.service_name.is_empty());
            observed.probe = Some(
                named && probe::activator_answers(&self.io, &host, port, self.config.probe_timeout).await,
            );
            observed.now = self.timestamp();
            next = plan::plan(&observed);
        }
        let Next::Plan(plan) = next else { return Ok(Look::Wait) };
        if plan.scale.is_some_and(|s| s.apply)
            && let Err(error) = replicas
        {
            return Err(Error::Internal(format!("error scaling target: {error}")));
        }
        self.carry_out(key, live, *plan, decider, revision).await
    }

    async fn carry_out(
        &self,
        key: &Key,
        live: &PodAutoscaler,
        plan: Plan,
        decider: DeciderStatus,
        revision: Option<Arc<Revision>>,
    ) -> Result<Look, Error> {
        if let (Some(replicas), Some(revision)) = (plan.replicas, &revision) {
            let outcome =
                write_scale(&self.targets, &self.revisions, revision, key, live, replicas, decider).await;
            match outcome {
                Ok(Written::Done) => {}
                Ok(Written::Outdated) => {
                    self.queue.add(key.clone());
                    return Ok(Look::Wait);
                }
                Err(error) => return Err(Error::Internal(format!("error scaling target: {error}"))),
            }
        }
        if let Some(action) = &plan.metric {
            let written = self.applier.execute_into(action, &self.metrics).await;
            written.map_err(|e| child_error("Metric", "metric", action, e))?;
        }
        if let Some(action) = &plan.sks {
            let written = self.applier.execute_into(action, &self.services).await;
            written.map_err(|e| child_error("SKS", &format!("SKS {}", action.name), action, e))?;
        }
        if let Some(scale) = plan.scale {
            self.revisions.requested(key, scale.want);
            tracing::debug!(revision = %key, want = scale.want, reason = ?scale.reason, apply = scale.apply, "scale");
        }
        if !live.status.as_ref().is_some_and(|status| status.same_state(&plan.status)) {
            self.write_status(live, plan.status).await?;
            if plan.unsettled {
                self.queue.add(key.clone());
            }
        }
        if plan.probe_until_success
            && let Some(revision) = &revision
        {
            self.probe_until_success(key, live, revision);
        }
        if let Some(failure) = plan.failure {
            return Err(Error::Internal(failure));
        }
        Ok(plan.requeue.map_or(Look::Wait, Look::After))
    }

    pub(crate) async fn write_status(
        &self,
        live: &PodAutoscaler,
        status: PodAutoscalerStatus,
    ) -> Result<(), Error> {
        let action = Action::update_status(&PodAutoscaler { status: Some(status), ..live.clone() });
        match self.applier.execute_into(&action, &self.podautoscalers).await {
            Ok(_) => Ok(()),
            Err(error) if error.is_conflict() || error.is_not_found() => Err(Error::Outdated(error)),
            Err(error) => {
                let message =
                    format!("Failed to update status for \"{}\": {}", live.name_any(), error.api_message());
                self.events.record(live, EventType::Warning, "UpdateFailed", &message, self.timestamp());
                Err(Error::Outdated(error))
            }
        }
    }

    fn probe_until_success(&self, key: &Key, pa: &PodAutoscaler, revision: &Arc<Revision>) {
        // Without a Service there is nothing to probe; its name brings the next look.
        let named = pa.status.as_ref().is_some_and(|status| !status.service_name.is_empty());
        if !named || revision.probing.swap(true, Ordering::AcqRel) {
            return;
        }
        let (host, port) = plan::probe_host(pa, &self.config.cluster_domain);
        let (io, config, queue) = (self.io.clone(), Arc::clone(&self.config), self.queue.clone());
        let (stop, key, revision) = (self.stop.clone(), key.clone(), Arc::clone(revision));
        self.tasks.spawn(async move {
            let probing = async {
                while !probe::activator_answers(&io, &host, port, config.probe_timeout).await {
                    tokio::time::sleep(config.probe_period).await;
                }
            };
            tokio::select! {
                () = stop.cancelled() => {}
                _ = tokio::time::timeout(config.probe_deadline, probing) => {}
            }
            revision.probing.store(false, Ordering::Release);
            queue.add_after(key, config.probe_requeue);
        });
    }

    /// Evaluates all revisions again and again until the component stops.
    pub(crate) async fn tick(self: Arc<Self>) {
        loop {
            let wait = pace::until(self.io.clock.now(), self.config.tick, pace::EVALUATION);
            tokio::select! {
                () = self.stop.cancelled() => return,
                () = tokio::time::sleep(wait) => {}
            }
            self.revisions.tick(|key, status| self.decided(key, status));
        }
    }
}

/// How a write of the scale ended.
#[derive(Debug, PartialEq, Eq)]
enum Written {
    /// The target has the scale.
    Done,
    /// The decision it follows from no longer stands.
    Outdated,
}

/// Writes the scale, unless the decision changed meanwhile or the target has it already.
async fn write_scale(
    targets: &ScaleTargets,
    revisions: &Revisions,
    revision: &Revision,
    key: &Key,
    pa: &PodAutoscaler,
    replicas: i32,
    decision: DeciderStatus,
) -> Result<Written, String> {
    let mut written = revision.scale.lock().await;
    let stands = revisions.status(key).is_some_and(|now| now.desired_scale == decision.desired_scale);
    if !stands {
        return Ok(Written::Outdated);
    }
    let target = &pa.spec.scale_target_ref;
    let present = targets.read(&key.namespace, target).await?.or_newer(*written);
    if present.unwrap_or(1) != replicas {
        *written = Some(targets.write(&key.namespace, target, replicas).await?);
        tracing::debug!(target: "ember::coldstart", phase = "decided", revision = %key);
        tracing::info!(revision = %key, from = present, to = replicas, "scaled");
    }
    Ok(Written::Done)
}

fn revision_labels(pa: &PodAutoscaler) -> Result<RevisionLabels, String> {
    let label = |name: &str| pa.labels().get(name).cloned().unwrap_or_default();
    let required = |name: &str| match label(name) {
        value if value.is_empty() => Err(format!(
            "error reconciling Decider: error creating Decider: label \"{name}\" not found or empty in Decider {}",
            pa.name_any()
        )),
        value => Ok(value),
    };
    Ok(RevisionLabels {
        configuration: required(labels::CONFIGURATION)?,
        revision: required(labels::REVISION)?,
        service: label(labels::SERVICE),
    })
}

fn child_error(kind: &str, object: &str, action: &Action, error: ApplyError) -> Error {
    if error.is_conflict() || error.is_already_exists() || error.is_not_found() {
        return Error::Outdated(error);
    }
    let doing = match action.verb {
        ember_reconcile::apply::Verb::Create(_) => "creating",
        _ => "updating",
    };
    Error::Internal(format!("error reconciling {kind}: error {doing} {object}: {}", error.api_message()))
}
