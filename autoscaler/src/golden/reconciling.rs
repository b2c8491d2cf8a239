//! Resolution of annotations, stats to decisions, plans.

use std::collections::BTreeMap;
use std::time::Duration;

use ember_api::autoscaling::v1alpha1::{Metric, PodAutoscaler, PodAutoscalerStatus};
use ember_api::conditions::{Condition, ConditionStatus};
use ember_api::configmaps::autoscaler::Autoscaler;
use ember_api::networking::v1alpha1::{ServerlessService, ServerlessServiceOperationMode as Mode};
use ember_api::status::Status;
use ember_dataplane::stat::Stat;
use ember_reconcile::apply::{Action, Verb};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time as KubeTime;
use serde::Deserialize;
use serde_json::{Value, json};

use super::{BASE_MILLIS, Float, at, check, differ};
use crate::collection::Collection;
use crate::decider::{Decider, DeciderStatus, Mode as DeciderMode, ScalingMetric};
use crate::podautoscaler::plan::{self, Next, Observed, Plan};
use crate::pods::PodCounts;
use crate::resolution::{Resolved, Settings, resolve};
use crate::window::Algorithm;

type Texts = BTreeMap<String, String>;

const ACTIVATION_BUFFER: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
struct PaCase {
    config: Option<Texts>,
    annotations: Option<Texts>,
    #[serde(default)]
    container_concurrency: i64,
    #[serde(default)]
    reachability: String,
}

fn pod_autoscaler(annotations: &Texts, container_concurrency: i64, reachability: &str) -> PodAutoscaler {
    let mut annotations = annotations.clone();
    annotations
        .entry("autoscaling.knative.dev/class".into())
        .or_insert_with(|| "kpa.autoscaling.knative.dev".into());
    let pa = json!({
        "metadata": {
            "name": "rev", "namespace": "ns", "uid": "2006", "generation": 1,
            "labels": {"serving.knative.dev/revision": "rev"},
            "annotations": annotations,
        },
        "spec": {
            "containerConcurrency": container_concurrency,
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "rev-deployment"},
            "reachability": reachability,
            "protocolType": "http1",
        },
    });
    plan::defaulted(&serde_json::from_value(pa).unwrap())
}

fn settings(config: Option<&Texts>, progress_deadline: Duration) -> Settings {
    let autoscaler = Autoscaler::parse(&config.cloned().unwrap_or_default()).unwrap();
    Settings { autoscaler, progress_deadline, ..Settings::default() }
}

impl PaCase {
    fn object(&self) -> PodAutoscaler {
        let annotations = self.annotations.clone().unwrap_or_default();
        pod_autoscaler(&annotations, self.container_concurrency, &self.reachability)
    }

    fn resolved(&self) -> Resolved {
        resolved(&self.object(), self.config.as_ref(), Duration::from_secs(600))
    }
}

fn resolved(pa: &PodAutoscaler, config: Option<&Texts>, progress_deadline: Duration) -> Resolved {
    let annotations = pa.metadata.annotations.clone().unwrap_or_default();
    resolve(&annotations, &pa.spec, &settings(config, progress_deadline), ACTIVATION_BUFFER)
}

#[derive(Debug, Deserialize)]
struct SpecCase {
    #[serde(flatten)]
    pa: PaCase,
    want: SpecWant,
}

#[derive(Debug, Deserialize)]
struct SpecWant {
    max_scale_up_rate: Float,
    max_scale_down_rate: Float,
    scaling_metric: String,
    target_value: Float,
    total_value: Float,
    target_burst_capacity: Float,
    activator_capacity: Float,
    panic_threshold: Float,
    stable_window_s: Float,
    scale_down_delay_s: Float,
    initial_scale: i32,
    reachable: bool,
    activation_scale: i32,
    metric_stable_window_ns: u128,
    metric_panic_window_ns: u128,
    aggregation_algorithm: String,
    min_scale: i32,
    max_scale: i32,
}

#[test]
fn golden_decider_and_metric_spec() {
    check("decider_and_metric_spec", |case: &SpecCase| {
        let got = case.pa.resolved();
        let (decider, want) = (&got.decider, &case.want);
        let floats = [
            ("up", want.max_scale_up_rate, decider.max_scale_up_rate),
            ("down", want.max_scale_down_rate, decider.max_scale_down_rate),
            ("target", want.target_value, decider.target_value),
            ("total", want.total_value, decider.total_value),
            ("burst", want.target_burst_capacity, decider.target_burst_capacity),
            ("activator", want.activator_capacity, decider.activator_capacity),
            ("threshold", want.panic_threshold, decider.panic_threshold),
            ("stable", want.stable_window_s, decider.stable_window.as_secs_f64()),
            ("delay", want.scale_down_delay_s, decider.scale_down_delay.as_secs_f64()),
        ];
        let mut wrong: Vec<String> = floats
            .into_iter()
            .filter(|(_, want, got)| !want.is(*got))
            .map(|(what, want, got)| format!("{what}: want {want:?}, got {got}"))
            .collect();
        let algorithm = match want.aggregation_algorithm.as_str() {
            "weighted-exponential" => Algorithm::WeightedExponential,
            _ => Algorithm::Linear,
        };
        wrong.extend(
            [
                differ("metric", &ScalingMetric::from_name(&want.scaling_metric), &decider.scaling_metric),
                differ("initial", &want.initial_scale, &decider.initial_scale),
                differ("reachable", &want.reachable, &decider.reachable),
                differ("activation", &want.activation_scale, &decider.activation_scale),
                differ("metric stable", &want.metric_stable_window_ns, &got.stable_window.as_nanos()),
                differ("metric panic", &want.metric_panic_window_ns, &got.panic_window.as_nanos()),
                differ("algorithm", &algorithm, &got.algorithm),
                differ("min", &want.min_scale, &got.min_scale),
                differ("max", &want.max_scale, &got.max_scale),
            ]
            .into_iter()
            .flatten(),
        );
        wrong
    });
}

