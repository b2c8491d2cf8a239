//! Worked examples of Knative's rules, many of them those of its own unit tests.

use std::time::Duration;

use crate::decider::{Decider, DeciderSpec, DeciderStatus, Load, Mode, num_activators};
use crate::scaler::{Activity, ScaleInput, Step, scale};
use crate::time::Time;
use crate::window::{Algorithm, MaxWindow, Window, round_to_6_digits, smoothing_coefficient};

/// So many seconds after a time that minutes divide.
fn at(seconds: f64) -> Time {
    Time::from_millis(946_684_800_000 + (seconds * 1000.0).round() as i64)
}

fn secs(seconds: u64) -> Duration {
    Duration::from_secs(seconds)
}

/// Knative's defaults.
fn defaults() -> DeciderSpec {
    DeciderSpec::default()
}

/// What Knative's unit tests use.
fn tested(target: f64, burst: f64) -> DeciderSpec {
    DeciderSpec {
        max_scale_up_rate: 10.0,
        max_scale_down_rate: 10.0,
        target_value: target,
        total_value: target / 0.75,
        target_burst_capacity: burst,
        ..defaults()
    }
}

/// Evaluates once; returns wanted pods, burst capacity and whether it panics then.
fn step(
    decider: &mut Decider,
    spec: &DeciderSpec,
    seconds: f64,
    ready: i32,
    stable: f64,
    panic: f64,
) -> (i32, i32, bool) {
    let decision = decider.evaluate(spec, at(seconds), ready, Load { stable, panic }).unwrap();
    (decision.desired, decision.excess_burst_capacity, matches!(decision.mode, Mode::Panic { .. }))
}

fn once(spec: &DeciderSpec, ready: i32, stable: f64, panic: f64) -> (i32, i32, bool) {
    step(&mut Decider::new(spec, 0, at(0.0)), spec, 0.0, ready, stable, panic)
}

#[test]
fn one_evaluation() {
    let (none, some) = (false, true);
    let active = |spec, activation_scale| DeciderSpec { activation_scale, ..spec };
    let slow_up = DeciderSpec { max_scale_up_rate: 1.1, ..tested(1.0, 1982.0) };
    let slow_down = DeciderSpec { max_scale_down_rate: 1.1, ..tested(10.0, 1982.0) };
    let unreachable = |spec| DeciderSpec { reachable: false, ..spec };
    let burst = |target_burst_capacity| DeciderSpec { target_burst_capacity, ..defaults() };
    let rows = [
        (tested(10.0, 101.0), 1, 50.0, 10.0, (5, -98, none)),
        (tested(10.0, 101.0), 1, 100.0, 99.0, (10, -187, some)),
        (tested(1.0, 98.0), 10, 11.0, 25.0, (25, -110, some)),
        (tested(10.0, 98.0), 8, 100.0, 100.0, (10, -92, none)),
        (tested(10.0, 98.0), 8, 50.0, 50.0, (5, -42, none)),
        (tested(10.0, 75.0), 1, 1.0, 0.0, (1, -62, none)),
        (tested(10.0, 75.0), 1, 0.0, 0.0, (0, -62, none)),
        (active(tested(10.0, 75.0), 2), 1, 1.0, 0.0, (2, -62, none)),
        (active(tested(10.0, 75.0), 2), 1, 0.0, 0.0, (0, -62, none)),
        (tested(181.0, -1.0), 1, 21.0, 26.0, (1, -1, none)),
        (tested(10.0, 0.0), 1, 50.0, 49.0, (5, 0, some)),
        (slow_up, 2, 3.0, 3.1, (3, -1983, some)),
        (slow_down.clone(), 100, 1.0, 1.0, (90, -650, none)),
        (unreachable(slow_down), 100, 1.0, 1.0, (1, -650, none)),
        (tested(10.0, 84.0), 1, 50.0, 100.0, (10, -171, some)),
        (tested(10.0, 61.0), 1, 1000.0, 1001.0, (10, -1049, some)),
        (tested(10.0, 61.0), 100, 1.0, 1.0, (10, 1271, none)),
        (tested(10.0, 81.0), 0, 1000.0, 888.0, (10, -969, some)),
        (defaults(), 1, 70.0, 70.0, (1, -181, none)),
        (defaults(), 1, 70.0, 70.000_001, (2, -182, some)),
        (defaults(), 9, 0.0, 0.0, (4, 689, none)),
        (defaults(), 3, 0.0, 0.0, (1, 89, none)),
        (defaults(), 1, 0.0, 0.0, (0, -111, none)),
        (defaults(), 0, 0.0, 0.0, (0, -211, none)),
        (defaults(), 3, 89.0, 89.0, (2, 0, none)),
        (defaults(), 3, 89.0, 89.01, (2, -1, none)),
        (unreachable(defaults()), 100, 0.0, 0.0, (0, 9789, none)),
        (DeciderSpec { max_scale_up_rate: 2.0, ..active(defaults(), 50) }, 0, 1.0, 1.0, (50, -212, none)),
        (active(defaults(), 5), 8, 0.0, 0.0, (4, 589, none)),
        (active(defaults(), 5), 4, 0.001, 0.0, (5, 189, none)),
        (burst(0.5), 1, 99.5, 99.5, (2, 0, some)),
        (burst(0.5), 1, 99.6, 99.6, (2, -1, some)),
        (burst(-5.0), 10, 0.0, 0.0, (5, -1, none)),
        (DeciderSpec { target_value: 100.0, ..burst(1.0) }, 2, 198.0, 198.0, (2, 1, none)),
        (DeciderSpec { target_value: 0.01, total_value: 1.0, ..defaults() }, 1, 0.3, 0.3, (30, -211, some)),
        // More requests left than came: as good as none.
        (defaults(), 4, -3.0, -1.5, (2, 190, none)),
        (DeciderSpec { panic_threshold: -1.0, ..defaults() }, 1, 0.0, 0.0, (0, -111, some)),
    ];
    for (number, (spec, ready, stable, panic, want)) in rows.into_iter().enumerate() {
        assert_eq!(once(&spec, ready, stable, panic), want, "row {number}");
    }
}

