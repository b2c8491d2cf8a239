//! How a Service's status follows its Configuration and Route.

use jiff::Timestamp;

use super::{ConfigurationStatus, RouteStatus, ServiceStatus};
use crate::status::Status;

impl ServiceStatus {
    /// A Configuration of that name belongs to somebody else.
    pub fn mark_configuration_not_owned(&mut self, name: &str, now: Timestamp) {
        let message = format!("There is an existing Configuration {name:?} that we do not own.");
        self.manage(now).mark_false(Self::CONFIGURATIONS_READY, "NotOwned", &message);
    }

    /// The Configuration has not yet seen its present generation.
    pub fn mark_configuration_not_reconciled(&mut self, now: Timestamp) {
        self.manage(now).mark_unknown(
            Self::CONFIGURATIONS_READY,
            "OutOfDate",
            "The Configuration is still working to reflect the latest desired specification.",
        );
    }

    /// A Route of that name belongs to somebody else.
    pub fn mark_route_not_owned(&mut self, name: &str, now: Timestamp) {
        let message = format!("There is an existing Route {name:?} that we do not own.");
        self.manage(now).mark_false(Self::ROUTES_READY, "NotOwned", &message);
    }

    /// The Revision name the user chose is in use.
    pub fn mark_revision_name_taken(&mut self, name: &str, now: Timestamp) {
        let message = format!(
            "The revision name {name:?} is taken by a conflicting Revision, so traffic will not be migrated"
        );
        self.manage(now).mark_false(Self::ROUTES_READY, "RevisionNameTaken", &message);
    }

    /// The Route has not yet seen its present generation.
    pub fn mark_route_not_reconciled(&mut self, now: Timestamp) {
        self.manage(now).mark_unknown(
            Self::ROUTES_READY,
            "OutOfDate",
            "The Route is still working to reflect the latest desired specification.",
        );
    }

    /// The Route is ready, but for other traffic than is wanted.
    pub fn mark_route_not_yet_ready(&mut self, now: Timestamp) {
        self.manage(now).mark_unknown(
            Self::ROUTES_READY,
            "TrafficNotMigrated",
            "Traffic is not yet migrated to the latest revision.",
        );
    }

    /// Takes over the Configuration's fields and readiness.
    pub fn propagate_configuration_status(&mut self, configuration: &ConfigurationStatus, now: Timestamp) {
        self.latest_created_revision_name.clone_from(&configuration.latest_created_revision_name);
        self.latest_ready_revision_name.clone_from(&configuration.latest_ready_revision_name);
        if let Some(ready) = configuration.top_level_condition() {
            self.manage(now).mirror(Self::CONFIGURATIONS_READY, ready);
        }
    }

    /// Takes over the Route's fields and readiness.
    pub fn propagate_route_status(&mut self, route: &RouteStatus, now: Timestamp) {
        self.url.clone_from(&route.url);
        self.address.clone_from(&route.address);
        self.traffic.clone_from(&route.traffic);
        if let Some(ready) = route.top_level_condition() {
            self.manage(now).mirror(Self::ROUTES_READY, ready);
        }
    }
}
