//! The files of a volume that is made of API objects.

use std::collections::BTreeMap;
use std::path::{Component, Path};

use k8s_openapi::api::core::v1::{DownwardAPIVolumeFile, KeyToPath, Pod, Volume};
use thiserror::Error;

use crate::env::{self, PodFacts, Sources};
use crate::resource::{self, ResourceError};

/// The mode of files for which none is declared.
const DEFAULT_MODE: i32 = 0o644;

/// A file of a volume.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct File {
    /// What it holds.
    pub bytes: Vec<u8>,
    /// Its permissions.
    pub mode: u32,
}

/// Files by path within the volume.
pub type Payload = BTreeMap<String, File>;

/// Why a volume cannot be made. The texts name the volume and, where it is one, the field.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
#[error("volume {volume:?}: {problem}")]
pub struct VolumeError {
    /// The volume.
    pub volume: String,
    /// What is wrong.
    pub problem: Problem,
}

/// What is wrong with a volume. Where the kubelet says the same the words are its own.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum Problem {
    /// A ConfigMap that is not optional does not exist.
    #[error("configmap {0:?} not found")]
    ConfigMapNotFound(String),
    /// A Secret that is not optional does not exist.
    #[error("secret {0:?} not found")]
    SecretNotFound(String),
    /// `items` names a key that is not there.
    #[error("{kind} {name:?} references non-existent key: {key}")]
    KeyNotFound {
        /// `configmap` or `secret`.
        kind: &'static str,
        /// The object.
        name: String,
        /// The key.
        key: String,
    },
    /// A path that leaves the volume.
    #[error("path {0:?} must be relative and must not contain '..'")]
    Path(String),
    /// A field path that there is not.
    #[error("unsupported fieldPath: {0}")]
    FieldPath(String),
    /// A resource that there is not.
    #[error(transparent)]
    Resource(#[from] ResourceError),
    /// A kind of volume, or of projection, that a machine without Kubernetes does not have.
    #[error(
        "{0} is not supported by the process runtime, which has emptyDir, configMap, secret, downwardAPI and \
             projected ones of the last three"
    )]
    Unsupported(String),
}

/// What the volume is made of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Content {
    /// A folder that is the pod's, empty at first.
    Empty,
    /// Files that follow API objects.
    Files(Payload),
}

/// The names of the ConfigMaps and Secrets that the volume refers to.
#[must_use]
pub fn references(volume: &Volume) -> (Vec<String>, Vec<String>) {
    let (mut config_maps, mut secrets) = (Vec::new(), Vec::new());
    config_maps.extend(volume.config_map.iter().map(|s| s.name.clone()));
    secrets.extend(volume.secret.iter().filter_map(|s| s.secret_name.clone()));
    for source in volume.projected.iter().flat_map(|p| p.sources.iter().flatten()) {
        config_maps.extend(source.config_map.iter().map(|s| s.name.clone()));
        secrets.extend(source.secret.iter().map(|s| s.name.clone()));
    }
    (config_maps, secrets)
}

/// What the volume holds now.
///
/// # Errors
/// The first source that cannot be resolved, or a kind that is not supported.
pub fn content(
    volume: &Volume,
    pod: &Pod,
    facts: &PodFacts,
    sources: &Sources,
) -> Result<Content, VolumeError> {
    let fail = |problem| VolumeError { volume: volume.name.clone(), problem };
    if volume.empty_dir.is_some() {
        return Ok(Content::Empty);
    }
    let mut files = Files { payload: Payload::new(), pod, facts, sources };
    if let Some(source) = &volume.config_map {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files
            .config_map(&source.name, source.items.as_deref(), source.optional == Some(true), mode)
            .map_err(fail)?;
    } else if let Some(source) = &volume.secret {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        let name = source.secret_name.as_deref().unwrap_or_default();
        files.secret(name, source.items.as_deref(), source.optional == Some(true), mode).map_err(fail)?;
    } else if let Some(source) = &volume.downward_api {
        let mode = source.default_mode.unwrap_or(DEFAULT_MODE);
        files.downward_api(source.items.as_deref(), mode).map_err(fail)?;
    } else if let Some(projected) = &volume.projected {
        let mode = projected.default_mode.unwrap_or(DEFAULT_MODE);
        for (at, source) in projected.sources.iter().flatten().enumerate() {
            // Later sources win.
            if let Some(s) = &source.config_map {
                files
                    .config_map(&s.name, s.items.as_deref(), s.optional == Some(true), mode)
                    .map_err(fail)?;
            } else if let Some(s) = &source.secret {
                files.secret(&s.name, s.items.as_deref(), s.optional == Some(true), mode).map_err(fail)?;
            } else if let Some(s) = &source.downward_api {
                files.downward_api(s.items.as_deref(), mode).map_err(fail)?;
            } else {
                let kind = only_field(source);
                return Err(fail(Problem::Unsupported(format!("projected.sources[{at}].{kind}"))));
            }
        }
    } else {
        return Err(fail(Problem::Unsupported(only_field(volume))));
    }
    Ok(Content::Files(files.payload))
}

