//! How a Revision's status follows its Deployment, its containers and its PodAutoscaler.

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DeploymentStatus;
use k8s_openapi::api::core::v1 as core;

use super::{Revision, RevisionSpec, RevisionStatus};
use crate::annotations;
use crate::autoscaling::v1alpha1::PodAutoscalerStatus;
use crate::conditions::{Condition, ConditionSet, ConditionStatus, Conditions};
use crate::labels::{self, RoutingState};
use crate::networking::ProtocolType;
use crate::status::Status;

impl RevisionSpec {
    /// The container that gets the requests: the only one, or the first with a port.
    #[must_use]
    pub fn serving_container(&self) -> Option<&core::Container> {
        match self.pod_spec.containers.as_slice() {
            [only] => Some(only),
            several => several.iter().find(|container| has_ports(container)),
        }
    }

    /// What the serving container speaks: h2c if its port is named so.
    #[must_use]
    pub fn protocol(&self) -> ProtocolType {
        let h2c = self.pod_spec.containers.iter().any(|container| {
            let first = container.ports.as_ref().and_then(|ports| ports.first());
            first.is_some_and(|port| port.name.as_deref() == Some(ProtocolType::H2c.as_str()))
        });
        if h2c { ProtocolType::H2c } else { ProtocolType::Http1 }
    }
}

fn has_ports(container: &core::Container) -> bool {
    container.ports.as_ref().is_some_and(|ports| !ports.is_empty())
}

impl Revision {
    /// Whether a Route leads to the Revision; `None` where that was never recorded.
    #[must_use]
    pub fn routing_state(&self) -> Option<RoutingState> {
        let label = self.metadata.labels.as_ref()?.get(labels::ROUTING_STATE)?;
        RoutingState::parse(label)
    }

    /// Records whether a Route leads to the Revision, and since when, if that is a change.
    pub fn set_routing_state(&mut self, state: RoutingState, now: Timestamp) {
        let labels = self.metadata.labels.get_or_insert_default();
        if labels.get(labels::ROUTING_STATE).is_some_and(|present| present == state.as_str()) {
            return;
        }
        labels.insert(labels::ROUTING_STATE.to_owned(), state.as_str().to_owned());
        let annotations = self.metadata.annotations.get_or_insert_default();
        annotations.insert(annotations::ROUTING_STATE_MODIFIED.to_owned(), routing_state_time(now));
    }

    /// When the routing state last changed; `None` where that was never recorded.
    #[must_use]
    pub fn routing_state_modified(&self) -> Option<Timestamp> {
        self.metadata.annotations.as_ref()?.get(annotations::ROUTING_STATE_MODIFIED)?.parse().ok()
    }

    /// Whether a Route leads to the Revision.
    #[must_use]
    pub fn is_reachable(&self) -> bool {
        self.routing_state() == Some(RoutingState::Active)
    }
}

