//! `config-autoscaler`: how revisions scale unless their annotations say otherwise.

use std::collections::BTreeMap;
use std::time::Duration;

use super::ConfigError;
use super::data::Data;
use crate::golang::{GoDuration, format_fixed, format_float};

/// The ConfigMap's name.
pub const NAME: &str = "config-autoscaler";

/// The class of autoscaler that Knative brings along.
pub const KPA: &str = "kpa.autoscaling.knative.dev";

/// The class that leaves scaling to Kubernetes' HorizontalPodAutoscaler.
pub const HPA: &str = "hpa.autoscaling.knative.dev";

/// The least target a pod can have.
pub const TARGET_MIN: f64 = 0.01;

/// The shortest stable window.
pub const WINDOW_MIN: GoDuration = GoDuration::from_secs(6);

/// The longest stable window.
pub const WINDOW_MAX: GoDuration = GoDuration::from_secs(3600);

/// Parsed `config-autoscaler`.
#[derive(Clone, Debug, PartialEq)]
pub struct Autoscaler {
    /// Class of PodAutoscalers without one.
    pub pod_autoscaler_class: String,
    /// Whether idle revisions go to zero.
    pub enable_scale_to_zero: bool,
    /// Whether an initial scale of zero is allowed.
    pub allow_zero_initial_scale: bool,
    /// Pods that a new revision starts with.
    pub initial_scale: i32,
    /// Least pods of a reachable revision.
    pub min_scale: i32,
    /// Most pods of a revision; 0 is no limit.
    pub max_scale: i32,
    /// The largest max-scale that may be set; 0 is no limit.
    pub max_scale_limit: i32,
    /// Factor by which one evaluation may grow the scale.
    pub max_scale_up_rate: f64,
    /// Factor by which one evaluation may shrink the scale.
    pub max_scale_down_rate: f64,
    /// Share of the concurrency target aimed at, in (0, 1].
    pub container_concurrency_target_fraction: f64,
    /// Concurrency target of revisions without a container concurrency.
    pub container_concurrency_target_default: f64,
    /// Share of the requests-per-second target aimed at; not configurable.
    pub target_utilization: f64,
    /// Requests-per-second target.
    pub rps_target_default: f64,
    /// Spare capacity below which the activator stays in the path; -1 keeps it there always.
    pub target_burst_capacity: f64,
    /// Concurrent requests one activator is counted for.
    pub activator_capacity: f64,
    /// Averaging window of the stable mode.
    pub stable_window: Duration,
    /// Panic window in percent of the stable window.
    pub panic_window_percentage: f64,
    /// Demand in percent of the ready capacity from which panic begins.
    pub panic_threshold_percentage: f64,
    /// How long the activator is given to take over before the last pod goes.
    pub scale_to_zero_grace_period: Duration,
    /// How long the last pod stays after the decision to go to zero.
    pub scale_to_zero_pod_retention_period: Duration,
    /// How long demand has to stay lower before the scale goes down.
    pub scale_down_delay: Duration,
}

impl Default for Autoscaler {
    fn default() -> Self {
        Self {
            pod_autoscaler_class: KPA.to_owned(),
            enable_scale_to_zero: true,
            allow_zero_initial_scale: false,
            initial_scale: 1,
            min_scale: 0,
            max_scale: 0,
            max_scale_limit: 0,
            max_scale_up_rate: 1000.0,
            max_scale_down_rate: 2.0,
            container_concurrency_target_fraction: 0.7,
            container_concurrency_target_default: 100.0,
            target_utilization: 0.7,
            rps_target_default: 200.0,
            target_burst_capacity: 211.0,
            activator_capacity: 100.0,
            stable_window: Duration::from_secs(60),
            panic_window_percentage: 10.0,
            panic_threshold_percentage: 200.0,
            scale_to_zero_grace_period: Duration::from_secs(30),
            scale_to_zero_pod_retention_period: Duration::ZERO,
            scale_down_delay: Duration::ZERO,
        }
    }
}

/// The durations before they are known not to be negative.
struct Times {
    stable_window: GoDuration,
    scale_down_delay: GoDuration,
    grace: GoDuration,
    retention: GoDuration,
}

impl Autoscaler {
    /// Parses the ConfigMap's data.
    ///
    /// # Errors
    /// A value that does not parse or that is outside its bounds.
    pub fn parse(data: &BTreeMap<String, String>) -> Result<Self, ConfigError> {
        let mut config = Self::default();
        let times =
            config.read(&Data(data)).map_err(|e| ConfigError(format!("failed to parse data: {e}")))?;
        // Percentages and fractions are told apart by size.
        if config.container_concurrency_target_fraction > 1.0 {
            config.container_concurrency_target_fraction /= 100.0;
        }
        config.check(&times)?;
        config.stable_window = times.stable_window.to_std();
        config.scale_down_delay = times.scale_down_delay.to_std();
        config.scale_to_zero_grace_period = times.grace.to_std();
        config.scale_to_zero_pod_retention_period = times.retention.to_std();
        Ok(config)
    }