/// The name of the field that says what kind of source an object is.
fn only_field(object: &impl serde::Serialize) -> String {
    let value = serde_json::to_value(object).unwrap_or_default();
    let fields = value.as_object().into_iter().flatten();
    fields.map(|(field, _)| field.as_str()).find(|f| *f != "name").unwrap_or("no source").to_owned()
}

struct Files<'a> {
    payload: Payload,
    pod: &'a Pod,
    facts: &'a PodFacts,
    sources: &'a Sources,
}

impl Files<'_> {
    fn config_map(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: i32,
    ) -> Result<(), Problem> {
        let Some(found) = self.sources.config_maps.get(name) else {
            return if optional { Ok(()) } else { Err(Problem::ConfigMapNotFound(name.to_owned())) };
        };
        let text = found.data.iter().flatten().map(|(k, v)| (k.as_str(), v.as_bytes()));
        let binary = found.binary_data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice()));
        self.keys(("configmap", name), &text.chain(binary).collect(), items, optional, mode)
    }

    fn secret(
        &mut self,
        name: &str,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: i32,
    ) -> Result<(), Problem> {
        let Some(found) = self.sources.secrets.get(name) else {
            return if optional { Ok(()) } else { Err(Problem::SecretNotFound(name.to_owned())) };
        };
        let data = found.data.iter().flatten().map(|(k, v)| (k.as_str(), v.0.as_slice())).collect();
        self.keys(("secret", name), &data, items, optional, mode)
    }

    fn keys(
        &mut self,
        (kind, name): (&'static str, &str),
        data: &BTreeMap<&str, &[u8]>,
        items: Option<&[KeyToPath]>,
        optional: bool,
        mode: i32,
    ) -> Result<(), Problem> {
        let Some(items) = items.filter(|i| !i.is_empty()) else {
            return data.iter().try_for_each(|(key, bytes)| self.put(key, bytes.to_vec(), mode));
        };
        for item in items {
            match data.get(item.key.as_str()) {
                Some(bytes) => self.put(&item.path, bytes.to_vec(), item.mode.unwrap_or(mode))?,
                None if optional => {}
                None => {
                    return Err(Problem::KeyNotFound { kind, name: name.to_owned(), key: item.key.clone() });
                }
            }
        }
        Ok(())
    }

    fn downward_api(&mut self, items: Option<&[DownwardAPIVolumeFile]>, mode: i32) -> Result<(), Problem> {
        for item in items.into_iter().flatten() {
            let text = if let Some(reference) = &item.field_ref {
                field(&reference.field_path, self.pod, self.facts)
                    .ok_or_else(|| Problem::FieldPath(reference.field_path.clone()))?
            } else if let Some(reference) = &item.resource_field_ref {
                resource::value(reference, None, self.pod, self.facts.machine)?
            } else {
                return Err(Problem::FieldPath(String::new()));
            };
            self.put(&item.path, text.into_bytes(), item.mode.unwrap_or(mode))?;
        }
        Ok(())
    }

    fn put(&mut self, path: &str, bytes: Vec<u8>, mode: i32) -> Result<(), Problem> {
        if !is_inside(path) {
            return Err(Problem::Path(path.to_owned()));
        }
        let mode = u32::try_from(mode).unwrap_or_default() & 0o777;
        self.payload.insert(path.to_owned(), File { bytes, mode });
        Ok(())
    }
}

/// Whether a path is relative, not empty and does not leave where it starts.
pub(crate) fn is_inside(path: &str) -> bool {
    !path.is_empty()
        && Path::new(path).components().all(|c| matches!(c, Component::Normal(_) | Component::CurDir))
}

