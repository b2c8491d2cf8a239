//! Rules for the pod of a revision.

use std::collections::HashSet;

use k8s_openapi::api::core::v1 as core;

use super::fieldmask::disallowed;
use super::{container, volume};
use crate::configmaps::features::Features;
use crate::field_error::{FieldError, Level};
use crate::syntax;

/// The highest user and group id.
pub(super) const MAX_ID: i64 = i32::MAX as i64;

pub(super) fn spec(spec: &core::PodSpec, features: &Features) -> FieldError {
    let mut errors = disallowed(spec, &allowed_fields(spec, features));
    if let Some(context) = &spec.security_context {
        errors.add(security_context(context, features).via_field("securityContext"));
    }
    let init_containers = spec.init_containers.as_deref().unwrap_or_default();
    if !features.secure_pod_defaults.is_on() {
        let pod = spec.security_context.as_ref();
        for (list, containers) in [("containers", &*spec.containers), ("initContainers", init_containers)] {
            for (index, container) in containers.iter().enumerate() {
                let warnings = insecure_defaults(pod, container.security_context.as_ref());
                errors.add(warnings.via_field("securityContext").via_field_index(list, index));
            }
        }
    }
    let mounted: HashSet<&str> = init_containers
        .iter()
        .chain(&spec.containers)
        .flat_map(|container| container.volume_mounts.iter().flatten())
        .map(|mount| mount.name.as_str())
        .collect();
    let volumes = spec.volumes.as_deref().unwrap_or_default();
    errors.add(volume::list(volumes, &mounted, features).via_field("volumes"));
    errors.add(container::init_list(init_containers, &spec.containers, volumes, features));
    let (port, port_errors) = container::serving_port(&spec.containers);
    errors.add(port_errors.via_field("containers[*]"));
    errors.add(match spec.containers.as_slice() {
        [] => FieldError::missing(&["containers"]),
        [only] => container::serving(only, volumes, &port, features).via_field_index("containers", 0),
        several => container::list(several, volumes, &port, features),
    });
    if let Some(account) = spec.service_account_name.as_ref().filter(|name| !name.is_empty()) {
        for problem in syntax::dns1123_subdomain(account) {
            errors.add(FieldError::invalid_value(account, "serviceAccountName").with_details(problem));
        }
    }
    errors
}

fn allowed_fields(spec: &core::PodSpec, features: &Features) -> Vec<&'static str> {
    let mut allowed =
        vec!["serviceAccountName", "containers", "volumes", "imagePullSecrets", "enableServiceLinks"];
    let optional = [
        // Only to turn it off.
        ("automountServiceAccountToken", spec.automount_service_account_token == Some(false)),
        ("affinity", features.pod_spec_affinity.is_allowed()),
        ("topologySpreadConstraints", features.pod_spec_topology_spread_constraints.is_allowed()),
        ("hostAliases", features.pod_spec_host_aliases.is_allowed()),
        ("nodeSelector", features.pod_spec_node_selector.is_allowed()),
        ("runtimeClassName", features.pod_spec_runtime_class_name.is_allowed()),
        ("tolerations", features.pod_spec_tolerations.is_allowed()),
        (
            "securityContext",
            features.pod_spec_security_context.is_allowed() || features.secure_pod_defaults.is_on(),
        ),
        ("shareProcessNamespace", features.pod_spec_share_process_namespace.is_allowed()),
        ("priorityClassName", features.pod_spec_priority_class_name.is_allowed()),
        ("schedulerName", features.pod_spec_scheduler_name.is_allowed()),
        ("initContainers", features.pod_spec_init_containers.is_allowed()),
        ("dnsPolicy", features.pod_spec_dns_policy.is_allowed()),
        ("dnsConfig", features.pod_spec_dns_config.is_allowed()),
        ("hostIPC", features.pod_spec_host_ipc.is_allowed()),
        ("hostPID", features.pod_spec_host_pid.is_allowed()),
        ("hostNetwork", features.pod_spec_host_network.is_allowed()),
    ];
    allowed.extend(optional.into_iter().filter(|(_, allowed)| *allowed).map(|(field, _)| field));
    allowed
}

/// A user or group id has to be one.
pub(super) fn id(id: Option<i64>, field: &str) -> FieldError {
    match id {
        Some(id) if !(0..=MAX_ID).contains(&id) => FieldError::out_of_bounds(id, 0, MAX_ID, field),
        _ => FieldError::none(),
    }
}

fn security_context(context: &core::PodSecurityContext, features: &Features) -> FieldError {
    let allowed: &[&str] = if features.pod_spec_security_context.is_allowed() {
        &["runAsUser", "runAsGroup", "runAsNonRoot", "fsGroup", "supplementalGroups", "seccompProfile"]
    } else if features.secure_pod_defaults.is_on()
        && context.seccomp_profile.as_ref().is_some_and(|profile| {
            profile.localhost_profile.is_none()
                && ["RuntimeDefault", "Unconfined"].contains(&profile.type_.as_str())
        })
    {
        &["seccompProfile"]
    } else {
        &[]
    };
    let groups = context.supplemental_groups.iter().flatten().enumerate();
    disallowed(context, allowed)
        .also(id(context.run_as_user, "runAsUser"))
        .also(id(context.run_as_group, "runAsGroup"))
        .also(id(context.fs_group, "fsGroup"))
        .also(
            groups.map(|(i, group)| id(Some(*group), "").via_field_index("supplementalGroups", i)).collect(),
        )
}

/// What a container leaves to Kubernetes where that is not secure.
fn insecure_defaults(
    pod: Option<&core::PodSecurityContext>,
    container: Option<&core::SecurityContext>,
) -> FieldError {
    let (no_pod, no_container) = (core::PodSecurityContext::default(), core::SecurityContext::default());
    let (pod, container) = (pod.unwrap_or(&no_pod), container.unwrap_or(&no_container));
    let mut fields = Vec::new();
    if pod.run_as_non_root.is_none() && container.run_as_non_root.is_none() {
        fields.push("runAsNonRoot");
    }
    if container.allow_privilege_escalation.is_none() {
        fields.push("allowPrivilegeEscalation");
    }
    let unset = |profile: &Option<core::SeccompProfile>| profile.as_ref().is_none_or(|p| p.type_.is_empty());
    if pod.seccomp_profile.is_none() && container.seccomp_profile.is_none() {
        fields.push("seccompProfile");
    } else if unset(&pod.seccomp_profile) && unset(&container.seccomp_profile) {
        fields.push("seccompProfile.type");
    }
    let mut warnings = FieldError::none();
    match container.capabilities.as_ref().map(|capabilities| capabilities.drop.as_deref()) {
        None => fields.push("capabilities"),
        Some(None) => fields.push("capabilities.drop"),
        Some(Some([first, ..])) if first == "all" => {
            let spelling = FieldError::invalid_value("all", "capabilities.drop");
            warnings.add(spelling.with_details("Must be spelled as 'ALL'"));
        }
        Some(Some(_)) => {}
    }
    if !fields.is_empty() {
        warnings.add(FieldError::generic(
            "Kubernetes default value is insecure, Knative may default this to secure in a future release",
            &fields,
        ));
    }
    warnings.at_level(Level::Warning)
}
