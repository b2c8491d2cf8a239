//! The annotations that say how one revision scales: what is allowed in them, and what they mean at run time.
//!
//! The first spelling of a key that is present counts. At run time a value that does not parse is no value; the
//! bounds are checked on admission only.

use std::collections::BTreeMap;

use crate::annotations::{self as keys, Keys, lookup};
use crate::configmaps::autoscaler::{Autoscaler, HPA, KPA, TARGET_MIN, WINDOW_MAX, WINDOW_MIN};
use crate::field_error::FieldError;
use crate::golang::{GoDuration, parse_duration, parse_float, parse_int, parse_int32};

const CONCURRENCY: &str = "concurrency";
const RPS: &str = "rps";
const WHOLE_SECONDS: &str = "must be specified with at most second precision";

type Annotations = BTreeMap<String, String>;

/// Checks the annotations of a revision, its template, or a PodAutoscaler. Paths are the keys.
pub fn validate(annotations: &Annotations, config: &Autoscaler) -> FieldError {
    class(annotations)
        .also(scales(annotations, config))
        .also(floats(annotations))
        .also(duration(annotations, &[keys::WINDOW], WINDOW_MIN, true))
        .also(duration(annotations, keys::SCALE_TO_ZERO_POD_RETENTION_PERIOD, GoDuration(0), false))
        .also(duration(annotations, keys::SCALE_DOWN_DELAY, GoDuration(0), true))
        .also(metric(annotations, config))
        .also(algorithm(annotations))
        .also(initial_scale(annotations, config))
}

fn class(annotations: &Annotations) -> FieldError {
    match annotations.get(keys::CLASS) {
        Some(class) if is_reserved(class) => FieldError::invalid_value(class, keys::CLASS),
        _ => FieldError::none(),
    }
}

/// Classes under Knative's domain are Knative's to define.
fn is_reserved(class: &str) -> bool {
    class.ends_with(".knative.dev") && class != KPA && class != HPA
}

/// A bound of the scale; one that is not valid counts as none in the checks of one against the other.
fn bound(annotations: &Annotations, key: Keys) -> (i32, FieldError) {
    let Some((key, raw)) = lookup(annotations, key) else { return (0, FieldError::none()) };
    match parse_int32(raw) {
        Ok(value) if value >= 0 => (value, FieldError::none()),
        Err(error) if !error.is_out_of_range() => (0, FieldError::invalid_value(raw, key)),
        _ => (0, FieldError::out_of_bounds(raw, 0, i32::MAX, key)),
    }
}

fn scales(annotations: &Annotations, config: &Autoscaler) -> FieldError {
    let (min, mut errors) = bound(annotations, keys::MIN_SCALE);
    let (max, max_errors) = bound(annotations, keys::MAX_SCALE);
    errors.add(max_errors);
    if max != 0 && max < min {
        let paths = [keys::MAX_SCALE[0], keys::MIN_SCALE[0]];
        errors.add(FieldError::generic(format!("max-scale={max} is less than min-scale={min}"), &paths));
    }
    let limit = config.max_scale_limit;
    if let Some((key, _)) = lookup(annotations, keys::MAX_SCALE).filter(|_| limit != 0) {
        if max > limit {
            errors.add(FieldError::out_of_bounds(max, 1, limit, key));
        }
        if max == 0 {
            let message = format!("max-scale=0 (unlimited), must be less than {limit}");
            errors.add(FieldError::generic(message, &[key]));
        }
    }
    if let Some((key, raw)) = lookup(annotations, keys::ACTIVATION_SCALE) {
        errors.add(match parse_int32(raw) {
            Err(_) => FieldError::invalid_value(raw, key),
            Ok(scale) if min > scale => FieldError::generic(
                format!("min-scale={min} is greater than activation-scale={scale}"),
                &[key],
            ),
            Ok(scale) if max != 0 && max < scale => {
                FieldError::generic(format!("max-scale={max} is less than activation-scale={scale}"), &[key])
            }
            Ok(scale) if scale < 2 => {
                FieldError::generic(format!("activation-scale={scale} must be greater than 1"), &[key])
            }
            Ok(_) => FieldError::none(),
        });
    }
    errors
}