#[test]
fn what_is_no_number_is_no_decision_and_no_capacity() {
    let spec = defaults();
    let mut decider = Decider::new(&spec, 0, at(0.0));
    for (stable, panic) in [(f64::NAN, 1.0), (1.0, f64::NAN)] {
        assert_eq!(decider.evaluate(&spec, at(2.0), 1, Load { stable, panic }), None);
    }
    let spec = DeciderSpec { target_value: f64::NAN, ..spec };
    assert_eq!(decider.evaluate(&spec, at(4.0), 1, Load { stable: 1.0, panic: 1.0 }), None);
    let status = DeciderStatus::initial(&DeciderSpec { target_burst_capacity: f64::NAN, ..defaults() });
    assert!(status.excess_burst_capacity < 0);
    // Endless load is as much as the rate allows.
    let rates = DeciderSpec { max_scale_up_rate: f64::NAN, max_scale_down_rate: f64::NAN, ..defaults() };
    assert_eq!(once(&rates, 4, 100.0, 0.0).0, 2);
    assert_eq!(once(&defaults(), 2, f64::INFINITY, 1.0).0, 2000);
}

#[test]
fn a_panic_lasts_a_stable_window_from_the_last_excess() {
    let spec = tested(1.0, 98.0);
    let mut decider = Decider::new(&spec, 0, at(0.0));
    assert_eq!(step(&mut decider, &spec, 0.0, 10, 11.0, 25.0), (25, -110, true));
    assert_eq!(step(&mut decider, &spec, 30.0, 40, 30.0, 41.0), (41, -86, true));
    assert_eq!(step(&mut decider, &spec, 62.0, 55, 50.0, 56.0), (50, -81, false));

    let mut decider = Decider::new(&spec, 0, at(0.0));
    assert_eq!(step(&mut decider, &spec, 0.0, 10, 11.0, 25.0).0, 25);
    assert_eq!(step(&mut decider, &spec, 30.0, 40, 30.0, 80.0), (80, -125, true));
    assert_eq!(decider.mode(), Mode::Panic { since: at(30.0) });

    let spec = tested(10.0, 93.0);
    let mut decider = Decider::new(&spec, 0, at(0.0));
    assert_eq!(step(&mut decider, &spec, 0.0, 1, 100.0, 100.0), (10, -180, true));
    assert_eq!(step(&mut decider, &spec, 0.001, 10, 100.0, 1000.0), (100, -960, true));
    assert_eq!(step(&mut decider, &spec, 30.0, 10, 1.0, 1.0), (100, 39, true));
    assert_eq!(
        step(&mut decider, &spec, 60.001, 10, 1.0, 1.0),
        (100, 39, true),
        "exactly a window is not more"
    );
    assert_eq!(step(&mut decider, &spec, 60.002, 10, 1.0, 1.0), (1, 39, false));

    let spec = defaults();
    let mut decider = Decider::new(&spec, 0, at(0.0));
    assert_eq!(step(&mut decider, &spec, 0.0, 1, 0.0, 200.0), (3, -311, true));
    assert_eq!(step(&mut decider, &spec, 60.0, 3, 10.0, 10.0), (3, 79, true));
    assert_eq!(step(&mut decider, &spec, 60.001, 3, 10.0, 10.0), (1, 79, false));
}

