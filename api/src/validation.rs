//! What Knative's webhook accepts: every kind's rules, and the exact words of a refusal.

mod annotations;
mod container;
mod fieldmask;
mod internal;
mod metadata;
mod pod;
mod probe;
mod serving;
mod template;
mod traffic;
mod volume;

use k8s_openapi::api::core::v1::PodSpec;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::admission::{Kind, Operation};
use crate::autoscaling::v1alpha1::{Metric, PodAutoscaler};
use crate::configmaps::Configs;
use crate::field_error::FieldError;
use crate::networking::v1alpha1::{Certificate, Ingress, ServerlessService};
use crate::quantity;
use crate::serving::v1::{Configuration, Revision, Route, Service};
use crate::serving::v1beta1::DomainMapping;

/// An object does not fit its type.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct DecodeError(String);

/// What is to happen to an object.
#[derive(Clone, Copy, Debug)]
pub struct Change<'a> {
    /// Whether it is created or updated.
    pub operation: Operation,
    /// The object as it is to be.
    pub object: &'a Value,
    /// The object as it is; only on updates.
    pub old: Option<&'a Value>,
    /// The subresource that is written, such as `status`; empty is the object itself.
    pub subresource: &'a str,
}

impl Change<'_> {
    fn is_status(&self) -> bool {
        self.operation == Operation::Update && self.subresource == "status"
    }

    /// The object as it is, where the change is an update.
    fn original<T: DeserializeOwned>(&self) -> Result<Option<T>, DecodeError> {
        self.old.filter(|_| self.operation == Operation::Update).map(decode).transpose()
    }
}

/// Checks an object of one of Knative's kinds. The findings hold both what refuses it and what its author is
/// warned about.
///
/// # Errors
/// The object does not fit its type.
pub fn validate(kind: Kind, change: Change<'_>, configs: &Configs) -> Result<FieldError, DecodeError> {
    match kind {
        Kind::Service => serving::service(change, configs),
        Kind::Configuration => serving::configuration(change, configs),
        Kind::Revision => serving::revision(change, configs),
        Kind::Route => serving::route(change, configs),
        Kind::DomainMapping => serving::domain_mapping(change, configs),
        Kind::PodAutoscaler => internal::pod_autoscaler(change, configs),
        Kind::Metric => internal::metric(change, configs),
        Kind::ServerlessService => internal::serverless_service(change),
        Kind::Ingress => internal::ingress(change),
        Kind::Certificate => internal::certificate(change),
        Kind::ConfigMap => Ok(FieldError::none()),
    }
}

/// Checks that an object fits its type.
///
/// # Errors
/// It does not.
pub fn check_type(kind: Kind, object: &Value) -> Result<(), DecodeError> {
    match kind {
        Kind::Service => decode::<Service>(object).map(|_| ()),
        Kind::Configuration => decode::<Configuration>(object).map(|_| ()),
        Kind::Revision => decode::<Revision>(object).map(|_| ()),
        Kind::Route => decode::<Route>(object).map(|_| ()),
        Kind::DomainMapping => decode::<DomainMapping>(object).map(|_| ()),
        Kind::PodAutoscaler => decode::<PodAutoscaler>(object).map(|_| ()),
        Kind::Metric => decode::<Metric>(object).map(|_| ()),
        Kind::ServerlessService => decode::<ServerlessService>(object).map(|_| ()),
        Kind::Ingress => decode::<Ingress>(object).map(|_| ()),
        Kind::Certificate => decode::<Certificate>(object).map(|_| ()),
        Kind::ConfigMap => Ok(()),
    }
}

/// Reads an object, and checks what its types leave open: that quantities are some.
fn decode<T: DeserializeOwned>(object: &Value) -> Result<T, DecodeError> {
    let mut object = object.clone();
    quantity::spell_out(&mut object);
    quantity::visit(&mut object, &mut |amount| match amount {
        Value::String(text) => {
            quantity::value(text.trim()).map(|_| ()).map_err(|e| DecodeError(e.to_string()))
        }
        _ => Ok(()),
    })?;
    serde_path_to_error::deserialize(&object).map_err(|error| {
        let path = error.path().to_string();
        let text = within_pod(&object, &path).unwrap_or_else(|| error.to_string());
        DecodeError(format!("json: {text}"))
    })
}

/// The error of a pod's field with its whole path: the pod is flattened into the spec at `path`, and the error of the
/// whole object names that alone.
fn within_pod(object: &Value, path: &str) -> Option<String> {
    let spec = object.pointer(&format!("/{}", path.replace('.', "/")))?;
    let error = serde_path_to_error::deserialize::<_, PodSpec>(spec).err()?;
    error.path().iter().next()?;
    Some(format!("{path}.{error}"))
}

#[cfg(test)]
mod tests;
