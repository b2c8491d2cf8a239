//! What to do about a PodAutoscaler: pure.

use std::time::Duration;

use ember_api::annotations;
use ember_api::autoscaling::v1alpha1::{Metric, MetricSpec, PodAutoscaler, PodAutoscalerStatus};
use ember_api::conditions::{Condition, ConditionStatus};
use ember_api::names;
use ember_api::networking::ProtocolType;
use ember_api::networking::v1alpha1::{
    ServerlessService, ServerlessServiceOperationMode as Mode, ServerlessServiceSpec, ServerlessServiceStatus,
};
use ember_api::status::{Conditioned, Status};
use ember_reconcile::apply::Action;
use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::{Resource, ResourceExt};

use crate::decider::{DeciderStatus, num_activators};
use crate::pods::PodCounts;
use crate::resolution::Resolved;
use crate::scaler::{self, Activity, ActivityChange, ActivityInput, Scale, ScaleInput, Step};

/// Activators for a revision whose private Service is not there yet.
const FIRST_ACTIVATORS: i32 = 2;

const QUEUED: (&str, &str) =
    ("Queued", "Requests to the target are being buffered as resources are provisioned.");
const NO_TRAFFIC: (&str, &str) = ("NoTraffic", "The target is not receiving traffic.");
const TIMED_OUT: (&str, &str) = ("TimedOut", "The target could not be activated.");
const NOT_OWNED: &str = "NotOwned";
const NOT_READY: &str = "NotReady";
const NO_PRIVATE_SERVICE: &str = "No Private Service Name";

/// What is known when the plan is made.
#[derive(Debug, Clone, Copy)]
pub struct Observed<'a> {
    /// The object, with defaults filled in.
    pub pa: &'a PodAutoscaler,
    /// What holds for it.
    pub resolved: &'a Resolved,
    /// Its ServerlessService.
    pub sks: Option<&'a ServerlessService>,
    /// Its Metric.
    pub metric: Option<&'a Metric>,
    /// What its decider says; of no account without a private Service.
    pub decider: DeciderStatus,
    /// Its pods.
    pub pods: PodCounts,
    /// `spec.replicas` of the scale target; absent counts as 1.
    pub replicas: Option<i32>,
    /// What a probe of the activator found, if one was made.
    pub probe: Option<bool>,
    /// The time.
    pub now: Timestamp,
}

/// What to do, in the order of the fields.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// The scale decided on, and why; `None` when no decision was due.
    pub scale: Option<Scale>,
    /// Replicas to write to the scale target. Written first: it is what a waiting request waits for.
    pub replicas: Option<i32>,
    /// The write to the Metric.
    pub metric: Option<Action>,
    /// The write to the ServerlessService.
    pub sks: Option<Action>,
    /// The status to be.
    pub status: PodAutoscalerStatus,
    /// Whether the new status calls for another look: from it, something else follows than from the old one.
    pub unsettled: bool,
    /// When to look again.
    pub requeue: Option<Duration>,
    /// Whether to probe the activator until it answers.
    pub probe_until_success: bool,
    /// What is wrong and needs another try.
    pub failure: Option<String>,
}

/// What comes next.
#[derive(Debug, Clone, PartialEq)]
pub enum Next {
    /// Probe the activator and plan again with the answer.
    ProbeActivator,
    /// Carry this out.
    Plan(Box<Plan>),
}

/// The URL at which the activator of a revision is probed. `service` may be empty when it is not known yet.
#[must_use]
pub fn probe_host(pa: &PodAutoscaler, cluster_domain: &str) -> (String, u16) {
    let service = pa.status.as_ref().map(|s| s.service_name.as_str()).unwrap_or_default();
    let port = if pa.spec.protocol_type == ProtocolType::H2c { 81 } else { 80 };
    (format!("{service}.{}.svc.{cluster_domain}", pa.namespace().unwrap_or_default()), port)
}

/// Fills in what the webhook fills in, for objects that have not passed it.
#[must_use]
pub fn defaulted(pa: &PodAutoscaler) -> PodAutoscaler {
    let mut pa = pa.clone();
    let annotations = pa.annotations_mut();
    let metric = match annotations.get(annotations::CLASS).map(String::as_str) {
        Some(names::KPA_CLASS) => "concurrency",
        Some(names::HPA_CLASS) => "cpu",
        _ => return pa,
    };
    annotations.entry(annotations::METRIC.to_owned()).or_insert_with(|| metric.to_owned());
    pa
}

