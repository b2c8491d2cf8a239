//! The seam to defaulting and validation: what a cluster's webhooks do, called in process.

use std::collections::BTreeMap;

use serde_json::Value;

/// What kind of write is under review.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Operation {
    /// The object is new.
    Create,
    /// The object replaces `old`.
    Update,
}

/// A write under review.
#[derive(Debug, Clone, Copy)]
pub struct Review<'a> {
    /// API group, empty for core.
    pub group: &'a str,
    /// API version.
    pub version: &'a str,
    /// Kind of the object.
    pub kind: &'a str,
    /// What is being done.
    pub operation: Operation,
    /// Namespace of the object, empty when it has none.
    pub namespace: &'a str,
    /// The stored object, when it is an update.
    pub old: Option<&'a Value>,
    /// Who writes.
    pub user: &'a str,
    /// Nothing will be stored.
    pub dry_run: bool,
}

/// A write that is turned down.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("admission webhook \"{webhook}\" denied the request: {message}")]
pub struct Denied {
    /// Name of the webhook a cluster would have asked.
    pub webhook: &'static str,
    /// Why, with the prefix that names the stage: `validation failed: …`.
    pub message: String,
}

/// Reviews writes of the main resource. Pure apart from the configuration it is given.
pub trait Admission: Send + Sync + 'static {
    /// Takes over the `data` of the system namespace's ConfigMaps, by name. Called before the first review and
    /// whenever one of them changed.
    fn configure(&self, config_maps: &BTreeMap<String, BTreeMap<String, String>>);

    /// Fills in what the object leaves open.
    ///
    /// # Errors
    /// When the object cannot be read.
    fn default(&self, review: &Review<'_>, object: &mut Value) -> Result<(), Denied>;

    /// Checks the object; returns warnings for the caller.
    ///
    /// # Errors
    /// What is wrong with it.
    fn validate(&self, review: &Review<'_>, object: &Value) -> Result<Vec<String>, Denied>;
}

/// Admits everything as it is.
#[derive(Debug, Default, Clone, Copy)]
pub struct AdmitAll;

impl Admission for AdmitAll {
    fn configure(&self, _config_maps: &BTreeMap<String, BTreeMap<String, String>>) {}

    fn default(&self, _review: &Review<'_>, _object: &mut Value) -> Result<(), Denied> {
        Ok(())
    }

    fn validate(&self, _review: &Review<'_>, _object: &Value) -> Result<Vec<String>, Denied> {
        Ok(Vec::new())
    }
}
