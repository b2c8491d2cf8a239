//! Annotation keys. Where a key has older spellings the constant is a list; see [`lookup`].

use std::collections::BTreeMap;

/// A key and its older spellings; the first one that is present counts, even when it is empty.
pub type Keys = &'static [&'static str];

/// Who created the object.
pub const CREATOR: &str = "serving.knative.dev/creator";
/// Who changed the object last.
pub const LAST_MODIFIER: &str = "serving.knative.dev/lastModifier";
/// The Routes that lead to a Configuration or Revision: sorted names with commas between.
pub const ROUTES: &str = "serving.knative.dev/routes";
/// When the routing state changed, RFC 3339.
pub const ROUTING_STATE_MODIFIED: &str = "serving.knative.dev/routingStateModified";
/// How long a new Revision takes to get all of the traffic.
pub const ROLLOUT_DURATION: Keys =
    &["serving.knative.dev/rollout-duration", "serving.knative.dev/rolloutDuration"];
/// `true` keeps a Revision from being garbage collected.
pub const NO_GC: &str = "serving.knative.dev/no-gc";
/// When a Route last claimed the Revision; not used any more, and not copied to children.
pub const LAST_PINNED: &str = "serving.knative.dev/lastPinned";
/// How long a Deployment may take to become available.
pub const PROGRESS_DEADLINE: Keys = &["serving.knative.dev/progress-deadline"];

/// The sidecar's share of the user container's resources in percent.
pub const QUEUE_SIDECAR_RESOURCE_PERCENTAGE: Keys = &[
    "queue.sidecar.serving.knative.dev/resource-percentage",
    "queue.sidecar.serving.knative.dev/resourcePercentage",
];
/// The sidecar's CPU request.
pub const QUEUE_SIDECAR_CPU_REQUEST: &str = "queue.sidecar.serving.knative.dev/cpu-resource-request";
/// The sidecar's CPU limit.
pub const QUEUE_SIDECAR_CPU_LIMIT: &str = "queue.sidecar.serving.knative.dev/cpu-resource-limit";
/// The sidecar's memory request.
pub const QUEUE_SIDECAR_MEMORY_REQUEST: &str = "queue.sidecar.serving.knative.dev/memory-resource-request";
/// The sidecar's memory limit.
pub const QUEUE_SIDECAR_MEMORY_LIMIT: &str = "queue.sidecar.serving.knative.dev/memory-resource-limit";
/// The sidecar's ephemeral storage request.
pub const QUEUE_SIDECAR_EPHEMERAL_STORAGE_REQUEST: &str =
    "queue.sidecar.serving.knative.dev/ephemeral-storage-resource-request";
/// The sidecar's ephemeral storage limit.
pub const QUEUE_SIDECAR_EPHEMERAL_STORAGE_LIMIT: &str =
    "queue.sidecar.serving.knative.dev/ephemeral-storage-resource-limit";

/// `Enabled` mounts the pod's metadata into the sidecar.
pub const QUEUE_PROXY_POD_INFO: &str = "features.knative.dev/queueproxy-podinfo";
/// `Enabled` lets an HTTP/1 container answer before it has read the request.
pub const ALLOW_HTTP_FULL_DUPLEX: &str = "features.knative.dev/http-full-duplex";

/// Which autoscaler scales.
pub const CLASS: &str = "autoscaling.knative.dev/class";
/// Which metric is scaled by.
pub const METRIC: &str = "autoscaling.knative.dev/metric";
/// The metric's value to aim at per pod.
pub const TARGET: &str = "autoscaling.knative.dev/target";
/// The fewest pods while a Route leads to the Revision.
pub const MIN_SCALE: Keys = &["autoscaling.knative.dev/min-scale", "autoscaling.knative.dev/minScale"];
/// The most pods; 0 is no limit.
pub const MAX_SCALE: Keys = &["autoscaling.knative.dev/max-scale", "autoscaling.knative.dev/maxScale"];
/// The pods of a new Revision.
pub const INITIAL_SCALE: Keys =
    &["autoscaling.knative.dev/initial-scale", "autoscaling.knative.dev/initialScale"];
