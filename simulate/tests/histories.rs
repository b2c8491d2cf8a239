//! Simulated histories with answers that can be worked out by hand.

#![expect(clippy::expect_used, reason = "a test may panic to fail")]

use std::time::{Duration, Instant};

use ember_simulate::setting::World;
use ember_simulate::trace::Unit;
use ember_simulate::{History, Setting, Trace, chart, generator, page, report, simulate, table};
use proptest::prelude::*;

fn setting(annotations: &[&str], world: World) -> Setting {
    let annotations: Vec<String> = annotations.iter().map(|&a| a.to_owned()).collect();
    Setting::parse("test", &annotations, &[], world).expect("a valid setting")
}

fn run(annotations: &[&str], spec: &str, seconds: u64) -> History {
    let trace = generator::generate(spec, Unit::Concurrency, Duration::from_secs(seconds), 1);
    simulate(&setting(annotations, World::default()), &trace.expect("a valid load"), |_| {})
}

fn at(history: &History, seconds: f64) -> &ember_simulate::history::Point {
    history.points.iter().rev().find(|p| p.time <= seconds).expect("a point")
}

#[test]
fn steady_load_gets_load_by_target_pods() {
    // 350 in flight for pods that should have 70 each.
    let history = run(&[], "constant:value=350", 300);
    assert_eq!(history.points.last().map(|p| (p.wanted_pods, p.ready_pods, p.ideal_pods)), Some((5, 5, 4)));
    assert_eq!(history.summary.queued_at_end, 0.0);
    assert!((history.summary.requests - 350.0 / 0.1 * 300.0).abs() < 1.0, "{:?}", history.summary);
}

#[test]
fn an_idle_revision_goes_to_zero_and_wakes_at_once() {
    let history = run(&[], "constant:value=0+constant:value=1,start=5m", 400);
    // Idle and active for a stable window; the activator has been in the path all along.
    assert_eq!(at(&history, 50.0).ready_pods, 1);
    assert_eq!(at(&history, 100.0).ready_pods, 0);
    assert_eq!(history.summary.wakes, 1);
    assert_eq!(at(&history, 300.2).ready_pods, 0);
    assert!(at(&history, 301.0).ready_pods >= 1, "a pod takes half a second");
    // Half a second of ten requests a second waits; the pod has room for all of them at once.
    assert!((4.0..=6.0).contains(&history.summary.longest_queue), "{:?}", history.summary);
}

#[test]
fn min_scale_and_max_scale_hold() {
    let low = run(&["min-scale=2"], "constant:value=0", 300);
    assert_eq!(low.points.last().map(|p| p.ready_pods), Some(2));
    assert_eq!(low.summary.seconds_at_zero, 0.0);
    let high = run(&["max-scale=3"], "constant:value=1000", 300);
    assert_eq!(high.summary.most_pods, 3);
    assert!(low.scale_reasons["min-scale"] > 250.0, "{:?}", low.scale_reasons);
    assert!(high.scale_reasons["max-scale"] > 250.0, "{:?}", high.scale_reasons);
    assert!(high.summary.queued_at_end > 0.0);
}

#[test]
fn a_history_says_why_the_activator_was_in_the_path() {
    let always = run(&["target-burst-capacity=-1"], "constant:value=100", 120);
    assert_eq!(always.burst_reasons.keys().collect::<Vec<_>>(), [&"always-proxied"]);
    assert!((always.summary.activator_seconds - 120.0).abs() < 1.0, "{:?}", always.summary);
    let never = run(&["target-burst-capacity=0"], "constant:value=100", 120);
    assert_eq!(never.burst_reasons.keys().collect::<Vec<_>>(), [&"never-proxied"]);
    let some = run(&["target-burst-capacity=50", "min-scale=2"], "steps:values=50/500,every=1m", 180);
    assert_eq!(some.burst_reasons.keys().collect::<Vec<_>>(), [&"room", &"shortage"]);
}

#[test]
fn a_step_panics_and_a_slow_pod_makes_requests_wait() {
    let spec = "steps:values=10/500,every=1m";
    let quick = run(&[], spec, 300);
    assert_eq!(quick.summary.panics, 1);
    assert!(quick.panics[0].0 > 60.0 && quick.panics[0].0 < 66.0, "{:?}", quick.panics);
    let trace = generator::generate(spec, Unit::Concurrency, Duration::from_secs(300), 1).expect("a load");
    let slow = World { pod_start: Duration::from_secs(20), ..World::default() };
    let slow = simulate(&setting(&[], slow), &trace, |_| {});
    assert!(slow.summary.mean_wait_seconds > 2.0 * quick.summary.mean_wait_seconds);
    assert!(slow.summary.longest_queue > quick.summary.longest_queue);
}

#[test]
fn requests_a_second_are_scaled_by_where_asked_for() {
    let trace = Trace::from_csv("t", "time,rps\n0,700\n600,700\n".as_bytes()).expect("a trace");
    let rps = simulate(&setting(&["metric=rps", "target=100"], World::default()), &trace, |_| {});
    assert_eq!(rps.points.last().map(|p| p.wanted_pods), Some(10));
    // 700 requests a second of 0.1 s are 70 in flight.
    let concurrency = simulate(&setting(&[], World::default()), &trace, |_| {});
    assert_eq!(concurrency.points.last().map(|p| p.wanted_pods), Some(1));
}

