//! The objects that a PodAutoscaler calls for.

use std::time::Duration;

use ember_api::autoscaling::v1alpha1::Metric;
use ember_api::networking::v1alpha1::ServerlessServiceOperationMode as Mode;
use serde::Deserialize;
use serde_json::Value;

use super::check;
use super::resolving::{Texts, pod_autoscaler, resolved};
use crate::podautoscaler::plan;

#[test]
fn golden_derived_objects() {
    #[derive(Debug, Deserialize)]
    struct Case {
        #[serde(flatten)]
        rest: DerivedCase,
        kind: String,
        mode: Option<String>,
        #[serde(default)]
        num_activators: i32,
        scrape_target: Option<String>,
        want: Value,
    }
    #[derive(Debug, Deserialize)]
    struct DerivedCase {
        config: Option<Texts>,
        annotations: Option<Texts>,
        reachability: String,
    }
    check("derived_objects", |case: &Case| {
        let rest = &case.rest;
        let pa = pod_autoscaler(&rest.annotations.clone().unwrap_or_default(), 0, &rest.reachability);
        let got = if case.kind == "Metric" {
            let resolved = resolved(&pa, rest.config.as_ref(), Duration::from_secs(600));
            let mut metric: Metric = plan::metric(&pa, &resolved, "");
            metric.spec.scrape_target = case.scrape_target.clone().unwrap_or_default();
            serde_json::to_value(metric)
        } else {
            let mode: Mode = case.mode.as_deref().unwrap_or_default().into();
            serde_json::to_value(plan::serverless_service(&pa, mode, case.num_activators))
        };
        let got = got.unwrap();
        let same = ["metadata", "spec"]
            .iter()
            .all(|part| ember_reconcile::apply::semantically_equal(&case.want[part], &got[part]));
        if same { vec![] } else { vec![format!("want {}, got {got}", case.want)] }
    });
}

#[test]
fn golden_hpa_objects() {
    #[derive(Debug, Deserialize)]
    struct Case {
        config: Option<Texts>,
        annotations: Option<Texts>,
        reachability: String,
        want: Value,
    }
    check("hpa_objects", |case: &Case| {
        let pa = pod_autoscaler(&case.annotations.clone().unwrap_or_default(), 0, &case.reachability);
        let resolved = resolved(&pa, case.config.as_ref(), Duration::from_secs(600));
        let got =
            serde_json::to_value(crate::hpa::object::horizontal_pod_autoscaler(&pa, &resolved)).unwrap();
        let same = ["metadata", "spec"].iter().all(|part| case.want[part] == got[part]);
        if same { vec![] } else { vec![format!("want {}, got {got}", case.want)] }
    });
}