/// The private Service of a ServerlessService, once it has one.
#[must_use]
pub fn private_service(sks: Option<&ServerlessService>) -> Option<&str> {
    sks?.status.as_ref().map(|s| s.private_service_name.as_str()).filter(|name| !name.is_empty())
}

/// Makes the plan.
#[must_use]
pub fn plan(observed: &Observed<'_>) -> Next {
    let Observed { pa, now, .. } = *observed;
    let read = pa.status.clone().unwrap_or_default();
    let mut status = read.clone();
    status.begin_reconcile(pa.generation(), now);
    let plan = match private_service(observed.sks) {
        None => without_private_service(observed, status),
        Some(service) => match with_private_service(observed, status, service) {
            Next::ProbeActivator => return Next::ProbeActivator,
            Next::Plan(plan) => *plan,
        },
    };
    let mut plan = plan;
    plan.status.end_reconcile(&read, pa.generation(), now);
    let changed = !read.same_state(&plan.status);
    plan.unsettled = changed && plan.failure.is_none() && !is_settled(observed, &plan);
    Next::Plan(Box::new(plan))
}

/// Whether the same follows from the plan's status as from the one it was made on.
fn is_settled(observed: &Observed<'_>, plan: &Plan) -> bool {
    let mut status = plan.status.clone();
    let named = observed.pa.status.as_ref().is_some_and(|read| read.service_name == status.service_name);
    if plan.probe_until_success && !named {
        // The path is probed under the name in the status.
        return false;
    }
    let (want, ready) = match plan.scale {
        Some(scale) if scaler::scale(&scale_input(observed, &status)) != Step::Scale(scale) => return false,
        Some(scale) => (scale.want, observed.pods.ready),
        None => (-1, 0),
    };
    compute_status(&mut status, observed, want, ready);
    status.same_state(&plan.status)
}

fn without_private_service(observed: &Observed<'_>, mut status: PodAutoscalerStatus) -> Plan {
    let mut plan = Plan::default();
    match sks_action(observed, Mode::Proxy, FIRST_ACTIVATORS) {
        Ok(action) => {
            plan.sks = action;
            status.manage(observed.now).mark_unknown(
                PodAutoscalerStatus::SKS_READY,
                NOT_READY,
                NO_PRIVATE_SERVICE,
            );
            compute_status(&mut status, observed, -1, 0);
        }
        Err(NotOwned) => plan.failure = Some(disowned_sks(&mut status, observed)),
    }
    plan.status = status;
    plan
}

fn with_private_service(observed: &Observed<'_>, mut status: PodAutoscalerStatus, service: &str) -> Next {
    let Observed { pa, resolved, decider, pods, now, .. } = *observed;
    let mut plan = Plan::default();
    service.clone_into(&mut status.metrics_service_name);
    match metric_action(observed, service) {
        Ok(action) => plan.metric = action,
        Err(NotOwned) => {
            let name = pa.name_any();
            status.manage(now).mark_false(
                PodAutoscalerStatus::ACTIVE,
                NOT_OWNED,
                &format!("There is an existing Metric \"{name}\" that we do not own."),
            );
            plan.failure = Some(format!("error reconciling Metric: PA: {name} does not own Metric: {name}"));
            plan.status = status;
            return Next::Plan(Box::new(plan));
        }
    }

    let scale = match scaler::scale(&scale_input(observed, &status)) {
        Step::ProbeActivator => return Next::ProbeActivator,
        Step::Scale(scale) => scale,
    };
    plan.scale = Some(scale);
    plan.requeue = scale.requeue;
    plan.probe_until_success = scale.probe_until_success;
    if scale.apply && scale.want != observed.replicas.unwrap_or(1) {
        plan.replicas = Some(scale.want);
    }

    let mode = if scale.want > 0 && decider.excess_burst_capacity >= 0 { Mode::Serve } else { Mode::Proxy };
    match sks_action(observed, mode, num_activators(&resolved.decider, pods.ready)) {
        Ok(action) => plan.sks = action,
        Err(NotOwned) => {
            plan.failure = Some(disowned_sks(&mut status, observed));
            plan.status = status;
            return Next::Plan(Box::new(plan));
        }
    }
    if let Some(sks) = observed.sks {
        status.service_name = sks.status.as_ref().map(|s| s.service_name.clone()).unwrap_or_default();
        mark_sks(&mut status, sks, now);
    }
    compute_status(&mut status, observed, scale.want, pods.ready);
    plan.status = status;
    Next::Plan(Box::new(plan))
}

