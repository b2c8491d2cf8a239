//! The group `serving.knative.dev`.

pub mod v1;
pub mod v1beta1;

/// The group's name.
pub const GROUP: &str = "serving.knative.dev";
