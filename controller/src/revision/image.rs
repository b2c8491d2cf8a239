//! Images: hints to whoever pulls images ahead of need.

use ember_api::caching::v1alpha1::{Image, ImageSpec};
use ember_api::names;
use ember_api::serving::v1::{ContainerStatus, Revision};
use kube::ResourceExt;

use super::metadata;

/// The Image of one of a Revision's containers.
pub(super) fn make(revision: &Revision, container: &ContainerStatus) -> Image {
    let pod = &revision.spec.pod_spec;
    Image {
        metadata: metadata::child(
            revision,
            names::image_cache(&revision.name_any(), &container.name),
            metadata::child_annotations(revision),
        ),
        spec: ImageSpec {
            image: container.image_digest.clone(),
            service_account_name: pod.service_account_name.clone().unwrap_or_default(),
            image_pull_secrets: pod.image_pull_secrets.clone().unwrap_or_default(),
        },
        status: None,
    }
}
