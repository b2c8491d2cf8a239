//! What is done for every revision every few seconds allocates nothing.

use std::time::Duration;

use allocation_counter::measure;
use ember_autoscaler::collection::{Collection, CollectionSpec};
use ember_autoscaler::decider::{Decider, DeciderSpec};
use ember_autoscaler::time::Time;
use ember_autoscaler::window::Algorithm;
use ember_dataplane::stat::Stat;

#[test]
fn a_report_and_a_decision_with_its_reasons_allocate_nothing() {
    let spec = DeciderSpec { scale_down_delay: Duration::from_secs(600), ..DeciderSpec::default() };
    for algorithm in [Algorithm::Linear, Algorithm::WeightedExponential] {
        let mut collection = Collection::new(CollectionSpec {
            stable_window: spec.stable_window,
            panic_window: Duration::from_secs(6),
            scrape_target: "revision-private".to_owned(),
            algorithm,
        });
        let mut decider = Decider::new(&spec, 1, Time::from_millis(0));
        let allocated = measure(|| {
            for second in 0..3600i64 {
                let now = Time::from_millis(second * 1000);
                let load = (second % 600) as f64;
                let stat = Stat { average_concurrent_requests: load, ..Stat::default() };
                collection.record(now, &stat);
                let load = collection.load(spec.scaling_metric, now);
                let decision = load.and_then(|load| decider.evaluate(&spec, now, 3, load));
                assert!(decision.is_some());
            }
        });
        assert_eq!(allocated.count_total, 0, "{algorithm:?}");
    }
}
