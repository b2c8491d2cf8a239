//! `autoscaling.internal.knative.dev/v1alpha1`: PodAutoscaler, Metric.

mod lifecycle;
mod metric;
mod pod_autoscaler;

pub use metric::{Metric, MetricSpec, MetricStatus};
pub use pod_autoscaler::{PodAutoscaler, PodAutoscalerSpec, PodAutoscalerStatus, Reachability};

crate::status::conditioned! {
    PodAutoscaler => PodAutoscalerStatus,
    Metric => MetricStatus,
}
