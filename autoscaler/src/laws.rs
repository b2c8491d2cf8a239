//! Laws that hold for every input.

use std::time::Duration;

use proptest::prelude::*;

use crate::decider::{
    Decider, DeciderSpec, DeciderStatus, Limit, Load, Mode, Reason, ScalingMetric, excess_burst_capacity,
    num_activators,
};
use crate::scaler::{
    Activity, ActivityChange, ActivityInput, ScaleInput, ScaleReason, Step, activity, bounded, scale,
};
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

/// Seconds between values, and values; some come late.
fn values() -> impl Strategy<Value = Vec<(i64, f64)>> {
    prop::collection::vec((-5..20i64, 0.0..1000.0f64), 1..80)
}

/// The linear average by its definition: the sum of the seconds in the window over how many of them there may be.
fn linear_by_definition(window: i64, recorded: &[(i64, f64)], now: i64) -> f64 {
    let (mut first, mut last) = (recorded[0].0, recorded[0].0);
    let mut kept: Vec<(i64, f64)> = Vec::new();
    for &(at, value) in recorded {
        if at + window <= last {
            continue;
        }
        first = if at - last >= window { at } else { first.min(at) };
        last = last.max(at);
        kept.push((at, value));
    }
    if now - last >= window {
        return 0.0;
    }
    let sum: f64 = kept.iter().filter(|(at, _)| *at > now - window).map(|(_, value)| value).sum();
    sum / (last - first + 1).min(window - (now - last)) as f64
}

