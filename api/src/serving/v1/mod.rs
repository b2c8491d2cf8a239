//! `serving.knative.dev/v1`: Service, Configuration, Revision, Route.

mod configuration;
mod revision;
mod route;
mod service;

pub use configuration::{Configuration, ConfigurationSpec, ConfigurationStatus};
pub use revision::{ContainerStatus, Revision, RevisionSpec, RevisionStatus, RevisionTemplateSpec};
pub use route::{Addressable, Route, RouteSpec, RouteStatus, TrafficTarget};
pub use service::{Service, ServiceSpec, ServiceStatus};

use crate::status::conditioned;

conditioned! {
    Service => ServiceStatus,
    Configuration => ConfigurationStatus,
    Revision => RevisionStatus,
    Route => RouteStatus,
}
