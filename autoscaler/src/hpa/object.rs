//! The HorizontalPodAutoscaler that a PodAutoscaler wants.

use ember_api::autoscaling::annotations::Scaling;
use ember_api::autoscaling::v1alpha1::PodAutoscaler;
use ember_api::quantity;
use k8s_openapi::api::autoscaling::v2::{
    CrossVersionObjectReference, HPAScalingRules, HorizontalPodAutoscaler, HorizontalPodAutoscalerBehavior,
    HorizontalPodAutoscalerSpec, MetricIdentifier, MetricSpec, MetricTarget, PodsMetricSource,
    ResourceMetricSource,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use kube::ResourceExt;

use crate::podautoscaler::plan::child_metadata;
use crate::resolution::Resolved;

/// A target of memory counts these many bytes.
const MEMORY_UNIT: &str = "Mi";

/// The object.
#[must_use]
pub fn horizontal_pod_autoscaler(pa: &PodAutoscaler, resolved: &Resolved) -> HorizontalPodAutoscaler {
    let read = Scaling::new(pa.annotations());
    let target = &pa.spec.scale_target_ref;
    let behavior = read.window().map(|window| {
        let seconds = i32::try_from(window.to_std().as_secs()).unwrap_or(i32::MAX);
        let rules =
            HPAScalingRules { stabilization_window_seconds: Some(seconds), ..HPAScalingRules::default() };
        HorizontalPodAutoscalerBehavior { scale_up: Some(rules.clone()), scale_down: Some(rules) }
    });
    HorizontalPodAutoscaler {
        metadata: child_metadata(pa),
        spec: Some(HorizontalPodAutoscalerSpec {
            scale_target_ref: CrossVersionObjectReference {
                api_version: target.api_version.clone(),
                kind: target.kind.clone().unwrap_or_default(),
                name: target.name.clone().unwrap_or_default(),
            },
            min_replicas: Some(resolved.min_scale).filter(|min| *min > 0),
            max_replicas: Some(resolved.max_scale).filter(|max| *max != 0).unwrap_or(i32::MAX),
            metrics: read.target().map(|target| vec![metric(read.metric(), target)]),
            behavior,
        }),
        status: None,
    }
}

fn metric(name: &str, target: f64) -> MetricSpec {
    let average = |value: String| MetricTarget {
        type_: "AverageValue".to_owned(),
        // Whole numbers, with or without the unit, always parse.
        average_value: Some(Quantity(quantity::canonical(&value).unwrap_or(value))),
        ..MetricTarget::default()
    };
    let resource = |target| MetricSpec {
        type_: "Resource".to_owned(),
        resource: Some(ResourceMetricSource { name: name.to_owned(), target }),
        ..MetricSpec::default()
    };
    match name {
        "cpu" => resource(MetricTarget {
            type_: "Utilization".to_owned(),
            average_utilization: Some(target.ceil() as i32),
            ..MetricTarget::default()
        }),
        "memory" => resource(average(format!("{}{MEMORY_UNIT}", target as i64))),
        _ => MetricSpec {
            type_: "Pods".to_owned(),
            pods: Some(PodsMetricSource {
                metric: MetricIdentifier { name: name.to_owned(), selector: None },
                target: average((target as i64).to_string()),
            }),
            ..MetricSpec::default()
        },
    }
}

/// Whether a live object does what is wanted: what the API server fills in where nothing was said is no difference.
#[must_use]
pub fn is_as_wanted(live: &HorizontalPodAutoscalerSpec, wanted: &HorizontalPodAutoscalerSpec) -> bool {
    let windows = |spec: &HorizontalPodAutoscalerSpec| {
        let seconds = |rules: &Option<HPAScalingRules>| {
            rules.as_ref().and_then(|rules| rules.stabilization_window_seconds)
        };
        spec.behavior.as_ref().map(|behavior| (seconds(&behavior.scale_up), seconds(&behavior.scale_down)))
    };
    let metrics = match &wanted.metrics {
        Some(metrics) => live.metrics.as_ref() == Some(metrics),
        None => live.metrics.as_ref().is_none_or(|metrics| *metrics == [metric("cpu", 80.0)]),
    };
    live.scale_target_ref == wanted.scale_target_ref
        && live.max_replicas == wanted.max_replicas
        && live.min_replicas.unwrap_or(1) == wanted.min_replicas.unwrap_or(1)
        && metrics
        && windows(live) == windows(wanted)
}
