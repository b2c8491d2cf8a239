//! Rules for containers.

use std::collections::HashSet;

use k8s_openapi::api::core::v1 as core;

use super::fieldmask::{disallowed, is_blank};
use super::{pod, probe, volume};
use crate::configmaps::features::Features;
use crate::field_error::FieldError;
use crate::golang::quote;
use crate::images::Reference;

const QUEUE_PROXY: &str = "queue-proxy";

/// Ports of queue-proxy: requests (HTTP/1 and HTTP/2), admin, metrics of the autoscaler and of users, profiling.
const RESERVED_PORTS: [i32; 6] = [8012, 8013, 8022, 9090, 9091, 8008];

const RESERVED_ENV: [&str; 3] = ["K_SERVICE", "K_CONFIGURATION", "K_REVISION"];

const ALLOWED_FIELDS: [&str; 17] = [
    "name",
    "args",
    "command",
    "env",
    "workingDir",
    "envFrom",
    "image",
    "imagePullPolicy",
    "livenessProbe",
    "ports",
    "readinessProbe",
    "resources",
    "securityContext",
    "startupProbe",
    "terminationMessagePath",
    "terminationMessagePolicy",
    "volumeMounts",
];

/// What a container is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Role {
    Serving,
    Sidecar,
    Init,
}

/// The port requests go to, with the defaults of one that is not given.
pub(super) fn serving_port(containers: &[core::Container]) -> (core::ContainerPort, FieldError) {
    let with_ports =
        || containers.iter().filter_map(|c| c.ports.as_deref()).filter(|ports| !ports.is_empty());
    let mut port = with_ports().next_back().map(|ports| ports[0].clone()).unwrap_or_default();
    if port.name.as_ref().is_none_or(String::is_empty) {
        port.name = Some("http".to_owned());
    }
    if port.container_port == 0 {
        port.container_port = 8080;
    }
    let errors = match with_ports().map(<[_]>::len).sum::<usize>() {
        0 if containers.len() > 1 => FieldError::missing(&["ports"]),
        0 | 1 => FieldError::none(),
        _ => FieldError::generic("more than one container port is set", &["ports"])
            .with_details("Only a single port is allowed across all containers"),
    };
    (port, errors)
}

pub(super) fn init_list(
    containers: &[core::Container],
    others: &[core::Container],
    volumes: &[core::Volume],
    features: &Features,
) -> FieldError {
    if containers.is_empty() {
        return FieldError::none();
    }
    if !features.pod_spec_init_containers.is_enabled() {
        let count = containers.len();
        return FieldError::generic(
            format!("pod spec support for init-containers is off, but found {count} init containers"),
            &[],
        );
    }
    let mut errors = FieldError::none();
    for (index, init) in containers.iter().enumerate() {
        if others.iter().any(|other| other.name == init.name) {
            errors.add(duplicate_name(&init.name));
            errors = errors.via_field_index("containers", index);
        }
        let mut of_init = FieldError::none();
        for (field, is_set) in [
            ("livenessProbe", init.liveness_probe.is_some()),
            ("readinessProbe", init.readiness_probe.is_some()),
            ("startupProbe", init.startup_probe.is_some()),
            ("lifecycle", init.lifecycle.is_some()),
        ] {
            if is_set {
                of_init.add(FieldError::generic("field not allowed in an init container", &[field]));
            }
        }
        of_init.add(container(init, volumes, Role::Init, features));
        errors.add(of_init.via_field_index("containers", index));
    }
    errors
}

pub(super) fn list(
    containers: &[core::Container],
    volumes: &[core::Volume],
    port: &core::ContainerPort,
    features: &Features,
) -> FieldError {
    if !features.multi_container.is_enabled() {
        let count = containers.len();
        return FieldError::generic(format!("multi-container is off, but found {count} containers"), &[]);
    }
    let mut errors = FieldError::none();
    let mut names = HashSet::new();
    for (index, container) in containers.iter().enumerate() {
        if !names.insert(&container.name) {
            errors.add(duplicate_name(&container.name).via_field_index("containers", index));
        }
        let of_container = if container.ports.as_ref().is_none_or(Vec::is_empty) {
            sidecar(container, volumes, features)
        } else {
            serving(container, volumes, port, features)
        };
        errors.add(of_container.via_field_index("containers", index));
    }
    errors
}

fn duplicate_name(name: &str) -> FieldError {
    FieldError::generic(format!("duplicate container name {}", quote(name)), &["name"])
}

pub(super) fn serving(
    serving: &core::Container,
    volumes: &[core::Volume],
    port: &core::ContainerPort,
    features: &Features,
) -> FieldError {
    probe::all(serving, Some(port)).also(container(serving, volumes, Role::Serving, features))
}

fn sidecar(sidecar: &core::Container, volumes: &[core::Volume], features: &Features) -> FieldError {
    let probes = if features.multi_container_probing.is_enabled() {
        probe::all(sidecar, None)
    } else {
        probe::none(sidecar)
    };
    probes.also(container(sidecar, volumes, Role::Sidecar, features))
}

