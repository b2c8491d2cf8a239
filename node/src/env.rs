//! A container's environment as Kubernetes computes it: sources, references, `$(VAR)` expansion.

use std::collections::BTreeMap;

use k8s_openapi::api::core::v1::{ConfigMap, Container, EnvVarSource, Pod, Secret};
use thiserror::Error;

use crate::resource::{self, Machine, ResourceError};

/// Why a container's environment cannot be computed. The texts are the kubelet's.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum EnvError {
    /// A ConfigMap that is not optional does not exist.
    #[error("configmap {0:?} not found")]
    ConfigMapNotFound(String),
    /// A Secret that is not optional does not exist.
    #[error("secret {0:?} not found")]
    SecretNotFound(String),
    /// A key that is not optional does not exist.
    #[error("couldn't find key {key} in {kind} {namespace}/{name}")]
    KeyNotFound {
        /// `ConfigMap` or `Secret`.
        kind: &'static str,
        /// The namespace of the object.
        namespace: String,
        /// The name of the object.
        name: String,
        /// The key that is missing.
        key: String,
    },
    /// A Secret's value that is no text.
    #[error("the value of key {key} in Secret {name} is not valid UTF-8")]
    NotText {
        /// The name of the Secret.
        name: String,
        /// The key.
        key: String,
    },
    /// A `fieldRef` path that is not known.
    #[error("env {name:?}: unsupported fieldPath: {path}")]
    FieldPath {
        /// The variable.
        name: String,
        /// The path.
        path: String,
    },
    /// A `resourceFieldRef` that names nothing there is.
    #[error("env {name:?}: {problem}")]
    Resource {
        /// The variable.
        name: String,
        /// What is wrong with it.
        problem: ResourceError,
    },
    /// A source of a kind that Kubernetes has and this node has not, or none at all.
    #[error(
        "env {0:?}: valueFrom: the process runtime has configMapKeyRef, secretKeyRef, fieldRef and resourceFieldRef"
    )]
    Source(String),
}

/// The objects that a container's environment refers to; those that do not exist are absent.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// By name.
    pub config_maps: BTreeMap<String, ConfigMap>,
    /// By name.
    pub secrets: BTreeMap<String, Secret>,
}

/// What the node knows of a pod before its status is written.
#[derive(Debug, Clone, Default)]
pub struct PodFacts {
    /// `status.podIP`.
    pub pod_ip: String,
    /// `status.hostIP`.
    pub host_ip: String,
    /// `spec.nodeName`.
    pub node_name: String,
    /// What stands for limits that a container does not declare.
    pub machine: Machine,
}

/// The names of the ConfigMaps and Secrets that the container's environment refers to.
#[must_use]
pub fn references(container: &Container) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    for from in container.env_from.iter().flatten() {
        config_maps.extend(from.config_map_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(from.secret_ref.as_ref().map(|r| r.name.clone()));
    }
    for source in container.env.iter().flatten().filter_map(|e| e.value_from.as_ref()) {
        config_maps.extend(source.config_map_key_ref.as_ref().map(|r| r.name.clone()));
        secrets.extend(source.secret_key_ref.as_ref().map(|r| r.name.clone()));
    }
    for names in [&mut config_maps, &mut secrets] {
        names.sort_unstable();
        names.dedup();
    }
    (config_maps, secrets)
}

/// The container's environment, in the order of first declaration; a later value of a name replaces an earlier one.
///
/// # Errors
/// The first reference that cannot be resolved.
pub fn resolve(
    container: &Container,
    pod: &Pod,
    facts: &PodFacts,
    sources: &Sources,
) -> Result<Vec<(String, String)>, EnvError> {
    let mut env = Env::default();
    for from in container.env_from.iter().flatten() {
        let prefix = from.prefix.as_deref().unwrap_or_default();
        if let Some(reference) = &from.config_map_ref {
            match sources.config_maps.get(&reference.name) {
                Some(found) => {
                    for (key, value) in found.data.iter().flatten() {
                        env.set(format!("{prefix}{key}"), value.clone());
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::ConfigMapNotFound(reference.name.clone())),
            }
        }
        if let Some(reference) = &from.secret_ref {
            match sources.secrets.get(&reference.name) {
                Some(found) => {
                    for (key, value) in found.data.iter().flatten() {
                        env.set(format!("{prefix}{key}"), text(&reference.name, key, &value.0)?);
                    }
                }
                None if reference.optional == Some(true) => {}
                None => return Err(EnvError::SecretNotFound(reference.name.clone())),
            }
        }
    }
    for var in container.env.iter().flatten() {
        let value = match (&var.value, &var.value_from) {
            (_, Some(source)) => source_value(&var.name, source, container, pod, facts, sources)?,
            (Some(value), None) => Some(expand(value, |name| env.get(name))),
            (None, None) => Some(String::new()),
        };
        if let Some(value) = value {
            env.set(var.name.clone(), value);
        }
    }
    Ok(env.0)
}

/// Replaces `$(NAME)` by its value and `$$` by `$`; a reference to an unknown name stays as it is.
#[must_use]
pub fn expand<'a>(input: &str, lookup: impl Fn(&str) -> Option<&'a str>) -> String {
    let mut out = String::with_capacity(input.len());
    let mut rest = input;
    while let Some(at) = rest.find('$') {
        out.push_str(&rest[..at]);
        let tail = &rest[at + 1..];
        match tail.chars().next() {
            Some('$') => {
                out.push('$');
                rest = &tail[1..];
            }
            Some('(') => match tail.find(')') {
                Some(end) => {
                    match lookup(&tail[1..end]) {
                        Some(value) => out.push_str(value),
                        None => out.push_str(&rest[at..at + end + 2]),
                    }
                    rest = &tail[end + 1..];
                }
                None => {
                    out.push_str("$(");
                    rest = &tail[1..];
                }
            },
            _ => {
                out.push('$');
                rest = tail;
            }
        }
    }
    out.push_str(rest);
    out
}