fn seconds(seconds: i64) -> Time {
    Time::from_millis((946_684_800 + seconds) * 1000)
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

    #[test]
    fn a_reason_names_what_gave_the_scale(spec in spec(), trace in trace()) {
        for (ready, decision) in run(&spec, &trace) {
            let pods = f64::from(ready.max(1));
            let desired = f64::from(decision.desired);
            let panicking = matches!(decision.mode, Mode::Panic { .. });
            let up = (spec.max_scale_up_rate * pods).ceil();
            let (window, limit) = match decision.reason {
                Reason::Panic(limit) => (decision.panic_pods, limit),
                Reason::Stable(limit) => (decision.stable_pods, limit),
                _ => (decision.stable_pods, None),
            };
            match limit {
                Some(Limit::ScaleUpRate) => prop_assert_eq!(desired, up),
                Some(Limit::ScaleDownRate) => {
                    prop_assert!(spec.reachable && window < desired);
                    prop_assert_eq!(desired, (pods / spec.max_scale_down_rate).floor());
                }
                Some(Limit::ActivationScale) => {
                    prop_assert_eq!(decision.desired, spec.activation_scale);
                    prop_assert!(window > 0.0);
                }
                None => {}
            }
            match decision.reason {
                Reason::Stable(limit) => prop_assert!(limit.is_some() || desired == window),
                Reason::Panic(limit) => {
                    prop_assert!(panicking && decision.panic_pods > decision.stable_pods);
                    prop_assert!(limit.is_some() || desired == window);
                }
                Reason::PanicFloor => prop_assert!(panicking),
                Reason::ScaleDownDelay => prop_assert!(spec.reachable && !spec.scale_down_delay.is_zero()),
            }
        }
    }

    #[test]
    fn a_panic_begins_at_the_threshold_and_ends_after_a_calm_stable_window(spec in spec(), trace in trace()) {
        let mut now = 946_684_800_000;
        let start = Time::from_millis(now);
        let mut before = if trace[0].1 > 1 { Mode::Panic { since: start } } else { Mode::Stable };
        for ((ready, decision), step) in run(&spec, &trace).into_iter().zip(&trace) {
            now += step.0;
            let at = Time::from_millis(now);
            let over = decision.panic_pods / f64::from(ready.max(1)) >= spec.panic_threshold;
            let calm = matches!(before, Mode::Panic { since } if since.after(spec.stable_window) < at);
            let want = match before {
                _ if over => Mode::Panic { since: at },
                _ if calm => Mode::Stable,
                same => same,
            };
            prop_assert_eq!(decision.mode, want);
            before = decision.mode;
        }
    }

    #[test]
    fn a_delay_holds_the_largest_recent_scale_and_touches_nothing_else(spec in spec(), trace in trace()) {
        let undelayed = DeciderSpec { scale_down_delay: Duration::ZERO, ..spec.clone() };
        let slots = spec.scale_down_delay.as_secs().div_ceil(2).cast_signed();
        let mut seen: Vec<(i64, i32)> = Vec::new();
        let mut now = 946_684_800_000;
        let both = run(&spec, &trace).into_iter().zip(run(&undelayed, &trace));
        for (((_, with), (_, without)), step) in both.zip(&trace) {
            now += step.0;
            let index = now / 2000;
            seen.push((index, without.desired));
            let recent = seen.iter().filter(|(at, _)| index - at < slots).map(|&(_, scale)| scale).max();
            let want = if spec.reachable { recent.unwrap_or(without.desired) } else { without.desired };
            prop_assert_eq!(with.desired, want);
            prop_assert_eq!(with.mode, without.mode);
            prop_assert_eq!(with.excess_burst_capacity, without.excess_burst_capacity);
        }
    }

    #[test]
    fn more_load_never_wants_fewer_pods(
        spec in spec(), ready in 0..50i32, load in (0.0..5000.0f64, 0.0..5000.0f64), more in (0.0..500.0f64, 0.0..500.0f64),
    ) {
        let start = seconds(0);
        let desired = |load| {
            Decider::new(&spec, ready, start).evaluate(&spec, seconds(2), ready, load).map(|d| d.desired)
        };
        let less = desired(Load { stable: load.0, panic: load.1 });
        let greater = desired(Load { stable: load.0 + more.0, panic: load.1 + more.1 });
        prop_assert!(less <= greater);
    }

    #[test]
    fn what_is_no_number_decides_nothing(spec in spec(), trace in trace(), ready in 0..50i32) {
        let mut decider = Decider::new(&spec, ready, seconds(0));
        let before = (decider.mode(), decider.max_panic_pods());
        for load in [
            Load { stable: f64::NAN, panic: trace[0].3 },
            Load { stable: trace[0].2, panic: f64::NAN },
        ] {
            prop_assert_eq!(decider.evaluate(&spec, seconds(600), ready, load), None);
        }
        prop_assert_eq!((decider.mode(), decider.max_panic_pods()), before);
    }

    #[test]
    fn burst_capacity_falls_with_load_and_grows_with_pods(
        spec in spec(), ready in 0..500i32, load in 0.0..5000.0f64, more in 0.0..500.0f64,
    ) {
        let capacity = excess_burst_capacity(&spec, ready, load);
        prop_assert!(excess_burst_capacity(&spec, ready, load + more) <= capacity);
        prop_assert!(excess_burst_capacity(&spec, ready + 1, load) >= capacity);
        if spec.target_burst_capacity <= 0.0 {
            prop_assert_eq!(f64::from(capacity), spec.target_burst_capacity);
        }
        let activators = num_activators(&spec, ready);
        prop_assert!(activators >= 2 && num_activators(&spec, ready + 1) >= activators);
    }

    #[test]
    fn the_reconciler_hears_of_another_scale_or_sign_only(
        scales in (-1..5i32, -1..5i32), capacities in (-50..50i32, -50..50i32),
    ) {
        let status = |desired_scale, excess_burst_capacity| DeciderStatus { desired_scale, excess_burst_capacity };
        let (before, next) = (status(scales.0, capacities.0), status(scales.1, capacities.1));
        let differs = scales.0 != scales.1 || (capacities.0 < 0) != (capacities.1 < 0);
        prop_assert_eq!(before.notifies(next), differs);
        prop_assert_eq!(next.notifies(before), differs);
    }

    #[test]
    fn whoever_waits_is_looked_at_again(input in input()) {
        let Step::Scale(decision) = scale(&input) else { return Err(TestCaseError::fail("it was answered")) };
        match decision.reason {
            ScaleReason::Activating | ScaleReason::StayingActive | ScaleReason::Retention | ScaleReason::Grace => {
                prop_assert!(decision.requeue.is_some_and(|wait| !wait.is_zero()));
            }
            ScaleReason::ActivatorNotInPath => prop_assert!(decision.probe_until_success && !decision.apply),
            ScaleReason::NoDecision => prop_assert!(input.desired < 0 && !decision.apply),
            ScaleReason::Deactivating => prop_assert!(!decision.apply),
            _ => prop_assert!(decision.apply),
        }
        let unanswered = ScaleInput { probe: None, ..input.clone() };
        if scale(&unanswered) == Step::ProbeActivator {
            prop_assert!(input.probe_activator && input.activity == Activity::Inactive && bounded(&input).0 == 0);
        }
    }

    #[test]
    fn an_idle_revision_sleeps_in_time(input in input()) {
        let mut input = ScaleInput {
            desired: 0, min: 0, initialized: true, enable_scale_to_zero: true, proxy_mode: false,
            activity: Activity::Active, activity_age: Duration::ZERO, proxy_for: Duration::ZERO, probe: Some(true),
            ..input
        };
        let mut passed = Duration::ZERO;
        let mut asleep = false;
        for _ in 0..8 {
            let Step::Scale(decision) = scale(&input) else { break };
            if decision.want == 0 && decision.apply {
                asleep = true;
                break;
            }
            if decision.reason == ScaleReason::Deactivating {
                (input.activity, input.activity_age, input.proxy_mode) = (Activity::Inactive, Duration::ZERO, true);
                continue;
            }
            let wait = decision.requeue.unwrap_or_default();
            passed += wait;
            input.activity_age += wait;
            if input.proxy_mode {
                input.proxy_for += wait;
            }
        }
        prop_assert!(asleep);
        prop_assert_eq!(passed, input.stable_window + input.grace.max(input.retention));
    }

    #[test]
    fn activity_follows_the_pods_and_initialisation_stays(
        want in -1..20i32, ready in 0..20i32, min in 0..5i32, initial_scale in 0..8i32,
        flags in (any::<bool>(), any::<bool>()), before in input().prop_map(|input| input.activity),
    ) {
        let (initialized, has_service) = flags;
        let (change, now_initialized) =
            activity(&ActivityInput { want, ready, min, initial_scale, initialized, has_service, before });
        prop_assert!(now_initialized || !initialized);
        let threshold = min.max(if initialized { 1 } else { initial_scale });
        match change {
            ActivityChange::Active => prop_assert!(want != 0 && ready >= threshold),
            ActivityChange::Activating => prop_assert!(want != 0 && ready < threshold),
            ActivityChange::TimedOut => prop_assert!(want == 0 && before == Activity::Activating),
            ActivityChange::NoTraffic => prop_assert!(want <= 0 || threshold == 0),
            ActivityChange::Keep => prop_assert!(want < 0 && before == Activity::Inactive),
        }
    }

    #[test]
    fn a_linear_average_is_that_of_its_definition(window in 6i64..70, values in values(), silence in 0..80i64) {
        let mut buckets =
            Window::new(Algorithm::Linear, Duration::from_secs(window.cast_unsigned()), Duration::from_secs(1));
        let (mut latest, mut recorded) = (0, Vec::new());
        for (step, value) in values {
            let at = latest + step;
            latest = latest.max(at);
            recorded.push((at, value));
            buckets.record(seconds(at), value);
        }
        // The first may have come before the beginning.
        let last = recorded.iter().map(|&(at, _)| at).max().unwrap_or(0);
        let now = last + silence;
        let want = linear_by_definition(window, &recorded, now);
        prop_assert!((buckets.average(seconds(now)) - want).abs() < 1e-5);
        prop_assert_eq!(buckets.is_empty(seconds(now)), silence > window);
    }

    #[test]
    fn a_weighted_average_stays_below_the_largest_and_fades(window in 6u64..70, values in values()) {
        let length = Duration::from_secs(window);
        let mut buckets = Window::new(Algorithm::WeightedExponential, length, Duration::from_secs(1));
        let (mut now, mut largest) = (0, 0.0f64);
        for (step, value) in values {
            now += step.abs() + 1;
            largest = largest.max(value);
            buckets.record(seconds(now), value);
            let average = buckets.average(seconds(now));
            prop_assert!(average >= 0.0 && average <= largest + 1e-9);
        }
        let mut before = buckets.average(seconds(now));
        for silence in 1..=window.cast_signed() + 1 {
            let average = buckets.average(seconds(now + silence));
            prop_assert!(average <= before);
            before = average;
        }
        prop_assert_eq!(before, 0.0);
    }

    #[test]
    fn a_shortened_window_is_one_that_was_always_short(
        lengths in (6u64..40, 1u64..40), values in prop::collection::vec(0.0..1000.0f64, 80..120),
    ) {
        let second = Duration::from_secs(1);
        let (short, long) = (Duration::from_secs(lengths.0), Duration::from_secs(lengths.0 + lengths.1));
        for algorithm in [Algorithm::Linear, Algorithm::WeightedExponential] {
            let mut shortened = Window::new(algorithm, long, second);
            let mut always = Window::new(algorithm, short, second);
            let mut now = seconds(0);
            for (at, &value) in (0..).zip(&values) {
                now = seconds(at);
                shortened.record(now, value);
                always.record(now, value);
            }
            shortened.resize(now, short);
            prop_assert!((shortened.average(now) - always.average(now)).abs() < 1e-5);
            let same = shortened.average(now);
            shortened.resize(now, short);
            prop_assert_eq!(shortened.average(now), same);
        }
    }
}
