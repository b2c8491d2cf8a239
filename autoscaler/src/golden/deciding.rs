//! Evaluations, bounds, activators.

use serde::Deserialize;

use super::{Float, at, check, differ, seconds};
use crate::decider::{
    Decider, DeciderSpec, DeciderStatus, Load, Mode, ScalingMetric, excess_burst_capacity, num_activators,
};
use crate::scaler::{Activity, ActivityChange, ActivityInput, activity, apply_bounds};

#[derive(Debug, Clone, Deserialize)]
struct SpecCase {
    max_scale_up_rate: Float,
    max_scale_down_rate: Float,
    scaling_metric: String,
    target_value: Float,
    total_value: Float,
    target_burst_capacity: Float,
    panic_threshold: Float,
    stable_window_s: Float,
    scale_down_delay_s: Float,
    reachable: bool,
    activation_scale: i32,
}

impl From<&SpecCase> for DeciderSpec {
    fn from(case: &SpecCase) -> Self {
        Self {
            max_scale_up_rate: case.max_scale_up_rate.0,
            max_scale_down_rate: case.max_scale_down_rate.0,
            scaling_metric: ScalingMetric::from_name(&case.scaling_metric),
            target_value: case.target_value.0,
            total_value: case.total_value.0,
            target_burst_capacity: case.target_burst_capacity.0,
            panic_threshold: case.panic_threshold.0,
            stable_window: seconds(case.stable_window_s),
            scale_down_delay: seconds(case.scale_down_delay_s),
            reachable: case.reachable,
            activation_scale: case.activation_scale,
            ..Self::default()
        }
    }
}

#[derive(Debug, Deserialize)]
struct ScaleCase {
    spec: SpecCase,
    ready_at_creation: i32,
    ready_error_at_creation: Option<String>,
    steps: Vec<ScaleStep>,
}

#[derive(Debug, Deserialize)]
struct ScaleStep {
    at_ms: i64,
    update_spec: Option<SpecCase>,
    ready: i32,
    ready_error: Option<String>,
    stable: Float,
    panic: Float,
    metric_error: Option<String>,
    want: ScaleWant,
}

#[derive(Debug, Deserialize)]
struct ScaleWant {
    valid: bool,
    desired: i32,
    ebc: i32,
    in_panic: bool,
    panic_at_ms: Option<i64>,
    max_panic_pods: i32,
}

#[test]
fn golden_scale_scenarios() {
    check("scale_scenarios", |case: &ScaleCase| {
        let mut spec = DeciderSpec::from(&case.spec);
        let ready = if case.ready_error_at_creation.is_some() { 0 } else { case.ready_at_creation };
        let mut decider = Decider::new(&spec, ready, at(0));
        let mut wrong = Vec::new();
        for (number, step) in case.steps.iter().enumerate() {
            if let Some(update) = &step.update_spec {
                spec = DeciderSpec::from(update);
            }
            // A revision without pods is not an error of the count; everything else keeps from deciding.
            let counted = step.ready_error.as_deref().is_none_or(|e| e == "not_found");
            let decision = (counted && step.metric_error.is_none())
                .then(|| {
                    let load = Load { stable: step.stable.0, panic: step.panic.0 };
                    decider.evaluate(&spec, at(step.at_ms), step.ready, load)
                })
                .flatten();
            let want = &step.want;
            let got = decision.map(|d| (d.desired, d.excess_burst_capacity));
            let since = match decider.mode() {
                Mode::Stable => None,
                Mode::Panic { since } => Some(since),
            };
            wrong.extend(differ(
                &format!("step {number}"),
                &want.valid.then_some((want.desired, want.ebc)),
                &got,
            ));
            wrong.extend(differ(&format!("step {number} in panic"), &want.in_panic, &since.is_some()));
            if want.panic_at_ms.is_some() {
                wrong.extend(differ(
                    &format!("step {number} panic since"),
                    &want.panic_at_ms.map(at),
                    &since,
                ));
            }
            wrong.extend(differ(
                &format!("step {number} floor"),
                &want.max_panic_pods,
                &decider.max_panic_pods(),
            ));
        }
        wrong
    });
}

