//! The Service and the EndpointSlice by which a bucket's owner is found under the bucket's name.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointPort, EndpointSlice};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::api::PostParams;
use kube::{Api, Client};

const PORT_NAME: &str = "http";
/// What the port is called by, whatever a peer listens on in truth.
const PORT: i32 = 8080;

fn metadata(bucket: &str, namespace: &str) -> ObjectMeta {
    ObjectMeta { name: Some(bucket.to_owned()), namespace: Some(namespace.to_owned()), ..Default::default() }
}

/// The bucket's Service: without a selector, its endpoints are the owner's to write.
#[must_use]
pub fn service(bucket: &str, namespace: &str) -> Service {
    Service {
        metadata: metadata(bucket, namespace),
        spec: Some(ServiceSpec {
            ports: Some(vec![ServicePort {
                name: Some(PORT_NAME.to_owned()),
                port: PORT,
                target_port: Some(IntOrString::Int(PORT)),
                ..ServicePort::default()
            }]),
            ..ServiceSpec::default()
        }),
        status: None,
    }
}

/// The bucket's EndpointSlice, with its owner at `ip`.
#[must_use]
pub fn endpoint_slice(bucket: &str, namespace: &str, ip: IpAddr) -> EndpointSlice {
    let mut metadata = metadata(bucket, namespace);
    metadata.labels = Some([("kubernetes.io/service-name".to_owned(), bucket.to_owned())].into());
    EndpointSlice {
        metadata,
        address_type: if ip.is_ipv4() { "IPv4" } else { "IPv6" }.to_owned(),
        endpoints: vec![Endpoint {
            addresses: vec![ip.to_string()],
            conditions: Some(EndpointConditions {
                ready: Some(true),
                serving: Some(true),
                terminating: Some(false),
            }),
            ..Endpoint::default()
        }],
        ports: Some(vec![EndpointPort {
            name: Some(PORT_NAME.to_owned()),
            port: Some(PORT),
            protocol: Some("TCP".to_owned()),
            ..EndpointPort::default()
        }]),
    }
}

/// Sees to it that both are there and lead to `ip`.
///
/// # Errors
/// What the API says.
pub(crate) async fn ensure(
    client: &Client,
    namespace: &str,
    bucket: &str,
    ip: IpAddr,
) -> Result<(), kube::Error> {
    let services: Api<Service> = Api::namespaced(client.clone(), namespace);
    match services.create(&PostParams::default(), &service(bucket, namespace)).await {
        Err(kube::Error::Api(status)) if status.reason == "AlreadyExists" => {}
        created => drop(created?),
    }
    let slices: Api<EndpointSlice> = Api::namespaced(client.clone(), namespace);
    let wanted = endpoint_slice(bucket, namespace, ip);
    match slices.get_opt(bucket).await? {
        None => drop(slices.create(&PostParams::default(), &wanted).await?),
        Some(live) if live.endpoints == wanted.endpoints => {}
        Some(live) => {
            let next = EndpointSlice { endpoints: wanted.endpoints, ..live };
            slices.replace(bucket, &PostParams::default(), &next).await?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_address_type_is_that_of_the_owner() {
        let slice = endpoint_slice("b", "ns", "10.0.0.7".parse().unwrap());
        assert_eq!(
            serde_json::to_value(slice).unwrap(),
            json!({
                "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice",
                "metadata": {"name": "b", "namespace": "ns", "labels": {"kubernetes.io/service-name": "b"}},
                "addressType": "IPv4",
                "endpoints": [{
                    "addresses": ["10.0.0.7"],
                    "conditions": {"ready": true, "serving": true, "terminating": false},
                }],
                "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
            })
        );
        assert_eq!(endpoint_slice("b", "ns", "fd00::7".parse().unwrap()).address_type, "IPv6");
    }

    #[test]
    fn the_service_selects_nothing() {
        let spec = service("b", "ns").spec.unwrap();
        assert_eq!(spec.selector, None);
        let port = &spec.ports.unwrap()[0];
        assert_eq!((port.port, port.target_port.clone()), (8080, Some(IntOrString::Int(8080))));
    }
}
