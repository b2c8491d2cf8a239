//! Plans for PodAutoscalers of the HPA class.

use std::time::Duration;

use ember_reconcile::apply::Verb;
use serde_json::{Value, json};

use super::*;
use crate::resolution::{Settings, resolve};

fn pa(annotations: &Value) -> PodAutoscaler {
    let mut all = json!({
        "autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev", "autoscaling.knative.dev/metric": "cpu",
    });
    all.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
    serde_json::from_value(json!({
        "metadata": {"name": "rev", "namespace": "ns", "uid": "1", "generation": 1, "annotations": all},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "rev-deployment"},
            "protocolType": "http1",
        },
    }))
    .unwrap()
}

fn planned(
    pa: &PodAutoscaler,
    hpa: Option<&HorizontalPodAutoscaler>,
    sks: Option<&ServerlessService>,
) -> Plan {
    let resolved = resolve(pa.annotations(), &pa.spec, &Settings::default(), Duration::ZERO);
    plan(&Observed { pa, resolved: &resolved, hpa, sks, now: Timestamp::UNIX_EPOCH })
}

fn written<K: serde::de::DeserializeOwned>(action: &Action) -> K {
    let (Verb::Create(value) | Verb::Update(value)) = &action.verb else { panic!("{action:?}") };
    serde_json::from_value(value.clone()).unwrap()
}

/// Both children as their controllers leave them.
fn children(pa: &PodAutoscaler, replicas: i32) -> (HorizontalPodAutoscaler, ServerlessService) {
    let plan = planned(pa, None, None);
    let mut hpa: HorizontalPodAutoscaler = written(&plan.hpa.unwrap());
    let status = json!({"currentReplicas": replicas, "desiredReplicas": replicas + 1});
    hpa.status = Some(serde_json::from_value(status).unwrap());
    let mut sks: ServerlessService = written(&plan.sks.unwrap());
    sks.metadata.generation = Some(1);
    let status = json!({
        "observedGeneration": 1, "serviceName": "rev", "privateServiceName": "rev-private",
        "conditions": [{"type": "Ready", "status": "True"}],
    });
    sks.status = Some(serde_json::from_value(status).unwrap());
    (hpa, sks)
}

fn condition(status: &PodAutoscalerStatus, type_: &str) -> (String, String, String) {
    let condition = status.conditions.get(type_).unwrap();
    (condition.status.as_str().to_owned(), condition.reason.clone(), condition.message.clone())
}

#[test]
fn a_new_one_is_active_and_served_by_all_activators_while_its_services_come() {
    let plan = planned(&pa(&json!({})), None, None);
    let sks: ServerlessService = written(&plan.sks.unwrap());
    assert_eq!((sks.spec.mode, sks.spec.num_activators), (Mode::Serve, 0));
    assert_eq!(condition(&plan.status, "Active").0, "True");
    let unknown = ("Unknown".to_owned(), "NotReady".to_owned(), "SKS Services are not ready yet".to_owned());
    assert_eq!(condition(&plan.status, "SKSReady"), unknown);
    assert_eq!((plan.status.actual_scale, plan.status.desired_scale), (Some(0), Some(0)));
    assert_eq!(plan.failure, None);
}

#[test]
fn it_is_ready_once_its_least_scale_is_reached_and_follows_the_hpa() {
    let pa = pa(&json!({"autoscaling.knative.dev/min-scale": "3"}));
    let (hpa, sks) = children(&pa, 2);
    let plan = planned(&pa, Some(&hpa), Some(&sks));
    assert_eq!((&plan.hpa, &plan.sks), (&None, &None));
    assert_eq!(condition(&plan.status, "ScaleTargetInitialized").0, "Unknown");
    let (hpa, sks) = children(&pa, 3);
    let status = planned(&pa, Some(&hpa), Some(&sks)).status;
    assert!(status.conditions.is_true("ScaleTargetInitialized") && status.conditions.is_true("Ready"));
    assert_eq!((status.actual_scale, status.desired_scale), (Some(3), Some(4)));
    assert_eq!((status.service_name.as_str(), status.metrics_service_name.as_str()), ("rev", "rev-private"));
}

#[test]
fn what_the_api_server_fills_in_is_no_difference_and_an_edit_is() {
    let pa = pa(&json!({"autoscaling.knative.dev/window": "30s"}));
    let (mut hpa, sks) = children(&pa, 1);
    let mut spec = serde_json::to_value(&hpa.spec).unwrap();
    spec["minReplicas"] = 1.into();
    spec["metrics"] = json!([{
        "type": "Resource",
        "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
    }]);
    spec["behavior"]["scaleUp"]["selectPolicy"] = "Max".into();
    hpa.spec = serde_json::from_value(spec).unwrap();
    assert_eq!(planned(&pa, Some(&hpa), Some(&sks)).hpa, None);
    hpa.spec.as_mut().unwrap().max_replicas = 7;
    let update: HorizontalPodAutoscaler = written(&planned(&pa, Some(&hpa), Some(&sks)).hpa.unwrap());
    assert_eq!(update.spec.unwrap().max_replicas, i32::MAX);
}

#[test]
fn foreign_children_are_left_alone_and_told_of() {
    let pa = pa(&json!({}));
    let (mut hpa, mut sks) = children(&pa, 1);
    sks.metadata.owner_references = None;
    let plan = planned(&pa, Some(&hpa), Some(&sks));
    assert_eq!(plan.failure.as_deref(), Some("error reconciling SKS: PA: rev does not own SKS: rev"));
    hpa.metadata.owner_references = None;
    let plan = planned(&pa, Some(&hpa), Some(&sks));
    assert_eq!(plan.failure.as_deref(), Some("PodAutoscaler: \"rev\" does not own HPA: \"rev\""));
    let (status, reason, message) = condition(&plan.status, "Active");
    assert_eq!((status.as_str(), reason.as_str()), ("False", "NotOwned"));
    assert_eq!(message, "There is an existing HorizontalPodAutoscaler \"rev\" that we do not own.");
    assert_eq!((plan.hpa, plan.sks), (None, None));
}

#[test]
fn a_failed_creation_is_told_of() {
    let status = not_created(&pa(&json!({})), Timestamp::UNIX_EPOCH);
    let (active, reason, message) = condition(&status, "Active");
    assert_eq!((active.as_str(), reason.as_str()), ("False", "FailedCreate"));
    assert_eq!(message, "Failed to create HorizontalPodAutoscaler \"rev\".");
}