#[test]
fn golden_excess_burst_capacity() {
    #[derive(Debug, Deserialize)]
    struct Case {
        ready: i32,
        total_value: Float,
        target_burst_capacity: Float,
        panic: Float,
        want: i32,
    }
    check("excess_burst_capacity", |case: &Case| {
        let spec = DeciderSpec {
            total_value: case.total_value.0,
            target_burst_capacity: case.target_burst_capacity.0,
            ..DeciderSpec::default()
        };
        differ("ebc", &case.want, &excess_burst_capacity(&spec, case.ready, case.panic.0))
            .into_iter()
            .collect()
    });
}

#[test]
fn golden_initial_decider_status() {
    #[derive(Debug, Deserialize)]
    struct Case {
        initial_scale: i32,
        total_value: Float,
        target_burst_capacity: Float,
        want_desired: i32,
        want_ebc: i32,
    }
    check("initial_decider_status", |case: &Case| {
        let spec = DeciderSpec {
            initial_scale: case.initial_scale,
            total_value: case.total_value.0,
            target_burst_capacity: case.target_burst_capacity.0,
            ..DeciderSpec::default()
        };
        let want = DeciderStatus { desired_scale: case.want_desired, excess_burst_capacity: case.want_ebc };
        differ("status", &want, &DeciderStatus::initial(&spec)).into_iter().collect()
    });
}

#[test]
fn golden_decider_status_update() {
    #[derive(Debug, Deserialize)]
    struct Case {
        old_desired: i32,
        old_ebc: i32,
        new_desired: i32,
        new_ebc: i32,
        want_notify: bool,
    }
    check("decider_status_update", |case: &Case| {
        let old = DeciderStatus { desired_scale: case.old_desired, excess_burst_capacity: case.old_ebc };
        let new = DeciderStatus { desired_scale: case.new_desired, excess_burst_capacity: case.new_ebc };
        differ("notify", &case.want_notify, &old.notifies(new)).into_iter().collect()
    });
}

#[test]
fn golden_apply_bounds() {
    #[derive(Debug, Deserialize)]
    struct Case {
        min: i32,
        max: i32,
        x: i32,
        want: i32,
    }
    check("apply_bounds", |case: &Case| {
        differ("scale", &case.want, &apply_bounds(case.min, case.max, case.x)).into_iter().collect()
    });
}

#[test]
fn golden_num_activators() {
    #[derive(Debug, Deserialize)]
    struct Case {
        ready: i32,
        total_value: Float,
        target_burst_capacity: Float,
        activator_capacity: Float,
        want: i32,
    }
    check("num_activators", |case: &Case| {
        let spec = DeciderSpec {
            total_value: case.total_value.0,
            target_burst_capacity: case.target_burst_capacity.0,
            activator_capacity: case.activator_capacity.0,
            ..DeciderSpec::default()
        };
        differ("activators", &case.want, &num_activators(&spec, case.ready)).into_iter().collect()
    });
}

#[test]
fn golden_active_condition() {
    #[derive(Debug, Deserialize)]
    struct Case {
        want_scale: i32,
        ready: i32,
        min_scale_annotation: String,
        initial_scale_annotation: String,
        scale_target_initialized: bool,
        service_name_set: bool,
        active_status_before: String,
        active_status_after: String,
        reason_after: Option<String>,
        scale_target_initialized_after: bool,
    }
    check("active_condition", |case: &Case| {
        let before = match case.active_status_before.as_str() {
            "True" => Activity::Active,
            "False" => Activity::Inactive,
            _ => Activity::Activating,
        };
        let (change, initialized) = activity(&ActivityInput {
            want: case.want_scale,
            ready: case.ready,
            min: case.min_scale_annotation.parse().unwrap_or(0),
            initial_scale: case.initial_scale_annotation.parse().unwrap_or(1),
            initialized: case.scale_target_initialized,
            has_service: case.service_name_set,
            before,
        });
        let (status, reason) = match change {
            ActivityChange::Keep => (case.active_status_before.as_str(), "before"),
            ActivityChange::Active => ("True", ""),
            ActivityChange::Activating => ("Unknown", "Queued"),
            ActivityChange::NoTraffic => ("False", "NoTraffic"),
            ActivityChange::TimedOut => ("False", "TimedOut"),
        };
        [
            differ("status", &case.active_status_after.as_str(), &status),
            differ("reason", &case.reason_after.as_deref().unwrap_or_default(), &reason),
            differ("initialized", &case.scale_target_initialized_after, &initialized),
        ]
        .into_iter()
        .flatten()
        .collect()
    });
}
