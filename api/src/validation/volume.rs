//! Rules for volumes and where they are mounted.

use std::collections::HashSet;

use k8s_openapi::api::core::v1 as core;

use super::fieldmask::disallowed;
use crate::configmaps::features::{Features, Flag};
use crate::field_error::FieldError;
use crate::golang::quote;
use crate::{quantity, syntax};

const RESERVED_PATHS: [&str; 3] = ["/", "/dev", "/dev/log"];

pub(super) fn list(volumes: &[core::Volume], mounted: &HashSet<&str>, features: &Features) -> FieldError {
    let mut errors = FieldError::none();
    let mut names = HashSet::new();
    for (index, volume) in volumes.iter().enumerate() {
        let name = volume.name.as_str();
        let mut of_volume = FieldError::none();
        if !names.insert(name) {
            of_volume.add(FieldError::generic(format!("duplicate volume name {}", quote(name)), &["name"]));
        }
        if !mounted.contains(name) {
            of_volume
                .add(FieldError::generic(format!("volume with name {} not mounted", quote(name)), &["name"]));
        }
        errors.add(of_volume.also(self::volume(volume, features)).via_index(index));
    }
    errors
}

fn volume(volume: &core::Volume, features: &Features) -> FieldError {
    let name = volume.name.as_str();
    // A name that is no name is the only thing said about support.
    let mut errors = if name.is_empty() {
        FieldError::missing(&["name"])
    } else if !syntax::dns1123_label(name).is_empty() {
        FieldError::invalid_value(name, "name")
    } else {
        support(volume, features)
    };
    let gated = [
        ("emptyDir", features.pod_spec_volumes_empty_dir, volume.empty_dir.is_some()),
        (
            "persistentVolumeClaim",
            features.pod_spec_persistent_volume_claim,
            volume.persistent_volume_claim.is_some(),
        ),
        ("hostPath", features.pod_spec_volumes_host_path, volume.host_path.is_some()),
        ("csi", features.pod_spec_volumes_csi, volume.csi.is_some()),
        ("ephemeral", features.pod_spec_volumes_ephemeral, volume.ephemeral.is_some()),
        ("image", features.pod_spec_volumes_image, volume.image.is_some()),
    ];
    let mut allowed = vec!["name", "secret", "configMap", "projected"];
    allowed.extend(gated.iter().filter(|(_, flag, _)| flag.is_allowed()).map(|(field, ..)| *field));
    errors.add(disallowed(volume, &allowed));

    let mut specified = Vec::new();
    let mut items = |items: Option<&[core::KeyToPath]>| {
        for (index, item) in items.unwrap_or_default().iter().enumerate() {
            errors.add(key_to_path(item).via_field_index("items", index));
        }
    };
    if let Some(secret) = &volume.secret {
        specified.push("secret");
        items(secret.items.as_deref());
    }
    if let Some(config_map) = &volume.config_map {
        specified.push("configMap");
        items(config_map.items.as_deref());
    }
    if let Some(projected) = &volume.projected {
        specified.push("projected");
        for (index, source) in projected.sources.iter().flatten().enumerate() {
            errors.add(projection(source).via_field_index("projected", index));
        }
    }
    specified.extend(gated.iter().filter(|(_, _, is_set)| *is_set).map(|(field, ..)| *field));
    if let Some(directory) = &volume.empty_dir {
        errors.add(empty_dir(directory).via_field("emptyDir"));
    }
    if let Some(image) = &volume.image {
        errors.add(image_source(image).via_field("image"));
    }
    match specified.as_slice() {
        [] => {
            let mut choice = vec!["secret", "configMap", "projected"];
            choice.extend(gated.iter().filter(|(_, flag, _)| flag.is_enabled()).map(|(field, ..)| *field));
            errors.add(FieldError::missing_one_of(&choice));
        }
        [_] => {}
        several => errors.add(FieldError::multiple_one_of(several)),
    }
    errors
}