/// As in the environment, and all labels or annotations, one a line.
fn field(path: &str, pod: &Pod, facts: &PodFacts) -> Option<String> {
    let map = match path {
        "metadata.labels" => &pod.metadata.labels,
        "metadata.annotations" => &pod.metadata.annotations,
        _ => return env::field(path, pod, facts),
    };
    let lines: Vec<String> = map.iter().flatten().map(|(key, value)| format!("{key}={value:?}")).collect();
    Some(lines.join("\n"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn make(volume: Value) -> Result<Vec<(String, String, u32)>, String> {
        let pod: Pod = serde_json::from_value(json!({
            "metadata": {"name": "p", "namespace": "ns", "labels": {"a": "x \"y\"", "b": "z"}},
            "spec": {"containers": [{"name": "c", "resources": {"limits": {"memory": "1Mi"}}}]}
        }))
        .unwrap();
        let sources = Sources {
            config_maps: BTreeMap::from([(
                "cm".into(),
                serde_json::from_value(json!({"data": {"k": "v", "l": "w"}, "binaryData": {"b": "AQI="}}))
                    .unwrap(),
            )]),
            secrets: BTreeMap::from([(
                "s".into(),
                serde_json::from_value(json!({"data": {"k": "c2VjcmV0"}})).unwrap(),
            )]),
        };
        let volume: Volume = serde_json::from_value(volume).unwrap();
        match content(&volume, &pod, &PodFacts::default(), &sources).map_err(|e| e.to_string())? {
            Content::Empty => Ok(Vec::new()),
            Content::Files(files) => Ok(files
                .into_iter()
                .map(|(path, file)| (path, String::from_utf8_lossy(&file.bytes).into_owned(), file.mode))
                .collect()),
        }
    }

    fn file(path: &str, text: &str, mode: u32) -> (String, String, u32) {
        (path.to_owned(), text.to_owned(), mode)
    }

    #[test]
    fn whole_objects_and_items() {
        assert_eq!(
            make(json!({"name": "v", "configMap": {"name": "cm"}})),
            Ok(vec![file("b", "\u{1}\u{2}", 0o644), file("k", "v", 0o644), file("l", "w", 0o644)])
        );
        let items = json!([{"key": "k", "path": "deep/file", "mode": 0o400}, {"key": "k", "path": "other"}]);
        assert_eq!(
            make(json!({"name": "v", "secret": {"secretName": "s", "defaultMode": 0o440, "items": items}})),
            Ok(vec![file("deep/file", "secret", 0o400), file("other", "secret", 0o440)])
        );
        assert_eq!(make(json!({"name": "v", "configMap": {"name": "no", "optional": true}})), Ok(vec![]));
        assert_eq!(make(json!({"name": "v", "emptyDir": {}})), Ok(vec![]));
    }

    #[test]
    fn of_overlapping_projections_the_later_one_wins() {
        let sources = json!([
            {"configMap": {"name": "cm", "items": [{"key": "k", "path": "same"}, {"key": "l", "path": "l"}]}},
            {"secret": {"name": "s", "items": [{"key": "k", "path": "same"}]}},
            {"downwardAPI": {"items": [
                {"path": "labels", "fieldRef": {"fieldPath": "metadata.labels"}},
                {"path": "memory", "resourceFieldRef": {"containerName": "c", "resource": "limits.memory"}}
            ]}}
        ]);
        assert_eq!(
            make(json!({"name": "v", "projected": {"defaultMode": 0o600, "sources": sources}})),
            Ok(vec![
                file("l", "w", 0o600),
                file("labels", "a=\"x \\\"y\\\"\"\nb=\"z\"", 0o600),
                file("memory", "1048576", 0o600),
                file("same", "secret", 0o600)
            ])
        );
    }

    #[test]
    fn refusals_name_the_volume_and_the_field() {
        for (volume, part) in [
            (json!({"configMap": {"name": "no"}}), "volume \"v\": configmap \"no\" not found"),
            (json!({"secret": {"secretName": "no"}}), "secret \"no\" not found"),
            (
                json!({"configMap": {"name": "cm", "items": [{"key": "x", "path": "x"}]}}),
                "configmap \"cm\" references non-existent key: x",
            ),
            (
                json!({"configMap": {"name": "cm", "items": [{"key": "k", "path": "../x"}]}}),
                "\"../x\" must be",
            ),
            (json!({"hostPath": {"path": "/"}}), "hostPath is not supported"),
            (json!({"persistentVolumeClaim": {"claimName": "c"}}), "persistentVolumeClaim is not supported"),
            (
                json!({"projected": {"sources": [{"serviceAccountToken": {"path": "t"}}]}}),
                "projected.sources[0].serviceAccountToken is not supported",
            ),
            (
                json!({"downwardAPI": {"items": [{"path": "p", "fieldRef": {"fieldPath": "spec.x"}}]}}),
                "unsupported fieldPath: spec.x",
            ),
        ] {
            let mut named = volume;
            named["name"] = "v".into();
            let error = make(named).unwrap_err();
            assert!(error.contains(part), "{error}");
        }
    }
}
