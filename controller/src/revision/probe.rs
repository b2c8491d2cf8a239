//! The probes of a revision's containers: what queue-proxy runs in the kubelet's stead, and what stays with the
//! kubelet.

use k8s_openapi::api::core::v1::{Container, HTTPGetAction, HTTPHeader, Probe, TCPSocketAction};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

const LOCAL: &str = "127.0.0.1";

/// A sidecar's readiness probe names no port, and there is none to assume.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("sidecar readiness probe does not define probe port on container: {container}")]
pub(crate) struct PortMissing {
    /// The sidecar's name.
    pub(crate) container: String,
}

/// Whether a port has no number. A name can only be that of the container's one port.
fn is_unset(port: &IntOrString) -> bool {
    match port {
        IntOrString::Int(port) => *port == 0,
        IntOrString::String(_) => true,
    }
}

fn or_default(port: &mut IntOrString, default: i32) {
    if is_unset(port) {
        *port = IntOrString::Int(default);
    }
}

/// The probe as queue-proxy is to run it: towards the loopback address, on `port` where none is given. A command can
/// only run in its own container, so queue-proxy only checks that the port accepts connections.
fn for_queue_proxy(probe: &Probe, port: i32) -> Probe {
    let mut probe = probe.clone();
    if let Some(get) = &mut probe.http_get {
        get.host = Some(LOCAL.to_owned());
        or_default(&mut get.port, port);
        if get.scheme.as_deref().unwrap_or_default().is_empty() {
            get.scheme = Some("HTTP".to_owned());
        }
    } else if let Some(socket) = &mut probe.tcp_socket {
        socket.host = Some(LOCAL.to_owned());
        or_default(&mut socket.port, port);
    } else if probe.exec.take().is_some() {
        probe.tcp_socket =
            Some(TCPSocketAction { host: Some(LOCAL.to_owned()), port: IntOrString::Int(port) });
    } else if let Some(grpc) = &mut probe.grpc
        && grpc.port == 0
    {
        grpc.port = port;
    }
    if probe.period_seconds.unwrap_or(0) > 0 && probe.timeout_seconds.unwrap_or(0) < 1 {
        probe.timeout_seconds = Some(1);
    }
    for number in [
        &mut probe.initial_delay_seconds,
        &mut probe.timeout_seconds,
        &mut probe.period_seconds,
        &mut probe.success_threshold,
        &mut probe.failure_threshold,
    ] {
        *number = number.filter(|n| *n != 0);
    }
    probe
}

fn encode<T: serde::Serialize>(probes: &T) -> String {
    // Probes hold strings and numbers only: their serialisation does not fail.
    serde_json::to_string(probes).unwrap_or_default()
}

/// The serving container's readiness probe as text; empty if it has none.
pub(super) fn encode_serving(serving: &Container, port: i32) -> String {
    serving.readiness_probe.as_ref().map(|probe| encode(&for_queue_proxy(probe, port))).unwrap_or_default()
}

/// The readiness probes of all containers as text: the serving container's first, `null` if it has none, then those
/// of the sidecars, except commands.
///
/// # Errors
/// A sidecar's probe names no port.
pub(super) fn encode_all<'a>(
    serving: &Container,
    sidecars: impl IntoIterator<Item = &'a Container>,
    port: i32,
) -> Result<String, PortMissing> {
    let mut probes = vec![serving.readiness_probe.as_ref().map(|probe| for_queue_proxy(probe, port))];
    for sidecar in sidecars {
        let Some(probe) = &sidecar.readiness_probe else { continue };
        let named = match probe {
            Probe { http_get: Some(get), .. } => !is_unset(&get.port),
            Probe { tcp_socket: Some(socket), .. } => !is_unset(&socket.port),
            Probe { exec: Some(_), .. } => continue,
            Probe { grpc: Some(grpc), .. } => grpc.port > 0,
            _ => false,
        };
        if !named {
            return Err(PortMissing { container: sidecar.name.clone() });
        }
        probes.push(Some(for_queue_proxy(probe, 0)));
    }
    Ok(encode(&probes))
}

/// The probe by which the kubelet learns the pod's readiness: it asks queue-proxy, with the user's timings.
pub(super) fn of_queue_proxy(serving: &Container, serving_port: i32) -> Option<Probe> {
    let user = serving.readiness_probe.as_ref()?;
    Some(Probe {
        http_get: Some(HTTPGetAction {
            port: IntOrString::Int(serving_port),
            http_headers: Some(vec![HTTPHeader {
                name: "K-Network-Probe".to_owned(),
                value: "queue".to_owned(),
            }]),
            ..HTTPGetAction::default()
        }),
        exec: None,
        tcp_socket: None,
        grpc: None,
        ..user.clone()
    })
}

/// Takes away the readiness probe that queue-proxy runs; a command stays with its container.
pub(super) fn drop_probed_by_queue_proxy(container: &mut Container) {
    if let Some(probe) = &container.readiness_probe
        && (probe.http_get.is_some() || probe.tcp_socket.is_some() || probe.grpc.is_some())
    {
        container.readiness_probe = None;
    }
}

/// Points the serving container's liveness probe to `port`: always, or, with `keep_given`, only if it names none.
pub(super) fn rewrite_liveness(container: &mut Container, port: i32, keep_given: bool) {
    let Some(probe) = &mut container.liveness_probe else { return };
    let target = match probe {
        Probe { http_get: Some(get), .. } => &mut get.port,
        Probe { tcp_socket: Some(socket), .. } => &mut socket.port,
        _ => return,
    };
    if !keep_given || is_unset(target) {
        *target = IntOrString::Int(port);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn container(probe: &Value) -> Container {
        serde_json::from_value(json!({"name": "side", "readinessProbe": probe})).expect("a container")
    }

    #[test]
    fn a_port_by_name_is_the_serving_port() {
        let serving = container(&json!({"httpGet": {"port": "http", "path": "/ready"}}));
        let probe: Probe = serde_json::from_str(&encode_serving(&serving, 8080)).expect("a probe");
        assert_eq!(probe.http_get.map(|get| get.port), Some(IntOrString::Int(8080)));
        let mut serving = Container {
            liveness_probe: serde_json::from_value(json!({"tcpSocket": {"port": "http"}})).ok(),
            ..Container::default()
        };
        rewrite_liveness(&mut serving, 8080, true);
        let port = serving.liveness_probe.and_then(|probe| probe.tcp_socket).map(|socket| socket.port);
        assert_eq!(port, Some(IntOrString::Int(8080)));
    }

    #[test]
    fn a_sidecar_has_to_name_a_port_by_number_unless_it_runs_a_command() {
        let serving = Container::default();
        let encoded = |probe: Value| encode_all(&serving, [&container(&probe)], 8080);
        let missing = Err(PortMissing { container: "side".to_owned() });
        for probe in [json!({}), json!({"httpGet": {"port": "http"}}), json!({"grpc": {"port": 0}})] {
            assert_eq!(encoded(probe), missing);
        }
        assert_eq!(encoded(json!({"exec": {"command": ["true"]}})), Ok("[null]".to_owned()));
        let list = encoded(json!({"tcpSocket": {"port": 9000}, "periodSeconds": 5})).expect("a list");
        let list: Value = serde_json::from_str(&list).expect("JSON");
        let socket = json!({"tcpSocket": {"host": "127.0.0.1", "port": 9000}});
        assert_eq!(
            list,
            json!([null, {"tcpSocket": socket["tcpSocket"], "periodSeconds": 5, "timeoutSeconds": 1}])
        );
    }
}
