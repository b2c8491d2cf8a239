//! The control loop of PodAutoscalers of the class `hpa.autoscaling.knative.dev`: Kubernetes' own autoscaler scales,
//! and is told here how.

pub mod object;
pub mod plan;
pub(crate) mod reconciler;
