//! From reports to decisions.

use ember_dataplane::stat::Stat;
use serde::Deserialize;

use super::resolving::PaCase;
use super::{Float, at, check, differ};
use crate::collection::Collection;
use crate::decider::{Decider, Mode as DeciderMode};
use crate::resolution::Resolved;

#[derive(Debug, Deserialize)]
struct PipelineCase {
    pa: PaCase,
    has_scrape_target: bool,
    ready_at_creation: i32,
    ops: Vec<PipelineOp>,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "op", rename_all = "snake_case")]
enum PipelineOp {
    Stat { at_ms: i64, stat: PipelineStat },
    Reconfigure { at_ms: i64, pa: PaCase },
    Scale { at_ms: i64, ready: i32, want: PipelineWant },
}

#[derive(Debug, Deserialize)]
struct PipelineStat {
    average_concurrent_requests: Float,
    average_proxied_concurrent_requests: Float,
    request_count: Float,
    proxied_request_count: Float,
}

#[derive(Debug, Deserialize)]
struct PipelineWant {
    metric_error: Option<String>,
    stable: Float,
    panic: Float,
    valid: bool,
    desired: i32,
    ebc: i32,
    in_panic: bool,
}

#[test]
fn golden_pipeline_scenarios() {
    check("pipeline_scenarios", |case: &PipelineCase| {
        let service = if case.has_scrape_target { "rev-private" } else { "" };
        let mut resolved = case.pa.resolved();
        let collection = |resolved: &Resolved| crate::collection::CollectionSpec {
            scrape_target: service.to_owned(),
            ..resolved.collection(service)
        };
        let mut metrics = Collection::new(collection(&resolved));
        let mut decider = Decider::new(&resolved.decider, case.ready_at_creation, at(0));
        let mut wrong = Vec::new();
        for (number, op) in case.ops.iter().enumerate() {
            match op {
                PipelineOp::Stat { at_ms, stat } => metrics.record(
                    at(*at_ms),
                    &Stat {
                        average_concurrent_requests: stat.average_concurrent_requests.0,
                        average_proxied_concurrent_requests: stat.average_proxied_concurrent_requests.0,
                        request_count: stat.request_count.0,
                        proxied_request_count: stat.proxied_request_count.0,
                        ..Stat::default()
                    },
                ),
                PipelineOp::Reconfigure { at_ms, pa } => {
                    resolved = pa.resolved();
                    metrics.update(at(*at_ms), collection(&resolved));
                }
                PipelineOp::Scale { at_ms, ready, want } => {
                    let load = metrics.load(resolved.decider.scaling_metric, at(*at_ms));
                    let no_data = want.metric_error.is_some();
                    wrong.extend(differ(&format!("op {number}: no data"), &no_data, &load.is_none()));
                    if let Some(load) = load
                        && !(want.stable.is(load.stable) && want.panic.is(load.panic))
                    {
                        wrong.push(format!("op {number}: want {want:?}, got {load:?}"));
                    }
                    let decision =
                        load.and_then(|load| decider.evaluate(&resolved.decider, at(*at_ms), *ready, load));
                    let got = decision.map(|d| (d.desired, d.excess_burst_capacity));
                    wrong.extend(differ(
                        &format!("op {number}"),
                        &want.valid.then_some((want.desired, want.ebc)),
                        &got,
                    ));
                    let panicking = matches!(decider.mode(), DeciderMode::Panic { .. });
                    wrong.extend(differ(&format!("op {number}: in panic"), &want.in_panic, &panicking));
                }
            }
        }
        wrong
    });
}
