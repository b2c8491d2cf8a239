//! The Services and Endpoints of a ServerlessService.

use std::collections::BTreeMap;

use ember_api::networking::ProtocolType;
use ember_api::networking::v1alpha1::ServerlessService;
use ember_api::{labels, names};
use k8s_openapi::api::core::v1::{EndpointSubset, Endpoints, Service, ServicePort, ServiceSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::ResourceExt;

use crate::owner::controller_ref;

const HTTP_PORT: i32 = 80;
/// The port of the public Service that speaks HTTP/2.
const HTTP2_PORT: i32 = 81;
const HTTPS_PORT: i32 = 443;
/// queue-proxy's and the activator's ports.
const BACKEND_HTTP_PORT: i32 = 8012;
const BACKEND_HTTP2_PORT: i32 = 8013;
const BACKEND_HTTPS_PORT: i32 = 8112;
const METRICS_PORT: i32 = 9090;
const USER_METRICS_PORT: i32 = 9091;
const METRICS_PORT_NAME: &str = "http-autometric";
const USER_METRICS_PORT_NAME: &str = "http-usermetric";

fn is_h2c(sks: &ServerlessService) -> bool {
    sks.spec.protocol_type == ProtocolType::H2c
}

fn port_name(sks: &ServerlessService) -> &'static str {
    if is_h2c(sks) { "http2" } else { "http" }
}

fn backend_port(sks: &ServerlessService) -> i32 {
    if is_h2c(sks) { BACKEND_HTTP2_PORT } else { BACKEND_HTTP_PORT }
}

fn metadata(sks: &ServerlessService, name: String, service_type: &str) -> ObjectMeta {
    let mut labels = sks.labels().clone();
    labels.insert(labels::SERVERLESS_SERVICE.to_owned(), sks.name_any());
    labels.insert(labels::SERVICE_TYPE.to_owned(), service_type.to_owned());
    ObjectMeta {
        name: Some(name),
        namespace: sks.namespace(),
        labels: Some(labels),
        annotations: sks.metadata.annotations.clone(),
        owner_references: Some(vec![controller_ref(sks)]),
        ..ObjectMeta::default()
    }
}

fn port(name: &str, port: i32, target: IntOrString) -> ServicePort {
    ServicePort {
        name: Some(name.to_owned()),
        protocol: Some("TCP".to_owned()),
        port,
        target_port: Some(target),
        ..ServicePort::default()
    }
}

fn serving_port(sks: &ServerlessService, number: i32) -> ServicePort {
    ServicePort {
        app_protocol: is_h2c(sks).then(|| "kubernetes.io/h2c".to_owned()),
        ..port(port_name(sks), number, IntOrString::Int(backend_port(sks)))
    }
}

/// The Service that other objects refer to; its Endpoints are ours to write.
pub(super) fn public_service(sks: &ServerlessService) -> Service {
    let ports = vec![
        serving_port(sks, if is_h2c(sks) { HTTP2_PORT } else { HTTP_PORT }),
        port("https", HTTPS_PORT, IntOrString::Int(BACKEND_HTTPS_PORT)),
    ];
    Service {
        metadata: metadata(sks, sks.name_any(), labels::SERVICE_TYPE_PUBLIC),
        spec: Some(ServiceSpec { ports: Some(ports), ..ServiceSpec::default() }),
        status: None,
    }
}

