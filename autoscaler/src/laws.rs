//! Laws that hold for every input.

use std::time::Duration;

use proptest::prelude::*;

use crate::decider::{Decider, DeciderSpec, Load, Mode, Reason, ScalingMetric};
use crate::scaler::{Activity, ScaleInput, Step, scale};
use crate::time::Time;
use crate::window::{Algorithm, MaxWindow, Window};

fn spec() -> impl Strategy<Value = DeciderSpec> {
    let rates = (1.01..1000.0f64, 1.01..10.0f64);
    let load = (0.01..200.0f64, 1.0..2.0f64, prop_oneof![Just(-1.0), Just(0.0), 1.0..500.0f64]);
    let rest = (1.1..10.0f64, 6u64..120, 0u64..60, any::<bool>(), 0..5i32);
    (rates, load, rest).prop_map(|(rates, load, rest)| DeciderSpec {
        max_scale_up_rate: rates.0,
        max_scale_down_rate: rates.1,
        scaling_metric: ScalingMetric::Concurrency,
        target_value: load.0,
        total_value: load.0 * load.1,
        target_burst_capacity: load.2,
        activator_capacity: 100.0,
        panic_threshold: rest.0,
        stable_window: Duration::from_secs(rest.1),
        scale_down_delay: Duration::from_secs(rest.2),
        initial_scale: 1,
        reachable: rest.3,
        activation_scale: rest.4,
    })
}

/// Milliseconds since the step before, ready pods, loads.
type Trace = Vec<(i64, i32, f64, f64)>;

fn trace() -> impl Strategy<Value = Trace> {
    prop::collection::vec((1..30_000i64, 0..50i32, 0.0..5000.0f64, 0.0..5000.0f64), 1..60)
}

fn run(spec: &DeciderSpec, trace: &Trace) -> Vec<(i32, crate::decider::Decision)> {
    let mut now = 946_684_800_000;
    let mut decider = Decider::new(spec, trace[0].1, Time::from_millis(now));
    let mut decisions = Vec::new();
    for &(step, ready, stable, panic) in trace {
        now += step;
        let decision = decider.evaluate(spec, Time::from_millis(now), ready, Load { stable, panic });
        decisions.push((ready, decision.expect("numbers in, a decision out")));
    }
    decisions
}

fn input() -> impl Strategy<Value = ScaleInput> {
    let wish = (-1..60i32, 0..5i32, 0..20i32, 0..8i32, any::<bool>(), any::<bool>());
    let activity = prop_oneof![Just(Activity::Active), Just(Activity::Activating), Just(Activity::Inactive)];
    let times = (0..900u64, 6..120u64, 1..700u64, 1..60u64, 0..60u64, 0..90u64);
    let flags = (any::<bool>(), any::<bool>(), any::<bool>(), any::<bool>());
    (wish, activity, times, flags).prop_map(|(wish, activity, times, flags)| ScaleInput {
        desired: wish.0,
        min: wish.1,
        max: wish.2,
        initial_scale: wish.3,
        initialized: wish.4,
        unreachable: wish.5,
        activity,
        activity_age: Duration::from_secs(times.0),
        enable_scale_to_zero: flags.0,
        stable_window: Duration::from_secs(times.1),
        activation_timeout: Duration::from_secs(times.2),
        grace: Duration::from_secs(times.3),
        retention: Duration::from_secs(times.4),
        proxy_mode: flags.1,
        proxy_for: Duration::from_secs(times.5),
        probe_activator: flags.2,
        probe: Some(flags.3),
    })
}

