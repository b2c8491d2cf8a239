//! The control loop of PodAutoscalers of the Knative class.

pub mod plan;
pub(crate) mod reconciler;
pub(crate) mod scale_target;