#[test]
fn pods_that_are_there_at_the_beginning_stay_for_a_stable_window() {
    let spec = defaults();
    let mut decider = Decider::new(&spec, 2, at(0.0));
    for seconds in [2.0, 60.0] {
        assert_eq!(step(&mut decider, &spec, seconds, 2, 0.0, 0.0), (2, -11, true));
    }
    assert_eq!(step(&mut decider, &spec, 60.001, 2, 0.0, 0.0), (1, -11, false));
    assert_eq!(step(&mut decider, &spec, 62.0, 1, 0.0, 0.0), (0, -111, false));
    // One pod is no reason for a panic, but counts in the next one.
    let mut decider = Decider::new(&spec, 1, at(0.0));
    assert_eq!((decider.mode(), decider.max_panic_pods()), (Mode::Stable, 1));
    assert_eq!(step(&mut decider, &spec, 2.0, 1, 0.0, 0.0).0, 0);
}

#[test]
fn a_scale_down_waits_for_its_delay() {
    let delayed =
        |delay| DeciderSpec { panic_threshold: 100.0, scale_down_delay: secs(delay), ..tested(10.0, 0.0) };
    let run = |spec: &DeciderSpec, steps: &[(f64, f64, i32)]| {
        let mut decider = Decider::new(spec, 0, at(0.0));
        for &(seconds, load, want) in steps {
            let got = step(&mut decider, spec, seconds, 1, load, load).0;
            assert_eq!(got, want, "at {seconds}");
        }
        decider
    };
    run(&delayed(300), &[(2.0, 40.0, 4), (300.0, 0.0, 4), (302.0, 0.0, 0)]);
    let steps = [(540.0, 40.0, 4), (600.0, 30.0, 4), (660.0, 0.0, 4), (840.0, 0.0, 3), (900.0, 0.0, 0)];
    run(&delayed(300), &steps);
    run(&delayed(0), &[(0.0, 40.0, 4), (0.5, 20.0, 2)]);
    // A delay as short as a step still spans that step.
    run(&delayed(1), &[(0.0, 40.0, 4), (1.5, 20.0, 4), (2.0, 20.0, 2)]);

    // What no route leads to does not wait, and is not remembered.
    let spec = delayed(300);
    let mut decider = run(&spec, &[(2.0, 40.0, 4), (60.0, 0.0, 4)]);
    let unreachable = DeciderSpec { reachable: false, ..spec.clone() };
    assert_eq!(step(&mut decider, &unreachable, 62.0, 4, 0.0, 0.0).0, 0);
    assert_eq!(step(&mut decider, &unreachable, 64.0, 4, 90.0, 90.0).0, 9);
    assert_eq!(step(&mut decider, &spec, 66.0, 4, 0.0, 0.0).0, 4);

    // A delay that comes later has no effect.
    let mut decider = run(&delayed(0), &[(0.0, 40.0, 4)]);
    assert_eq!(step(&mut decider, &delayed(300), 2.0, 4, 5.0, 5.0).0, 1);
}

