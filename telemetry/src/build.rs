//! What was built.

/// The version of this build.
pub const VERSION: &str = env!("CARGO_PKG_VERSION");

/// The Kubernetes minor version whose API conventions the control plane follows.
pub const KUBERNETES_VERSION: &str = "v1.34.0";
