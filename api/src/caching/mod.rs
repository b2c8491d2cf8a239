//! The group `caching.internal.knative.dev`.

pub mod v1alpha1;

/// The group's name.
pub const GROUP: &str = "caching.internal.knative.dev";