#[test]
fn activators_and_first_status() {
    let spec =
        |total_value, target_burst_capacity| DeciderSpec { total_value, target_burst_capacity, ..defaults() };
    let rows = [(0, 200.0, 2), (1, 200.0, 3), (100, 0.0, 2), (5, -1.0, 5), (15, 200.0, 17), (-1, 200.0, 2)];
    for (ready, burst, want) in rows {
        assert_eq!(num_activators(&spec(100.0, burst), ready), want, "{ready} {burst}");
    }
    assert_eq!(num_activators(&DeciderSpec { activator_capacity: 0.3, ..spec(0.1, -1.0) }, 30), 10);
    let status = |initial_scale, total, burst| {
        DeciderStatus::initial(&DeciderSpec { initial_scale, ..spec(total, burst) }).excess_burst_capacity
    };
    assert_eq!([status(2, 25.0, 42.0), status(1, 7.5, 0.5), status(1, 7.5, 211.9)], [8, 7, -204]);
    assert_eq!([status(3, 9.0, -1.0), status(3, 9.0, 0.0)], [-1, 0]);
}

/// Records `(time, value)`.
fn record(window: &mut Window, values: &[(f64, f64)]) {
    for &(seconds, value) in values {
        window.record(at(seconds), value);
    }
}

#[test]
fn linear_averages() {
    let new = |seconds| Window::new(Algorithm::Linear, secs(seconds), secs(1));
    let mut window = new(5);
    record(&mut window, &[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 5.0)]);
    for (seconds, want) in [(4.0, 3.0), (3.6, 3.0), (6.0, 4.0), (10.0, 0.0)] {
        assert_eq!(window.average(at(seconds)), want, "at {seconds}");
    }
    record(&mut window, &[(6.0, 91.0)]);
    assert_eq!(window.average(at(6.0)), 20.6);
    record(&mut window, &[(60.0, 1984.0), (57.0, 4.0)]);
    assert_eq!(window.average(at(60.0)), 497.0);
    record(&mut window, &[(61.0, 5.0)]);
    assert_eq!(window.average(at(61.0)), 398.6);
    record(&mut window, &[(58.0, 10.0)]);
    assert_eq!(window.average(at(61.0)), 400.6);
    record(&mut window, &[(56.0, 10.0), (55.0, 10.0)]);
    assert_eq!(window.average(at(61.0)), 400.6, "a whole window late");
    record(&mut window, &[(66.0, 10.0)]);
    assert_eq!(window.average(at(66.0)), 10.0, "a window of silence begins anew");

    let mut window = new(6);
    record(&mut window, &[(0.0, 12.0)]);
    assert_eq!([1.0, 5.0, 6.0].map(|seconds| window.average(at(seconds))), [12.0, 12.0, 0.0]);
    assert_eq!([6.0, 6.9, 7.0].map(|seconds| window.is_empty(at(seconds))), [false, false, true]);
    let mut window = new(10);
    record(&mut window, &[(0.0, 10.0), (1.0, 10.0), (6.0, 10.0)]);
    assert_eq!([6.0, 8.0, 11.0].map(|seconds| window.average(at(seconds))), [4.285_714, 4.285_714, 2.0]);
    assert_eq!(round_to_6_digits(-0.000_000_5), -0.000_001);
}

