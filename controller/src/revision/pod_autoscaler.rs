//! The PodAutoscaler that scales a Revision's Deployment.

use ember_api::autoscaling::v1alpha1::{PodAutoscaler, PodAutoscalerSpec, Reachability};
use ember_api::labels::RoutingState;
use ember_api::serving::v1::{Revision, RevisionStatus};
use ember_api::{annotations, names};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::ObjectReference;
use kube::ResourceExt;

use super::metadata;
use crate::context::Configs;
use crate::metadata::same;

/// The PodAutoscaler as it is created: somebody has to scale, so a class is named.
pub(super) fn with_class(mut desired: PodAutoscaler, configs: &Configs) -> PodAutoscaler {
    let class = configs.autoscaler.pod_autoscaler_class.clone();
    if !class.is_empty() {
        desired.annotations_mut().entry(annotations::CLASS.to_owned()).or_insert(class);
    }
    desired
}

/// The PodAutoscaler of a Revision as far as the Revision says what it is.
pub(super) fn make(revision: &Revision, deployment: Option<&Deployment>) -> PodAutoscaler {
    let name = revision.name_any();
    let annotations = metadata::scaling_annotations(revision);
    PodAutoscaler {
        metadata: metadata::child(revision, names::pod_autoscaler(&name), annotations),
        spec: PodAutoscalerSpec {
            container_concurrency: revision.spec.container_concurrency.unwrap_or(0),
            scale_target_ref: ObjectReference {
                api_version: Some("apps/v1".to_owned()),
                kind: Some("Deployment".to_owned()),
                name: Some(names::deployment(&name)),
                ..ObjectReference::default()
            },
            reachability: reachability(revision, deployment),
            protocol_type: revision.spec.protocol(),
        },
        status: None,
    }
}

/// A Revision that cannot come up need not be kept at its minimum scale, whatever leads to it.
fn reachability(revision: &Revision, deployment: Option<&Deployment>) -> Reachability {
    let conditions = revision.status.as_ref().map(|status| &status.conditions);
    let failed = conditions.is_some_and(|conditions| {
        conditions.is_false(RevisionStatus::RESOURCES_AVAILABLE)
            || conditions.is_false(RevisionStatus::CONTAINER_HEALTHY)
    });
    let nothing_ready = deployment.is_some_and(|deployment| {
        let wanted = deployment.spec.as_ref().and_then(|spec| spec.replicas).unwrap_or(1);
        let ready = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0);
        wanted > 0 && ready == 0
    });
    if failed && nothing_ready {
        return Reachability::Unreachable;
    }
    match revision.routing_state() {
        Some(RoutingState::Active) => Reachability::Reachable,
        Some(RoutingState::Reserve) => Reachability::Unreachable,
        Some(RoutingState::Pending) | None => Reachability::Unknown,
    }
}

/// The live PodAutoscaler brought to what is desired, if it differs in spec or annotations. Annotations about scaling
/// that the Revision does not have go, except those that were defaulted; those of others stay.
pub(super) fn updated(live: &PodAutoscaler, desired: PodAutoscaler) -> Option<PodAutoscaler> {
    let mut next = live.clone();
    next.spec = desired.spec;
    let is_defaulted = |key: &str| [annotations::CLASS, annotations::METRIC].contains(&key);
    let given = desired.metadata.annotations.unwrap_or_default();
    // Class and metric that are not there yet are about to be: the webhook fills them in.
    let is_missed = |(key, value): (&String, &String)| match live.annotations().get(key) {
        None => !is_defaulted(key),
        Some(present) => present != value,
    };
    let annotations = next.annotations_mut();
    annotations.retain(|key, _| {
        !key.starts_with(metadata::AUTOSCALING_PREFIX) || given.contains_key(key) || is_defaulted(key)
    });
    let unchanged = annotations.len() == live.annotations().len()
        && !given.iter().any(is_missed)
        && same(&next.spec, &live.spec);
    next.annotations_mut().extend(given);
    (!unchanged).then_some(next)
}
