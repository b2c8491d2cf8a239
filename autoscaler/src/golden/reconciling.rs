//! What is done about a PodAutoscaler.

use std::collections::BTreeMap;
use std::time::Duration;

use ember_api::autoscaling::v1alpha1::{Metric, PodAutoscaler, PodAutoscalerStatus};
use ember_api::conditions::{Condition, ConditionStatus};
use ember_api::networking::v1alpha1::ServerlessService;
use ember_api::status::Status;
use ember_reconcile::apply::{Action, Verb};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time as KubeTime;
use serde::Deserialize;
use serde_json::{Value, json};

use super::resolving::{Texts, pod_autoscaler, resolved};
use super::{BASE_MILLIS, Float, check, differ};
use crate::decider::DeciderStatus;
use crate::podautoscaler::plan::{self, Next, Observed, Plan};
use crate::pods::PodCounts;

#[derive(Debug, Deserialize)]
struct ReconcileCase {
    config: Option<Texts>,
    progress_deadline_s: u64,
    pa: ReconcilePa,
    sks: Option<ReconcileSks>,
    decider: ReconcileDecider,
    pods: ReconcilePods,
    deployment_replicas: Option<i32>,
    activator_probe: String,
    want: ReconcileWant,
}

#[derive(Debug, Deserialize)]
struct ReconcilePa {
    annotations: Option<Texts>,
    container_concurrency: i64,
    #[serde(default)]
    reachability: String,
    protocol: String,
    active_condition: ActiveCondition,
    scale_target_initialized: bool,
    status_desired_scale: Option<i32>,
    status_service_name: String,
}

#[derive(Debug, Deserialize)]
struct ActiveCondition {
    status: String,
    since_s: Float,
}

#[derive(Debug, Deserialize)]
struct ReconcileSks {
    private_service_name: String,
    service_name: String,
    mode: String,
    num_activators: i32,
    ready: bool,
    activator_endpoints_populated_for_s: Option<Float>,
    owned: bool,
}

#[derive(Debug, Deserialize)]
struct ReconcileDecider {
    desired: i32,
    ebc: i32,
}

#[derive(Debug, Deserialize)]
struct ReconcilePods {
    ready: i32,
    not_ready_running: i32,
    pending: i32,
    terminating: i32,
}

#[derive(Debug, Deserialize)]
struct ReconcileWant {
    #[serde(default)]
    error: String,
    #[serde(default)]
    conditions: BTreeMap<String, ConditionWant>,
    status_desired_scale: Option<i32>,
    status_actual_scale: Option<i32>,
    status_service_name: String,
    status_metrics_service_name: String,
    sks: SksWant,
    metric: Option<MetricWant>,
    patch_replicas: Option<i32>,
    enqueue_after_ns: Option<Vec<u128>>,
    sync_probes: u32,
    async_probe_target: Option<String>,
}

#[derive(Debug, Deserialize, PartialEq)]
struct ConditionWant {
    status: String,
    #[serde(default)]
    reason: String,
    #[serde(default)]
    message: String,
}

#[derive(Debug, Deserialize)]
struct SksWant {
    action: String,
    #[serde(default)]
    mode: String,
    #[serde(default)]
    num_activators: i32,
}

#[derive(Debug, Deserialize)]
struct MetricWant {
    action: String,
    stable_window_ns: i64,
    panic_window_ns: i64,
    scrape_target: String,
}

fn now() -> Timestamp {
    Timestamp::from_millisecond(BASE_MILLIS).unwrap()
}

fn ago(seconds: Float) -> Timestamp {
    now() - SignedDuration::from_secs_f64(seconds.0)
}

