//! Defaults of a revision's spec.

use std::collections::HashSet;

use k8s_openapi::api::core::v1::PodSecurityContext;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde_json::{Map, Value, json};

use super::{Context, child, is_absent, is_empty, items, set_if_absent};
use crate::admission::Operation;
use crate::configmaps::defaults::Defaults;
use crate::configmaps::features::SecurePodDefaults;
use crate::names;

/// Fills in the spec of a revision in an object with the metadata `parent`.
pub(super) fn spec(spec: &mut Map<String, Value>, parent: &ObjectMeta, context: Context<'_>) {
    let defaults = &context.configs.defaults;
    timeouts(spec, defaults);
    set_if_absent(spec, "containerConcurrency", defaults.container_concurrency);

    let mut names: HashSet<String> = ["containers", "initContainers"]
        .iter()
        .filter_map(|key| spec.get(*key)?.as_array())
        .flatten()
        .map(|container| container["name"].as_str().unwrap_or_default().to_owned())
        .collect();
    container_names(spec, "containers", &mut names, &defaults.container_name(parent));
    container_names(spec, "initContainers", &mut names, &defaults.init_container_name(parent));

    let writable: HashSet<String> = spec
        .get("volumes")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .filter(|volume| {
            ["emptyDir", "persistentVolumeClaim", "ephemeral"].iter().any(|kind| !volume[*kind].is_null())
        })
        .filter_map(|volume| volume["name"].as_str().map(str::to_owned))
        .collect();
    let count = items(spec, "containers").count();
    for container in items(spec, "containers") {
        resources(container, defaults);
        let has_ports =
            container.get("ports").and_then(Value::as_array).is_some_and(|ports| !ports.is_empty());
        probes(container, count == 1 || has_ports);
        for mount in items(container, "volumeMounts") {
            if !mount.get("name").and_then(Value::as_str).is_some_and(|name| writable.contains(name)) {
                mount.insert("readOnly".to_owned(), json!(true));
            }
        }
    }
    if let (true, Some(Operation::Create), Some(links)) =
        (count > 0, context.operation, defaults.enable_service_links)
    {
        set_if_absent(spec, "enableServiceLinks", links);
    }

    let secure = context.configs.features.secure_pod_defaults;
    if secure.is_on() {
        let pod: PodSecurityContext = spec
            .get("securityContext")
            .and_then(|pod| serde_json::from_value(pod.clone()).ok())
            .unwrap_or_default();
        for list in ["containers", "initContainers"] {
            for container in items(spec, list) {
                security_context(container, &pod, secure);
            }
        }
    }
}

fn timeouts(spec: &mut Map<String, Value>, defaults: &Defaults) {
    if is_empty(spec.get("timeoutSeconds")) {
        spec.insert("timeoutSeconds".to_owned(), json!(defaults.revision_timeout_seconds));
    }
    let timeout = spec.get("timeoutSeconds").and_then(Value::as_i64).unwrap_or_default();
    for (key, default) in [
        ("idleTimeoutSeconds", defaults.revision_idle_timeout_seconds),
        ("responseStartTimeoutSeconds", defaults.revision_response_start_timeout_seconds),
    ] {
        if default != 0 && default < timeout {
            set_if_absent(spec, key, default);
        }
    }
}

/// Names the containers that have none. Only one that is alone gets the name as it is.
fn container_names(spec: &mut Map<String, Value>, list: &str, names: &mut HashSet<String>, default: &str) {
    let count = items(spec, list).count();
    let mut suffix = 0;
    for container in items(spec, list) {
        if !is_empty(container.get("name")) {
            continue;
        }
        let mut name = default.to_owned();
        if count > 1 || names.contains(&name) {
            loop {
                name = names::child(default, &format!("-{suffix}"));
                suffix += 1;
                if !names.contains(&name) {
                    break;
                }
            }
        }
        container.insert("name".to_owned(), json!(name));
    }
}

fn resources(container: &mut Map<String, Value>, defaults: &Defaults) {
    for (list, resource, amount) in [
        ("requests", "cpu", &defaults.revision_cpu_request),
        ("requests", "memory", &defaults.revision_memory_request),
        ("requests", "ephemeral-storage", &defaults.revision_ephemeral_storage_request),
        ("limits", "cpu", &defaults.revision_cpu_limit),
        ("limits", "memory", &defaults.revision_memory_limit),
        ("limits", "ephemeral-storage", &defaults.revision_ephemeral_storage_limit),
    ] {
        let Some(amount) = amount else { continue };
        if let Some(list) = child(container, "resources").and_then(|resources| child(resources, list)) {
            set_if_absent(list, resource, amount.0.as_str());
        }
    }
}

fn probes(container: &mut Map<String, Value>, serves: bool) {
    const READINESS: &str = "readinessProbe";
    if serves && let Some(probe) = child(container, READINESS) {
        let handlers = ["tcpSocket", "httpGet", "exec", "grpc"];
        if handlers.iter().all(|handler| is_absent(probe.get(*handler))) {
            // Port 0 stands for the one that serves.
            probe.insert("tcpSocket".to_owned(), json!({ "port": 0 }));
        }
    }
    if let Some(probe) = container.get_mut(READINESS).and_then(Value::as_object_mut) {
        let paced = !is_empty(probe.get("periodSeconds"));
        for (key, value, applies) in
            [("successThreshold", 1, true), ("failureThreshold", 3, paced), ("timeoutSeconds", 1, paced)]
        {
            if applies && is_empty(probe.get(key)) {
                probe.insert(key.to_owned(), json!(value));
            }
        }
    }
    for probe in [READINESS, "livenessProbe", "startupProbe"] {
        let Some(probe) = container.get_mut(probe).and_then(Value::as_object_mut) else { continue };
        for handler in ["httpGet", "tcpSocket", "grpc"] {
            let Some(target) = probe.get_mut(handler).and_then(Value::as_object_mut) else { continue };
            set_if_absent(target, "port", 0);
            if handler == "grpc" {
                set_if_absent(target, "service", "");
            }
        }
    }
}

fn security_context(container: &mut Map<String, Value>, pod: &PodSecurityContext, secure: SecurePodDefaults) {
    // Port 0 counts as low: which one it becomes is not known here.
    let low_port = container
        .get("ports")
        .and_then(Value::as_array)
        .into_iter()
        .flatten()
        .any(|port| port["containerPort"].as_i64().unwrap_or_default() < 1024);
    let Some(context) = child(container, "securityContext") else { return };
    set_if_absent(context, "allowPrivilegeEscalation", false);
    if pod.seccomp_profile.as_ref().is_none_or(|profile| profile.type_.is_empty())
        && let Some(profile) = child(context, "seccompProfile")
        && is_empty(profile.get("type"))
    {
        profile.insert("type".to_owned(), json!("RuntimeDefault"));
    }
    let capabilities = if low_port {
        json!({ "drop": ["ALL"], "add": ["NET_BIND_SERVICE"] })
    } else {
        json!({ "drop": ["ALL"] })
    };
    set_if_absent(context, "capabilities", capabilities);
    if secure == SecurePodDefaults::Enabled && pod.run_as_non_root.is_none() {
        set_if_absent(context, "runAsNonRoot", true);
    }
}
