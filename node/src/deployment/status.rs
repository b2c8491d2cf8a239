//! A Deployment's status, as Kubernetes' deployment controller computes it.

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::plan::{Counts, bounds, replica_set_name, replicas};

/// What Kubernetes fills in for an absent `progressDeadlineSeconds`.
const DEFAULT_PROGRESS_DEADLINE: i32 = 600;

/// The status that follows from `counts`. `failure` is why the last creation of a pod failed.
#[must_use]
pub fn status(
    deployment: &Deployment,
    hash: &str,
    counts: Counts,
    failure: Option<&str>,
    now: Timestamp,
) -> DeploymentStatus {
    let previous = deployment.status.clone().unwrap_or_default();
    let desired = replicas(deployment);
    let counted = |n: i32| (n > 0).then_some(n);
    let mut status = DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: counted(counts.total),
        updated_replicas: counted(counts.updated),
        ready_replicas: counted(counts.ready),
        available_replicas: counted(counts.available),
        unavailable_replicas: counted(counts.total.max(desired) - counts.available),
        collision_count: previous.collision_count,
        conditions: previous.conditions.clone(),
        terminating_replicas: None,
    };
    let mut conditions = status.conditions.take().unwrap_or_default();
    let available = counts.available >= desired - bounds(deployment).1;
    set(
        &mut conditions,
        if available {
            condition(
                "Available",
                true,
                "MinimumReplicasAvailable",
                "Deployment has minimum availability.",
                now,
            )
        } else {
            condition(
                "Available",
                false,
                "MinimumReplicasUnavailable",
                "Deployment does not have minimum availability.",
                now,
            )
        },
    );
    progress(&mut conditions, deployment, &previous, hash, counts, now);
    match failure {
        Some(message) => {
            set(&mut conditions, condition("ReplicaFailure", true, "FailedCreate", message, now));
        }
        None => conditions.retain(|c| c.type_ != "ReplicaFailure"),
    }
    status.conditions = Some(conditions);
    status
}

/// When the rollout runs into its deadline, if it is under way.
#[must_use]
pub fn deadline(deployment: &Deployment, status: &DeploymentStatus) -> Option<Timestamp> {
    let current = find(status.conditions.as_deref().unwrap_or_default(), "Progressing")?;
    if matches!(current.reason.as_deref(), Some("NewReplicaSetAvailable" | "ProgressDeadlineExceeded")) {
        return None;
    }
    current.last_update_time.as_ref()?.0.checked_add(progress_deadline(deployment)).ok()
}

fn progress_deadline(deployment: &Deployment) -> SignedDuration {
    let seconds = deployment.spec.as_ref().and_then(|s| s.progress_deadline_seconds);
    SignedDuration::from_secs(i64::from(seconds.unwrap_or(DEFAULT_PROGRESS_DEADLINE)))
}

fn progress(
    conditions: &mut Vec<DeploymentCondition>,
    deployment: &Deployment,
    previous: &DeploymentStatus,
    hash: &str,
    counts: Counts,
    now: Timestamp,
) {
    let name = replica_set_name(deployment, hash);
    let current = find(conditions, "Progressing").cloned();
    let quoted = format!("{name:?}");
    // A template that the condition does not speak of is a new rollout.
    if !current.as_ref().and_then(|c| c.message.as_deref()).is_some_and(|m| m.contains(&quoted)) {
        let message = format!("Created new replica set {quoted}");
        replace(conditions, condition("Progressing", true, "NewReplicaSetCreated", &message, now));
    }
    let Some(current) = find(conditions, "Progressing").cloned() else { return };
    let available = current.reason.as_deref() == Some("NewReplicaSetAvailable");
    // A finished rollout stays finished while it is only scaled.
    if available && counts.total == counts.updated {
        return;
    }
    let desired = replicas(deployment);
    let complete = counts.updated == desired && counts.total == desired && counts.available >= desired;
    let was = |n: Option<i32>| n.unwrap_or(0);
    let progressing = counts.updated > was(previous.updated_replicas)
        || counts.total - counts.updated < was(previous.replicas) - was(previous.updated_replicas)
        || counts.ready > was(previous.ready_replicas)
        || counts.available > was(previous.available_replicas);
    if complete {
        let message = format!("ReplicaSet {quoted} has successfully progressed.");
        set(conditions, condition("Progressing", true, "NewReplicaSetAvailable", &message, now));
    } else if progressing {
        let message = format!("ReplicaSet {quoted} is progressing.");
        let mut next = condition("Progressing", true, "ReplicaSetUpdated", &message, now);
        if current.status == "True" {
            next.last_transition_time.clone_from(&current.last_transition_time);
        }
        replace(conditions, next);
    } else if !available
        && current
            .last_update_time
            .as_ref()
            .and_then(|t| t.0.checked_add(progress_deadline(deployment)).ok())
            .is_some_and(|at| at <= now)
    {
        let message = format!("ReplicaSet {quoted} has timed out progressing.");
        set(conditions, condition("Progressing", false, "ProgressDeadlineExceeded", &message, now));
    }
}

fn find<'a>(conditions: &'a [DeploymentCondition], kind: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|c| c.type_ == kind)
}

fn condition(kind: &str, status: bool, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: kind.to_owned(),
        status: if status { "True" } else { "False" }.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_transition_time: Some(Time(now)),
        last_update_time: Some(Time(now)),
    }
}

