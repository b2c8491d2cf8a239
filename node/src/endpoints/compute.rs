//! The Endpoints of a Service with a selector, as Kubernetes' endpoints controller computes them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{
    EndpointAddress, EndpointPort, EndpointSubset, Endpoints, ObjectReference, Pod, Service, ServicePort,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::deployment::plan::ready_since;

/// Marks Endpoints of a headless Service.
const HEADLESS: &str = "service.kubernetes.io/headless";

/// Whether the node makes this Service's Endpoints: it has a selector.
#[must_use]
pub fn is_selecting(service: &Service) -> bool {
    service.spec.as_ref().is_some_and(|s| {
        s.selector.as_ref().is_some_and(|sel| !sel.is_empty()) && s.type_.as_deref() != Some("ExternalName")
    })
}

/// Whether the Service selects the pod.
#[must_use]
pub fn selects(service: &Service, pod: &Pod) -> bool {
    let selector = service.spec.as_ref().and_then(|s| s.selector.as_ref());
    let none = BTreeMap::new();
    let labels = pod.metadata.labels.as_ref().unwrap_or(&none);
    service.metadata.namespace == pod.metadata.namespace
        && selector.is_some_and(|s| !s.is_empty() && s.iter().all(|(k, v)| labels.get(k) == Some(v)))
}

/// The Service's Endpoints over those of `pods` that it selects.
#[must_use]
pub fn endpoints(service: &Service, pods: &[Arc<Pod>]) -> Endpoints {
    let spec = service.spec.clone().unwrap_or_default();
    let publish = spec.publish_not_ready_addresses == Some(true);
    // One subset for each set of ports: a named port can mean another number in another pod.
    let mut groups: BTreeMap<Vec<PortKey>, (Vec<EndpointPort>, Addresses, Addresses)> = BTreeMap::new();
    for pod in pods {
        let terminating = pod.metadata.deletion_timestamp.is_some();
        let status = pod.status.clone().unwrap_or_default();
        let ended = matches!(status.phase.as_deref(), Some("Failed" | "Succeeded"));
        let Some(ip) = status.pod_ip.as_deref().filter(|ip| !ip.is_empty()).and_then(|ip| ip.parse().ok())
        else {
            continue;
        };
        if ended || (terminating && !publish) || !selects(service, pod) {
            continue;
        }
        let ports: Vec<EndpointPort> =
            spec.ports.iter().flatten().filter_map(|port| endpoint_port(port, pod)).collect();
        if ports.is_empty() && spec.ports.as_ref().is_some_and(|p| !p.is_empty()) {
            continue;
        }
        let key = ports.iter().map(|p| (p.name.clone(), p.port, p.protocol.clone())).collect();
        let group = groups.entry(key).or_insert_with(|| (ports, Addresses::new(), Addresses::new()));
        let set = if publish || ready_since(pod).is_some() { &mut group.1 } else { &mut group.2 };
        set.insert(ip, address(ip, pod));
    }
    let list = |set: Addresses| (!set.is_empty()).then(|| set.into_values().collect::<Vec<_>>());
    let subsets: Vec<EndpointSubset> = groups
        .into_values()
        .map(|(ports, ready, not_ready)| EndpointSubset {
            addresses: list(ready),
            not_ready_addresses: list(not_ready),
            ports: (!ports.is_empty()).then_some(ports),
        })
        .collect();
    let mut labels = service.metadata.labels.clone().unwrap_or_default();
    if spec.cluster_ip.as_deref() == Some("None") {
        labels.insert(HEADLESS.to_owned(), String::new());
    } else {
        labels.remove(HEADLESS);
    }
    Endpoints {
        metadata: ObjectMeta {
            name: service.metadata.name.clone(),
            namespace: service.metadata.namespace.clone(),
            labels: (!labels.is_empty()).then_some(labels),
            ..ObjectMeta::default()
        },
        subsets: (!subsets.is_empty()).then_some(subsets),
    }
}

/// Whether what is stored says what is wanted.
#[must_use]
pub fn is_current(stored: &Endpoints, wanted: &Endpoints) -> bool {
    let labels = |e: &Endpoints| e.metadata.labels.clone().unwrap_or_default();
    let subsets = |e: &Endpoints| e.subsets.clone().unwrap_or_default();
    labels(stored) == labels(wanted) && subsets(stored) == subsets(wanted)
}

type PortKey = (Option<String>, i32, Option<String>);
type Addresses = BTreeMap<IpAddr, EndpointAddress>;

fn endpoint_port(port: &ServicePort, pod: &Pod) -> Option<EndpointPort> {
    let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
    let number = match &port.target_port {
        None => port.port,
        Some(IntOrString::Int(0)) => port.port,
        Some(IntOrString::Int(number)) => *number,
        Some(IntOrString::String(name)) => pod
            .spec
            .iter()
            .flat_map(|s| &s.containers)
            .flat_map(|c| c.ports.iter().flatten())
            .find(|p| p.name.as_ref() == Some(name) && p.protocol.as_deref().unwrap_or("TCP") == protocol)
            .map(|p| p.container_port)?,
    };
    Some(EndpointPort {
        name: port.name.clone(),
        port: number,
        protocol: Some(protocol),
        app_protocol: port.app_protocol.clone(),
    })
}

