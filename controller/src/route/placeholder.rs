//! Placeholder Services: one for each target of a Route, so that its name resolves within the cluster.

use ember_api::configmaps::Configs;
use ember_api::domains::{self, DomainError};
use ember_api::labels;
use ember_api::networking::v1alpha1::{Ingress, LoadBalancerIngressStatus};
use ember_api::serving::v1::Route;
use ember_reconcile::apply::{Action, semantically_equal};
use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, Service, ServicePort, ServiceSpec,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde::Serialize;
use serde_json::Value;

use crate::metadata::{self, label};
use crate::owner::controller_ref;

const PORT: i32 = 80;
const H2C_PORT_NAME: &str = "http2";
const HTTP_PORT_NAME: &str = "http";
const H2C_APP_PROTOCOL: &str = "kubernetes.io/h2c";
const HEADLESS: &str = "None";

/// The Service of the target `tag` as long as no gateway is known: an alias of the target's host.
pub(crate) fn initial(configs: &Configs, route: &Route, tag: &str) -> Result<Service, DomainError> {
    let route_name = route.metadata.name.as_deref().unwrap_or_default();
    let name = domains::hostname(&configs.network, route_name, tag)?;
    let host = domains::domain_name(configs, &route.metadata, &name)?;
    Ok(Service {
        metadata: meta(route, name),
        spec: Some(ServiceSpec { session_affinity: Some("None".to_owned()), ..alias(host) }),
        status: None,
    })
}

fn meta(route: &Route, name: String) -> ObjectMeta {
    let mut labels = metadata::labels(&route.metadata);
    // People hide a single target by this label on its Service.
    labels.remove(labels::VISIBILITY);
    labels.insert(labels::ROUTE.to_owned(), route.metadata.name.clone().unwrap_or_default());
    ObjectMeta {
        name: Some(name),
        namespace: route.metadata.namespace.clone(),
        labels: Some(labels),
        annotations: Some(metadata::annotations(&route.metadata)),
        owner_references: Some(vec![controller_ref(route)]),
        ..ObjectMeta::default()
    }
}

fn h2c_port() -> ServicePort {
    ServicePort {
        name: Some(H2C_PORT_NAME.to_owned()),
        app_protocol: Some(H2C_APP_PROTOCOL.to_owned()),
        port: PORT,
        target_port: Some(IntOrString::Int(PORT)),
        ..ServicePort::default()
    }
}

fn alias(host: String) -> ServiceSpec {
    ServiceSpec {
        type_: Some("ExternalName".to_owned()),
        external_name: Some(host),
        ports: Some(vec![h2c_port()]),
        ..ServiceSpec::default()
    }
}

/// The spec and Endpoints that lead the placeholder `existing` to the gateway; `None` while there is not exactly one
/// entry point to lead to.
fn towards_gateway(
    existing: &Service,
    ingress: &Ingress,
) -> Option<(ServiceSpec, Option<Vec<EndpointSubset>>)> {
    let status = ingress.status.as_ref()?;
    let hidden = label(&existing.metadata, labels::VISIBILITY) == Some(labels::VISIBILITY_CLUSTER_LOCAL);
    // Placeholders serve callers within the cluster: the private gateway wherever there is one.
    let has_private = status.private_load_balancer.as_ref().is_some_and(|b| !b.ingress.is_empty());
    let balancer = if hidden || has_private {
        status.private_load_balancer.as_ref()
    } else {
        status.public_load_balancer.as_ref()
    };
    let [entry] = balancer?.ingress.as_slice() else { return None };
    spec_towards(entry)
}