impl ReconcileCase {
    fn object(&self) -> PodAutoscaler {
        let annotations = self.pa.annotations.clone().unwrap_or_default();
        let mut pa = pod_autoscaler(&annotations, self.pa.container_concurrency, &self.pa.reachability);
        pa.spec.protocol_type = self.pa.protocol.as_str().into();
        let mut status = PodAutoscalerStatus {
            observed_generation: 1,
            service_name: self.pa.status_service_name.clone(),
            desired_scale: self.pa.status_desired_scale,
            ..PodAutoscalerStatus::default()
        };
        let since = ago(self.pa.active_condition.since_s);
        status.initialize_conditions(since);
        let mut conditions = status.manage(since);
        match self.pa.active_condition.status.as_str() {
            "True" => conditions.mark_true("Active"),
            "False" => conditions.mark_false("Active", "NoTraffic", "The target is not receiving traffic."),
            _ => conditions.mark_unknown(
                "Active",
                "Queued",
                "Requests to the target are being buffered as resources are provisioned.",
            ),
        }
        if self.pa.scale_target_initialized {
            conditions.mark_true("ScaleTargetInitialized");
        }
        // As after a reconcile: what changed in it changed at one time.
        status.end_reconcile(&PodAutoscalerStatus::default(), 1, since);
        pa.status = Some(status);
        pa
    }

    fn sks(&self, pa: &PodAutoscaler) -> Option<ServerlessService> {
        let case = self.sks.as_ref()?;
        let mut sks = plan::serverless_service(pa, case.mode.as_str().into(), case.num_activators);
        sks.metadata.generation = Some(1);
        if !case.owned {
            sks.metadata.owner_references = None;
        }
        let status = sks.status.get_or_insert_default();
        status.observed_generation = 1;
        status.private_service_name.clone_from(&case.private_service_name);
        status.service_name.clone_from(&case.service_name);
        status.initialize_conditions(now());
        if case.ready {
            status.manage(now()).mark_true("EndpointsPopulated");
        } else {
            status.manage(now()).mark_unknown(
                "EndpointsPopulated",
                "NoHealthyBackends",
                "K8s Service is not ready",
            );
        }
        if let Some(held) = case.activator_endpoints_populated_for_s {
            let mut conditions: Vec<Condition> = status.conditions.to_vec();
            conditions.push(Condition {
                type_: "ActivatorEndpointsPopulated".into(),
                status: ConditionStatus::True,
                last_transition_time: Some(KubeTime(ago(held))),
                ..Condition::default()
            });
            status.conditions = conditions.into();
        }
        Some(sks)
    }

    /// The plan, and how often the activator was probed for it.
    fn plan(&self) -> (Plan, PodAutoscaler, u32) {
        let pa = self.object();
        let sks = self.sks(&pa);
        let (plan, probes) = self.plan_on(&pa, sks.as_ref(), None, self.deployment_replicas);
        (plan, pa, probes)
    }

    fn plan_on(
        &self,
        pa: &PodAutoscaler,
        sks: Option<&ServerlessService>,
        metric: Option<&Metric>,
        replicas: Option<i32>,
    ) -> (Plan, u32) {
        let resolved = resolved(pa, self.config.as_ref(), Duration::from_secs(self.progress_deadline_s));
        let pods = PodCounts {
            ready: self.pods.ready,
            not_ready: self.pods.not_ready_running + self.pods.pending + self.pods.terminating,
            pending: self.pods.pending,
            terminating: self.pods.terminating,
        };
        let mut observed = Observed {
            pa,
            resolved: &resolved,
            sks,
            metric,
            decider: DeciderStatus {
                desired_scale: self.decider.desired,
                excess_burst_capacity: self.decider.ebc,
            },
            pods,
            replicas,
            probe: None,
            now: now(),
        };
        let (next, probes) = match plan::plan(&observed) {
            Next::ProbeActivator => {
                observed.probe = Some(self.activator_probe == "true");
                (plan::plan(&observed), 1)
            }
            next => (next, 0),
        };
        let Next::Plan(plan) = next else { panic!("a second probe was asked for") };
        (*plan, probes)
    }
}

fn verb(action: Option<&Action>) -> (&'static str, Value) {
    match action.map(|a| &a.verb) {
        None => ("none", Value::Null),
        Some(Verb::Create(value)) => ("create", value.clone()),
        Some(Verb::Update(value)) => ("update", value.clone()),
        Some(other) => panic!("unexpected {other:?}"),
    }
}