/// The value of `name`.
#[must_use]
pub fn lookup<'a>(env: &'a [(String, String)], name: &str) -> Option<&'a str> {
    env.iter().find(|(n, _)| n == name).map(|(_, value)| value.as_str())
}

#[derive(Default)]
struct Env(Vec<(String, String)>);

impl Env {
    fn get(&self, name: &str) -> Option<&str> {
        lookup(&self.0, name)
    }

    fn set(&mut self, name: String, value: String) {
        match self.0.iter_mut().find(|(n, _)| *n == name) {
            Some(slot) => slot.1 = value,
            None => self.0.push((name, value)),
        }
    }
}

fn text(name: &str, key: &str, value: &[u8]) -> Result<String, EnvError> {
    String::from_utf8(value.to_vec())
        .map_err(|_| EnvError::NotText { name: name.to_owned(), key: key.to_owned() })
}

fn source_value(
    name: &str,
    source: &EnvVarSource,
    container: &Container,
    pod: &Pod,
    facts: &PodFacts,
    sources: &Sources,
) -> Result<Option<String>, EnvError> {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    if let Some(reference) = &source.config_map_key_ref {
        let optional = reference.optional == Some(true);
        let Some(found) = sources.config_maps.get(&reference.name) else {
            return if optional {
                Ok(None)
            } else {
                Err(EnvError::ConfigMapNotFound(reference.name.clone()))
            };
        };
        return match found.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => Ok(Some(value.clone())),
            None if optional => Ok(None),
            None => Err(EnvError::KeyNotFound {
                kind: "ConfigMap",
                namespace,
                name: reference.name.clone(),
                key: reference.key.clone(),
            }),
        };
    }
    if let Some(reference) = &source.secret_key_ref {
        let optional = reference.optional == Some(true);
        let Some(found) = sources.secrets.get(&reference.name) else {
            return if optional { Ok(None) } else { Err(EnvError::SecretNotFound(reference.name.clone())) };
        };
        return match found.data.as_ref().and_then(|data| data.get(&reference.key)) {
            Some(value) => text(&reference.name, &reference.key, &value.0).map(Some),
            None if optional => Ok(None),
            None => Err(EnvError::KeyNotFound {
                kind: "Secret",
                namespace,
                name: reference.name.clone(),
                key: reference.key.clone(),
            }),
        };
    }
    if let Some(reference) = &source.field_ref {
        return field(&reference.field_path, pod, facts).map(Some).ok_or_else(|| EnvError::FieldPath {
            name: name.to_owned(),
            path: reference.field_path.clone(),
        });
    }
    if let Some(reference) = &source.resource_field_ref {
        let value = resource::value(reference, Some(container), pod, facts.machine);
        return value.map(Some).map_err(|problem| EnvError::Resource { name: name.to_owned(), problem });
    }
    Err(EnvError::Source(name.to_owned()))
}