fn spec_towards(entry: &LoadBalancerIngressStatus) -> Option<(ServiceSpec, Option<Vec<EndpointSubset>>)> {
    // An address comes first: an alias sends callers by a name that not every gateway and mesh takes.
    if entry.ip.is_empty() && !entry.domain_internal.is_empty() {
        let spec =
            ServiceSpec { session_affinity: Some("None".to_owned()), ..alias(entry.domain_internal.clone()) };
        return Some((spec, None));
    }
    if entry.ip.is_empty() && !entry.domain.is_empty() {
        return Some((alias(entry.domain.clone()), None));
    }
    if !entry.ip.is_empty() {
        let spec = ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            cluster_ip: Some(HEADLESS.to_owned()),
            ports: Some(vec![h2c_port()]),
            ..ServiceSpec::default()
        };
        let subset = EndpointSubset {
            addresses: Some(vec![EndpointAddress { ip: entry.ip.clone(), ..EndpointAddress::default() }]),
            ports: Some(vec![EndpointPort {
                name: Some(H2C_PORT_NAME.to_owned()),
                port: PORT,
                app_protocol: Some(H2C_APP_PROTOCOL.to_owned()),
                ..EndpointPort::default()
            }]),
            ..EndpointSubset::default()
        };
        return Some((spec, Some(vec![subset])));
    }
    entry.mesh_only.then(|| {
        let spec = ServiceSpec {
            type_: Some("ClusterIP".to_owned()),
            ports: Some(vec![ServicePort {
                name: Some(HTTP_PORT_NAME.to_owned()),
                port: PORT,
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        };
        (spec, None)
    })
}

/// The writes that lead a placeholder to the Ingress's gateway, in order. `service` is what exists by then.
pub(crate) fn updates(
    route: &Route,
    service: &Service,
    endpoints: Option<&Endpoints>,
    ingress: &Ingress,
) -> Vec<Action> {
    let Some((spec, subsets)) = towards_gateway(service, ingress) else { return Vec::new() };
    let mut actions = Vec::new();
    let desired = meta(route, service.metadata.name.clone().unwrap_or_default());
    update_service(service, spec, &desired, &mut actions);
    update_endpoints(endpoints, subsets, desired, &mut actions);
    actions
}

fn update_service(service: &Service, spec: ServiceSpec, desired: &ObjectMeta, actions: &mut Vec<Action>) {
    let existing = service.spec.clone().unwrap_or_default();
    let is_alias = |spec: &ServiceSpec| spec.type_.as_deref() == Some("ExternalName");
    let type_of = |spec: &ServiceSpec| spec.type_.clone().unwrap_or_else(|| "ClusterIP".to_owned());
    let same_address = spec.cluster_ip == existing.cluster_ip
        || (spec.cluster_ip.is_none() && existing.cluster_ip.as_deref() != Some(HEADLESS));
    // The API lets an alias become anything, and nothing else become an alias or change its address.
    let can_update = is_alias(&existing) || (type_of(&existing) == type_of(&spec) && same_address);
    if !can_update {
        actions.push(Action::delete(service));
        actions.push(Action::create(&Service { metadata: desired.clone(), spec: Some(spec), status: None }));
        return;
    }
    let mut updated = service.clone();
    merge(&mut updated.metadata, desired);
    let unchanged = metadata::same_maps(&updated.metadata, &service.metadata)
        && existing.type_ == spec.type_
        && contains(&existing, &spec);
    if unchanged {
        return;
    }
    let mut spec = spec;
    if !is_alias(&existing) {
        // What the API assigned cannot be changed or left out.
        spec.cluster_ip = spec.cluster_ip.or(existing.cluster_ip);
        spec.cluster_ips = existing.cluster_ips;
        spec.ip_families = existing.ip_families;
        spec.ip_family_policy = existing.ip_family_policy;
    }
    updated.spec = Some(spec);
    actions.push(Action::update(&updated));
}

fn update_endpoints(
    existing: Option<&Endpoints>,
    subsets: Option<Vec<EndpointSubset>>,
    desired: ObjectMeta,
    actions: &mut Vec<Action>,
) {
    match (existing, subsets) {
        (None, None) => {}
        (Some(existing), None) => actions.push(Action::delete(existing)),
        (None, Some(subsets)) => {
            actions.push(Action::create(&Endpoints { metadata: desired, subsets: Some(subsets) }));
        }
        (Some(existing), Some(subsets)) => {
            let current = existing.subsets.as_deref().unwrap_or_default();
            let same = current.len() == subsets.len() && contains(&current, &subsets);
            if !same {
                actions.push(Action::update(&Endpoints { subsets: Some(subsets), ..existing.clone() }));
            }
        }
    }
}

/// Labels and annotations are added, never taken away.
fn merge(meta: &mut ObjectMeta, desired: &ObjectMeta) {
    meta.labels.get_or_insert_default().extend(desired.labels.clone().unwrap_or_default());
    meta.annotations.get_or_insert_default().extend(desired.annotations.clone().unwrap_or_default());
}

/// Whether everything that is desired is there; what the API filled in beside it does not count.
fn contains(existing: &impl Serialize, desired: &impl Serialize) -> bool {
    fn within(desired: &Value, existing: &Value) -> bool {
        match (desired, existing) {
            (Value::Object(desired), Value::Object(existing)) => {
                desired.iter().all(|(key, value)| within(value, existing.get(key).unwrap_or(&Value::Null)))
            }
            (Value::Array(desired), Value::Array(existing)) => {
                desired.len() == existing.len() && desired.iter().zip(existing).all(|(d, e)| within(d, e))
            }
            _ => semantically_equal(desired, existing),
        }
    }
    match (serde_json::to_value(desired), serde_json::to_value(existing)) {
        (Ok(desired), Ok(existing)) => within(&desired, &existing),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn ingress(status: &Value) -> Ingress {
        serde_json::from_value(json!({
            "apiVersion": "networking.internal.knative.dev/v1alpha1", "kind": "Ingress",
            "metadata": {"name": "r"}, "spec": {"rules": []}, "status": status
        }))
        .expect("an Ingress")
    }

    fn placeholder(spec: &Value) -> Service {
        serde_json::from_value(json!({"metadata": {"name": "r"}, "spec": spec})).expect("a Service")
    }

    fn verbs(service: &Service, endpoints: Option<&Endpoints>, status: &Value) -> Vec<String> {
        let actions = updates(&Route::default(), service, endpoints, &ingress(status));
        actions.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn an_address_comes_before_a_name_and_an_empty_private_gateway_is_none() {
        let entry = json!({"ingress": [{"ip": "1.2.3.4", "domainInternal": "a.b", "domain": "c.d"}]});
        let status = json!({"privateLoadBalancer": {}, "publicLoadBalancer": entry});
        let alias = placeholder(&json!({"type": "ExternalName", "externalName": "x"}));
        let (spec, subsets) = towards_gateway(&alias, &ingress(&status)).expect("a gateway");
        assert_eq!(spec.cluster_ip.as_deref(), Some(HEADLESS));
        assert_eq!(subsets.map(|subsets| subsets.len()), Some(1));
    }

    #[test]
    fn what_has_an_address_is_made_anew_to_become_something_else() {
        let headless = placeholder(&json!({"type": "ClusterIP", "clusterIP": "None"}));
        let mesh = json!({"publicLoadBalancer": {"ingress": [{"meshOnly": true}]}});
        assert_eq!(verbs(&headless, None, &mesh), ["delete Service r", "create Service r"]);
        let assigned = placeholder(&json!({"type": "ClusterIP", "clusterIP": "10.0.0.1"}));
        assert_eq!(verbs(&assigned, None, &mesh), ["update Service r"]);
        let domain = json!({"publicLoadBalancer": {"ingress": [{"domain": "a.b"}]}});
        assert_eq!(verbs(&assigned, None, &domain), ["delete Service r", "create Service r"]);
        let endpoints = serde_json::from_value(json!({"metadata": {"name": "r"}})).expect("Endpoints");
        let gone = ["delete Service r", "create Service r", "delete Endpoints r"];
        assert_eq!(verbs(&headless, Some(&endpoints), &domain), gone);
    }
}