#[test]
fn retention_and_delay_keep_pods() {
    let spec = "steps:values=300/0,every=2m";
    let plain = run(&[], spec, 600);
    let kept = run(&["scale-to-zero-pod-retention-period=3m"], spec, 600);
    let delayed = run(&["scale-down-delay=2m"], spec, 600);
    assert!(kept.summary.seconds_at_zero < plain.summary.seconds_at_zero - 100.0);
    assert!(delayed.summary.pod_seconds > plain.summary.pod_seconds + 200.0);
    assert!(delayed.reasons.contains_key("scale-down-delay"), "{:?}", delayed.reasons);
}

#[test]
fn a_week_takes_seconds() {
    let week = Duration::from_secs(7 * 24 * 3600);
    let spec = "sine:mean=200,amplitude=200,period=24h+bursts:rate=0.02,size=400,length=2m";
    let trace = generator::generate(spec, Unit::Concurrency, week, 7).expect("a load");
    let begun = Instant::now();
    let mut told = 0;
    let history = simulate(&setting(&[], World::default()), &trace, |_| told += 1);
    let taken = begun.elapsed();
    println!("a week in {taken:?}");
    // Without optimisation and with other tests beside it.
    assert!(taken < Duration::from_secs(60), "{taken:?}");
    assert_eq!(told, 7 * 24 * 6);
    assert!(history.points.len() <= 1200 && history.points.len() > 600);
    assert_eq!(history.summary.seconds, week.as_secs_f64());
}

#[test]
fn the_report_has_the_layout_that_is_documented() {
    let histories = [run(&[], "constant:value=100", 30), run(&["target=10"], "constant:value=100", 30)];
    let json: serde_json::Value =
        serde_json::from_str(&report::json(&histories).expect("it can be written")).expect("JSON");
    assert_eq!(json["version"], 1);
    let keys = |value: &serde_json::Value| -> Vec<String> {
        value.as_object().expect("an object").keys().cloned().collect()
    };
    assert_eq!(json["histories"].as_array().map(Vec::len), Some(2));
    let history = &json["histories"][0];
    let members = [
        "burst_reasons",
        "panics",
        "points",
        "reasons",
        "scale_reasons",
        "setting",
        "step_seconds",
        "summary",
        "unit",
    ];
    assert_eq!(keys(history), members);
    assert_eq!(
        keys(&history["points"][0]),
        [
            "activator_in_path",
            "ideal_pods",
            "offered_concurrency",
            "offered_rps",
            "panic",
            "queued",
            "ready_pods",
            "time",
            "wanted_pods"
        ]
    );
    assert_eq!(
        keys(&history["summary"]),
        [
            "activator_seconds",
            "ideal_pod_seconds",
            "longest_queue",
            "mean_wait_seconds",
            "most_pods",
            "panic_seconds",
            "panics",
            "pod_seconds",
            "pods_started",
            "queued_at_end",
            "requests",
            "seconds",
            "seconds_at_zero",
            "waited",
            "wakes"
        ]
    );
    assert_eq!(history["unit"], "concurrency");
    assert!(table::text(&histories).contains("pod-seconds ideal"));
}

#[test]
fn charts_and_pages_load_nothing_and_are_safe() {
    let mut history = run(&[], "constant:value=100", 30);
    history.setting = "<script>&\"".to_owned();
    for text in [chart::svg(&[history.clone()]), page::html("<b>", &[history])] {
        assert!(!text.contains("<script") && !text.contains("<b>"));
        assert!(text.contains("&lt;script&gt;&amp;&quot;"));
        assert!(!text.replace("http://www.w3.org/2000/svg", "").contains("http"));
        assert!(!text.contains("NaN") && !text.contains("inf"));
    }
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]
    #[test]
    fn every_history_adds_up(
        values in prop::collection::vec(0.0..800.0f64, 1..6),
        target in 1..200u32,
        start in 0..20_000u64,
        delay in 0..60u32,
    ) {
        let world = World { pod_start: Duration::from_millis(start), ..World::default() };
        let annotations = [format!("target={target}"), format!("scale-down-delay={delay}s")];
        let setting = Setting::parse("test", &annotations, &[], world).expect("a valid setting");
        let trace = Trace::regular(Unit::Concurrency, Duration::from_secs(40), values);
        let history = simulate(&setting, &trace, |_| {});
        let summary = history.summary;
        prop_assert_eq!(&history, &simulate(&setting, &trace, |_| {}));
        prop_assert!(summary.waited <= summary.requests + 1e-6);
        prop_assert!(summary.queued_at_end <= summary.longest_queue);
        prop_assert!(summary.pod_seconds <= f64::from(summary.most_pods) * summary.seconds + 1e-6);
        for point in &history.points {
            prop_assert!(point.ready_pods >= 0 && point.wanted_pods >= 0 && point.queued >= 0.0);
        }
        for &(begin, end) in &history.panics {
            prop_assert!(begin < end && end <= summary.seconds);
        }
    }
}
