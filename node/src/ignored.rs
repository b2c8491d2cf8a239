//! What a pod asks for and a process cannot be given, though it can do without: named once.

use k8s_openapi::api::core::v1::{Container, Pod, PodSpec, Volume};

use crate::kubelet::Node;
use crate::ports::QUEUE_PROXY;

/// Owners of pods that have been warned about are forgotten, all at once, beyond so many.
const MOST_WARNINGS: usize = 1024;

impl Node {
    /// Warns of what of the pod is not honoured, once for all pods of an owner.
    pub(crate) fn warn_of_ignored(&self, pod: &Pod, spec: &PodSpec) {
        let fields = ignored(spec);
        if fields.is_empty() {
            return;
        }
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let owner = pod.metadata.owner_references.iter().flatten().next().map(|o| o.name.as_str());
        let name = owner.or(pod.metadata.name.as_deref()).unwrap_or_default();
        let fields = fields.join(", ");
        let mut warned = self.warned.lock();
        if warned.len() >= MOST_WARNINGS {
            warned.clear();
        }
        if warned.insert(format!("{namespace}/{name} {fields}")) {
            drop(warned);
            tracing::warn!(namespace, name, "the process runtime does not honour {fields}");
        }
    }
}

/// The fields of a pod that the process runtime leaves aside, as paths.
fn ignored(spec: &PodSpec) -> Vec<String> {
    let mut fields = Vec::new();
    let mut note = |present: bool, path: &str| {
        if present {
            fields.push(format!("spec.{path}"));
        }
    };
    note(spec.runtime_class_name.is_some(), "runtimeClassName");
    note(spec.host_aliases.as_ref().is_some_and(|h| !h.is_empty()), "hostAliases");
    note(spec.dns_config.is_some(), "dnsConfig");
    note(spec.node_selector.as_ref().is_some_and(|n| !n.is_empty()), "nodeSelector");
    note(spec.share_process_namespace == Some(true), "shareProcessNamespace");
    if let Some(context) = &spec.security_context {
        note(context.fs_group.is_some(), "securityContext.fsGroup");
        note(context.supplemental_groups.is_some(), "securityContext.supplementalGroups");
        note(context.sysctls.is_some(), "securityContext.sysctls");
        note(context.se_linux_options.is_some(), "securityContext.seLinuxOptions");
    }
    let used = |volume: &Volume| {
        let mut mounts = containers(spec).flat_map(|(_, _, c)| c.volume_mounts.iter().flatten());
        mounts.any(|m| m.name == volume.name)
    };
    for (at, volume) in spec.volumes.iter().flatten().enumerate().filter(|(_, v)| used(v)) {
        let Some(source) = &volume.empty_dir else { continue };
        note(source.medium.as_deref() == Some("Memory"), &format!("volumes[{at}].emptyDir.medium"));
        note(source.size_limit.is_some(), &format!("volumes[{at}].emptyDir.sizeLimit"));
    }
    for (list, at, container) in containers(spec) {
        for field in ignored_of(container) {
            note(true, &format!("{list}[{at}].{field}"));
        }
    }
    fields
}

/// The containers that become processes, with where they stand.
fn containers(spec: &PodSpec) -> impl Iterator<Item = (&'static str, usize, &Container)> {
    let numbered = |list: &'static str| move |(at, container)| (list, at, container);
    let init = spec.init_containers.iter().flatten().enumerate().map(numbered("initContainers"));
    let main = spec.containers.iter().enumerate().map(numbered("containers"));
    init.chain(main).filter(|(.., c)| c.name != QUEUE_PROXY)
}

fn ignored_of(container: &Container) -> Vec<&'static str> {
    let mut fields = Vec::new();
    let mut note = |present: bool, field| {
        if present {
            fields.push(field);
        }
    };
    let limits = container.resources.as_ref().and_then(|r| r.limits.as_ref());
    note(limits.is_some_and(|l| !l.is_empty()), "resources.limits");
    if let Some(context) = &container.security_context {
        note(context.read_only_root_filesystem == Some(true), "securityContext.readOnlyRootFilesystem");
        // To be without some is no promise that is broken; no program can gain any.
        let added = context.capabilities.as_ref().and_then(|c| c.add.as_ref());
        note(added.is_some_and(|a| !a.is_empty()), "securityContext.capabilities.add");
        note(context.seccomp_profile.is_some(), "securityContext.seccompProfile");
        note(context.privileged == Some(true), "securityContext.privileged");
        note(context.se_linux_options.is_some(), "securityContext.seLinuxOptions");
    }
    if let Some(lifecycle) = &container.lifecycle {
        note(lifecycle.post_start.is_some(), "lifecycle.postStart");
        // What Knative gives every container: the node waits for the sidecar anyhow.
        let waits = lifecycle.pre_stop.as_ref().and_then(|h| h.http_get.as_ref());
        let waits = waits.is_some_and(|get| get.path.as_deref() == Some("/wait-for-drain"));
        note(lifecycle.pre_stop.is_some() && !waits, "lifecycle.preStop");
    }
    let propagates = |m: &k8s_openapi::api::core::v1::VolumeMount| {
        m.mount_propagation.as_deref().is_some_and(|p| p != "None")
    };
    note(container.volume_mounts.iter().flatten().any(propagates), "volumeMounts.mountPropagation");
    fields
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn fields_are_named_by_their_path() {
        let spec: PodSpec = serde_json::from_value(json!({
            "securityContext": {"fsGroup": 1, "runAsUser": 5},
            "volumes": [
                {"name": "used", "emptyDir": {"medium": "Memory", "sizeLimit": "1Mi"}},
                {"name": "not", "emptyDir": {"sizeLimit": "1Mi"}}
            ],
            "initContainers": [{"name": "i", "resources": {"limits": {"cpu": "1"}}}],
            "containers": [
                {"name": "queue-proxy", "resources": {"limits": {"cpu": "1"}}},
                {
                    "name": "app",
                    "volumeMounts": [{"name": "used", "mountPath": "/x"}],
                    "securityContext": {
                        "capabilities": {"drop": ["ALL"]}, "readOnlyRootFilesystem": true, "runAsNonRoot": true
                    },
                    "lifecycle": {"preStop": {"httpGet": {"path": "/wait-for-drain", "port": 8022}}}
                }
            ]
        }))
        .unwrap();
        assert_eq!(
            ignored(&spec),
            [
                "spec.securityContext.fsGroup",
                "spec.volumes[0].emptyDir.medium",
                "spec.volumes[0].emptyDir.sizeLimit",
                "spec.initContainers[0].resources.limits",
                "spec.containers[1].securityContext.readOnlyRootFilesystem"
            ]
        );
    }
}