fn container(
    container: &core::Container,
    volumes: &[core::Volume],
    role: Role,
    features: &Features,
) -> FieldError {
    if is_blank(container) {
        return FieldError::missing(&[""]);
    }
    let mut errors = disallowed(container, &ALLOWED_FIELDS);
    if container.name == QUEUE_PROXY {
        let message = format!("{} is a reserved container name", quote(&container.name));
        errors.add(FieldError::generic(message, &["name"]));
    }
    for (index, variable) in container.env.iter().flatten().enumerate() {
        errors.add(env(variable, role, features).via_field_index("env", index));
    }
    errors.add(env_from(container.env_from.as_deref().unwrap_or_default()).via_field("envFrom"));
    errors.add(image(container.image.as_deref().unwrap_or_default()));
    let ports = container.ports.as_deref().unwrap_or_default();
    errors.add(self::ports(ports, role).via_field("ports"));
    if let Some(resources) = &container.resources {
        errors.add(disallowed(resources, &["limits", "requests"]).via_field("resources"));
    }
    if let Some(context) = &container.security_context {
        errors.add(security_context(context, features).via_field("securityContext"));
    }
    let policy = container.termination_message_policy.as_deref().unwrap_or_default();
    if !["", "File", "FallbackToLogsOnError"].contains(&policy) {
        errors.add(FieldError::invalid_value(policy, "terminationMessagePolicy"));
    }
    let mounts = container.volume_mounts.as_deref().unwrap_or_default();
    errors.add(volume::mounts(mounts, volumes, features).via_field("volumeMounts"));
    errors
}

fn image(image: &str) -> FieldError {
    if image.is_empty() {
        return FieldError::missing(&["image"]);
    }
    match Reference::parse(image) {
        Ok(_) => FieldError::none(),
        Err(error) => FieldError::generic("Failed to parse image reference", &["image"])
            .with_details(format!("image: {}, error: {error}", quote(image))),
    }
}

fn env(variable: &core::EnvVar, role: Role, features: &Features) -> FieldError {
    let name = variable.name.as_str();
    let mut errors = FieldError::none();
    if name.is_empty() {
        errors.add(FieldError::missing(&["name"]));
    } else if RESERVED_ENV.contains(&name) || (name == "PORT" && role == Role::Serving) {
        let message = format!("{} is a reserved environment variable", quote(name));
        errors.add(FieldError::generic(message, &["name"]));
    }
    if let Some(source) = &variable.value_from {
        let fields = ["configMapKeyRef", "secretKeyRef", "fieldRef", "resourceFieldRef"];
        let allowed = if features.pod_spec_field_ref.is_allowed() { &fields[..] } else { &fields[..2] };
        errors.add(disallowed(source, allowed).via_field("valueFrom"));
    }
    errors
}

fn env_from(sources: &[core::EnvFromSource]) -> FieldError {
    let mut errors = FieldError::none();
    for (index, source) in sources.iter().enumerate() {
        let references =
            [("secretRef", source.secret_ref.is_some()), ("configMapRef", source.config_map_ref.is_some())];
        for (field, _) in references.iter().filter(|(_, is_set)| *is_set) {
            // Moves what was found before below this reference; the contract's texts have it so.
            errors = errors.via_field_index(field, index);
        }
        match references {
            [(_, true), (_, true)] => {
                errors.add(FieldError::multiple_one_of(&["configMapRef", "secretRef"]));
            }
            [(_, false), (_, false)] => {
                errors.add(FieldError::missing_one_of(&["configMapRef", "secretRef"]));
            }
            _ => {}
        }
    }
    errors
}

fn ports(ports: &[core::ContainerPort], role: Role) -> FieldError {
    if role == Role::Init {
        return ports.iter().map(port).collect();
    }
    // Of several the first is looked at; that there are several is an error by itself.
    let Some(first) = ports.first() else { return FieldError::none() };
    let mut errors = port(first);
    let protocol = first.protocol.as_deref().unwrap_or_default();
    if !["", "TCP"].contains(&protocol) {
        errors.add(FieldError::invalid_value(protocol, "protocol"));
    }
    let name = first.name.as_deref().unwrap_or_default();
    if !["", "h2c", "http1"].contains(&name) {
        errors.add(
            FieldError::generic(format!("Port name {name} is not allowed"), &[""])
                .with_details("Name must be empty, or one of: 'h2c', 'http1'"),
        );
    }
    errors
}

fn port(port: &core::ContainerPort) -> FieldError {
    let number = port.container_port;
    let mut errors = disallowed(port, &["containerPort", "name", "protocol"]);
    if RESERVED_PORTS.contains(&number) {
        errors.add(
            FieldError::invalid_value(format!("{number} is a reserved port"), "containerPort")
                .with_details(format!("{number} is a reserved port, please use a different value")),
        );
    }
    if !(0..=65535).contains(&number) {
        errors.add(FieldError::out_of_bounds(number, 0, 65535, "containerPort"));
    }
    errors
}

fn security_context(context: &core::SecurityContext, features: &Features) -> FieldError {
    let mut allowed = vec![
        "capabilities",
        "readOnlyRootFilesystem",
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "allowPrivilegeEscalation",
        "seccompProfile",
    ];
    if context.privileged == Some(false) {
        allowed.push("privileged");
    }
    let mut errors = disallowed(context, &allowed);
    if let Some(capabilities) = &context.capabilities {
        let added = capabilities.add.as_deref().unwrap_or_default();
        let may_add = features.container_spec_add_capabilities.is_enabled()
            || (features.secure_pod_defaults.is_on() && added == ["NET_BIND_SERVICE"]);
        let allowed: &[&str] = if may_add { &["drop", "add"] } else { &["drop"] };
        errors.add(disallowed(capabilities, allowed).via_field("capabilities"));
    }
    errors.also(pod::id(context.run_as_user, "runAsUser")).also(pod::id(context.run_as_group, "runAsGroup"))
}
