//! The groups `autoscaling.knative.dev` (annotations) and `autoscaling.internal.knative.dev` (kinds).

pub mod annotations;
pub mod v1alpha1;

/// The group of the annotations.
pub const GROUP: &str = "autoscaling.knative.dev";
/// The group of the kinds.
pub const INTERNAL_GROUP: &str = "autoscaling.internal.knative.dev";
