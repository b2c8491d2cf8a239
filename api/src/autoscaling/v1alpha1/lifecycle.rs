//! What the autoscaler records of PodAutoscalers and Metrics.

use jiff::{SignedDuration, Timestamp};

use super::{MetricStatus, PodAutoscalerStatus};
use crate::conditions::{ConditionStatus, READY};
use crate::status::Status;

impl PodAutoscalerStatus {
    /// The target is scaled to handle traffic.
    pub fn mark_active(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::ACTIVE);
    }

    /// The target is being scaled.
    pub fn mark_activating(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_unknown(Self::ACTIVE, reason, message);
    }

    /// Requests wait for the target to be scaled.
    pub fn mark_queued(&mut self, now: Timestamp) {
        let message = "Requests to the target are being buffered as resources are provisioned.";
        self.mark_activating("Queued", message, now);
    }

    /// The target is not scaled to handle traffic.
    pub fn mark_inactive(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_false(Self::ACTIVE, reason, message);
    }

    /// There is no traffic.
    pub fn mark_no_traffic(&mut self, now: Timestamp) {
        self.mark_inactive("NoTraffic", "The target is not receiving traffic.", now);
    }

    /// The target did not come up in time.
    pub fn mark_timed_out(&mut self, now: Timestamp) {
        self.mark_inactive("TimedOut", "The target could not be activated.", now);
    }

    /// A child of that kind and name belongs to somebody else.
    pub fn mark_resource_not_owned(&mut self, kind: &str, name: &str, now: Timestamp) {
        let message = format!("There is an existing {kind} {name:?} that we do not own.");
        self.mark_inactive("NotOwned", &message, now);
    }

    /// A child of that kind and name could not be made.
    pub fn mark_resource_failed_creation(&mut self, kind: &str, name: &str, now: Timestamp) {
        self.mark_inactive("FailedCreate", &format!("Failed to create {kind} {name:?}."), now);
    }

    /// The initial scale was reached.
    pub fn mark_scale_target_initialized(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::SCALE_TARGET_INITIALIZED);
    }

    /// The ServerlessService is ready.
    pub fn mark_sks_ready(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::SKS_READY);
    }

    /// The ServerlessService is not ready; the message says why.
    pub fn mark_sks_not_ready(&mut self, message: &str, now: Timestamp) {
        self.manage(now).mark_unknown(Self::SKS_READY, "NotReady", message);
    }

    /// Whether the target is scaled to handle traffic.
    #[must_use]
    pub fn is_active(&self) -> bool {
        self.conditions.is_true(Self::ACTIVE)
    }

    /// Whether the target is being scaled, or nothing is known of it.
    #[must_use]
    pub fn is_activating(&self) -> bool {
        self.conditions.is_unknown(Self::ACTIVE)
    }

    /// Whether the target is not scaled to handle traffic.
    #[must_use]
    pub fn is_inactive(&self) -> bool {
        self.conditions.is_false(Self::ACTIVE)
    }

    /// Whether the initial scale was ever reached.
    #[must_use]
    pub fn is_scale_target_initialized(&self) -> bool {
        self.conditions.is_true(Self::SCALE_TARGET_INITIALIZED)
    }

    /// How long the target has been active; `None` while it is not.
    #[must_use]
    pub fn active_for(&self, now: Timestamp) -> Option<SignedDuration> {
        self.conditions.held_for(Self::ACTIVE, ConditionStatus::True, now)
    }

    /// How long the target has been inactive; `None` while it is not.
    #[must_use]
    pub fn inactive_for(&self, now: Timestamp) -> Option<SignedDuration> {
        self.conditions.held_for(Self::ACTIVE, ConditionStatus::False, now)
    }

    /// Whether the target has been activating for more than `timeout`.
    #[must_use]
    pub fn can_fail_activation(&self, timeout: SignedDuration, now: Timestamp) -> bool {
        self.conditions
            .held_for(Self::ACTIVE, ConditionStatus::Unknown, now)
            .is_some_and(|held| held > timeout)
    }

    /// How many pods there should be; -1 while not known.
    #[must_use]
    pub fn desired_scale_or_unknown(&self) -> i32 {
        self.desired_scale.unwrap_or(-1)
    }

    /// How many pods are ready; -1 while not known.
    #[must_use]
    pub fn actual_scale_or_unknown(&self) -> i32 {
        self.actual_scale.unwrap_or(-1)
    }
}

impl MetricStatus {
    /// The metric is being collected.
    pub fn mark_metric_ready(&mut self, now: Timestamp) {
        self.manage(now).mark_true(READY);
    }

    /// The metric is not collected for now.
    pub fn mark_metric_not_ready(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_unknown(READY, reason, message);
    }

    /// The metric cannot be collected.
    pub fn mark_metric_failed(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_false(READY, reason, message);
    }
}