/// A time as the annotation about the routing state has it: RFC 3339, UTC, whole seconds.
#[must_use]
pub fn routing_state_time(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// The state of a Deployment in a Revision's terms.
fn deployment_conditions(deployment: &DeploymentStatus, now: Timestamp) -> Conditions {
    const PROGRESSING: &str = "Progressing";
    const REPLICA_SET_READY: &str = "ReplicaSetReady";
    let mut conditions = Conditions::default();
    let mut manager = ConditionSet::living(&[PROGRESSING, REPLICA_SET_READY]).manage(&mut conditions, now);
    manager.init();
    // A Deployment speaks of replica failures only when there are some, and of progress only once there is any.
    manager.mark_true(REPLICA_SET_READY);
    manager.mark_unknown(PROGRESSING, RevisionStatus::REASON_DEPLOYING, "");
    // A replica failure tells more than progress does, in whatever order the two are listed.
    let all = || deployment.conditions.iter().flatten();
    let failures = all().filter(|condition| condition.type_ == "ReplicaFailure");
    for condition in all().filter(|condition| condition.type_ == "Progressing").chain(failures) {
        let mut source = Condition {
            status: ConditionStatus::from(condition.status.as_str()),
            reason: condition.reason.clone().unwrap_or_default(),
            message: condition.message.clone().unwrap_or_default(),
            ..Condition::default()
        };
        match condition.type_.as_str() {
            "Progressing" => manager.mirror(PROGRESSING, &source),
            "ReplicaFailure" => {
                source.status = match source.status {
                    ConditionStatus::True => ConditionStatus::False,
                    ConditionStatus::False => ConditionStatus::True,
                    ConditionStatus::Unknown => ConditionStatus::Unknown,
                };
                manager.mirror(REPLICA_SET_READY, &source);
            }
            _ => {}
        }
    }
    conditions
}

impl RevisionStatus {
    /// Reason: the image has not been found or may not be used.
    pub const REASON_CONTAINER_MISSING: &'static str = "ContainerMissing";
    /// Reason: the image's digest is being asked for.
    pub const REASON_RESOLVING_DIGESTS: &'static str = "ResolvingDigests";
    /// Reason: the Deployment is on its way.
    pub const REASON_DEPLOYING: &'static str = "Deploying";
    /// Reason: a child of that name belongs to somebody else.
    pub const REASON_NOT_OWNED: &'static str = "NotOwned";
    /// Reason: the Deployment took too long.
    pub const REASON_PROGRESS_DEADLINE_EXCEEDED: &'static str = "ProgressDeadlineExceeded";

    /// The Revision is scaled to handle traffic.
    pub fn mark_active_true(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::ACTIVE);
    }

    /// The Revision is not scaled to handle traffic.
    pub fn mark_active_false(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_false(Self::ACTIVE, reason, message);
    }

    /// The Revision is being scaled.
    pub fn mark_active_unknown(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_unknown(Self::ACTIVE, reason, message);
    }

    /// The containers start and stay up.
    pub fn mark_container_healthy_true(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::CONTAINER_HEALTHY);
    }

    /// A container does not start or stay up.
    pub fn mark_container_healthy_false(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_false(Self::CONTAINER_HEALTHY, reason, message);
    }

    /// Whether the containers are well is not known yet.
    pub fn mark_container_healthy_unknown(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_unknown(Self::CONTAINER_HEALTHY, reason, message);
    }

    /// A container has ended, with its exit code and termination message.
    pub fn mark_container_exited(&mut self, exit_code: i32, message: &str, now: Timestamp) {
        let message =
            if exit_code == 0 && message.is_empty() { "container exited with no error" } else { message };
        let text = format!("Container failed with: {message}");
        self.mark_container_healthy_false(&format!("ExitCode{exit_code}"), &text, now);
    }

    /// Everything the Revision needs is there.
    pub fn mark_resources_available_true(&mut self, now: Timestamp) {
        self.manage(now).mark_true(Self::RESOURCES_AVAILABLE);
    }

    /// Something the Revision needs cannot be had.
    pub fn mark_resources_available_false(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_false(Self::RESOURCES_AVAILABLE, reason, message);
    }

    /// Something the Revision needs is on its way.
    pub fn mark_resources_available_unknown(&mut self, reason: &str, message: &str, now: Timestamp) {
        self.manage(now).mark_unknown(Self::RESOURCES_AVAILABLE, reason, message);
    }

    /// A child of that kind and name belongs to somebody else.
    pub fn mark_resource_not_owned(&mut self, kind: &str, name: &str, now: Timestamp) {
        let message = format!("There is an existing {kind} {name:?} that we do not own.");
        self.mark_resources_available_false(Self::REASON_NOT_OWNED, &message, now);
    }

    /// The digests of the images are being asked for.
    pub fn mark_resolving_digests(&mut self, now: Timestamp) {
        self.mark_resources_available_unknown(Self::REASON_RESOLVING_DIGESTS, "", now);
    }

    /// The Deployment has just been made.
    pub fn mark_deploying(&mut self, now: Timestamp) {
        self.mark_resources_available_unknown(Self::REASON_DEPLOYING, "", now);
        self.mark_container_healthy_unknown(Self::REASON_DEPLOYING, "", now);
    }

    /// Whether requests have to go through the activator: the Revision is known not to be scaled for traffic.
    #[must_use]
    pub fn is_activation_required(&self) -> bool {
        self.condition(Self::ACTIVE).is_some_and(|active| !active.is_true())
    }

    /// Takes over what the Deployment says of its progress.
    pub fn propagate_deployment_status(&mut self, deployment: &DeploymentStatus, now: Timestamp) {
        let conditions = deployment_conditions(deployment, now);
        if let Some(ready) = conditions.get(Self::CONDITION_SET.happy()) {
            self.manage(now).mirror(Self::RESOURCES_AVAILABLE, ready);
        }
    }

    /// Takes over what the PodAutoscaler says of scale and activity.
    pub fn propagate_autoscaler_status(&mut self, autoscaler: &PodAutoscalerStatus, now: Timestamp) {
        let resources_unavailable = self.conditions.is_false(Self::RESOURCES_AVAILABLE)
            || self.conditions.is_false(Self::CONTAINER_HEALTHY);
        self.actual_replicas = autoscaler.actual_scale.filter(|scale| *scale >= 0);
        self.desired_replicas = autoscaler.desired_scale.filter(|scale| *scale >= 0);

        let Some(ready) = autoscaler.top_level_condition() else {
            self.mark_active_unknown(Self::REASON_DEPLOYING, "", now);
            if !resources_unavailable {
                self.mark_resources_available_unknown(Self::REASON_DEPLOYING, "", now);
            }
            return;
        };

        // The initial scale was reached, so pods were ready; that holds unless something has failed since.
        let initialized = autoscaler.is_scale_target_initialized();
        if initialized && !resources_unavailable {
            self.mark_resources_available_true(now);
            self.mark_container_healthy_true(now);
        }
        // A Deployment is done progressing also where it has no pods, as with an initial scale of zero.
        if self.conditions.is_true(Self::RESOURCES_AVAILABLE)
            && (autoscaler.service_name.is_empty() || !initialized)
        {
            self.mark_resources_available_unknown(Self::REASON_DEPLOYING, "", now);
        }

        // Scaled to zero without ever having reached the initial scale: it never will. Without a Service name the
        // PodAutoscaler may just not have got that far.
        if ready.is_false() && !initialized && !resources_unavailable && !autoscaler.service_name.is_empty() {
            self.mark_resources_available_false(
                Self::REASON_PROGRESS_DEADLINE_EXCEEDED,
                "Initial scale was never achieved",
                now,
            );
        }
        self.manage(now).mirror(Self::ACTIVE, ready);
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::golden;

    #[test]
    fn golden_revision_status() {
        let now = Timestamp::from_second(1_600_000_000).unwrap();
        let cases = golden::cases("revision_status");
        let mut failures = Vec::new();
        for case in &cases {
            let given = golden::given(case, "status").cloned().unwrap_or_else(|| json!({}));
            let mut status: RevisionStatus = serde_json::from_value(given).unwrap();
            status.initialize_conditions(now);
            if !case["deployment"].is_null() {
                let deployment = serde_json::from_value(case["deployment"].clone()).unwrap();
                status.propagate_deployment_status(&deployment, now);
            }
            if !case["podAutoscalerStatus"].is_null() {
                let autoscaler = serde_json::from_value(case["podAutoscalerStatus"].clone()).unwrap();
                status.propagate_autoscaler_status(&autoscaler, now);
            }
            let got: Value = golden::without_times(serde_json::to_value(&status).unwrap());
            if got != case["expect"] {
                failures.push(format!("{}: got {got}, want {}", case["id"], case["expect"]));
            }
        }
        golden::report("revision_status", cases.len(), &failures);
    }

    #[test]
    fn routing_state_keeps_its_time_while_it_stays() {
        let first = Timestamp::from_second(1_600_000_000).unwrap();
        let mut revision = Revision::default();
        revision.set_routing_state(RoutingState::Active, first);
        revision.set_routing_state(RoutingState::Active, Timestamp::from_second(1_700_000_000).unwrap());
        assert_eq!(revision.routing_state_modified(), Some(first));
        assert_eq!(routing_state_time(first), "2020-09-13T12:26:40Z");
        assert!(revision.is_reachable());
    }

    #[test]
    fn the_serving_container_is_the_one_with_ports() {
        let spec: RevisionSpec = serde_json::from_value(json!({"containers": [
            {"name": "side"}, {"name": "app", "ports": [{"name": "h2c", "containerPort": 8080}]}
        ]}))
        .unwrap();
        assert_eq!(spec.serving_container().map(|container| container.name.as_str()), Some("app"));
        assert_eq!(spec.protocol(), ProtocolType::H2c);
    }
}
