//! What to do about a PodAutoscaler of the HPA class: pure.

use ember_api::autoscaling::v1alpha1::{PodAutoscaler, PodAutoscalerStatus};
use ember_api::networking::v1alpha1::{ServerlessService, ServerlessServiceOperationMode as Mode};
use ember_api::status::{Conditioned, Status};
use ember_reconcile::apply::Action;
use jiff::Timestamp;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use kube::ResourceExt;

use super::object::{horizontal_pod_autoscaler, is_as_wanted};
use crate::podautoscaler::plan::{is_controlled_by, serverless_service};
use crate::resolution::Resolved;

const NOT_OWNED: &str = "NotOwned";

/// What is known when the plan is made.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The object, with defaults filled in.
    pub pa: &'a PodAutoscaler,
    /// What holds for it.
    pub resolved: &'a Resolved,
    /// Its HorizontalPodAutoscaler.
    pub hpa: Option<&'a HorizontalPodAutoscaler>,
    /// Its ServerlessService.
    pub sks: Option<&'a ServerlessService>,
    /// The time.
    pub now: Timestamp,
}

/// What to do, in the order of the fields.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The write to the HorizontalPodAutoscaler.
    pub hpa: Option<Action>,
    /// The write to the ServerlessService.
    pub sks: Option<Action>,
    /// The status to be.
    pub status: PodAutoscalerStatus,
    /// What is wrong and needs another try.
    pub failure: Option<String>,
}

/// Makes the plan.
#[must_use]
pub fn plan(observed: &Observed<'_>) -> Plan {
    let Observed { pa, now, .. } = *observed;
    let read = pa.status.clone().unwrap_or_default();
    let mut plan = Plan { status: read.clone(), ..Plan::default() };
    plan.status.begin_reconcile(pa.generation(), now);
    fill(observed, &mut plan);
    plan.status.end_reconcile(&read, pa.generation(), now);
    plan
}

fn fill(observed: &Observed<'_>, plan: &mut Plan) {
    let Observed { pa, resolved, now, .. } = *observed;
    let name = pa.name_any();
    let wanted = horizontal_pod_autoscaler(pa, resolved);
    match observed.hpa {
        None => plan.hpa = Some(Action::create(&wanted)),
        Some(live) if !is_controlled_by(live, pa) => {
            disown(&mut plan.status, "HorizontalPodAutoscaler", &name, now);
            plan.failure = Some(format!("PodAutoscaler: \"{name}\" does not own HPA: \"{name}\""));
            return;
        }
        Some(live) => {
            let same = live.spec.as_ref().zip(wanted.spec.as_ref()).is_some_and(|(l, w)| is_as_wanted(l, w));
            if !same {
                plan.hpa =
                    Some(Action::update(&HorizontalPodAutoscaler { spec: wanted.spec, ..live.clone() }));
            }
        }
    }
    let service = serverless_service(pa, Mode::Serve, 0);
    match observed.sks {
        None => plan.sks = Some(Action::create(&service)),
        Some(live) if !is_controlled_by(live, pa) => {
            disown(&mut plan.status, "ServerlessService", &name, now);
            plan.failure = Some(format!("error reconciling SKS: PA: {name} does not own SKS: {name}"));
            return;
        }
        Some(live) if live.spec == service.spec => {}
        Some(live) => {
            plan.sks = Some(Action::update(&ServerlessService { spec: service.spec, ..live.clone() }));
        }
    }
    let scale = observed.hpa.and_then(|hpa| hpa.status.as_ref());
    let (current, desired) =
        scale.map_or((0, 0), |status| (status.current_replicas.unwrap_or(0), status.desired_replicas));
    let status = &mut plan.status;
    if let Some(known) = observed.sks.and_then(|sks| sks.status.as_ref()) {
        status.metrics_service_name.clone_from(&known.private_service_name);
        status.service_name.clone_from(&known.service_name);
    }
    let ready = observed.sks.is_some_and(Conditioned::is_ready);
    let mut conditions = status.manage(now);
    if ready {
        conditions.mark_true(PodAutoscalerStatus::SKS_READY);
        // Once initialised it stays so.
        if current >= resolved.min_scale.max(resolved.decider.initial_scale) {
            conditions.mark_true(PodAutoscalerStatus::SCALE_TARGET_INITIALIZED);
        }
    } else {
        let type_ = PodAutoscalerStatus::SKS_READY;
        conditions.mark_unknown(type_, "NotReady", "SKS Services are not ready yet");
    }
    conditions.mark_true(PodAutoscalerStatus::ACTIVE);
    status.actual_scale = Some(current);
    status.desired_scale = Some(desired);
}

fn disown(status: &mut PodAutoscalerStatus, kind: &str, name: &str, now: Timestamp) {
    let message = format!("There is an existing {kind} \"{name}\" that we do not own.");
    status.manage(now).mark_false(PodAutoscalerStatus::ACTIVE, NOT_OWNED, &message);
}

/// The status of a PodAutoscaler whose HorizontalPodAutoscaler could not be created.
#[must_use]
pub fn not_created(pa: &PodAutoscaler, now: Timestamp) -> PodAutoscalerStatus {
    let message = format!("Failed to create HorizontalPodAutoscaler \"{}\".", pa.name_any());
    inactive(pa, "FailedCreate", &message, now)
}

/// The status of a PodAutoscaler where nothing runs HorizontalPodAutoscalers.
#[must_use]
pub fn unavailable(pa: &PodAutoscaler, now: Timestamp) -> PodAutoscalerStatus {
    let message = "Class hpa.autoscaling.knative.dev needs a HorizontalPodAutoscaler, and nothing here runs one; \
                   use class kpa.autoscaling.knative.dev.";
    inactive(pa, "HorizontalPodAutoscalerUnavailable", message, now)
}

fn inactive(pa: &PodAutoscaler, reason: &str, message: &str, now: Timestamp) -> PodAutoscalerStatus {
    let read = pa.status.clone().unwrap_or_default();
    let mut status = read.clone();
    status.begin_reconcile(pa.generation(), now);
    status.manage(now).mark_false(PodAutoscalerStatus::ACTIVE, reason, message);
    status.end_reconcile(&read, pa.generation(), now);
    status
}

#[cfg(test)]
mod tests;