/// What a `fieldRef` names; `None` for a path that there is not.
pub(crate) fn field(path: &str, pod: &Pod, facts: &PodFacts) -> Option<String> {
    let meta = &pod.metadata;
    if let Some((map, key)) = path.strip_suffix("']").and_then(|p| p.split_once("['")) {
        let map = match map {
            "metadata.labels" => &meta.labels,
            "metadata.annotations" => &meta.annotations,
            _ => return None,
        };
        return Some(map.as_ref().and_then(|m| m.get(key)).cloned().unwrap_or_default());
    }
    Some(match path {
        "metadata.name" => meta.name.clone().unwrap_or_default(),
        "metadata.namespace" => meta.namespace.clone().unwrap_or_default(),
        "metadata.uid" => meta.uid.clone().unwrap_or_default(),
        "spec.nodeName" => facts.node_name.clone(),
        "spec.serviceAccountName" => {
            pod.spec.as_ref().and_then(|s| s.service_account_name.clone()).unwrap_or_else(|| "default".into())
        }
        "status.hostIP" | "status.hostIPs" => facts.host_ip.clone(),
        "status.podIP" | "status.podIPs" => facts.pod_ip.clone(),
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn container(value: serde_json::Value) -> Container {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn expands_as_kubernetes() {
        let lookup = |name: &str| match name {
            "A" => Some("a"),
            "EMPTY" => Some(""),
            _ => None,
        };
        for (input, expected) in [
            ("$(A)", "a"),
            ("x$(A)y$(EMPTY)z", "xayz"),
            ("$$(A)", "$(A)"),
            ("$$$(A)", "$a"),
            ("$(UNKNOWN)", "$(UNKNOWN)"),
            ("$(A", "$(A"),
            ("$A $", "$A $"),
            ("$($(A))", "$($(A))"),
            ("", ""),
        ] {
            assert_eq!(expand(input, lookup), expected, "{input}");
        }
    }

    #[test]
    fn sources_and_order() {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"a/b": "c"}},
            "spec": {"containers": []}
        }))
        .unwrap();
        let facts = PodFacts { pod_ip: "127.16.0.2".into(), ..PodFacts::default() };
        let sources = Sources {
            config_maps: BTreeMap::from([(
                "cm".into(),
                serde_json::from_value(json!({"data": {"k": "v", "FROM": "cm"}})).unwrap(),
            )]),
            secrets: BTreeMap::from([(
                "s".into(),
                serde_json::from_value(json!({"data": {"k": "c2VjcmV0"}})).unwrap(),
            )]),
        };
        let container = container(json!({
            "name": "c",
            "envFrom": [{"prefix": "P_", "configMapRef": {"name": "cm"}}, {"secretRef": {"name": "no", "optional": true}}],
            "env": [
                {"name": "PORT", "value": "8080"},
                {"name": "URL", "value": "http://$(IP):$(PORT)/"},
                {"name": "IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
                {"name": "URL2", "value": "http://$(IP):$(PORT)/"},
                {"name": "CM", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "k"}}},
                {"name": "SECRET", "valueFrom": {"secretKeyRef": {"name": "s", "key": "k"}}},
                {"name": "LABEL", "valueFrom": {"fieldRef": {"fieldPath": "metadata.labels['a/b']"}}},
                {"name": "GONE", "valueFrom": {"configMapKeyRef": {"name": "cm", "key": "no", "optional": true}}},
                {"name": "P_k", "value": "last"}
            ]
        }));
        let env = resolve(&container, &pod, &facts, &sources).unwrap();
        let text: Vec<_> = env.iter().map(|(n, v)| format!("{n}={v}")).collect();
        assert_eq!(
            text,
            [
                "P_FROM=cm",
                "P_k=last",
                "PORT=8080",
                "URL=http://$(IP):8080/",
                "IP=127.16.0.2",
                "URL2=http://127.16.0.2:8080/",
                "CM=v",
                "SECRET=secret",
                "LABEL=c"
            ]
        );
        assert_eq!(references(&container), (vec!["cm".into()], vec!["no".into(), "s".into()]));
    }

    #[test]
    fn errors_name_what_is_missing() {
        let pod: Pod = serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "ns"}})).unwrap();
        let error = |env: serde_json::Value| {
            let container = container(json!({"name": "c", "env": [env]}));
            resolve(&container, &pod, &PodFacts::default(), &Sources::default()).unwrap_err().to_string()
        };
        assert_eq!(
            error(json!({"name": "A", "valueFrom": {"configMapKeyRef": {"name": "x", "key": "k"}}})),
            "configmap \"x\" not found"
        );
        assert_eq!(
            error(json!({"name": "A", "valueFrom": {"secretKeyRef": {"name": "x", "key": "k"}}})),
            "secret \"x\" not found"
        );
        assert_eq!(
            error(json!({"name": "A", "valueFrom": {"resourceFieldRef": {"resource": "limits.gpu"}}})),
            "env \"A\": resourceFieldRef: resource \"limits.gpu\" is not supported"
        );
        assert!(error(json!({"name": "A", "valueFrom": {}})).contains("\"A\""));
    }
}
