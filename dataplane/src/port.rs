//! The ports of Knative's data plane.

/// Data port of activator and queue-proxy for HTTP/1.1 revisions.
pub const HTTP1: u16 = 8012;
/// Data port of activator and queue-proxy for h2c revisions.
pub const HTTP2: u16 = 8013;
/// Data port of activator and queue-proxy over TLS.
pub const HTTPS: u16 = 8112;
/// queue-proxy's admin port (`/wait-for-drain`).
pub const ADMIN: u16 = 8022;
/// queue-proxy's statistics for the autoscaler.
pub const AUTOSCALING_METRICS: u16 = 9090;
/// queue-proxy's Prometheus metrics.
pub const USER_METRICS: u16 = 9091;
/// Profiling, where enabled.
pub const PROFILING: u16 = 8008;
/// The autoscaler's intake of activator statistics.
pub const AUTOSCALER: u16 = 8080;
/// Service port of an HTTP/1.1 revision.
pub const SERVICE_HTTP1: u16 = 80;
/// Service port of an h2c revision on the public Service.
pub const SERVICE_HTTP2: u16 = 81;
/// Service port over TLS.
pub const SERVICE_HTTPS: u16 = 443;
/// Port of the user container when the revision names none.
pub const DEFAULT_USER: u16 = 8080;

/// Name of the HTTP/1.1 Service port.
pub const NAME_HTTP1: &str = "http";
/// Name of the h2c Service port.
pub const NAME_HTTP2: &str = "http2";