#[test]
fn resized_windows() {
    let new = |seconds| Window::new(Algorithm::Linear, secs(seconds), secs(1));
    let mut window = new(5);
    record(&mut window, &[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 5.0), (5.0, 6.0)]);
    window.resize(at(5.0), secs(10));
    assert_eq!(window.average(at(5.0)), 4.0);
    record(&mut window, &[(6.0, 7.0)]);
    assert_eq!(window.average(at(6.0)), 4.5);
    window.resize(at(6.0), secs(4));
    assert_eq!(window.average(at(6.0)), 5.5);

    let mut window = new(60);
    record(&mut window, &[(0.0, 60.0)]);
    window.resize(at(1.0), secs(120));
    assert_eq!(window.average(at(1.0)), 1.0);
    record(&mut window, &[(2.0, 60.0)]);
    assert_eq!(window.average(at(2.0)), 1.935_484);

    let mut window = new(5);
    record(&mut window, &[(0.0, 10.0)]);
    window.resize(at(5.0), secs(8));
    assert_eq!(window.average(at(5.0)), 3.333_333);
    record(&mut window, &[(6.0, 1.0)]);
    assert_eq!(window.average(at(6.0)), 1.375);

    let mut window = new(5);
    record(&mut window, &[(0.0, 19.82)]);
    window.resize(at(60.0), secs(10));
    assert_eq!(window.average(at(60.0)), 0.0);
    assert_eq!(window.average(at(0.0)), 0.0, "nothing is left, whoever looks back");
    record(&mut window, &[(61.0, 3.0)]);
    assert_eq!(window.average(at(61.0)), 3.0);

    let mut window = new(5);
    window.resize(at(3.0), secs(2));
    assert!(window.is_empty(at(3.0)));
    record(&mut window, &[(4.0, 3.0), (3.0, 5.0), (2.0, 9.0)]);
    assert_eq!(window.average(at(4.0)), 4.0);
}

#[test]
fn weighted_averages() {
    let near = |got: f64, want: f64| assert!((got - want).abs() < 1e-6, "{got}, not {want}");
    for (buckets, want) in [(6, 0.784_557), (40, 0.205_672), (60, 0.2), (100, 0.2)] {
        near(smoothing_coefficient(buckets), want);
    }
    let new = |seconds| Window::new(Algorithm::WeightedExponential, secs(seconds), secs(1));
    let mut window = new(5);
    record(&mut window, &[(0.0, 2.0)]);
    near(window.average(at(0.0)), 1.683_021);
    near(window.average(at(1.0)), 0.266_741);
    let mut window = new(5);
    record(&mut window, &[(0.0, 1.0), (1.0, 2.0), (2.0, 3.0), (3.0, 4.0), (4.0, 5.0), (5.0, 6.0)]);
    near(window.average(at(5.0)), 5.811_580);
    for (seconds, want) in [(0, 2.0), (1, 3.6), (10, 9.141_007), (20, 9.907_766)] {
        let mut window = new(60);
        for second in 0..=seconds {
            window.record(at(f64::from(second)), 10.0);
        }
        near(window.average(at(f64::from(seconds))), want);
    }
    let mut window = new(6);
    record(&mut window, &[(0.0, 12.0)]);
    for (seconds, want) in [(0.0, 9.414_678), (1.0, 2.028_331), (5.0, 0.004_370), (6.0, 0.0)] {
        near(window.average(at(seconds)), want);
    }
    // A new length has a new coefficient.
    window.resize(at(0.0), secs(60));
    near(window.average(at(0.0)), 2.4);
}

#[test]
fn maxima() {
    let run = |values: &[(i64, i32, i32)]| {
        let mut window = MaxWindow::new(secs(10), secs(2));
        for &(index, value, want) in values {
            assert_eq!(window.record(Time::from_millis(index * 2000), value), want, "{index} {value}");
        }
    };
    let values = [5, 8, 5, 7, 5, 5, 1, 4, 4, 4, 4];
    let wants = [5, 8, 8, 8, 8, 8, 7, 7, 5, 5, 4];
    let numbered: Vec<_> = (0..).zip(values.into_iter().zip(wants)).map(|(i, (v, w))| (i, v, w)).collect();
    run(&numbered);
    run(&[(3, 7, 7), (3, 6, 7), (3, 5, 7)]);
    run(&[(3, 1, 1), (3, 2, 2), (3, 3, 3)]);
    run(&[(3, 9, 9), (7, 1, 9), (8, 1, 1), (400, 0, 0)]);
}

/// A revision nothing is wanted of: what it was, for how long, and for how long the activator has been in the path.
fn idle(activity: Activity, age: f64, proxy_for: f64) -> ScaleInput {
    ScaleInput {
        desired: 0,
        min: 0,
        max: 0,
        initial_scale: 1,
        initialized: true,
        unreachable: false,
        activity,
        activity_age: Duration::from_secs_f64(age),
        enable_scale_to_zero: true,
        stable_window: secs(60),
        activation_timeout: secs(630),
        grace: secs(30),
        retention: Duration::ZERO,
        proxy_mode: false,
        proxy_for: Duration::from_secs_f64(proxy_for),
        probe_activator: true,
        probe: Some(true),
    }
}

