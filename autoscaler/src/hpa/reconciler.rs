//! Carries out plans for PodAutoscalers of the HPA class.

use std::sync::Arc;

use ember_api::annotations;
use ember_api::autoscaling::v1alpha1::{PodAutoscaler, PodAutoscalerStatus};
use ember_api::names;
use ember_api::status::Status;
use ember_reconcile::apply::{Action, ApplyError, Verb};
use ember_reconcile::cache::{Cache, Key};
use ember_reconcile::event::{EventRecorder, EventType};
use ember_reconcile::queue::{Next, WorkQueue};
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::ResourceExt;

use super::plan::{self, Observed, Plan};
use crate::config::HpaClass;
use crate::podautoscaler::plan::defaulted;
use crate::podautoscaler::reconciler::{Error, Reconciler};

/// Whether a PodAutoscaler is of the class that a HorizontalPodAutoscaler scales.
pub(crate) fn is_ours(annotations: &std::collections::BTreeMap<String, String>) -> bool {
    annotations.get(annotations::CLASS).is_some_and(|class| class == names::HPA_CLASS)
}

/// What the loop reads and writes, beyond what it shares with that of the Knative class.
pub(crate) struct HpaReconciler {
    pub(crate) shared: Arc<Reconciler>,
    pub(crate) autoscalers: Cache<HorizontalPodAutoscaler>,
    pub(crate) events: EventRecorder,
    pub(crate) queue: WorkQueue<Key>,
}

impl HpaReconciler {
    /// Brings one PodAutoscaler in order, if it is this replica's.
    pub(crate) async fn reconcile(&self, key: Key) -> Result<Next, Error> {
        let Some(live) = self.shared.podautoscalers.get_key(&key).filter(|pa| is_ours(pa.annotations()))
        else {
            return Ok(Next::Wait);
        };
        if !self.shared.buckets.owns(&key) || live.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Wait);
        }
        let work = tokio::time::timeout(self.shared.config.reconcile_timeout, self.work(&key, &live));
        let result = work.await.unwrap_or(Err(Error::Deadline));
        if let Err(error @ (Error::Internal(_) | Error::Deadline)) = &result {
            tracing::warn!(revision = %key, %error, "a PodAutoscaler is not in order");
            let now = self.shared.timestamp();
            self.events.record(&*live, EventType::Warning, "InternalError", &error.to_string(), now);
        }
        result.map(|()| Next::Wait)
    }

    async fn work(&self, key: &Key, live: &PodAutoscaler) -> Result<(), Error> {
        let now = self.shared.timestamp();
        if self.shared.config.hpa_class == HpaClass::Unavailable {
            return self.settle(live, plan::unavailable(live, now)).await;
        }
        let pa = defaulted(live);
        let resolved = self.shared.resolve(&pa);
        let (hpa, sks) = (self.autoscalers.get_key(key), self.shared.services.get_key(key));
        let observed =
            Observed { pa: &pa, resolved: &resolved, hpa: hpa.as_deref(), sks: sks.as_deref(), now };
        let Plan { hpa, sks, status, failure } = plan::plan(&observed);
        if let Some(action) = &hpa
            && let Err(error) = self.shared.applier.execute_into(action, &self.autoscalers).await
        {
            let created = matches!(action.verb, Verb::Create(_));
            let outdated = is_outdated(&error);
            if created && !outdated {
                self.settle(live, plan::not_created(&pa, now)).await?;
            }
            return Err(if outdated {
                Error::Outdated(error)
            } else {
                let doing = if created { "create" } else { "update" };
                Error::Internal(format!("failed to {doing} HPA: {}", error.api_message()))
            });
        }
        if let Some(action) = &sks {
            self.write_service(action).await?;
        }
        self.settle(live, status).await?;
        failure.map_or(Ok(()), |failure| Err(Error::Internal(failure)))
    }

    async fn write_service(&self, action: &Action) -> Result<(), Error> {
        let written = self.shared.applier.execute_into(action, &self.shared.services).await;
        written.map(drop).map_err(|error| {
            if is_outdated(&error) {
                return Error::Outdated(error);
            }
            let doing = if matches!(action.verb, Verb::Create(_)) { "creating" } else { "updating" };
            let (name, why) = (&action.name, error.api_message());
            Error::Internal(format!("error reconciling SKS: error {doing} SKS {name}: {why}"))
        })
    }

    /// Writes the status if it says anything new.
    async fn settle(&self, live: &PodAutoscaler, status: PodAutoscalerStatus) -> Result<(), Error> {
        if live.status.as_ref().is_some_and(|read| read.same_state(&status)) {
            return Ok(());
        }
        self.shared.write_status(live, status).await
    }
}

fn is_outdated(error: &ApplyError) -> bool {
    error.is_conflict() || error.is_already_exists() || error.is_not_found()
}
