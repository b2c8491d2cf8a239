//! Rules for probes.

use k8s_openapi::api::core::v1 as core;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::fieldmask::disallowed;
use crate::field_error::FieldError;

/// Checks all probes of a container. Without a `port` it is one that does not serve.
pub(super) fn all(container: &core::Container, port: Option<&core::ContainerPort>) -> FieldError {
    let check = |probe: &Option<core::Probe>| {
        probe.as_ref().map_or_else(FieldError::none, |probe| self::probe(probe, port))
    };
    let readiness = container.readiness_probe.as_ref().map_or_else(FieldError::none, readiness);
    check(&container.liveness_probe)
        .via_field("livenessProbe")
        .also(check(&container.readiness_probe).also(readiness).via_field("readinessProbe"))
        .also(check(&container.startup_probe).via_field("startupProbe"))
}

/// Refuses all probes of a container.
pub(super) fn none(container: &core::Container) -> FieldError {
    let refuse = |probe: &Option<core::Probe>| {
        let Some(probe) = probe else { return FieldError::none() };
        let handlers = ["exec", "grpc", "httpGet", "tcpSocket"];
        // The way to probe is not a field of its own: it is the probe that must not be set.
        let is_set = probe.exec.is_some()
            || probe.grpc.is_some()
            || probe.http_get.is_some()
            || probe.tcp_socket.is_some();
        let handler = if is_set { FieldError::disallowed(&[""]) } else { FieldError::none() };
        handler.also(disallowed(probe, &handlers))
    };
    refuse(&container.liveness_probe)
        .via_field("livenessProbe")
        .also(refuse(&container.readiness_probe).via_field("readinessProbe"))
        .also(refuse(&container.startup_probe).via_field("startupProbe"))
}

fn probe(probe: &core::Probe, port: Option<&core::ContainerPort>) -> FieldError {
    let mut errors = FieldError::none();
    let mut handlers = Vec::new();
    for (name, target) in [
        ("httpGet", probe.http_get.as_ref().map(|handler| &handler.port)),
        ("tcpSocket", probe.tcp_socket.as_ref().map(|handler| &handler.port)),
    ] {
        let Some(target) = target else { continue };
        handlers.push(name);
        // With two handlers what was found about the first moves below the second; the contract's texts have it
        // so.
        errors = errors.via_field(name);
        errors.add(self::port(target, port, &format!("{name}.port")));
    }
    if probe.exec.is_some() {
        handlers.push("exec");
        errors = errors.via_field("exec");
    }
    if probe.grpc.is_some() {
        handlers.push("gRPC");
        errors = errors.via_field("grpc");
    }
    match handlers.as_slice() {
        [] => errors.add(FieldError::missing_one_of(&["httpGet", "tcpSocket", "exec", "grpc"])),
        [_] => {}
        several => errors.add(FieldError::multiple_one_of(several)),
    }
    errors
}

/// A named port has to be the one that serves; a container that does not serve has to say which.
fn port(target: &IntOrString, serving: Option<&core::ContainerPort>, path: &str) -> FieldError {
    let problem = match (target, serving) {
        (IntOrString::String(name), Some(port)) if !name.is_empty() && Some(name) != port.name.as_ref() => {
            "Probe port must match container port"
        }
        (IntOrString::Int(0), None) => "Probe port must be specified",
        (IntOrString::String(name), None) if name.is_empty() => "Probe port must be specified",
        _ => return FieldError::none(),
    };
    let shown = match target {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    };
    FieldError::invalid_value(shown, path).with_details(problem)
}

fn readiness(probe: &core::Probe) -> FieldError {
    let mut errors = FieldError::none();
    let period = probe.period_seconds.unwrap_or_default();
    let timeout = probe.timeout_seconds.unwrap_or_default();
    let failures = probe.failure_threshold.unwrap_or_default();
    let mut bounds = vec![
        ("periodSeconds", period, 0),
        ("initialDelaySeconds", probe.initial_delay_seconds.unwrap_or_default(), 0),
        ("successThreshold", probe.success_threshold.unwrap_or_default(), 1),
    ];
    if period == 0 {
        for (field, value) in [("failureThreshold", failures), ("timeoutSeconds", timeout)] {
            if value != 0 {
                let message = format!("{field} is disallowed when periodSeconds is zero");
                errors.add(FieldError::generic(message, &[field]));
            }
        }
    } else {
        bounds.extend([("timeoutSeconds", timeout, 1), ("failureThreshold", failures, 1)]);
    }
    for (field, value, low) in bounds {
        if value < low {
            errors.add(FieldError::out_of_bounds(value, low, i32::MAX, field));
        }
    }
    errors
}