fn address(ip: IpAddr, pod: &Pod) -> EndpointAddress {
    EndpointAddress {
        ip: ip.to_string(),
        hostname: None,
        node_name: pod.spec.as_ref().and_then(|s| s.node_name.clone()),
        target_ref: Some(ObjectReference {
            kind: Some("Pod".to_owned()),
            namespace: pod.metadata.namespace.clone(),
            name: pod.metadata.name.clone(),
            uid: pod.metadata.uid.clone(),
            ..ObjectReference::default()
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn service() -> Service {
        serde_json::from_value(json!({
            "metadata": {"name": "s", "namespace": "ns", "labels": {"l": "v"}},
            "spec": {"selector": {"app": "a"}, "ports": [
                {"name": "http", "port": 80, "targetPort": 8012},
                {"name": "http-autometric", "port": 9090, "targetPort": "http-autometric"},
                {"name": "same", "port": 7000}
            ]}
        }))
        .unwrap()
    }

    fn pod(name: &str, ip: &str, ready: bool) -> Pod {
        serde_json::from_value(json!({
            "metadata": {"name": name, "namespace": "ns", "uid": name, "labels": {"app": "a", "x": "y"}},
            "spec": {"nodeName": "n", "containers": [
                {"name": "user-container"},
                {"name": "queue-proxy", "ports": [{"name": "http-autometric", "containerPort": 9090}]}
            ]},
            "status": {"podIP": ip, "conditions": [{"type": "Ready", "status": if ready { "True" } else { "False" }}]}
        }))
        .unwrap()
    }

    fn subsets(service: &Service, pods: Vec<Pod>) -> Value {
        let pods: Vec<_> = pods.into_iter().map(Arc::new).collect();
        serde_json::to_value(endpoints(service, &pods).subsets.unwrap_or_default()).unwrap()
    }

    fn ips(subsets: &Value, field: &str) -> Vec<String> {
        let list = subsets.as_array().unwrap().iter().filter_map(|s| s[field].as_array()).flatten();
        list.map(|a| a["ip"].as_str().unwrap().to_owned()).collect()
    }

    #[test]
    fn ready_and_not_ready_in_order_of_address() {
        let pods = vec![
            pod("b", "127.16.0.10", true),
            pod("a", "127.16.0.9", true),
            pod("c", "127.16.0.3", false),
            pod("none", "", false),
        ];
        let got = subsets(&service(), pods);
        assert_eq!(got.as_array().unwrap().len(), 1);
        assert_eq!(ips(&got, "addresses"), ["127.16.0.9", "127.16.0.10"]);
        assert_eq!(ips(&got, "notReadyAddresses"), ["127.16.0.3"]);
        assert_eq!(
            got[0]["addresses"][0],
            json!({"ip": "127.16.0.9", "nodeName": "n",
                   "targetRef": {"kind": "Pod", "namespace": "ns", "name": "a", "uid": "a"}})
        );
        assert_eq!(
            got[0]["ports"],
            json!([
                {"name": "http", "port": 8012, "protocol": "TCP"},
                {"name": "http-autometric", "port": 9090, "protocol": "TCP"},
                {"name": "same", "port": 7000, "protocol": "TCP"}
            ])
        );
    }

    #[test]
    fn who_does_not_belong() {
        let mut terminating = pod("t", "127.16.0.4", true);
        terminating.metadata.deletion_timestamp =
            serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
        let mut ended = pod("e", "127.16.0.5", false);
        ended.status.as_mut().unwrap().phase = Some("Failed".into());
        let mut other = pod("o", "127.16.0.6", true);
        other.metadata.labels = None;
        let mut elsewhere = pod("w", "127.16.0.7", true);
        elsewhere.metadata.namespace = Some("other".into());
        assert_eq!(subsets(&service(), vec![terminating, ended, other, elsewhere]), json!([]));
    }

    #[test]
    fn named_ports_split_subsets() {
        let mut other = pod("o", "127.16.0.6", true);
        other.spec.as_mut().unwrap().containers[1].ports.as_mut().unwrap()[0].container_port = 9999;
        let got = subsets(&service(), vec![pod("a", "127.16.0.5", true), other]);
        assert_eq!(got.as_array().unwrap().len(), 2);
    }

    #[test]
    fn labels_follow_the_service() {
        let mut service = service();
        service.spec.as_mut().unwrap().cluster_ip = Some("None".into());
        let wanted = endpoints(&service, &[]);
        assert_eq!(wanted.metadata.labels.as_ref().unwrap().len(), 2);
        assert!(is_current(&wanted, &wanted));
        assert!(!is_current(&Endpoints::default(), &wanted));
        service.spec.as_mut().unwrap().selector = None;
        assert!(!is_selecting(&service));
    }
}
