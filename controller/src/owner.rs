//! Controlling owners: one for each child.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use kube::core::Resource;

/// The reference by which `owner` controls a child.
pub(crate) fn controller_ref<K: Resource<DynamicType = ()>>(owner: &K) -> OwnerReference {
    let meta = owner.meta();
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: meta.name.clone().unwrap_or_default(),
        uid: meta.uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// The reference to the controller of the object with this metadata.
pub(crate) fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|reference| reference.controller == Some(true))
}

/// Whether `owner` controls the child with this metadata.
pub(crate) fn is_controlled_by<K: Resource>(child: &ObjectMeta, owner: &K) -> bool {
    let uid = owner.meta().uid.as_deref();
    uid.is_some() && controller_of(child).map(|reference| reference.uid.as_str()) == uid
}