#[test]
fn the_way_to_zero() {
    let (active, activating, inactive) = (Activity::Active, Activity::Activating, Activity::Inactive);
    let retained = |age, proxy_for| ScaleInput { retention: secs(20), ..idle(inactive, age, proxy_for) };
    let rows = [
        (idle(active, 59.0, 0.0), (1, true, Some(1.0), false)),
        (idle(active, 60.0, 0.0), (0, false, None, false)),
        (ScaleInput { proxy_mode: true, ..idle(active, 60.0, 0.0) }, (0, false, Some(3.0), false)),
        (idle(inactive, 0.0, 30.0), (0, true, None, false)),
        (idle(inactive, 0.0, 10.0), (0, false, Some(20.0), false)),
        (idle(inactive, 5.0, 0.0), (0, false, Some(30.0), false)),
        (retained(5.0, 40.0), (0, false, Some(15.0), false)),
        (retained(20.0, 30.0), (0, true, None, false)),
        (retained(20.0, 29.5), (0, false, Some(0.5), false)),
        (retained(30.0, 0.0), (0, true, None, false)),
        (ScaleInput { retention: secs(600), ..retained(599.0, 599.0) }, (0, false, Some(1.0), false)),
        (ScaleInput { retention: secs(600), ..retained(600.0, 0.0) }, (0, true, None, false)),
        (idle(inactive, 30.0, 0.0), (0, true, None, false)),
        (ScaleInput { probe: Some(false), ..idle(inactive, 100.0, 100.0) }, (0, false, None, true)),
        (
            ScaleInput { probe: None, probe_activator: false, ..idle(inactive, 100.0, 0.0) },
            (0, true, None, false),
        ),
        (idle(activating, 630.0, 0.0), (-1, false, Some(630.0), false)),
        (idle(activating, 630.001, 0.0), (0, true, None, false)),
        (ScaleInput { activation_timeout: secs(35), ..idle(activating, 36.0, 0.0) }, (0, true, None, false)),
        (ScaleInput { desired: -1, ..idle(activating, 1.0, 0.0) }, (-1, false, Some(630.0), false)),
        (ScaleInput { desired: -1, ..idle(active, 90.0, 0.0) }, (-1, false, None, false)),
        (ScaleInput { desired: -1, min: 3, ..idle(inactive, 90.0, 0.0) }, (-1, false, None, false)),
        (ScaleInput { enable_scale_to_zero: false, ..idle(inactive, 90.0, 90.0) }, (1, true, None, false)),
        (
            ScaleInput { desired: -1, initial_scale: 5, initialized: false, ..idle(activating, 1.0, 0.0) },
            (5, true, None, false),
        ),
        // The initial scale wins over the upper bound, as does the lower one; not where no route leads to.
        (
            ScaleInput { desired: 9, max: 3, initial_scale: 5, initialized: false, ..idle(active, 1.0, 0.0) },
            (3, true, None, false),
        ),
        (
            ScaleInput { desired: 1, max: 3, initial_scale: 5, initialized: false, ..idle(active, 1.0, 0.0) },
            (5, true, None, false),
        ),
        (
            ScaleInput {
                desired: 1,
                initial_scale: 5,
                initialized: false,
                unreachable: true,
                ..idle(active, 1.0, 0.0)
            },
            (1, true, None, false),
        ),
    ];
    for (number, (input, want)) in rows.into_iter().enumerate() {
        let Step::Scale(got) = scale(&input) else { panic!("row {number}: a probe") };
        let requeue = got.requeue.map(|delay| delay.as_secs_f64());
        assert_eq!((got.want, got.apply, requeue, got.probe_until_success), want, "row {number}");
    }
    let unprobed = ScaleInput { probe: None, ..idle(inactive, 100.0, 100.0) };
    assert_eq!(scale(&unprobed), Step::ProbeActivator);
}