#[test]
fn golden_kpa_reconcile() {
    check("kpa_reconcile", |case: &ReconcileCase| {
        let (plan, pa, probes) = case.plan();
        let want = &case.want;
        let (sks_action, sks) = verb(plan.sks.as_ref());
        let (metric_action, metric) = verb(plan.metric.as_ref());
        let requeues: Vec<u128> = plan.requeue.iter().map(Duration::as_nanos).collect();
        let probe = plan.probe_until_success.then(|| {
            let (host, port) = plan::probe_host(&pa, "cluster.local");
            format!("http://{host}:{port}//healthz")
        });
        let mut wrong: Vec<Option<String>> = vec![
            differ("error", &want.error, &plan.failure.clone().unwrap_or_default()),
            differ("desired", &want.status_desired_scale, &plan.status.desired_scale),
            differ("actual", &want.status_actual_scale, &plan.status.actual_scale),
            differ("service", &want.status_service_name, &plan.status.service_name),
            differ("metrics service", &want.status_metrics_service_name, &plan.status.metrics_service_name),
            differ("sks", &want.sks.action.as_str(), &sks_action),
            differ("replicas", &want.patch_replicas, &plan.replicas),
            differ("requeue", &want.enqueue_after_ns.clone().unwrap_or_default(), &requeues),
            differ("probes", &want.sync_probes, &probes),
            differ("probe until success", &want.async_probe_target, &probe),
        ];
        if sks_action != "none" {
            wrong.push(differ("mode", &json!(want.sks.mode), &sks["spec"]["mode"]));
            let activators = sks["spec"]["numActivators"].as_i64().unwrap_or(0);
            wrong.push(differ("activators", &i64::from(want.sks.num_activators), &activators));
        }
        match &want.metric {
            None => wrong.push(differ("metric", &"none", &metric_action)),
            Some(want) => {
                wrong.push(differ("metric", &want.action.as_str(), &metric_action));
                wrong.push(differ("stable", &json!(want.stable_window_ns), &metric["spec"]["stableWindow"]));
                wrong.push(differ("panic", &json!(want.panic_window_ns), &metric["spec"]["panicWindow"]));
                wrong.push(differ("target", &json!(want.scrape_target), &metric["spec"]["scrapeTarget"]));
            }
        }
        let conditions: BTreeMap<String, ConditionWant> = (plan.status.conditions.iter())
            .map(|c| {
                let (status, reason, message) = (c.status.to_string(), c.reason.clone(), c.message.clone());
                (c.type_.clone(), ConditionWant { status, reason, message })
            })
            .collect();
        wrong.push(differ("conditions", &want.conditions, &conditions));
        wrong.into_iter().flatten().collect()
    });
}

/// A look at what a plan left behind leads to nothing new, unless the plan says that it may.
#[test]
fn golden_settled_plans() {
    check("kpa_reconcile", |case: &ReconcileCase| {
        let (plan, mut pa, _) = case.plan();
        if plan.unsettled || plan.failure.is_some() {
            return vec![];
        }
        let status = case.sks(&pa).and_then(|sks| sks.status);
        let sks = match verb(plan.sks.as_ref()) {
            ("none", _) => case.sks(&pa),
            (_, written) => {
                let written: ServerlessService = serde_json::from_value(written).unwrap();
                Some(ServerlessService { status, ..written })
            }
        };
        let metric: Option<Metric> =
            plan.metric.as_ref().map(|action| serde_json::from_value(verb(Some(action)).1).unwrap());
        pa.status = Some(plan.status.clone());
        let replicas = plan.replicas.or(case.deployment_replicas);
        let (again, _) = case.plan_on(&pa, sks.as_ref(), metric.as_ref(), replicas);
        [
            differ("scale", &plan.scale, &again.scale),
            differ("replicas", &None, &again.replicas),
            differ("sks", &None, &again.sks),
            differ("metric", &None, &again.metric),
            differ("same status", &true, &plan.status.same_state(&again.status)),
        ]
        .into_iter()
        .flatten()
        .collect()
    });
}
