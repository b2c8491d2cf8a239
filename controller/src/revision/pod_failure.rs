//! Why a pod does not come up, told in a Revision's conditions.
//!
//! Init containers are looked at first, as they run first: without them a service whose init container fails would
//! say no more than that it was late.

use ember_api::names;
use ember_api::serving::v1::RevisionStatus;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::DeploymentStatus;
use k8s_openapi::api::core::v1::{ContainerStatus, Pod};

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

    let init = pod.init_container_statuses.iter().flatten().filter(|container| !is_done(container));
    // They run one after another: the others only wait for their turn.
    let containers = init.take(1).filter(|container| !waits_for_its_turn(container));
    let main = pod.container_statuses.iter().flatten();
    let containers = containers.chain(main.filter(|container| container.name != names::QUEUE_CONTAINER));
    for container in containers {
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

/// Whether an init container has done its work, after however many attempts.
fn is_done(container: &ContainerStatus) -> bool {
    let ended = container.state.as_ref().and_then(|state| state.terminated.as_ref());
    ended.is_some_and(|ended| ended.exit_code == 0)
}

fn waits_for_its_turn(container: &ContainerStatus) -> bool {
    let waits = container.state.as_ref().and_then(|state| state.waiting.as_ref());
    container.last_state.as_ref().is_none_or(|state| state.terminated.is_none())
        && waits.is_some_and(|waiting| waiting.reason.as_deref() == Some("PodInitializing"))
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
    use serde_json::{Value, json};

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

    #[test]
    fn an_init_container_tells_unless_it_is_done() {
        let exited = |exit_code: i32, message: &str| json!({"terminated": {"exitCode": exit_code, "message": message}});
        let crashing = json!({"waiting": {"reason": "CrashLoopBackOff"}});
        let told = |init: &Value| {
            let mut init = init.clone();
            for (field, value) in [("image", json!("")), ("imageID", json!("")), ("ready", json!(false))] {
                init[field] = value;
            }
            init["name"] = json!("init");
            init["restartCount"] = json!(1);
            let main = json!({"name": "a", "image": "", "imageID": "", "ready": false, "restartCount": 0,
                "state": {"waiting": {"reason": "PodInitializing"}}});
            let pod = json!({"status": {"initContainerStatuses": [init], "containerStatuses": [main]}});
            let mut status = RevisionStatus::default();
            status.initialize_conditions(Timestamp::UNIX_EPOCH);
            let pod = serde_json::from_value(pod).expect("a Pod");
            mark(&mut status, &pod, &DeploymentStatus::default(), false, Timestamp::UNIX_EPOCH);
            status.condition(RevisionStatus::CONTAINER_HEALTHY).map(|c| (c.reason.clone(), c.message.clone()))
        };
        let (reason, message) =
            told(&json!({"state": crashing, "lastState": exited(5, "nope")})).expect("it is set");
        assert_eq!(reason, "ExitCode5");
        assert!(message.contains("nope"), "{message}");
        let done = told(&json!({"state": exited(0, ""), "lastState": exited(5, "nope")}));
        assert_eq!(done.expect("it is set").0, "");
    }
}
