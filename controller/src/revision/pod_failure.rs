//! Why a pod does not come up, told in a Revision's conditions.

use ember_api::names;
use ember_api::serving::v1::RevisionStatus;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DeploymentStatus;
use k8s_openapi::api::core::v1::Pod;

/// Marks what a pod of a Deployment with nothing available shows: that it cannot be scheduled, how its container
/// ended, or, once the Deployment has run out of time, what its container waits for.
pub(super) fn mark(
    status: &mut RevisionStatus,
    pod: &Pod,
    deployment: &DeploymentStatus,
    always_schedulable: bool,
    now: Timestamp,
) {
    let Some(pod) = &pod.status else { return };

    let unscheduled =
        pod.conditions.iter().flatten().find(|c| c.type_ == "PodScheduled" && c.status == "False");
    if let Some(condition) = unscheduled.filter(|_| !always_schedulable) {
        let reason = condition.reason.as_deref().unwrap_or_default();
        let message = condition.message.as_deref().unwrap_or_default();
        status.mark_resources_available_false(reason, message, now);
    }

    let containers = pod.container_statuses.iter().flatten();
    for container in containers.filter(|container| container.name != names::QUEUE_CONTAINER) {
        let last = container.last_state.as_ref().and_then(|state| state.terminated.as_ref());
        if let Some(ended) = last {
            status.mark_container_exited(ended.exit_code, ended.message.as_deref().unwrap_or_default(), now);
            return;
        }
        let waits = container.state.as_ref().and_then(|state| state.waiting.as_ref());
        if let Some(waiting) = waits.filter(|_| has_timed_out(deployment)) {
            let reason = waiting.reason.as_deref().unwrap_or_default();
            let message = waiting.message.as_deref().unwrap_or_default();
            status.mark_resources_available_false(reason, message, now);
            return;
        }
    }
}

fn has_timed_out(deployment: &DeploymentStatus) -> bool {
    deployment.conditions.iter().flatten().any(|condition| {
        condition.type_ == "Progressing"
            && condition.status == "False"
            && condition.reason.as_deref() == Some("ProgressDeadlineExceeded")
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use ember_api::status::Status;
    use serde_json::json;

    #[test]
    fn the_first_container_that_waits_or_has_ended_tells() {
        let pod: Pod = serde_json::from_value(json!({"status": {"containerStatuses": [
            {"name": "queue-proxy", "image": "", "imageID": "", "ready": false, "restartCount": 0,
             "lastState": {"terminated": {"exitCode": 7}}},
            {"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}},
            {"name": "b", "image": "", "imageID": "", "ready": false, "restartCount": 0,
             "lastState": {"terminated": {"exitCode": 1}}}
        ]}}))
        .expect("a Pod");
        let late: DeploymentStatus = serde_json::from_value(json!({"conditions": [
            {"type": "Progressing", "status": "False", "reason": "ProgressDeadlineExceeded"}
        ]}))
        .expect("a status");
        let marked = |deployment: &DeploymentStatus| {
            let mut status = RevisionStatus::default();
            status.initialize_conditions(Timestamp::UNIX_EPOCH);
            mark(&mut status, &pod, deployment, false, Timestamp::UNIX_EPOCH);
            let reason = |type_: &str| status.condition(type_).map(|condition| condition.reason.clone());
            (reason(RevisionStatus::RESOURCES_AVAILABLE), reason(RevisionStatus::CONTAINER_HEALTHY))
        };
        let some = |text: &str| Some(text.to_owned());
        assert_eq!(marked(&late), (some("ImagePullBackOff"), some("")));
        assert_eq!(marked(&DeploymentStatus::default()), (some(""), some("ExitCode1")));
    }
}
