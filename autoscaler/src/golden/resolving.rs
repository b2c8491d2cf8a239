//! What follows from annotations, ConfigMap and PodAutoscaler.

use std::collections::BTreeMap;
use std::time::Duration;

use ember_api::autoscaling::v1alpha1::PodAutoscaler;
use ember_api::configmaps::autoscaler::Autoscaler;
use serde::Deserialize;
use serde_json::json;

use super::{Float, check, differ};
use crate::decider::ScalingMetric;
use crate::podautoscaler::plan;
use crate::resolution::{Resolved, Settings, resolve};
use crate::window::Algorithm;

pub(super) type Texts = BTreeMap<String, String>;

const ACTIVATION_BUFFER: Duration = Duration::from_secs(30);

#[derive(Debug, Deserialize)]
pub(super) struct PaCase {
    config: Option<Texts>,
    annotations: Option<Texts>,
    #[serde(default)]
    container_concurrency: i64,
    #[serde(default)]
    reachability: String,
}

pub(super) fn pod_autoscaler(
    annotations: &Texts,
    container_concurrency: i64,
    reachability: &str,
) -> PodAutoscaler {
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

    pub(super) fn resolved(&self) -> Resolved {
        resolved(&self.object(), self.config.as_ref(), Duration::from_secs(600))
    }
}

pub(super) fn resolved(pa: &PodAutoscaler, config: Option<&Texts>, progress_deadline: Duration) -> Resolved {
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
