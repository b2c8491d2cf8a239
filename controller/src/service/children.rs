//! The Configuration and the Route that a Service stands for.

use ember_api::annotations;
use ember_api::labels;
use ember_api::serving::v1::{Configuration, ConfigurationSpec, Route, RouteSpec, Service};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::metadata::{self, Map};
use crate::owner::controller_ref;

fn child_meta(service: &Service, labels: Map, annotations: Map) -> ObjectMeta {
    ObjectMeta {
        name: service.metadata.name.clone(),
        namespace: service.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: Some(annotations),
        owner_references: Some(vec![controller_ref(service)]),
        ..ObjectMeta::default()
    }
}

/// The Configuration of a Service. `existing` contributes the Routes that lead to it, which the labeler keeps.
pub(crate) fn configuration(service: &Service, existing: Option<&Configuration>) -> Configuration {
    let name = service.metadata.name.clone().unwrap_or_default();
    let mut labels = metadata::labels(&service.metadata);
    labels.insert(labels::SERVICE.to_owned(), name.clone());
    labels.insert(labels::SERVICE_UID.to_owned(), service.metadata.uid.clone().unwrap_or_default());
    let mut annotations = metadata::annotations(&service.metadata);
    annotations.retain(|key, _| {
        key != annotations::LAST_APPLIED && !annotations::ROLLOUT_DURATION.contains(&key.as_str())
    });
    let routes =
        existing.and_then(|c| metadata::annotation(&c.metadata, annotations::ROUTES)).unwrap_or_default();
    annotations.insert(annotations::ROUTES.to_owned(), metadata::insert_name(routes, &name));
    Configuration {
        metadata: child_meta(service, labels, annotations),
        spec: ConfigurationSpec { template: service.spec.template.clone() },
        status: None,
    }
}

/// The Route of a Service; targets that name no Revision follow the Service's Configuration.
pub(crate) fn route(service: &Service) -> Route {
    let name = service.metadata.name.clone().unwrap_or_default();
    let mut labels = metadata::labels(&service.metadata);
    labels.insert(labels::SERVICE.to_owned(), name.clone());
    let mut annotations = metadata::annotations(&service.metadata);
    annotations.remove(annotations::LAST_APPLIED);
    let mut traffic = service.spec.traffic.clone();
    for target in traffic.iter_mut().filter(|target| target.revision_name.is_empty()) {
        target.configuration_name.clone_from(&name);
    }
    Route { metadata: child_meta(service, labels, annotations), spec: RouteSpec { traffic }, status: None }
}
