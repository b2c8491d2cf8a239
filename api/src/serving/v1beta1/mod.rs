//! `serving.knative.dev/v1beta1`: DomainMapping.

mod domain_mapping;
mod domain_mapping_lifecycle;

pub use domain_mapping::{DomainMapping, DomainMappingSpec, DomainMappingStatus, KReference, SecretTls};

crate::status::conditioned! { DomainMapping => DomainMappingStatus }
