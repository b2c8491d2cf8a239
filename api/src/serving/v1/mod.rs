//! `serving.knative.dev/v1`: Service, Configuration, Revision, Route.

mod configuration;
mod configuration_lifecycle;
mod revision;
mod revision_lifecycle;
mod route;
mod route_lifecycle;
mod service;
mod service_lifecycle;

pub use configuration::{Configuration, ConfigurationSpec, ConfigurationStatus};
pub use revision::{ContainerStatus, Revision, RevisionSpec, RevisionStatus, RevisionTemplateSpec};
pub use revision_lifecycle::routing_state_time;
pub use route::{Addressable, Route, RouteSpec, RouteStatus, TrafficTarget};
pub use service::{Service, ServiceSpec, ServiceStatus};

use crate::status::conditioned;

conditioned! {
    Service => ServiceStatus,
    Configuration => ConfigurationStatus,
    Revision => RevisionStatus,
    Route => RouteStatus,
}