/// Takes over the readiness of the ServerlessService. While its controller has not seen our latest change of its spec,
/// a readiness once known stays: each change of mode would otherwise make the revision flicker.
fn mark_sks(status: &mut PodAutoscalerStatus, sks: &ServerlessService, now: Timestamp) {
    let type_ = PodAutoscalerStatus::SKS_READY;
    let condition = sks.ready_condition();
    if sks.is_ready() {
        status.manage(now).mark_true(type_);
    } else if !(status.conditions.is_true(type_) && condition.is_some_and(Condition::is_true)) {
        let message = condition.map(|c| c.message.as_str()).unwrap_or_default();
        status.manage(now).mark_unknown(type_, NOT_READY, message);
    }
}

/// The activity that the conditions tell of, and since when.
fn activity_of(status: &PodAutoscalerStatus, now: Timestamp) -> (Activity, Duration) {
    let condition = status.condition(PodAutoscalerStatus::ACTIVE);
    let state = condition.map(|c| c.status).unwrap_or_default();
    let since = condition.and_then(|c| c.last_transition_time.as_ref()).map_or(now, |t| t.0);
    let age = Duration::try_from(now.duration_since(since)).unwrap_or_default();
    let activity = match state {
        ConditionStatus::True => Activity::Active,
        ConditionStatus::False => Activity::Inactive,
        ConditionStatus::Unknown => Activity::Activating,
    };
    (activity, age)
}

/// What the scale decision needs to know.
#[must_use]
pub fn scale_input(observed: &Observed<'_>, status: &PodAutoscalerStatus) -> ScaleInput {
    let Observed { resolved, sks, now, .. } = *observed;
    let (activity, activity_age) = activity_of(status, now);
    let sks_status = sks.and_then(|s| s.status.as_ref());
    let proxy_for = sks_status
        .and_then(|s| {
            let type_ = ServerlessServiceStatus::ACTIVATOR_ENDPOINTS_POPULATED;
            s.conditions.held_for(type_, ConditionStatus::True, now)
        })
        .and_then(|held| Duration::try_from(held).ok())
        .unwrap_or_default();
    ScaleInput {
        desired: observed.decider.desired_scale,
        min: resolved.min_scale,
        max: resolved.max_scale,
        initial_scale: resolved.decider.initial_scale,
        initialized: status.conditions.is_true(PodAutoscalerStatus::SCALE_TARGET_INITIALIZED),
        unreachable: !resolved.decider.reachable,
        activity,
        activity_age,
        enable_scale_to_zero: resolved.enable_scale_to_zero,
        stable_window: resolved.stable_window,
        activation_timeout: resolved.activation_timeout,
        grace: resolved.grace,
        retention: resolved.retention,
        proxy_mode: sks.is_some_and(|s| s.spec.mode == Mode::Proxy),
        proxy_for,
        probe_activator: !resolved.always_proxied(),
        probe: observed.probe,
    }
}

fn compute_status(status: &mut PodAutoscalerStatus, observed: &Observed<'_>, want: i32, ready: i32) {
    status.actual_scale = Some(ready);
    if want != -1 || status.desired_scale.is_none_or(|scale| scale < 0) {
        status.desired_scale = Some(want);
    }
    let (before, _) = activity_of(status, observed.now);
    let (change, initialized) = scaler::activity(&ActivityInput {
        want,
        ready,
        min: observed.resolved.min_scale,
        initial_scale: observed.resolved.decider.initial_scale,
        initialized: status.conditions.is_true(PodAutoscalerStatus::SCALE_TARGET_INITIALIZED),
        has_service: !status.service_name.is_empty(),
        before,
    });
    let mut conditions = status.manage(observed.now);
    if initialized {
        conditions.mark_true(PodAutoscalerStatus::SCALE_TARGET_INITIALIZED);
    }
    let active = PodAutoscalerStatus::ACTIVE;
    match change {
        ActivityChange::Keep => {}
        ActivityChange::Active => conditions.mark_true(active),
        ActivityChange::Activating => conditions.mark_unknown(active, QUEUED.0, QUEUED.1),
        ActivityChange::NoTraffic => conditions.mark_false(active, NO_TRAFFIC.0, NO_TRAFFIC.1),
        ActivityChange::TimedOut => conditions.mark_false(active, TIMED_OUT.0, TIMED_OUT.1),
    }
}