/// Sets a condition unless it says the same already; keeps the transition time while the status is the same.
fn set(conditions: &mut Vec<DeploymentCondition>, mut next: DeploymentCondition) {
    if let Some(current) = find(conditions, &next.type_) {
        if current.status == next.status && current.reason == next.reason && current.message == next.message {
            return;
        }
        if current.status == next.status {
            next.last_transition_time.clone_from(&current.last_transition_time);
        }
    }
    replace(conditions, next);
}

fn replace(conditions: &mut Vec<DeploymentCondition>, next: DeploymentCondition) {
    match conditions.iter_mut().find(|c| c.type_ == next.type_) {
        Some(slot) => *slot = next,
        None => conditions.push(next),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    struct Rollout(Deployment);

    impl Rollout {
        fn new(replicas: i32) -> Self {
            Self(
                serde_json::from_value(json!({
                    "metadata": {"name": "d", "generation": 3},
                    "spec": {
                        "replicas": replicas, "selector": {}, "template": {}, "progressDeadlineSeconds": 60,
                        "strategy": {"rollingUpdate": {"maxUnavailable": 0}}
                    }
                }))
                .unwrap(),
            )
        }

        fn step(&mut self, hash: &str, total: i32, ready: i32, second: i64) -> Vec<String> {
            let counts = Counts { total, updated: total, ready, available: ready };
            let status = status(&self.0, hash, counts, None, at(second));
            let text = status
                .conditions
                .iter()
                .flatten()
                .map(|c| {
                    format!(
                        "{}={} {} {}",
                        c.type_,
                        c.status,
                        c.reason.as_deref().unwrap(),
                        c.message.as_deref().unwrap()
                    )
                })
                .collect();
            self.0.status = Some(status);
            text
        }
    }

    #[test]
    fn a_rollout_that_succeeds_and_then_scales() {
        let mut rollout = Rollout::new(1);
        assert_eq!(
            rollout.step("h", 0, 0, 0),
            [
                "Available=False MinimumReplicasUnavailable Deployment does not have minimum availability.",
                "Progressing=True NewReplicaSetCreated Created new replica set \"d-h\""
            ]
        );
        assert_eq!(
            rollout.step("h", 1, 0, 1)[1],
            "Progressing=True ReplicaSetUpdated ReplicaSet \"d-h\" is progressing."
        );
        let done = rollout.step("h", 1, 1, 2);
        assert_eq!(done[0], "Available=True MinimumReplicasAvailable Deployment has minimum availability.");
        assert_eq!(
            done[1],
            "Progressing=True NewReplicaSetAvailable ReplicaSet \"d-h\" has successfully progressed."
        );
        assert_eq!(deadline(&rollout.0, rollout.0.status.as_ref().unwrap()), None);
        rollout.0.spec.as_mut().unwrap().replicas = Some(0);
        rollout.step("h", 0, 0, 3);
        rollout.0.spec.as_mut().unwrap().replicas = Some(1);
        let later = rollout.step("h", 1, 0, 500);
        assert!(later[0].starts_with("Available=False"));
        assert!(later[1].contains("NewReplicaSetAvailable"), "scaling is no rollout: {later:?}");
        assert!(rollout.step("h2", 0, 0, 501)[1].contains("Created new replica set \"d-h2\""));
    }

    #[test]
    fn a_rollout_that_runs_into_its_deadline_and_recovers() {
        let mut rollout = Rollout::new(1);
        rollout.step("h", 0, 0, 0);
        rollout.step("h", 1, 0, 5);
        assert_eq!(deadline(&rollout.0, rollout.0.status.as_ref().unwrap()), Some(at(65)));
        assert!(rollout.step("h", 1, 0, 64)[1].contains("ReplicaSetUpdated"));
        assert_eq!(
            rollout.step("h", 1, 0, 65)[1],
            "Progressing=False ProgressDeadlineExceeded ReplicaSet \"d-h\" has timed out progressing."
        );
        assert_eq!(deadline(&rollout.0, rollout.0.status.as_ref().unwrap()), None);
        assert!(rollout.step("h", 1, 0, 70)[1].contains("ProgressDeadlineExceeded"));
        assert!(rollout.step("h", 1, 1, 80)[1].starts_with("Progressing=True NewReplicaSetAvailable"));
    }

    #[test]
    fn zero_replicas_are_complete_and_absent_numbers_stay_absent() {
        let mut rollout = Rollout::new(0);
        let conditions = rollout.step("h", 0, 0, 0);
        assert!(conditions[0].starts_with("Available=True"));
        assert!(conditions[1].contains("NewReplicaSetAvailable"));
        let status = serde_json::to_value(rollout.0.status.unwrap()).unwrap();
        let keys: Vec<_> = status.as_object().unwrap().keys().collect();
        assert_eq!(keys, ["conditions", "observedGeneration"]);
    }

    #[test]
    fn a_failed_creation_is_told_and_taken_back() {
        let rollout = Rollout::new(1);
        let failed = status(&rollout.0, "h", Counts::default(), Some("quota"), at(0));
        let condition = find(failed.conditions.as_deref().unwrap(), "ReplicaFailure").unwrap();
        assert_eq!(
            (condition.reason.as_deref(), condition.message.as_deref()),
            (Some("FailedCreate"), Some("quota"))
        );
        let mut deployment = rollout.0;
        deployment.status = Some(failed);
        let next = status(&deployment, "h", Counts::default(), None, at(1));
        assert!(find(next.conditions.as_deref().unwrap(), "ReplicaFailure").is_none());
    }
}
