//! Labels and annotations as Kubernetes compares them: absent is the same as empty.

use std::collections::BTreeMap;

use ember_reconcile::apply::semantically_equal;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::Serialize;

/// Labels or annotations.
pub(crate) type Map = BTreeMap<String, String>;

/// The object's labels.
pub(crate) fn labels(meta: &ObjectMeta) -> Map {
    meta.labels.clone().unwrap_or_default()
}

/// The object's annotations.
pub(crate) fn annotations(meta: &ObjectMeta) -> Map {
    meta.annotations.clone().unwrap_or_default()
}

/// The value of a label.
pub(crate) fn label<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.labels.as_ref()?.get(key).map(String::as_str)
}

/// The value of an annotation.
pub(crate) fn annotation<'a>(meta: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    meta.annotations.as_ref()?.get(key).map(String::as_str)
}

/// Whether labels and annotations are the same.
pub(crate) fn same_maps(a: &ObjectMeta, b: &ObjectMeta) -> bool {
    fn same(a: Option<&Map>, b: Option<&Map>) -> bool {
        a.into_iter().flatten().eq(b.into_iter().flatten())
    }
    same(a.labels.as_ref(), b.labels.as_ref()) && same(a.annotations.as_ref(), b.annotations.as_ref())
}

/// Whether two values mean the same to Kubernetes.
pub(crate) fn same<T: Serialize + PartialEq>(a: &T, b: &T) -> bool {
    if a == b {
        return true;
    }
    match (serde_json::to_value(a), serde_json::to_value(b)) {
        (Ok(a), Ok(b)) => semantically_equal(&a, &b),
        _ => false,
    }
}

/// Adds a name to a sorted, comma separated list.
pub(crate) fn insert_name(list: &str, name: &str) -> String {
    let mut names: Vec<&str> = list.split(',').filter(|n| !n.is_empty()).chain([name]).collect();
    names.sort_unstable();
    names.dedup();
    names.join(",")
}

/// Takes a name out of a comma separated list.
pub(crate) fn remove_name(list: &str, name: &str) -> String {
    let mut names: Vec<&str> = list.split(',').filter(|n| !n.is_empty() && *n != name).collect();
    names.sort_unstable();
    names.dedup();
    names.join(",")
}