/// That the cluster lets its users have volumes of that kind.
fn support(volume: &core::Volume, features: &Features) -> FieldError {
    let mut errors = FieldError::none();
    if let Some(claim) = &volume.persistent_volume_claim {
        let name = &claim.claim_name;
        if !features.pod_spec_persistent_volume_claim.is_enabled() {
            errors.add(FieldError::generic(
                format!(
                    "Persistent volume claim support is disabled, but found persistent volume claim {name}"
                ),
                &[],
            ));
        }
        if !claim.read_only.unwrap_or_default() && !features.pod_spec_persistent_volume_write.is_enabled() {
            errors.add(FieldError::generic(
                format!(
                    "Persistent volume write support is disabled, but found persistent volume claim {name} that is \
                     not read-only"
                ),
                &[],
            ));
        }
    }
    let kinds: [(&str, Flag, bool); 5] = [
        ("Image", features.pod_spec_volumes_image, volume.image.is_some()),
        ("EmptyDir", features.pod_spec_volumes_empty_dir, volume.empty_dir.is_some()),
        ("HostPath", features.pod_spec_volumes_host_path, volume.host_path.is_some()),
        ("CSI", features.pod_spec_volumes_csi, volume.csi.is_some()),
        ("Ephemeral", features.pod_spec_volumes_ephemeral, volume.ephemeral.is_some()),
    ];
    for (kind, flag, is_set) in kinds {
        if is_set && !flag.is_enabled() {
            let name = &volume.name;
            errors.add(FieldError::generic(
                format!("{kind} volume support is disabled, but found {kind} volume {name}"),
                &[],
            ));
        }
    }
    errors
}

fn key_to_path(item: &core::KeyToPath) -> FieldError {
    required(&[("key", item.key.is_empty()), ("path", item.path.is_empty())])
}

fn required(fields: &[(&str, bool)]) -> FieldError {
    fields
        .iter()
        .filter(|(_, is_missing)| *is_missing)
        .map(|(field, _)| FieldError::missing(&[field]))
        .collect()
}

fn projection(source: &core::VolumeProjection) -> FieldError {
    let mut errors = disallowed(source, &["secret", "configMap", "serviceAccountToken", "downwardAPI"]);
    let mut specified = Vec::new();
    let with_items = |name: &str, items: Option<&[core::KeyToPath]>| {
        let items = items.unwrap_or_default().iter().enumerate();
        required(&[("name", name.is_empty())])
            .also(items.map(|(index, item)| key_to_path(item).via_field_index("items", index)).collect())
    };
    if let Some(secret) = &source.secret {
        specified.push("secret");
        errors.add(with_items(&secret.name, secret.items.as_deref()).via_field("secret"));
    }
    if let Some(config_map) = &source.config_map {
        specified.push("configMap");
        errors.add(with_items(&config_map.name, config_map.items.as_deref()).via_field("configMap"));
    }
    if let Some(token) = &source.service_account_token {
        specified.push("serviceAccountToken");
        errors.add(required(&[("path", token.path.is_empty())]).via_field("serviceAccountToken"));
    }
    if let Some(downward) = &source.downward_api {
        specified.push("downwardAPI");
        if downward.items.as_ref().is_some_and(Vec::is_empty) {
            errors.add(FieldError::disallowed(&["items"]).via_field("downwardAPI"));
        }
        for (index, file) in downward.items.iter().flatten().enumerate() {
            errors.add(downward_file(file).via_field_index("items", index).via_field("downwardAPI"));
        }
    }
    match specified.as_slice() {
        [] => errors.add(FieldError::missing_one_of(&[
            "secret",
            "configMap",
            "serviceAccountToken",
            "downwardAPI",
        ])),
        [_] => {}
        several => errors.add(FieldError::multiple_one_of(several)),
    }
    errors
}

fn downward_file(file: &core::DownwardAPIVolumeFile) -> FieldError {
    let source = match (&file.field_ref, &file.resource_field_ref) {
        (None, None) => FieldError::missing_one_of(&["fieldRef", "resourceFieldRef"]),
        (Some(_), Some(_)) => {
            FieldError::generic("Within a single item, cannot set both", &["resourceFieldRef", "fieldRef"])
        }
        _ => FieldError::none(),
    };
    source.also(required(&[("path", file.path.is_empty())]))
}

fn empty_dir(directory: &core::EmptyDirVolumeSource) -> FieldError {
    let mut errors = FieldError::none();
    let medium = directory.medium.as_deref().unwrap_or_default();
    if !["", "Memory"].contains(&medium) {
        errors.add(FieldError::invalid_value(medium, "medium"));
    }
    let limit = directory.size_limit.as_ref().map(|limit| limit.0.trim());
    if let Some(limit) = limit.and_then(|limit| quantity::canonical(limit).ok())
        && limit.starts_with('-')
    {
        errors.add(FieldError::invalid_value(limit, "sizeLimit"));
    }
    errors
}

