//! What `kubectl get pods` shows of a pod, as Kubernetes' own printer puts it.

use serde_json::Value;

use crate::object;
use crate::table::{at, items};

/// How many of its containers are ready.
pub(crate) fn ready(pod: &Value) -> Value {
    let ready = items(pod, "/status/containerStatuses").filter(|s| s["ready"] == true).count();
    format!("{ready}/{}", items(pod, "/spec/containers").count()).into()
}

/// How often the containers were started again that are under way: those of `initContainers` until they are done.
pub(crate) fn restarts(pod: &Value) -> Value {
    let list = match initializing(pod) {
        Some(_) => "/status/initContainerStatuses",
        None => "/status/containerStatuses",
    };
    items(pod, list).filter_map(|s| s["restartCount"].as_i64()).sum::<i64>().to_string().into()
}

/// The pod's state in a word.
pub(crate) fn status(pod: &Value) -> Value {
    let phase = nonempty(at(pod, "/status/phase"));
    if object::is_terminating(pod) && !matches!(phase, Some("Succeeded" | "Failed")) {
        return "Terminating".into();
    }
    if let Some(reason) = initializing(pod) {
        return reason.into();
    }
    let mut reason = nonempty(at(pod, "/status/reason")).or(phase).unwrap_or("Unknown").to_owned();
    let mut is_running = false;
    // The first container has the last word.
    let mut containers: Vec<&Value> = items(pod, "/status/containerStatuses").collect();
    containers.reverse();
    for container in containers {
        if let Some(waiting) = nonempty(&container["state"]["waiting"]["reason"]) {
            waiting.clone_into(&mut reason);
        } else if let Some(ended) = ended(container) {
            reason = ended;
        } else if container["ready"] == true && container["state"]["running"].is_object() {
            is_running = true;
        }
    }
    if reason == "Completed" && is_running {
        return if is_true(pod, "Ready") { "Running" } else { "NotReady" }.into();
    }
    reason.into()
}

/// What the first init container is at that is not done; `None` when all are.
fn initializing(pod: &Value) -> Option<String> {
    if is_true(pod, "Initialized") {
        return None;
    }
    let statuses = items(pod, "/status/initContainerStatuses").enumerate();
    let is_done = |status: &Value| status["state"]["terminated"]["exitCode"] == 0;
    let (number, status) = { statuses }.find(|(_, status)| !is_done(status))?;
    let waits = nonempty(&status["state"]["waiting"]["reason"]).filter(|reason| *reason != "PodInitializing");
    let reason = ended(status).or_else(|| waits.map(str::to_owned));
    let reason = reason.unwrap_or_else(|| format!("{number}/{}", items(pod, "/spec/initContainers").count()));
    Some(format!("Init:{reason}"))
}

/// How a container ended, if it did.
fn ended(status: &Value) -> Option<String> {
    let ended = Some(&status["state"]["terminated"]).filter(|ended| ended.is_object())?;
    let number = |field: &str| ended[field].as_i64().unwrap_or(0);
    Some(match (nonempty(&ended["reason"]), number("signal")) {
        (Some(reason), _) => reason.to_owned(),
        (None, 0) => format!("ExitCode:{}", number("exitCode")),
        (None, signal) => format!("Signal:{signal}"),
    })
}

fn is_true(pod: &Value, condition: &str) -> bool {
    items(pod, "/status/conditions").any(|c| c["type"] == condition && c["status"] == "True")
}

fn nonempty(text: &Value) -> Option<&str> {
    text.as_str().filter(|text| !text.is_empty())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn init(states: &Value) -> Value {
        let states = states.as_array().unwrap();
        let statuses: Vec<Value> = states.iter().map(|s| json!({"state": s, "restartCount": 2})).collect();
        let main = json!([{"state": {"waiting": {"reason": "PodInitializing"}}, "restartCount": 0}]);
        json!({
            "spec": {"initContainers": statuses.iter().map(|_| json!({})).collect::<Vec<_>>(), "containers": [{}]},
            "status": {"phase": "Pending", "initContainerStatuses": statuses, "containerStatuses": main}
        })
    }

    #[test]
    fn init_containers_are_told_of_until_they_are_done() {
        let done = json!({"terminated": {"exitCode": 0, "reason": "Completed"}});
        for (states, told) in [
            (json!([{"running": {}}, {"waiting": {"reason": "PodInitializing"}}]), "Init:0/2"),
            (json!([done, {"running": {}}]), "Init:1/2"),
            (json!([{"terminated": {"exitCode": 5, "reason": "Error"}}]), "Init:Error"),
            (json!([{"terminated": {"exitCode": 5}}]), "Init:ExitCode:5"),
            (json!([done, {"waiting": {"reason": "CrashLoopBackOff"}}]), "Init:CrashLoopBackOff"),
            (json!([done]), "PodInitializing"),
        ] {
            assert_eq!(status(&init(&states)), told, "{states}");
        }
        assert_eq!(restarts(&init(&json!([done, {"running": {}}]))), "4");
        assert_eq!(restarts(&init(&json!([done]))), "0");
    }

    #[test]
    fn containers_are_told_of_by_the_first_in_trouble() {
        let pod = |first: Value, second: Value| {
            json!({"status": {
                "phase": "Running", "containerStatuses": [{"state": first}, {"state": second, "ready": true}]
            }})
        };
        let running = || json!({"running": {}});
        assert_eq!(status(&pod(running(), running())), "Running");
        assert_eq!(
            status(&pod(json!({"waiting": {"reason": "A"}}), json!({"waiting": {"reason": "B"}}))),
            "A"
        );
        assert_eq!(status(&pod(json!({"terminated": {"exitCode": 9, "signal": 9}}), running())), "Signal:9");
        assert_eq!(status(&pod(json!({"terminated": {"reason": "Completed"}}), running())), "NotReady");
        let mut going = pod(running(), running());
        going["metadata"] = json!({"deletionTimestamp": "2024-01-01T00:00:00Z"});
        assert_eq!(status(&going), "Terminating");
    }
}