    fn read(&mut self, data: &Data<'_>) -> Result<Times, ConfigError> {
        data.string("pod-autoscaler-class", &mut self.pod_autoscaler_class);
        data.bool("enable-scale-to-zero", &mut self.enable_scale_to_zero)?;
        data.bool("allow-zero-initial-scale", &mut self.allow_zero_initial_scale)?;
        data.float("max-scale-up-rate", &mut self.max_scale_up_rate)?;
        data.float("max-scale-down-rate", &mut self.max_scale_down_rate)?;
        data.float(
            "container-concurrency-target-percentage",
            &mut self.container_concurrency_target_fraction,
        )?;
        data.float("container-concurrency-target-default", &mut self.container_concurrency_target_default)?;
        data.float("requests-per-second-target-default", &mut self.rps_target_default)?;
        data.float("target-burst-capacity", &mut self.target_burst_capacity)?;
        data.float("panic-window-percentage", &mut self.panic_window_percentage)?;
        data.float("activator-capacity", &mut self.activator_capacity)?;
        data.float("panic-threshold-percentage", &mut self.panic_threshold_percentage)?;
        data.int32("initial-scale", &mut self.initial_scale)?;
        data.int32("min-scale", &mut self.min_scale)?;
        data.int32("max-scale", &mut self.max_scale)?;
        data.int32("max-scale-limit", &mut self.max_scale_limit)?;
        let mut times = Times {
            stable_window: self.stable_window.into(),
            scale_down_delay: self.scale_down_delay.into(),
            grace: self.scale_to_zero_grace_period.into(),
            retention: self.scale_to_zero_pod_retention_period.into(),
        };
        data.duration("stable-window", &mut times.stable_window)?;
        data.duration("scale-down-delay", &mut times.scale_down_delay)?;
        data.duration("scale-to-zero-grace-period", &mut times.grace)?;
        data.duration("scale-to-zero-pod-retention-period", &mut times.retention)?;
        Ok(times)
    }

    /// The order is part of the contract: the first failure is what users see. Comparisons are written so that
    /// NaN fails none but those it fails upstream.
    fn check(&self, times: &Times) -> Result<(), ConfigError> {
        let fail = |message: String| Err(ConfigError(message));
        let zero = GoDuration(0);
        let show = format_float;
        if times.grace <= zero {
            return fail(format!("scale-to-zero-grace-period must be positive, was: {}", times.grace));
        }
        if times.scale_down_delay < zero {
            return fail(format!("scale-down-delay cannot be negative, was: {}", times.scale_down_delay));
        }
        if !times.scale_down_delay.is_whole_seconds() {
            let delay = times.scale_down_delay;
            return fail(format!(
                "scale-down-delay = {delay}, must be specified with at most second precision"
            ));
        }
        if times.retention < zero {
            return fail(format!(
                "scale-to-zero-pod-retention-period cannot be negative, was: {}",
                times.retention
            ));
        }
        if self.target_burst_capacity < 0.0 && self.target_burst_capacity != -1.0 {
            return fail(format!(
                "target-burst-capacity must be either non-negative or -1 (for unlimited), was: {}",
                format_fixed(self.target_burst_capacity)
            ));
        }
        let fraction = self.container_concurrency_target_fraction;
        if fraction <= 0.0 || fraction > 1.0 {
            return fail(format!(
                "container-concurrency-target-percentage = {} is outside of valid range of (0, 100]",
                format_fixed(fraction)
            ));
        }
        let target = fraction * self.container_concurrency_target_default;
        if target < TARGET_MIN {
            return fail(format!(
                "container-concurrency-target-percentage and container-concurrency-target-default yield target \
                 concurrency of {}, can't be less than 0.01",
                show(target)
            ));
        }
        if self.rps_target_default < TARGET_MIN {
            let rps = show(self.rps_target_default);
            return fail(format!("requests-per-second-target-default must be at least 0.01, was: {rps}"));
        }
        if self.activator_capacity < 1.0 {
            return fail(format!(
                "activator-capacity = {}, must be at least 1",
                show(self.activator_capacity)
            ));
        }
        if self.max_scale_up_rate <= 1.0 {
            let rate = show(self.max_scale_up_rate);
            return fail(format!("max-scale-up-rate = {rate}, must be greater than 1.0"));
        }
        if self.max_scale_down_rate <= 1.0 {
            let rate = show(self.max_scale_down_rate);
            return fail(format!("max-scale-down-rate = {rate}, must be greater than 1.0"));
        }
        let window = times.stable_window;
        if window < WINDOW_MIN || window > WINDOW_MAX {
            return fail(format!("stable-window = {window}, must be in [{WINDOW_MIN}; {WINDOW_MAX}] range"));
        }
        if !window.is_whole_seconds() {
            return fail(format!(
                "stable-window = {window}, must be specified with at most second precision"
            ));
        }
        if self.panic_window_percentage < 1.0 || self.panic_window_percentage > 100.0 {
            return fail(format!(
                "panic-window-percentage = {}, must be in [1, 100] interval",
                show(self.panic_window_percentage)
            ));
        }
        if self.initial_scale < 0 || (self.initial_scale == 0 && !self.allow_zero_initial_scale) {
            return fail(format!(
                "initial-scale = {}, must be at least 0 (or at least 1 when allow-zero-initial-scale is false)",
                self.initial_scale
            ));
        }
        if self.min_scale < 0 {
            return fail(format!("min-scale = {}, must be at least 0", self.min_scale));
        }
        let least_max = i32::from(self.max_scale_limit > 0);
        if self.max_scale < least_max || (self.max_scale_limit > 0 && self.max_scale > self.max_scale_limit) {
            return fail(format!(
                "max-scale = {}, must be in [{least_max}, max-scale-limit({})] range",
                self.max_scale, self.max_scale_limit
            ));
        }
        if self.max_scale_limit < 0 {
            return fail(format!("max-scale-limit = {}, must be at least 0", self.max_scale_limit));
        }
        if self.max_scale > 0 && self.min_scale > self.max_scale {
            return fail(format!(
                "min-scale ({}) must be less than max-scale ({})",
                self.min_scale, self.max_scale
            ));
        }
        Ok(())
    }
}