fn image_source(image: &core::ImageVolumeSource) -> FieldError {
    let mut errors = required(&[("reference", image.reference.as_ref().is_none_or(String::is_empty))]);
    let policy = image.pull_policy.as_deref().unwrap_or_default();
    if !["", "IfNotPresent", "Always", "Never"].contains(&policy) {
        errors.add(FieldError::invalid_value(policy, "pullPolicy"));
    }
    errors
}

pub(super) fn mounts(
    mounts: &[core::VolumeMount],
    volumes: &[core::Volume],
    features: &Features,
) -> FieldError {
    let mut errors = FieldError::none();
    let mut paths = HashSet::new();
    for (index, mount) in mounts.iter().enumerate() {
        // Of volumes with the same name the last one counts.
        let volume = volumes.iter().rev().find(|volume| volume.name == mount.name);
        let path = clean(&mount.mount_path);
        let of_path = mount_path(&mount.mount_path, &path, paths.contains(&path));
        errors.add(of_path.also(self::mount(mount, volume, features)).via_index(index));
        paths.insert(path);
    }
    errors
}

fn mount_path(raw: &str, path: &str, is_taken: bool) -> FieldError {
    if raw.is_empty() {
        FieldError::missing(&["mountPath"])
    } else if RESERVED_PATHS.contains(&path) {
        FieldError::generic(format!("mountPath {} is a reserved path", quote(path)), &["mountPath"])
    } else if !raw.starts_with('/') {
        FieldError::invalid_value(raw, "mountPath")
    } else if is_taken {
        FieldError::invalid_value(format!("{} must be unique", quote(raw)), "mountPath")
    } else {
        FieldError::none()
    }
}

fn mount(mount: &core::VolumeMount, volume: Option<&core::Volume>, features: &Features) -> FieldError {
    let propagation = features.pod_spec_volumes_mount_propagation;
    let fields = ["name", "readOnly", "mountPath", "subPath", "mountPropagation"];
    let allowed = if propagation.is_allowed() { &fields[..] } else { &fields[..4] };
    let mut errors = disallowed(mount, allowed);
    if volume.is_none() {
        errors.add(FieldError::generic("volumeMount has no matching volume", &["name"]));
    }
    let is_writable = volume.is_some_and(|volume| {
        volume.empty_dir.is_some() || volume.persistent_volume_claim.is_some() || volume.ephemeral.is_some()
    });
    let read_only = mount.read_only.unwrap_or_default();
    if !is_writable && !read_only {
        let message = "volume mount should be readOnly for this type of volume";
        errors.add(FieldError::generic(message, &["readOnly"]));
    }
    if let Some(mode) = &mount.mount_propagation {
        if !propagation.is_enabled() {
            errors.add(FieldError::generic(
                format!(
                    "Volume Mount Propagation support is disabled, but found volume mount {} with mount propagation",
                    mount.name
                ),
                &[],
            ));
        }
        if !["None", "HostToContainer"].contains(&mode.as_str()) {
            let message = "mount propagation should be set to None or HostToContainer";
            errors.add(FieldError::generic(message, &["mountPropagation"]));
        }
    }
    let claim = volume.and_then(|volume| volume.persistent_volume_claim.as_ref());
    if claim.is_some_and(|claim| claim.read_only.unwrap_or_default()) && !read_only {
        errors.add(FieldError::generic("volume is readOnly but volume mount is not", &["readOnly"]));
    }
    errors
}

/// The shortest path that leads to the same place.
fn clean(path: &str) -> String {
    let rooted = path.starts_with('/');
    let mut parts: Vec<&str> = Vec::new();
    for part in path.split('/') {
        match part {
            "" | "." => {}
            ".." if parts.last().is_some_and(|last| *last != "..") => {
                parts.pop();
            }
            ".." if rooted => {}
            part => parts.push(part),
        }
    }
    match (rooted, parts.is_empty()) {
        (true, _) => format!("/{}", parts.join("/")),
        (false, true) => ".".to_owned(),
        (false, false) => parts.join("/"),
    }
}
