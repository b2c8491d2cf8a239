//! Ports of the processes of pods: which ones the node picks, and where a declared port stands in a pod.
//!
//! Processes share the machine's ports, so an app cannot have the port that its pod declares. The node picks another
//! one and writes it everywhere the declared one stands; the Pod object keeps what was declared.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv6Addr, TcpListener};
use std::ops::RangeInclusive;

use k8s_openapi::api::core::v1::{Container, PodSpec, Probe};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use serde_json::Value;

/// The name of the container that the sidecar stands for.
pub const QUEUE_PROXY: &str = "queue-proxy";

/// From the port that a pod declares to the one its process gets.
pub type PortMap = BTreeMap<i32, i32>;

/// Hands out ports of a range that this instance has to itself, skipping those some other program listens on.
#[derive(Debug)]
pub struct Ports {
    range: RangeInclusive<u16>,
    taken: BTreeSet<u16>,
    cursor: u16,
}

impl Ports {
    /// All ports of `range`.
    #[must_use]
    pub fn new(range: RangeInclusive<u16>) -> Self {
        let cursor = *range.start();
        Self { range, taken: BTreeSet::new(), cursor }
    }

    /// A port that is neither handed out nor listened on; `None` when there is none. Ports are reused as late as
    /// possible, because not every program sets `SO_REUSEADDR`.
    pub fn allocate(&mut self) -> Option<u16> {
        self.allocate_if(is_free)
    }

    fn allocate_if(&mut self, free: impl Fn(u16) -> bool) -> Option<u16> {
        for _ in self.range.clone() {
            let port = self.cursor;
            self.cursor = if port == *self.range.end() { *self.range.start() } else { port + 1 };
            if !self.taken.contains(&port) && free(port) {
                self.taken.insert(port);
                return Some(port);
            }
        }
        None
    }

    /// Gives a port back.
    pub fn release(&mut self, port: u16) {
        self.taken.remove(&port);
    }
}

/// Whether a program could listen on `port` of every address.
fn is_free(port: u16) -> bool {
    match TcpListener::bind((Ipv6Addr::UNSPECIFIED, port)) {
        Ok(_) => true,
        Err(e) if e.kind() == std::io::ErrorKind::AddrInUse => false,
        // No IPv6 on this machine.
        Err(_) => TcpListener::bind(("0.0.0.0", port)).is_ok(),
    }
}

/// The ports that the pod's app containers declare, each once.
#[must_use]
pub fn declared(spec: &PodSpec) -> Vec<i32> {
    let ports: BTreeSet<i32> = spec
        .containers
        .iter()
        .filter(|c| c.name != QUEUE_PROXY)
        .flat_map(|c| c.ports.iter().flatten())
        .map(|p| p.container_port)
        .collect();
    ports.into_iter().collect()
}

/// The pod's spec with every declared port replaced by the picked one: container ports, `PORT`, probes, and
/// `USER_PORT` and the readiness probe in queue-proxy's environment. `$(PORT)` follows from `PORT`. A probe without a
/// port is one of the container's first port: Knative says so of liveness and readiness, and leaves out startup.
#[must_use]
pub fn rewrite(spec: &PodSpec, ports: &PortMap) -> PodSpec {
    let mut spec = spec.clone();
    for container in &mut spec.containers {
        if container.name == QUEUE_PROXY {
            rewrite_queue_proxy(container, ports);
        } else {
            rewrite_app(container, ports);
        }
    }
    spec
}

fn rewrite_app(container: &mut Container, ports: &PortMap) {
    let named: BTreeMap<String, i32> = container
        .ports
        .iter()
        .flatten()
        .filter_map(|p| p.name.clone().map(|name| (name, p.container_port)))
        .collect();
    let own = container.ports.iter().flatten().next().map(|port| port.container_port);
    for probe in [&mut container.liveness_probe, &mut container.startup_probe, &mut container.readiness_probe]
        .into_iter()
        .flatten()
    {
        if let Some(own) = own {
            fill_in_port(probe, own);
        }
        rewrite_probe(probe, &named, ports);
    }
    for port in container.ports.iter_mut().flatten() {
        port.container_port = mapped(port.container_port, ports);
    }
    rewrite_env(container, "PORT", ports);
}

