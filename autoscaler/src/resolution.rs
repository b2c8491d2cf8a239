//! What holds for one revision: its annotations over the ConfigMap's defaults.
//!
//! A value that does not parse counts as absent. Ranges are the webhook's business and not checked again.

use std::collections::BTreeMap;
use std::time::Duration;

use ember_api::annotations::{PROGRESS_DEADLINE, lookup};
use ember_api::autoscaling::annotations::{Aggregation, Scaling};
use ember_api::autoscaling::v1alpha1::{PodAutoscalerSpec, Reachability};
use ember_api::configmaps::ConfigError;
use ember_api::configmaps::autoscaler::{self, Autoscaler, TARGET_MIN};
use ember_api::configmaps::deployment::{self, Deployment};
use ember_api::configmaps::network::{self, MeshCompatibilityMode, Network};
use ember_api::golang::{GoDuration, parse_duration};

use crate::collection::CollectionSpec;
use crate::decider::{DeciderSpec, ScalingMetric};
use crate::window::Algorithm;

const SECOND_NANOS: i64 = 1_000_000_000;

/// Knative's configuration as far as it concerns scaling.
#[derive(Debug, Clone, PartialEq)]
pub struct Settings {
    /// ConfigMap `config-autoscaler`.
    pub autoscaler: Autoscaler,
    /// `progress-deadline` of ConfigMap `config-deployment`.
    pub progress_deadline: Duration,
    /// `mesh-compatibility-mode` of ConfigMap `config-network`.
    pub mesh: MeshCompatibilityMode,
    /// `enable-mesh-pod-addressability` of ConfigMap `config-network`.
    pub through_mesh: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self::of(Autoscaler::default(), &Deployment::default(), &Network::default())
    }
}

impl Settings {
    /// Reads the ConfigMaps; one that is missing has its defaults.
    ///
    /// # Errors
    /// A ConfigMap that does not parse.
    pub fn parse(maps: &BTreeMap<String, BTreeMap<String, String>>) -> Result<Self, ConfigError> {
        let read = |name| maps.get(name);
        Ok(Self::of(
            read(autoscaler::NAME).map(Autoscaler::parse).transpose()?.unwrap_or_default(),
            &read(deployment::NAME).map(Deployment::parse).transpose()?.unwrap_or_default(),
            &read(network::NAME).map(Network::parse).transpose()?.unwrap_or_default(),
        ))
    }

    fn of(autoscaler: Autoscaler, deployment: &Deployment, network: &Network) -> Self {
        Self {
            autoscaler,
            progress_deadline: deployment.progress_deadline,
            mesh: network.mesh_compatibility_mode,
            through_mesh: network.enable_mesh_pod_addressability,
        }
    }
}

/// What holds for a revision without annotations where the ConfigMaps say nothing.
impl Default for DeciderSpec {
    fn default() -> Self {
        let (annotations, spec) = (BTreeMap::new(), PodAutoscalerSpec::default());
        resolve(&annotations, &spec, &Settings::default(), Duration::ZERO).decider
    }
}

/// What holds for one revision.
#[derive(Debug, Clone, PartialEq)]
pub struct Resolved {
    /// For the decider.
    pub decider: DeciderSpec,
    /// Stable window of the metric.
    pub stable_window: Duration,
    /// Panic window of the metric.
    pub panic_window: Duration,
    /// How the metric is averaged.
    pub algorithm: Algorithm,
    /// Lower bound; 0 when no route leads to the revision.
    pub min_scale: i32,
    /// Upper bound, 0 for none.
    pub max_scale: i32,
    /// How long the last pod is kept; zero when no route leads to the revision.
    pub retention: Duration,
    /// How long the activator has to be in the path before the last pod goes.
    pub grace: Duration,
    /// Whether zero is allowed at all.
    pub enable_scale_to_zero: bool,
    /// How long pods may take to come up.
    pub activation_timeout: Duration,
}

impl Resolved {
    /// Whether the activator always stays in the path: then nothing is scraped, and the path needs no probe.
    #[must_use]
    pub fn always_proxied(&self) -> bool {
        self.decider.target_burst_capacity == -1.0
    }

    /// What the revision's Metric asks for, if its private Service is `service`.
    #[must_use]
    pub fn collection(&self, service: &str) -> CollectionSpec {
        CollectionSpec {
            stable_window: self.stable_window,
            panic_window: self.panic_window,
            scrape_target: if self.always_proxied() { String::new() } else { service.to_owned() },
            algorithm: self.algorithm,
        }
    }
}