/// A child of that name is somebody else's.
struct NotOwned;

fn disowned_sks(status: &mut PodAutoscalerStatus, observed: &Observed<'_>) -> String {
    let name = observed.pa.name_any();
    status.manage(observed.now).mark_false(
        PodAutoscalerStatus::ACTIVE,
        NOT_OWNED,
        &format!("There is an existing ServerlessService \"{name}\" that we do not own."),
    );
    format!("error reconciling SKS: PA: {name} does not own SKS: {name}")
}

pub(crate) fn is_controlled_by<K: Resource>(child: &K, pa: &PodAutoscaler) -> bool {
    let uid = pa.metadata.uid.as_deref().unwrap_or_default();
    child
        .meta()
        .owner_references
        .iter()
        .flatten()
        .any(|owner| owner.controller == Some(true) && owner.uid == uid)
}

fn sks_action(observed: &Observed<'_>, mode: Mode, num_activators: i32) -> Result<Option<Action>, NotOwned> {
    let desired = serverless_service(observed.pa, mode, num_activators);
    match observed.sks {
        None => Ok(Some(Action::create(&desired))),
        Some(live) if !is_controlled_by(live, observed.pa) => Err(NotOwned),
        Some(live) if live.spec == desired.spec => Ok(None),
        Some(live) => Ok(Some(Action::update(&ServerlessService { spec: desired.spec, ..live.clone() }))),
    }
}

fn metric_action(observed: &Observed<'_>, service: &str) -> Result<Option<Action>, NotOwned> {
    let desired = metric(observed.pa, observed.resolved, service);
    match observed.metric {
        None => Ok(Some(Action::create(&desired))),
        Some(live) if !is_controlled_by(live, observed.pa) => Err(NotOwned),
        Some(live) if live.spec == desired.spec => Ok(None),
        Some(live) => Ok(Some(Action::update(&Metric { spec: desired.spec, ..live.clone() }))),
    }
}

/// Metadata of what a PodAutoscaler makes.
pub(crate) fn child_metadata(pa: &PodAutoscaler) -> ObjectMeta {
    ObjectMeta {
        name: pa.metadata.name.clone(),
        namespace: pa.metadata.namespace.clone(),
        labels: pa.metadata.labels.clone(),
        annotations: pa.metadata.annotations.clone(),
        owner_references: Some(vec![OwnerReference {
            api_version: PodAutoscaler::api_version(&()).into_owned(),
            kind: PodAutoscaler::kind(&()).into_owned(),
            name: pa.name_any(),
            uid: pa.metadata.uid.clone().unwrap_or_default(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]),
        ..ObjectMeta::default()
    }
}

/// The ServerlessService that a PodAutoscaler wants.
#[must_use]
pub fn serverless_service(pa: &PodAutoscaler, mode: Mode, num_activators: i32) -> ServerlessService {
    let mut metadata = child_metadata(pa);
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(annotations::METRIC);
    }
    ServerlessService {
        metadata,
        spec: ServerlessServiceSpec {
            mode,
            object_ref: pa.spec.scale_target_ref.clone(),
            protocol_type: pa.spec.protocol_type,
            num_activators,
        },
        status: None,
    }
}

/// The Metric that a PodAutoscaler wants.
#[must_use]
pub fn metric(pa: &PodAutoscaler, resolved: &Resolved, service: &str) -> Metric {
    let collection = resolved.collection(service);
    Metric {
        metadata: child_metadata(pa),
        spec: MetricSpec {
            stable_window: nanos(collection.stable_window),
            panic_window: nanos(collection.panic_window),
            scrape_target: collection.scrape_target,
        },
        status: None,
    }
}

fn nanos(duration: Duration) -> i64 {
    i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX)
}