/// Kubernetes has no port 0: it stands for none.
fn fill_in_port(probe: &mut Probe, own: i32) {
    let actions =
        [probe.http_get.as_mut().map(|a| &mut a.port), probe.tcp_socket.as_mut().map(|a| &mut a.port)];
    for port in actions.into_iter().flatten().filter(|port| **port == IntOrString::Int(0)) {
        *port = IntOrString::Int(own);
    }
    if let Some(action) = probe.grpc.as_mut().filter(|action| action.port == 0) {
        action.port = own;
    }
}

fn rewrite_probe(probe: &mut Probe, named: &BTreeMap<String, i32>, ports: &PortMap) {
    if let Some(action) = &mut probe.http_get {
        action.port = mapped_port(&action.port, named, ports);
    }
    if let Some(action) = &mut probe.tcp_socket {
        action.port = mapped_port(&action.port, named, ports);
    }
    if let Some(action) = &mut probe.grpc {
        action.port = mapped(action.port, ports);
    }
}

fn rewrite_queue_proxy(container: &mut Container, ports: &PortMap) {
    rewrite_env(container, "USER_PORT", ports);
    for var in container.env.iter_mut().flatten().filter(|v| v.name == "SERVING_READINESS_PROBE") {
        let Some(text) = &var.value else { continue };
        // What is not JSON is for the sidecar to complain about.
        let Ok(mut value) = serde_json::from_str::<Value>(text) else { continue };
        match &mut value {
            Value::Array(probes) => probes.iter_mut().for_each(|probe| rewrite_json_probe(probe, ports)),
            probe => rewrite_json_probe(probe, ports),
        }
        var.value = Some(value.to_string());
    }
}

fn rewrite_json_probe(probe: &mut Value, ports: &PortMap) {
    for action in ["httpGet", "tcpSocket", "grpc"] {
        let Some(port) = probe.get_mut(action).and_then(|a| a.get_mut("port")) else { continue };
        let number = match &*port {
            Value::Number(n) => n.as_i64().and_then(|n| i32::try_from(n).ok()),
            Value::String(s) => s.parse().ok(),
            _ => None,
        };
        if let Some(picked) = number.and_then(|n| ports.get(&n)) {
            *port = Value::from(*picked);
        }
    }
}

fn rewrite_env(container: &mut Container, name: &str, ports: &PortMap) {
    for var in container.env.iter_mut().flatten().filter(|v| v.name == name) {
        if let Some(picked) =
            var.value.as_deref().and_then(|v| v.parse().ok()).and_then(|p: i32| ports.get(&p))
        {
            var.value = Some(picked.to_string());
        }
    }
}

fn mapped(port: i32, ports: &PortMap) -> i32 {
    ports.get(&port).copied().unwrap_or(port)
}