/// The fewest pods when there is any traffic.
pub const ACTIVATION_SCALE: Keys = &["autoscaling.knative.dev/activation-scale"];
/// How long a lower scale has to be asked for before it is applied.
pub const SCALE_DOWN_DELAY: Keys =
    &["autoscaling.knative.dev/scale-down-delay", "autoscaling.knative.dev/scaleDownDelay"];
/// How long the last pod is kept after the decision to scale to zero.
pub const SCALE_TO_ZERO_POD_RETENTION_PERIOD: Keys = &[
    "autoscaling.knative.dev/scale-to-zero-pod-retention-period",
    "autoscaling.knative.dev/scaleToZeroPodRetentionPeriod",
];
/// How the metric is averaged.
pub const METRIC_AGGREGATION_ALGORITHM: Keys = &[
    "autoscaling.knative.dev/metric-aggregation-algorithm",
    "autoscaling.knative.dev/metricAggregationAlgorithm",
];
/// The stable window.
pub const WINDOW: &str = "autoscaling.knative.dev/window";
/// How much of the target is aimed at, in percent.
pub const TARGET_UTILIZATION_PERCENTAGE: Keys = &[
    "autoscaling.knative.dev/target-utilization-percentage",
    "autoscaling.knative.dev/targetUtilizationPercentage",
];
/// The burst that is buffered by the activator; -1 keeps it in the path always.
pub const TARGET_BURST_CAPACITY: Keys =
    &["autoscaling.knative.dev/target-burst-capacity", "autoscaling.knative.dev/targetBurstCapacity"];
/// The panic window in percent of the stable window.
pub const PANIC_WINDOW_PERCENTAGE: Keys =
    &["autoscaling.knative.dev/panic-window-percentage", "autoscaling.knative.dev/panicWindowPercentage"];
/// How far over its target a Revision has to be for panic, in percent.
pub const PANIC_THRESHOLD_PERCENTAGE: Keys = &[
    "autoscaling.knative.dev/panic-threshold-percentage",
    "autoscaling.knative.dev/panicThresholdPercentage",
];

/// Which gateway implements an Ingress.
pub const INGRESS_CLASS: Keys =
    &["networking.knative.dev/ingress.class", "networking.knative.dev/ingress-class"];
/// Which provider issues a Certificate.
pub const CERTIFICATE_CLASS: Keys =
    &["networking.knative.dev/certificate.class", "networking.knative.dev/certificate-class"];
/// Turns certificates for external domains off.
pub const DISABLE_EXTERNAL_DOMAIN_TLS: Keys = &[
    "networking.knative.dev/disableAutoTLS",
    "networking.knative.dev/disable-auto-tls",
    "networking.knative.dev/disable-external-domain-tls",
];
/// What happens to plain HTTP requests.
pub const HTTP_PROTOCOL: Keys =
    &["networking.knative.dev/httpOption", "networking.knative.dev/http-protocol"];
/// The state of gradual rollouts, JSON; on Ingresses.
pub const ROLLOUT: &str = "networking.internal.knative.dev/rollout";
/// The hosts of each tag, JSON; on Ingresses.
pub const TAG_TO_HOST: &str = "networking.internal.knative.dev/tag-to-host";

/// Checksum of a ConfigMap's `_example`.
pub const EXAMPLE_CHECKSUM: &str = "knative.dev/example-checksum";
/// What `kubectl apply` last applied; not copied to children.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The container `kubectl` means when none is given.
pub const DEFAULT_CONTAINER: &str = "kubectl.kubernetes.io/default-container";

/// The first of the keys that is present, with its value.
#[must_use]
pub fn lookup(annotations: &BTreeMap<String, String>, keys: Keys) -> Option<(&'static str, &str)> {
    keys.iter().find_map(|key| annotations.get(*key).map(|value| (*key, value.as_str())))
}
