//! Labels, annotations and owner of a revision's children.

use std::collections::BTreeMap;

use ember_api::serving::v1::Revision;
use ember_api::{annotations, labels};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::ResourceExt;

use crate::owner::controller_ref;

/// What the keys of annotations about scaling begin with.
pub(super) const AUTOSCALING_PREFIX: &str = "autoscaling.knative.dev";

/// Labels of a revision that tell of its routing, not of what runs: they change while it runs.
const ROUTING_LABELS: [&str; 2] = [labels::ROUTE, labels::ROUTING_STATE];

/// Annotations of a revision that concern no child.
const OWN_ANNOTATIONS: [&str; 4] =
    [annotations::LAST_PINNED, annotations::NO_GC, annotations::ROUTING_STATE_MODIFIED, annotations::ROUTES];

/// What is to be found on every child: the revision's labels and the ones that lead back to it.
pub(super) fn child_labels(revision: &Revision) -> BTreeMap<String, String> {
    let name = revision.name_any();
    let mut child: BTreeMap<String, String> = revision
        .labels()
        .iter()
        .filter(|(key, _)| !ROUTING_LABELS.contains(&key.as_str()))
        .map(|(key, value)| (key.clone(), value.clone()))
        .collect();
    child.insert(labels::REVISION.to_owned(), name.clone());
    child.insert(labels::REVISION_UID.to_owned(), revision.uid().unwrap_or_default());
    child.entry(labels::APP.to_owned()).or_insert(name);
    child
}

/// The revision's annotations for the PodAutoscaler: those about scaling included.
pub(super) fn scaling_annotations(revision: &Revision) -> BTreeMap<String, String> {
    let mut child = revision.annotations().clone();
    child.retain(|key, _| !OWN_ANNOTATIONS.contains(&key.as_str()));
    child
}

/// The revision's annotations for every other child: a change of scaling is no reason to touch what runs.
pub(super) fn child_annotations(revision: &Revision) -> BTreeMap<String, String> {
    let mut child = scaling_annotations(revision);
    child.retain(|key, _| !key.starts_with(AUTOSCALING_PREFIX));
    child
}

/// The metadata of a child of this name.
pub(super) fn child(revision: &Revision, name: String, annotations: BTreeMap<String, String>) -> ObjectMeta {
    ObjectMeta {
        name: Some(name),
        namespace: revision.namespace(),
        labels: Some(child_labels(revision)),
        annotations: Some(annotations),
        owner_references: Some(vec![controller_ref(revision)]),
        ..ObjectMeta::default()
    }
}