fn mapped_port(port: &IntOrString, named: &BTreeMap<String, i32>, ports: &PortMap) -> IntOrString {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(text) => named.get(text).copied().or_else(|| text.parse().ok()),
    };
    number.map_or_else(|| port.clone(), |number| IntOrString::Int(mapped(number, ports)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn spec() -> PodSpec {
        serde_json::from_value(json!({"containers": [
            {
                "name": "user-container",
                "args": ["--port=$(PORT)"],
                "ports": [{"name": "user-port", "containerPort": 8080}],
                "env": [{"name": "PORT", "value": "8080"}, {"name": "OTHER", "value": "8080"}],
                "livenessProbe": {"httpGet": {"port": 8080, "path": "/"}},
                "startupProbe": {"tcpSocket": {"port": "user-port"}},
                "readinessProbe": {"grpc": {"port": 9000}}
            },
            {
                "name": "queue-proxy",
                "ports": [{"name": "queue-port", "containerPort": 8012}],
                "env": [
                    {"name": "USER_PORT", "value": "8080"},
                    {"name": "QUEUE_SERVING_PORT", "value": "8012"},
                    {"name": "SERVING_READINESS_PROBE", "value": "{\"tcpSocket\":{\"port\":8080,\"host\":\"127.0.0.1\"},\"successThreshold\":1}"}
                ]
            }
        ]}))
        .unwrap()
    }

    #[test]
    fn rewrites_everywhere() {
        let before = spec();
        assert_eq!(declared(&before), [8080]);
        let after = rewrite(&before, &PortMap::from([(8080, 20_001)]));
        let app = serde_json::to_value(&after.containers[0]).unwrap();
        assert_eq!(app["ports"][0]["containerPort"], 20_001);
        assert_eq!(app["env"][0]["value"], "20001");
        assert_eq!(app["env"][1]["value"], "8080");
        assert_eq!(app["livenessProbe"]["httpGet"]["port"], 20_001);
        assert_eq!(app["startupProbe"]["tcpSocket"]["port"], 20_001);
        assert_eq!(app["readinessProbe"]["grpc"]["port"], 9000);
        let proxy = &after.containers[1];
        assert_eq!(proxy.ports, before.containers[1].ports);
        let env = proxy.env.as_ref().unwrap();
        assert_eq!(env[0].value.as_deref(), Some("20001"));
        assert_eq!(env[1].value.as_deref(), Some("8012"));
        let probe: Value = serde_json::from_str(env[2].value.as_deref().unwrap()).unwrap();
        assert_eq!(probe, json!({"tcpSocket": {"port": 20_001, "host": "127.0.0.1"}, "successThreshold": 1}));
    }

    #[test]
    fn a_probe_without_a_port_is_of_the_containers_own() {
        for (probe, path) in [
            (json!({"httpGet": {"path": "/"}}), "/httpGet/port"),
            (json!({"httpGet": {"path": "/", "port": 0}}), "/httpGet/port"),
            (json!({"tcpSocket": {"port": 0}}), "/tcpSocket/port"),
            (json!({"grpc": {"port": 0}}), "/grpc/port"),
        ] {
            let mut spec = spec();
            spec.containers[0].startup_probe = Some(serde_json::from_value(probe.clone()).unwrap());
            let after = rewrite(&spec, &PortMap::from([(8080, 20_001)]));
            let rewritten = serde_json::to_value(&after.containers[0].startup_probe).unwrap();
            assert_eq!(rewritten.pointer(path), Some(&json!(20_001)), "{probe}");
            // Whose ports are not declared has none to fill in.
            spec.containers[0].ports = None;
            let after = rewrite(&spec, &PortMap::new());
            assert_eq!(after.containers[0].startup_probe, spec.containers[0].startup_probe);
        }
    }

    #[test]
    fn readiness_probe_forms() {
        let ports = PortMap::from([(8080, 20_001)]);
        for (text, expected) in [
            ("", ""),
            ("nonsense", "nonsense"),
            ("[null,{\"httpGet\":{\"port\":\"8080\"}}]", "[null,{\"httpGet\":{\"port\":20001}}]"),
            ("{\"grpc\":{\"port\":8080}}", "{\"grpc\":{\"port\":20001}}"),
            ("{\"httpGet\":{\"port\":9999}}", "{\"httpGet\":{\"port\":9999}}"),
        ] {
            let mut spec = spec();
            spec.containers[1].env.as_mut().unwrap()[2].value = Some(text.to_owned());
            let after = rewrite(&spec, &ports);
            assert_eq!(after.containers[1].env.as_ref().unwrap()[2].value.as_deref(), Some(expected));
        }
    }

    #[test]
    fn ports_are_unique_skip_what_is_used_and_are_reused_last() {
        let mut ports = Ports::new(100..=104);
        let free = |port: u16| port != 101;
        let got: Vec<_> = std::iter::from_fn(|| ports.allocate_if(free)).collect();
        assert_eq!(got, [100, 102, 103, 104]);
        ports.release(103);
        ports.release(100);
        assert_eq!(ports.allocate_if(free), Some(100));
        assert_eq!(ports.allocate_if(free), Some(103));
        assert_eq!(ports.allocate_if(free), None);
    }

    #[test]
    fn a_port_somebody_listens_on_is_not_free() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        assert!(!is_free(port));
        drop(listener);
        assert!(is_free(port));
    }
}