/// The averaging that a Metric's annotations ask for.
#[must_use]
pub fn algorithm(annotations: &BTreeMap<String, String>) -> Algorithm {
    match Scaling::new(annotations).aggregation() {
        Aggregation::Linear => Algorithm::Linear,
        Aggregation::WeightedExponential => Algorithm::WeightedExponential,
    }
}

/// Resolves a PodAutoscaler. `activation_buffer` is added to the progress deadline.
#[must_use]
pub fn resolve(
    annotations: &BTreeMap<String, String>,
    spec: &PodAutoscalerSpec,
    settings: &Settings,
    activation_buffer: Duration,
) -> Resolved {
    let config = &settings.autoscaler;
    let read = Scaling::new(annotations);
    let unreachable = spec.reachability == Reachability::Unreachable;
    let (target_value, total_value) = target(read, spec.container_concurrency as f64, config);
    let stable_window = read.window().map_or(config.stable_window, GoDuration::to_std);
    let decider = DeciderSpec {
        max_scale_up_rate: config.max_scale_up_rate,
        max_scale_down_rate: config.max_scale_down_rate,
        scaling_metric: ScalingMetric::from_name(read.metric()),
        target_value,
        total_value,
        target_burst_capacity: read.target_burst_capacity().unwrap_or(config.target_burst_capacity),
        activator_capacity: config.activator_capacity,
        panic_threshold: read.panic_threshold_percentage().unwrap_or(config.panic_threshold_percentage)
            / 100.0,
        stable_window,
        scale_down_delay: read.scale_down_delay().map_or(config.scale_down_delay, GoDuration::to_std),
        initial_scale: read.initial_scale(config),
        reachable: !unreachable,
        activation_scale: read.activation_scale().unwrap_or(0),
    };
    let retention = read
        .scale_to_zero_pod_retention_period()
        .map_or(config.scale_to_zero_pod_retention_period, GoDuration::to_std);
    let panic_percentage = read.panic_window_percentage().unwrap_or(config.panic_window_percentage);
    Resolved {
        decider,
        stable_window,
        panic_window: panic_window(stable_window, panic_percentage),
        algorithm: algorithm(annotations),
        min_scale: if unreachable { 0 } else { read.min_scale().unwrap_or(config.min_scale) },
        max_scale: read.max_scale().unwrap_or(config.max_scale),
        retention: if unreachable { Duration::ZERO } else { retention },
        grace: config.scale_to_zero_grace_period,
        enable_scale_to_zero: config.enable_scale_to_zero,
        activation_timeout: progress_deadline(annotations)
            .unwrap_or(settings.progress_deadline)
            .saturating_add(activation_buffer),
    }
}

fn progress_deadline(annotations: &BTreeMap<String, String>) -> Option<Duration> {
    let (_, deadline) = lookup(annotations, PROGRESS_DEADLINE)?;
    parse_duration(deadline).ok().map(GoDuration::to_std)
}

/// The load a pod should carry, and the load it can carry.
fn target(read: Scaling<'_>, container_concurrency: f64, config: &Autoscaler) -> (f64, f64) {
    let metric = read.metric();
    let (mut total, mut utilization) = if metric == "rps" {
        (config.rps_target_default, config.target_utilization)
    } else if container_concurrency == 0.0 {
        (config.container_concurrency_target_default, config.container_concurrency_target_fraction)
    } else {
        (container_concurrency, config.container_concurrency_target_fraction)
    };
    if let Some(target) = read.target() {
        let limited =
            metric == "concurrency" && container_concurrency != 0.0 && target > container_concurrency;
        total = if limited { container_concurrency } else { target };
    }
    if let Some(percentage) = read.target_utilization_percentage() {
        utilization = percentage / 100.0;
    }
    let target = total * utilization;
    (if target < TARGET_MIN { TARGET_MIN } else { target }, total)
}

/// A part of the stable window in whole seconds, halves up, at least one.
fn panic_window(stable_window: Duration, percentage: f64) -> Duration {
    let nanos = stable_window.as_nanos() as f64 * percentage / 100.0;
    // What no duration can hold gives the shortest window, as in Knative.
    let nanos = if nanos < i64::MAX as f64 { nanos as i64 } else { 0 };
    let seconds = nanos.saturating_add(SECOND_NANOS / 2).div_euclid(SECOND_NANOS);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0).max(1))
}