fn floats(annotations: &Annotations) -> FieldError {
    let mut errors = FieldError::none();
    // Written so that NaN is inside all bounds, as it is upstream.
    for (key, low, high) in [
        (keys::PANIC_WINDOW_PERCENTAGE, 1_u16, 100_u16),
        (keys::PANIC_THRESHOLD_PERCENTAGE, 110, 1000),
        (keys::TARGET_UTILIZATION_PERCENTAGE, 1, 100),
    ] {
        let Some((key, raw)) = lookup(annotations, key) else { continue };
        errors.add(match parse_float(raw) {
            Err(_) => FieldError::invalid_value(raw, key),
            Ok(value) if value < f64::from(low) || value > f64::from(high) => {
                FieldError::out_of_bounds(raw, low, high, key)
            }
            Ok(_) => FieldError::none(),
        });
    }
    if let Some(raw) = annotations.get(keys::TARGET) {
        errors.add(match parse_float(raw) {
            Err(_) => FieldError::invalid_value(raw, keys::TARGET),
            Ok(value) if value < TARGET_MIN => {
                FieldError::generic(format!("target {raw} should be at least 0.01"), &[keys::TARGET])
            }
            Ok(_) => FieldError::none(),
        });
    }
    if let Some((key, raw)) = lookup(annotations, keys::TARGET_BURST_CAPACITY) {
        let invalid = parse_float(raw).map_or(true, |value| value < 0.0 && value != -1.0);
        if invalid {
            errors.add(FieldError::invalid_value(raw, key));
        }
    }
    errors
}

fn duration(
    annotations: &Annotations,
    key: &[&'static str],
    low: GoDuration,
    whole_seconds: bool,
) -> FieldError {
    let Some((key, raw)) = key.iter().find_map(|key| Some((*key, annotations.get(*key)?))) else {
        return FieldError::none();
    };
    match parse_duration(raw) {
        Err(_) => FieldError::invalid_value(raw, key),
        Ok(value) if value < low || value > WINDOW_MAX => {
            FieldError::out_of_bounds(raw, low, WINDOW_MAX, key)
        }
        Ok(value) if whole_seconds && !value.is_whole_seconds() => FieldError::generic(WHOLE_SECONDS, &[key]),
        Ok(_) => FieldError::none(),
    }
}

fn metric(annotations: &Annotations, config: &Autoscaler) -> FieldError {
    let Some(metric) = annotations.get(keys::METRIC) else { return FieldError::none() };
    let valid = match annotations.get(keys::CLASS).unwrap_or(&config.pod_autoscaler_class).as_str() {
        KPA => metric == CONCURRENCY || metric == RPS,
        HPA => !metric.is_empty(),
        _ => true,
    };
    if valid { FieldError::none() } else { FieldError::invalid_value(metric, keys::METRIC) }
}

fn algorithm(annotations: &Annotations) -> FieldError {
    if annotations.get(keys::CLASS).is_none_or(|class| class != KPA) {
        return FieldError::none();
    }
    match lookup(annotations, keys::METRIC_AGGREGATION_ALGORITHM) {
        None | Some((_, "" | "linear" | "weighted-exponential" | "weightedExponential")) => {
            FieldError::none()
        }
        Some((key, other)) => FieldError::invalid_value(other, key),
    }
}

fn initial_scale(annotations: &Annotations, config: &Autoscaler) -> FieldError {
    let Some((key, raw)) = lookup(annotations, keys::INITIAL_SCALE) else { return FieldError::none() };
    match parse_int(raw) {
        Err(_) => FieldError::invalid_value(raw, key),
        Ok(scale) if scale < 0 => FieldError::invalid_value(raw, &format!("{key} must be greater than 0")),
        Ok(0) if !config.allow_zero_initial_scale => {
            FieldError::invalid_value(raw, &format!("{key}=0 not allowed by cluster"))
        }
        Ok(_) => FieldError::none(),
    }
}

/// How a metric is averaged over a window.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Aggregation {
    /// Every bucket weighs the same.
    #[default]
    Linear,
    /// Newer buckets weigh more.
    WeightedExponential,
}

/// What annotations say about scaling, read as at run time.
#[derive(Clone, Copy, Debug)]
pub struct Scaling<'a>(&'a Annotations);