/// The Service that always leads to the revision's pods.
pub(super) fn private_service(sks: &ServerlessService, selector: BTreeMap<String, String>) -> Service {
    let backend = backend_port(sks);
    let ports = vec![
        serving_port(sks, HTTP_PORT),
        port("https", HTTPS_PORT, IntOrString::Int(BACKEND_HTTPS_PORT)),
        port(METRICS_PORT_NAME, METRICS_PORT, IntOrString::String(METRICS_PORT_NAME.to_owned())),
        port(
            USER_METRICS_PORT_NAME,
            USER_METRICS_PORT,
            IntOrString::String(USER_METRICS_PORT_NAME.to_owned()),
        ),
        // Meshes need the pods' port itself to be declared for calls of single pods.
        port(&format!("{}-istio", port_name(sks)), backend, IntOrString::Int(backend)),
    ];
    Service {
        metadata: metadata(sks, names::private_service(&sks.name_any()), labels::SERVICE_TYPE_PRIVATE),
        spec: Some(ServiceSpec {
            ports: Some(ports),
            selector: Some(selector).filter(|selector| !selector.is_empty()),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// A live Service with the ports and selector of `desired`, if they differ; everything else stays.
pub(super) fn updated(live: &Service, desired: &Service) -> Option<Service> {
    let parts = |service: &Service| {
        let spec = service.spec.clone().unwrap_or_default();
        (spec.ports.unwrap_or_default(), spec.selector.unwrap_or_default())
    };
    let (ports, selector) = parts(desired);
    let (live_ports, live_selector) = parts(live);
    // The API fills in node ports of Services that somebody has made reachable from outside.
    let same_port =
        |a: &ServicePort, b: &ServicePort| ServicePort { node_port: b.node_port, ..a.clone() } == *b;
    let same_ports =
        ports.len() == live_ports.len() && ports.iter().zip(&live_ports).all(|(a, b)| same_port(a, b));
    if same_ports && selector == live_selector {
        return None;
    }
    let mut next = live.clone();
    let spec = next.spec.get_or_insert_default();
    spec.ports = Some(ports);
    spec.selector = Some(selector).filter(|selector| !selector.is_empty());
    Some(next)
}

/// The Endpoints of the public Service, leading where `source` does.
pub(super) fn public_endpoints(sks: &ServerlessService, source: &[EndpointSubset]) -> Endpoints {
    Endpoints {
        metadata: metadata(sks, sks.name_any(), labels::SERVICE_TYPE_PUBLIC),
        subsets: Some(serving_subsets(sks, source)).filter(|subsets| !subsets.is_empty()),
    }
}

/// The subsets with only those ports on which requests are served.
pub(super) fn serving_subsets(sks: &ServerlessService, source: &[EndpointSubset]) -> Vec<EndpointSubset> {
    let backend = backend_port(sks);
    source
        .iter()
        .map(|subset| {
            let ports = subset.ports.iter().flatten();
            let kept = ports
                .filter(|port| port.port == backend || port.port == BACKEND_HTTPS_PORT)
                .cloned()
                .collect();
            EndpointSubset { ports: Some(kept), ..subset.clone() }
        })
        .collect()
}

/// Whether two lists of subsets say the same; an absent list is an empty one.
pub(super) fn same_subsets(a: &[EndpointSubset], b: &[EndpointSubset]) -> bool {
    fn same<T: PartialEq>(a: Option<&Vec<T>>, b: Option<&Vec<T>>) -> bool {
        a.map(Vec::as_slice).unwrap_or_default() == b.map(Vec::as_slice).unwrap_or_default()
    }
    a.len() == b.len()
        && a.iter().zip(b).all(|(a, b)| {
            same(a.addresses.as_ref(), b.addresses.as_ref())
                && same(a.not_ready_addresses.as_ref(), b.not_ready_addresses.as_ref())
                && same(a.ports.as_ref(), b.ports.as_ref())
        })
}

/// How many addresses are ready.
pub(super) fn ready_addresses(endpoints: &Endpoints) -> usize {
    endpoints.subsets.iter().flatten().map(|subset| subset.addresses.as_ref().map_or(0, Vec::len)).sum()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::golden::{self, differences, normalise};
    use crate::serverlessservice::subset;
    use serde_json::{Value, json};

    #[derive(serde::Deserialize)]
    struct Case {
        id: String,
        #[serde(rename = "SKS")]
        sks: Value,
        #[serde(rename = "Selector", default, deserialize_with = "golden::or_default")]
        selector: BTreeMap<String, String>,
        #[serde(rename = "Source", default, deserialize_with = "golden::or_default")]
        source: Endpoints,
        expect: Value,
    }

    fn difference(mut case: Case) -> Option<String> {
        case.sks["apiVersion"] = "networking.internal.knative.dev/v1alpha1".into();
        case.sks["kind"] = "ServerlessService".into();
        let sks: ServerlessService = serde_json::from_value(case.sks).expect("a ServerlessService");
        let source = case.source.subsets.unwrap_or_default();
        let count = usize::try_from(sks.spec.num_activators).unwrap_or(0);
        let reduced = subset::reduce(&source, &sks.name_any(), count);
        let mut ours = json!({
            "private": private_service(&sks, case.selector),
            "public": public_service(&sks),
            "publicEndpoints": public_endpoints(&sks, &source),
            "publicEndpointsSubset": public_endpoints(&sks, &reduced),
        });
        normalise(&mut ours);
        normalise(&mut case.expect);
        let wrong = differences("", &ours, &case.expect);
        (!wrong.is_empty()).then(|| wrong.join("\n"))
    }

    #[test]
    fn golden_sks_objects() {
        let mut report = golden::Report::new("sks_objects.json");
        for case in golden::cases::<Case>("sks_objects.json") {
            report.check(&case.id.clone(), difference(case));
        }
        report.finish();
    }
}