proptest! {
    #[test]
    fn a_newly_computed_scale_respects_the_rates(spec in spec(), trace in trace()) {
        for (ready, decision) in run(&spec, &trace) {
            let ready = f64::from(ready.max(1));
            if matches!(decision.reason, Reason::Stable(_) | Reason::Panic(_)) {
                let up = (spec.max_scale_up_rate * ready).ceil().max(f64::from(spec.activation_scale));
                prop_assert!(f64::from(decision.desired) <= up);
            }
            if spec.reachable {
                let down = (ready / spec.max_scale_down_rate).floor();
                prop_assert!(f64::from(decision.desired) >= down.min((spec.max_scale_up_rate * ready).ceil()));
            }
        }
    }

    #[test]
    fn a_panic_never_scales_down(spec in spec(), trace in trace()) {
        let mut before: Option<i32> = None;
        let spec = DeciderSpec { scale_down_delay: Duration::ZERO, ..spec };
        for (_, decision) in run(&spec, &trace) {
            let panicking = matches!(decision.mode, Mode::Panic { .. });
            if let (Some(before), true) = (before, panicking) {
                prop_assert!(decision.desired >= before);
            }
            before = panicking.then_some(decision.desired);
        }
    }

    #[test]
    fn the_same_trace_gives_the_same_decisions(spec in spec(), trace in trace()) {
        prop_assert_eq!(run(&spec, &trace), run(&spec, &trace));
    }

    #[test]
    fn what_is_applied_is_within_bounds_and_never_negative(input in input()) {
        if let Step::Scale(decision) = scale(&input) && decision.apply {
            let raised = if input.initialized || input.unreachable { 0 } else { input.initial_scale };
            let min = if raised > 1 { raised.max(input.min) } else { input.min };
            // An upper bound below the lower one holds from above, as in Knative.
            let low = if input.max == 0 { min } else { min.min(input.max) };
            prop_assert!(decision.want >= low.max(0));
            if decision.want > 1 {
                prop_assert!(input.max == 0 || decision.want <= input.max.max(min));
            }
        }
    }

    #[test]
    fn the_last_pod_goes_only_when_allowed_and_out_of_use(input in input()) {
        if let Step::Scale(decision) = scale(&input) && decision.apply && decision.want == 0 {
            prop_assert!(input.enable_scale_to_zero);
            match input.activity {
                Activity::Active => prop_assert!(false, "an active revision is deactivated first"),
                Activity::Activating => prop_assert!(input.activity_age > input.activation_timeout),
                Activity::Inactive => {
                    prop_assert!(!input.probe_activator || input.probe == Some(true));
                    prop_assert!(input.activity_age >= input.retention);
                    prop_assert!(input.activity_age >= input.grace || input.proxy_for >= input.grace);
                }
            }
        }
    }

    #[test]
    fn a_linear_average_lies_within_what_was_recorded(
        window in 6u64..70,
        values in prop::collection::vec((1..20i64, 0.0..1000.0f64), 1..80),
    ) {
        let second = Duration::from_secs(1);
        let mut buckets = Window::new(Algorithm::Linear, Duration::from_secs(window), second);
        let (mut now, mut largest) = (946_684_800_000, 0.0f64);
        for (step, value) in values {
            now += step * 1000;
            largest = largest.max(value);
            buckets.record(Time::from_millis(now), value);
            let average = buckets.average(Time::from_millis(now));
            prop_assert!(average >= -1e-6 && average <= largest + 1e-6);
            prop_assert!(!buckets.is_empty(Time::from_millis(now)));
        }
        let silence = now + (window as i64 + 1) * 1000;
        prop_assert!(buckets.is_empty(Time::from_millis(silence)));
    }

    #[test]
    fn a_maximum_is_that_of_the_recent_values(
        seconds in 2u64..40,
        values in prop::collection::vec((1..4i64, 0..100i32), 1..80),
    ) {
        let step = Duration::from_secs(2);
        let mut window = MaxWindow::new(Duration::from_secs(seconds), step);
        let slots = seconds.div_ceil(2) as i64;
        let mut seen: Vec<(i64, i32)> = Vec::new();
        let mut index = 473_342_400;
        for (gap, value) in values {
            index += gap;
            seen.push((index, value));
            let want = seen.iter().filter(|(at, _)| index - at < slots).map(|&(_, v)| v).max();
            prop_assert_eq!(Some(window.record(Time::from_millis(index * 2000), value)), want);
        }
    }
}
