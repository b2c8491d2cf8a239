//! `serving.knative.dev/v1beta1`: DomainMapping.

mod domain_mapping;

pub use domain_mapping::{DomainMapping, DomainMappingSpec, DomainMappingStatus, KReference, SecretTls};

crate::status::conditioned! { DomainMapping => DomainMappingStatus }
