//! The headers of Knative's data plane, and the User-Agents its probers use.

use http::HeaderName;

/// Revision a request is for; set by the ingress, read by the activator, removed before the container.
pub const REVISION: HeaderName = HeaderName::from_static("knative-serving-revision");
/// Namespace of that revision.
pub const NAMESPACE: HeaderName = HeaderName::from_static("knative-serving-namespace");
/// Marks a probe of Knative's own; the value says whom it is for ([`probe::QUEUE`](crate::probe::QUEUE), …).
pub const NETWORK_PROBE: HeaderName = HeaderName::from_static("k-network-probe");
/// Hash of the ingress configuration, echoed in answers to [`NETWORK_PROBE`] `probe`.
pub const NETWORK_HASH: HeaderName = HeaderName::from_static("k-network-hash");
/// `activator` on requests that came through the activator.
pub const PROXY_REQUEST: HeaderName = HeaderName::from_static("k-proxy-request");
/// The Host the client sent, when a hop had to change it.
pub const ORIGINAL_HOST: HeaderName = HeaderName::from_static("k-original-host");
/// Tells a mesh to route to the address and not by Host.
pub const PASSTHROUGH_LB: HeaderName = HeaderName::from_static("k-passthrough-lb");
/// As [`PASSTHROUGH_LB`], on the autoscaler's scrapes.
pub const DIRECT_LB: HeaderName = HeaderName::from_static("knative-direct-lb");
/// Marks a kubelet probe whose User-Agent was rewritten on the way.
pub const KUBELET_PROBE: HeaderName = HeaderName::from_static("k-kubelet-probe");
/// The traffic tag a request was routed by.
pub const TAG: HeaderName = HeaderName::from_static("knative-serving-tag");
/// On requests from a hop of Ember's that can take them back and serve them elsewhere, for the sidecar; never reaches
/// the app.
pub const RETURNABLE: HeaderName = HeaderName::from_static("ember-returnable");
/// The sidecar's answer to such a request when the app does not listen: the app has seen nothing of it. The value is
/// how long the app may be waited for, in milliseconds. Never reaches a client.
pub const APP_AWAY: HeaderName = HeaderName::from_static("ember-app-away");
/// Whether the request matched the default route.
pub const DEFAULT_ROUTE: HeaderName = HeaderName::from_static("knative-serving-default-route");
/// RFC 7239.
pub const FORWARDED: HeaderName = HeaderName::from_static("forwarded");
/// The addresses a request passed through.
pub const X_FORWARDED_FOR: HeaderName = HeaderName::from_static("x-forwarded-for");
/// The Host the client sent to the first proxy.
pub const X_FORWARDED_HOST: HeaderName = HeaderName::from_static("x-forwarded-host");
/// The scheme the client used to the first proxy.
pub const X_FORWARDED_PROTO: HeaderName = HeaderName::from_static("x-forwarded-proto");
/// Makes an unsafe request repeatable (see [`proxy`](crate::proxy)).
pub const IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("idempotency-key");
/// As [`IDEMPOTENCY_KEY`].
pub const X_IDEMPOTENCY_KEY: HeaderName = HeaderName::from_static("x-idempotency-key");

/// What the kubelet's User-Agent starts with.
pub const USER_AGENT_KUBE_PROBE: &str = "kube-probe/";
/// The activator probing a pod.
pub const USER_AGENT_ACTIVATOR: &str = "Knative-Activator-Probe";
/// The autoscaler asking whether the activator is in the path.
pub const USER_AGENT_AUTOSCALER: &str = "Knative-Autoscaling-Probe";
/// The ingress checking that its configuration arrived.
pub const USER_AGENT_INGRESS: &str = "Knative-Ingress-Probe";