#[derive(Debug, Deserialize)]
struct PipelineCase {
    pa: PaCase,
    has_scrape_target: bool,
    ready_at_creation: i32,
    ops: Vec<PipelineOp>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum PipelineOp {
    Stat { at_ms: i64, stat: PipelineStat },
    Reconfigure { at_ms: i64, pa: PaCase },
    Scale { at_ms: i64, ready: i32, want: PipelineWant },
}

#[derive(Debug, Deserialize)]
struct PipelineStat {
    average_concurrent_requests: Float,
    average_proxied_concurrent_requests: Float,
    request_count: Float,
    proxied_request_count: Float,
}

#[derive(Debug, Deserialize)]
struct PipelineWant {
    metric_error: Option<String>,
    stable: Float,
    panic: Float,
    valid: bool,
    desired: i32,
    ebc: i32,
    in_panic: bool,
}

#[test]
fn golden_pipeline_scenarios() {
    check("pipeline_scenarios", |case: &PipelineCase| {
        let service = if case.has_scrape_target { "rev-private" } else { "" };
        let mut resolved = case.pa.resolved();
        let collection = |resolved: &Resolved| crate::collection::CollectionSpec {
            scrape_target: service.to_owned(),
            ..resolved.collection(service)
        };
        let mut metrics = Collection::new(collection(&resolved));
        let mut decider = Decider::new(&resolved.decider, case.ready_at_creation, at(0));
        let mut wrong = Vec::new();
        for (number, op) in case.ops.iter().enumerate() {
            match op {
                PipelineOp::Stat { at_ms, stat } => metrics.record(
                    at(*at_ms),
                    &Stat {
                        average_concurrent_requests: stat.average_concurrent_requests.0,
                        average_proxied_concurrent_requests: stat.average_proxied_concurrent_requests.0,
                        request_count: stat.request_count.0,
                        proxied_request_count: stat.proxied_request_count.0,
                        ..Stat::default()
                    },
                ),
                PipelineOp::Reconfigure { at_ms, pa } => {
                    resolved = pa.resolved();
                    metrics.update(at(*at_ms), collection(&resolved));
                }
                PipelineOp::Scale { at_ms, ready, want } => {
                    let load = metrics.load(resolved.decider.scaling_metric, at(*at_ms));
                    let no_data = want.metric_error.is_some();
                    wrong.extend(differ(&format!("op {number}: no data"), &no_data, &load.is_none()));
                    if let Some(load) = load
                        && !(want.stable.is(load.stable) && want.panic.is(load.panic))
                    {
                        wrong.push(format!("op {number}: want {want:?}, got {load:?}"));
                    }
                    let decision =
                        load.and_then(|load| decider.evaluate(&resolved.decider, at(*at_ms), *ready, load));
                    let got = decision.map(|d| (d.desired, d.excess_burst_capacity));
                    wrong.extend(differ(
                        &format!("op {number}"),
                        &want.valid.then_some((want.desired, want.ebc)),
                        &got,
                    ));
                    let panicking = matches!(decider.mode(), DeciderMode::Panic { .. });
                    wrong.extend(differ(&format!("op {number}: in panic"), &want.in_panic, &panicking));
                }
            }
        }
        wrong
    });
}

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

#[test]
fn golden_derived_objects() {
    #[derive(Debug, Deserialize)]
    struct Case {
        #[serde(flatten)]
        rest: DerivedCase,
        kind: String,
        mode: Option<String>,
        #[serde(default)]
        num_activators: i32,
        scrape_target: Option<String>,
        want: Value,
    }
    #[derive(Debug, Deserialize)]
    struct DerivedCase {
        config: Option<Texts>,
        annotations: Option<Texts>,
        reachability: String,
    }
    check("derived_objects", |case: &Case| {
        let rest = &case.rest;
        let pa = pod_autoscaler(&rest.annotations.clone().unwrap_or_default(), 0, &rest.reachability);
        let got = if case.kind == "Metric" {
            let resolved = resolved(&pa, rest.config.as_ref(), Duration::from_secs(600));
            let mut metric: Metric = plan::metric(&pa, &resolved, "");
            metric.spec.scrape_target = case.scrape_target.clone().unwrap_or_default();
            serde_json::to_value(metric)
        } else {
            let mode: Mode = case.mode.as_deref().unwrap_or_default().into();
            serde_json::to_value(plan::serverless_service(&pa, mode, case.num_activators))
        };
        let got = got.unwrap();
        let same = ["metadata", "spec"]
            .iter()
            .all(|part| ember_reconcile::apply::semantically_equal(&case.want[part], &got[part]));
        if same { vec![] } else { vec![format!("want {}, got {got}", case.want)] }
    });
}

#[test]
fn golden_hpa_objects() {
    #[derive(Debug, Deserialize)]
    struct Case {
        config: Option<Texts>,
        annotations: Option<Texts>,
        reachability: String,
        want: Value,
    }
    check("hpa_objects", |case: &Case| {
        let pa = pod_autoscaler(&case.annotations.clone().unwrap_or_default(), 0, &case.reachability);
        let resolved = resolved(&pa, case.config.as_ref(), Duration::from_secs(600));
        let got =
            serde_json::to_value(crate::hpa::object::horizontal_pod_autoscaler(&pa, &resolved)).unwrap();
        let same = ["metadata", "spec"].iter().all(|part| case.want[part] == got[part]);
        if same { vec![] } else { vec![format!("want {}, got {got}", case.want)] }
    });
}