impl<'a> Scaling<'a> {
    /// Reads an object's annotations.
    #[must_use]
    pub const fn new(annotations: &'a Annotations) -> Self {
        Self(annotations)
    }

    fn int(self, key: Keys) -> Option<i32> {
        parse_int32(lookup(self.0, key)?.1).ok()
    }

    fn float(self, key: Keys) -> Option<f64> {
        parse_float(lookup(self.0, key)?.1).ok()
    }

    fn duration(self, key: Keys) -> Option<GoDuration> {
        parse_duration(lookup(self.0, key)?.1).ok()
    }

    /// Which autoscaler scales.
    #[must_use]
    pub fn class(self) -> Option<&'a str> {
        self.0.get(keys::CLASS).map(String::as_str)
    }

    /// What is scaled by; unless said otherwise concurrency, or CPU for [`HPA`].
    #[must_use]
    pub fn metric(self) -> &'a str {
        match self.0.get(keys::METRIC) {
            Some(metric) => metric,
            None => default_metric(self.class().unwrap_or_default()),
        }
    }

    /// The least pods.
    #[must_use]
    pub fn min_scale(self) -> Option<i32> {
        self.int(keys::MIN_SCALE)
    }

    /// The most pods; 0 is no limit.
    #[must_use]
    pub fn max_scale(self) -> Option<i32> {
        self.int(keys::MAX_SCALE)
    }

    /// The least pods when there are any.
    #[must_use]
    pub fn activation_scale(self) -> Option<i32> {
        self.int(keys::ACTIVATION_SCALE)
    }

    /// The pods to start with. Zero where the cluster does not allow it is as good as nothing.
    #[must_use]
    pub fn initial_scale(self, config: &Autoscaler) -> i32 {
        self.int(keys::INITIAL_SCALE)
            .filter(|scale| *scale != 0 || config.allow_zero_initial_scale)
            .unwrap_or(config.initial_scale)
    }

    /// The target per pod.
    #[must_use]
    pub fn target(self) -> Option<f64> {
        self.float(&[keys::TARGET])
    }

    /// The share of the target that is aimed at, in percent.
    #[must_use]
    pub fn target_utilization_percentage(self) -> Option<f64> {
        self.float(keys::TARGET_UTILIZATION_PERCENTAGE)
    }

    /// Spare capacity below which the activator stays in the path; -1 keeps it there always.
    #[must_use]
    pub fn target_burst_capacity(self) -> Option<f64> {
        self.float(keys::TARGET_BURST_CAPACITY)
    }

    /// The stable window.
    #[must_use]
    pub fn window(self) -> Option<GoDuration> {
        self.duration(&[keys::WINDOW])
    }

    /// The panic window in percent of the stable window.
    #[must_use]
    pub fn panic_window_percentage(self) -> Option<f64> {
        self.float(keys::PANIC_WINDOW_PERCENTAGE)
    }

    /// Demand in percent of the ready capacity from which panic begins.
    #[must_use]
    pub fn panic_threshold_percentage(self) -> Option<f64> {
        self.float(keys::PANIC_THRESHOLD_PERCENTAGE)
    }

    /// How long demand has to stay lower before the scale goes down.
    #[must_use]
    pub fn scale_down_delay(self) -> Option<GoDuration> {
        self.duration(keys::SCALE_DOWN_DELAY)
    }

    /// How long the last pod stays after the decision to go to zero.
    #[must_use]
    pub fn scale_to_zero_pod_retention_period(self) -> Option<GoDuration> {
        self.duration(keys::SCALE_TO_ZERO_POD_RETENTION_PERIOD)
    }

    /// How the metric is averaged.
    #[must_use]
    pub fn aggregation(self) -> Aggregation {
        match lookup(self.0, keys::METRIC_AGGREGATION_ALGORITHM) {
            Some((_, "weighted-exponential" | "weightedExponential")) => Aggregation::WeightedExponential,
            _ => Aggregation::Linear,
        }
    }
}

