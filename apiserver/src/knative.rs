//! Knative's defaulting and validation as [`Admission`], configured by the ConfigMaps of this very store.

use std::collections::BTreeMap;
use std::sync::Arc;

use arc_swap::ArcSwap;
use ember_api::admission::{self, Kind, Request};
use ember_api::configmaps::Configs;
use serde_json::Value;

use crate::admission::{Admission, Denied, Operation, Review};

/// What Knative's webhook does to the kinds it knows; all others pass as they are.
pub struct KnativeAdmission {
    configs: ArcSwap<Configs>,
}

impl KnativeAdmission {
    /// With the default configuration until the first one is given.
    #[must_use]
    pub fn new() -> Self {
        Self { configs: ArcSwap::from_pointee(Configs::default()) }
    }
}

impl Default for KnativeAdmission {
    fn default() -> Self {
        Self::new()
    }
}

impl From<admission::Denied> for Denied {
    fn from(denied: admission::Denied) -> Self {
        Self { webhook: denied.webhook, message: denied.message }
    }
}

fn request<'a>(review: &Review<'a>, object: &'a Value) -> Option<Request<'a>> {
    Some(Request {
        kind: Kind::of(review.group, review.kind)?,
        operation: match review.operation {
            Operation::Create => admission::Operation::Create,
            Operation::Update => admission::Operation::Update,
        },
        object,
        old: review.old,
        subresource: "",
        user: review.user,
        dry_run: review.dry_run,
    })
}

impl Admission for KnativeAdmission {
    fn configure(&self, config_maps: &BTreeMap<String, BTreeMap<String, String>>) {
        let mut configs = Configs::default();
        for (name, data) in config_maps {
            // Only what parses is admitted, so this takes a store written by another version.
            if let Err(error) = configs.set(name, data) {
                tracing::warn!(config_map = %name, %error, "the ConfigMap is ignored");
            }
        }
        self.configs.store(Arc::new(configs));
    }

    fn default(&self, review: &Review<'_>, object: &mut Value) -> Result<(), Denied> {
        let Some(request) = request(review, object) else { return Ok(()) };
        let defaulted = admission::default(&request, &self.configs.load())?;
        *object = defaulted;
        Ok(())
    }

    fn validate(&self, review: &Review<'_>, object: &Value) -> Result<Vec<String>, Denied> {
        let Some(request) = request(review, object) else { return Ok(Vec::new()) };
        Ok(admission::validate(&request, &self.configs.load())?)
    }
}