/// The metric of a class that is not told which.
#[must_use]
pub fn default_metric(class: &str) -> &'static str {
    match class {
        KPA => CONCURRENCY,
        HPA => "cpu",
        _ => "",
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::golden;

    #[test]
    fn golden_annotation_validation() {
        let cases = golden::list("kpa", "annotation_validation");
        let mut failures = Vec::new();
        for case in &cases {
            let given = &case["config"];
            let config = Autoscaler {
                pod_autoscaler_class: given["pod_autoscaler_class"].as_str().unwrap_or_default().to_owned(),
                max_scale_limit: given["max_scale_limit"].as_i64().unwrap_or_default() as i32,
                allow_zero_initial_scale: given["allow_zero_initial_scale"] == true,
                ..Autoscaler::default()
            };
            let annotations: Annotations =
                serde_json::from_value(case["annotations"].clone()).unwrap_or_default();
            let errors = validate(&annotations, &config);
            let via = errors.clone().via_field("metadata.annotations");
            let got = [json!(errors.to_string()), json!(via.to_string())];
            let want = [case["want_error"].clone(), case["want_error_via_metadata_annotations"].clone()];
            if got != want {
                failures.push(format!("{annotations:?}: got {got:?}\nwant {want:?}"));
            }
        }
        golden::report("annotation_validation", cases.len(), &failures);
    }

    #[test]
    fn golden_config_autoscaler() {
        let cases = golden::list("kpa", "config_map");
        let number = |value: f64| match value {
            v if v.is_finite() && v.fract() == 0.0 && v.abs() < 1e15 => json!(v as i64),
            v if v.is_finite() => json!(v),
            v => json!(crate::golang::format_float(v)),
        };
        let nanos = |duration: std::time::Duration| json!(GoDuration::from(duration).0);
        let mut failures = Vec::new();
        for case in &cases {
            let data: Annotations = serde_json::from_value(case["data"].clone()).unwrap_or_default();
            let (error, got) = match Autoscaler::parse(&data) {
                Err(error) => (error.to_string(), Value::Null),
                Ok(c) => (
                    String::new(),
                    json!({
                        "activator-capacity": number(c.activator_capacity),
                        "allow-zero-initial-scale": c.allow_zero_initial_scale,
                        "container-concurrency-target-default": number(c.container_concurrency_target_default),
                        "container-concurrency-target-fraction": number(c.container_concurrency_target_fraction),
                        "enable-scale-to-zero": c.enable_scale_to_zero,
                        "initial-scale": c.initial_scale,
                        "max-scale": c.max_scale,
                        "max-scale-down-rate": number(c.max_scale_down_rate),
                        "max-scale-limit": c.max_scale_limit,
                        "max-scale-up-rate": number(c.max_scale_up_rate),
                        "min-scale": c.min_scale,
                        "panic-threshold-percentage": number(c.panic_threshold_percentage),
                        "panic-window-percentage": number(c.panic_window_percentage),
                        "pod-autoscaler-class": c.pod_autoscaler_class,
                        "requests-per-second-target-default": number(c.rps_target_default),
                        "scale-down-delay-ns": nanos(c.scale_down_delay),
                        "scale-to-zero-grace-period-ns": nanos(c.scale_to_zero_grace_period),
                        "scale-to-zero-pod-retention-period-ns": nanos(c.scale_to_zero_pod_retention_period),
                        "stable-window-ns": nanos(c.stable_window),
                        "target-burst-capacity": number(c.target_burst_capacity),
                        "target-utilization-fixed": number(c.target_utilization),
                    }),
                ),
            };
            if error != case["want_error"] || got != case["want"] {
                failures.push(format!("{data:?}: got {error} {got}\nwant {case}"));
            }
        }
        golden::report("config_map", cases.len(), &failures);
    }

    #[test]
    fn what_does_not_parse_is_not_there() {
        let annotations: Annotations = [
            ("autoscaling.knative.dev/min-scale", "x"),
            ("autoscaling.knative.dev/minScale", "3"),
            ("autoscaling.knative.dev/max-scale", "-2"),
            ("autoscaling.knative.dev/initial-scale", "0"),
            ("autoscaling.knative.dev/metricAggregationAlgorithm", "weightedExponential"),
        ]
        .map(|(k, v)| (k.to_owned(), v.to_owned()))
        .into();
        let scaling = Scaling::new(&annotations);
        assert_eq!(scaling.min_scale(), None);
        assert_eq!(scaling.max_scale(), Some(-2));
        assert_eq!(scaling.initial_scale(&Autoscaler::default()), 1);
        assert_eq!(scaling.aggregation(), Aggregation::WeightedExponential);
    }
}
