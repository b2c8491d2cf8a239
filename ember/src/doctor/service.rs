//! Why a service is not ready: down the tree of what was made for it, to what is broken.

use serde_json::Value;

use super::finding::{Finding, Level};

/// A service and what was made for it, as the API tells it.
#[derive(Debug, Clone, Default)]
pub(crate) struct Tree {
    /// The Service; null if there is none.
    pub(crate) service: Value,
    /// Names of the services there are, for who mistyped one.
    pub(crate) others: Vec<String>,
    /// Its Configuration, Route, Revisions and their PodAutoscalers, in this order.
    pub(crate) parts: Vec<Value>,
    /// Its pods.
    pub(crate) pods: Vec<Pod>,
    /// Events of the namespace.
    pub(crate) events: Vec<Value>,
}

/// A pod with its last words.
#[derive(Debug, Clone, Default)]
pub(crate) struct Pod {
    /// The pod.
    pub(crate) object: Value,
    /// The last lines of its app.
    pub(crate) log: Vec<String>,
}

/// How many events are shown of an object.
const EVENTS: usize = 3;

fn text<'a>(object: &'a Value, path: &str) -> &'a str {
    object.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

fn label(object: &Value) -> String {
    let (kind, name) = (text(object, "/kind").to_lowercase(), text(object, "/metadata/name"));
    match text(object, "/metadata/namespace") {
        "" | "default" => format!("{kind} {name}"),
        namespace => format!("{kind} {namespace}/{name}"),
    }
}

fn conditions(object: &Value) -> impl Iterator<Item = &Value> {
    object["status"]["conditions"].as_array().into_iter().flatten()
}

fn condition<'a>(object: &'a Value, kind: &str) -> Option<&'a Value> {
    conditions(object).find(|c| c["type"] == kind)
}

/// Whether the condition `Ready` says what its object's newest generation is.
fn is_ready(object: &Value) -> bool {
    let (seen, generation) = (&object["status"]["observedGeneration"], &object["metadata"]["generation"]);
    let current = seen.is_null() || seen == generation;
    current && condition(object, "Ready").is_some_and(|c| c["status"] == "True")
}

/// What a condition says, in one line.
fn words(condition: &Value) -> String {
    // Messages may carry lines of a log.
    let line = |path| text(condition, path).split_whitespace().collect::<Vec<_>>().join(" ");
    let known: Vec<String> =
        ["/reason", "/message"].map(line).into_iter().filter(|part| !part.is_empty()).collect();
    let (kind, status) = (text(condition, "/type"), text(condition, "/status"));
    if known.is_empty() {
        format!("{kind} is {status}")
    } else {
        format!("{kind} is {status}: {}", known.join(": "))
    }
}

impl Tree {
    /// What is wrong, from the service down. What only follows from something below is a note.
    pub(crate) fn judge(&self, name: &str, namespace: &str) -> Vec<Finding> {
        if self.service.is_null() {
            let others = if self.others.is_empty() { "none".to_owned() } else { self.others.join(", ") };
            return vec![
                Finding::problem(
                    format!("service {name}"),
                    format!("there is none in namespace {namespace}"),
                )
                .advise(format!(
                    "there is {others}; -n names another namespace, `ember get ksvc -A` shows all"
                )),
            ];
        }
        let mut findings = self.judge_parts();
        findings.extend(self.pods.iter().flat_map(judge_pod));
        let cause = |finding: &Finding| finding.level == Level::Problem && !follows(finding);
        if findings.iter().any(cause) {
            for finding in &mut findings {
                if finding.level == Level::Problem && follows(finding) {
                    finding.level = Level::Note;
                    finding.advice = None;
                    finding.lines.clear();
                }
            }
        }
        findings
    }

    fn judge_parts(&self) -> Vec<Finding> {
        let mut findings = vec![self.judge_part(&self.service)];
        if is_ready(&self.service) {
            if self.pods.is_empty() {
                findings.push(Finding::ok("pods", "none: it sleeps, and wakes at the next request"));
            }
        } else {
            findings.extend(self.parts.iter().map(|part| self.judge_part(part)));
            if self.parts.is_empty() {
                findings.push(Finding::problem(label(&self.service), "nothing was made for it").advise(
                    "the controller does not work: is one running, and has it the Leases in knative-serving?",
                ));
            }
        }
        findings
    }

    fn judge_part(&self, object: &Value) -> Finding {
        let about = label(object);
        if is_ready(object) {
            let url = text(object, "/status/url");
            return Finding::ok(
                about,
                if url.is_empty() { "ready".to_owned() } else { format!("ready at {url}") },
            );
        }
        if object["metadata"]["deletionTimestamp"].is_string() {
            let finalizers = object["metadata"]["finalizers"].as_array().into_iter().flatten();
            let left: Vec<&str> = finalizers.filter_map(Value::as_str).collect();
            return Finding::note(
                about,
                if left.is_empty() {
                    "it is being deleted".to_owned()
                } else {
                    format!("it is being deleted; its finalizers {} are waited for", left.join(", "))
                },
            );
        }
        if text(object, "/kind") == "PodAutoscaler"
            && condition(object, "Active").is_some_and(|c| c["reason"] == "NoTraffic")
        {
            return if condition(object, "ScaleTargetInitialized").is_some_and(|c| c["status"] == "True") {
                Finding::ok(about, "no traffic: its revision sleeps, and wakes at the next request")
            } else {
                Finding::note(about, "it has no pods: none became ready")
            };
        }
        let (seen, generation) = (&object["status"]["observedGeneration"], &object["metadata"]["generation"]);
        if !seen.is_null() && seen != generation {
            return Finding::problem(
                about,
                format!("no controller has seen its generation {generation} yet"),
            )
            .advise("look again; if it stays, the controller does not work");
        }
        // What made Ready what it is comes first; the rest is often the same in other words.
        let wrong: Vec<&Value> = conditions(object).filter(|c| c["status"] != "True").collect();
        // That a revision has no traffic is no fault.
        let cause = wrong
            .iter()
            .find(|c| c["status"] == "False" && !["Ready", "Active"].iter().any(|kind| c["type"] == *kind));
        let ready = condition(object, "Ready");
        let Some(worst) = cause.copied().or(ready) else {
            return Finding::problem(about, "it has no status yet")
                .advise("look again; if it stays, the controller does not work");
        };
        let finding = Finding::problem(about, words(worst)).show(self.warnings(object));
        match advice(worst) {
            Some(advice) => finding.advise(advice),
            None => finding,
        }
    }

    /// The newest warnings about an object, each once.
    fn warnings(&self, object: &Value) -> Vec<String> {
        let (kind, name) = (text(object, "/kind"), text(object, "/metadata/name"));
        let mut lines: Vec<String> = Vec::new();
        for event in self.events.iter().rev() {
            let of =
                text(event, "/involvedObject/kind") == kind && text(event, "/involvedObject/name") == name;
            let line = format!("{}: {}", text(event, "/reason"), text(event, "/message").trim());
            if of && text(event, "/type") == "Warning" && !lines.contains(&line) && lines.len() < EVENTS {
                lines.push(line);
            }
        }
        lines
    }
}

/// Whether something is as it is because of something below it.
fn follows(finding: &Finding) -> bool {
    const REASONS: [&str; 4] = ["RevisionMissing", "RevisionFailed", "Queued", "Deploying"];
    // As `words` puts it: the type and status, the reason, the message.
    let reason = finding.what.split(": ").nth(1);
    !finding.about.starts_with("pod ")
        && (finding.what.ends_with(" is Unknown") || reason.is_some_and(|reason| REASONS.contains(&reason)))
}

/// What to do about a condition.
fn advice(condition: &Value) -> Option<&'static str> {
    let (kind, reason) = (text(condition, "/type"), text(condition, "/reason"));
    Some(match (kind, reason) {
        (_, "ContainerMissing") => {
            "an image of another name cannot be had here: with ember up use image dev.local/host and command: [PROGRAM]"
        }
        (_, "ImagePullBackOff" | "ErrImagePull") => "check the image's name and the credentials to pull it",
        (_, reason) if reason.starts_with("ExitCode") => {
            "the app ended by itself: the pod below tells its last words"
        }
        (_, "ProgressDeadlineExceeded") => {
            "no pod became ready in time: the pods below tell why; serving.knative.dev/progress-deadline gives more time"
        }
        (_, "RevisionMissing" | "RevisionFailed") => {
            "a revision is what is broken: see below; `spec.traffic` may name one that is not there"
        }
        (_, "DomainConflict") => "another service has this host: rename one of the two, or delete the other",
        (_, "IngressNotConfigured" | "Uninitialized") => {
            "no gateway has taken it up: is one running, and does ingress-class in config-network name it?"
        }
        (_, "HorizontalPodAutoscalerUnavailable") => {
            "nothing runs HorizontalPodAutoscalers here: leave autoscaling.knative.dev/class out"
        }
        (_, "Deploying" | "Queued" | "Activating") => "its pods are not ready yet: see below, and look again",
        _ => return None,
    })
}

fn judge_pod(pod: &Pod) -> Vec<Finding> {
    let object = &pod.object;
    let about = format!("pod {}", text(object, "/metadata/name"));
    if object["metadata"]["deletionTimestamp"].is_string() {
        return vec![Finding::ok(about, "it is ending")];
    }
    if condition(object, "Ready").is_some_and(|c| c["status"] == "True") {
        return vec![Finding::ok(about, "ready")];
    }
    let statuses = object["status"]["containerStatuses"].as_array();
    let mut findings: Vec<Finding> =
        statuses.into_iter().flatten().filter_map(|status| judge_container(pod, &about, status)).collect();
    if findings.is_empty() {
        let ready = condition(object, "Ready").map(words);
        let what = ready.unwrap_or_else(|| "it has no status yet".to_owned());
        findings.push(Finding::problem(about, what).advise("look again; if it stays, no node works on it"));
    }
    findings
}

/// What is wrong with a container, if that is not another one's fault.
fn judge_container(pod: &Pod, about: &str, status: &Value) -> Option<Finding> {
    let container = text(status, "/name");
    let log = pod.log.clone();
    let ended = ["/state/terminated", "/lastState/terminated"].iter().find_map(|path| status.pointer(path));
    if let Some(ended) = ended.filter(|_| status.pointer("/state/running").is_none()) {
        let (reason, message) = (text(ended, "/reason"), text(ended, "/message").trim());
        let restarts = &status["restartCount"];
        if reason == "StartError" {
            return Some(
                Finding::problem(about, format!("{container} cannot be started: {message}")).advise(
                    "check command: the program has to be on this machine, executable, and named by its path",
                ),
            );
        }
        let code = &ended["exitCode"];
        let advice = match code.as_i64() {
            Some(137) => {
                "it was killed: by the kernel for want of memory, or because a liveness probe failed"
            }
            Some(126 | 127) => "its command, or one that it runs, was not found or is not executable",
            _ => "the app has to stay and serve: its own log tells why it does not",
        };
        return Some(
            Finding::problem(
                about,
                format!("{container} ended with code {code}, started again {restarts} times"),
            )
            .show(log)
            .advise(advice),
        );
    }
    if let Some(waiting) = status.pointer("/state/waiting") {
        let (reason, message) = (text(waiting, "/reason"), text(waiting, "/message").trim());
        let advice = match reason {
            "CreateContainerConfigError" => {
                "the pod asks for what there is not here: the message names the field"
            }
            "ImagePullBackOff" | "ErrImagePull" => "use image dev.local/host and command: [PROGRAM]",
            _ => "look again in a moment",
        };
        return Some(
            Finding::problem(about, format!("{container} waits: {reason}: {message}")).advise(advice),
        );
    }
    // The sidecar is ready when the app answers its probe: that is where a running app is told to be deaf.
    if container == "queue-proxy" && status["ready"] == false && apps_run(&pod.object) {
        let port = app_port(&pod.object);
        return Some(
            Finding::problem(about, "the app runs, and does not answer its readiness probe")
                .show(log)
                .advise(format!(
                    "it has to listen on the port in $PORT ({port}), on 127.0.0.1 or all addresses"
                )),
        );
    }
    if container != "queue-proxy" && status["ready"] == false {
        return Some(Finding::problem(about, format!("{container} runs, and is not ready")).show(log));
    }
    None
}

fn apps_run(pod: &Value) -> bool {
    let statuses = pod["status"]["containerStatuses"].as_array();
    statuses
        .into_iter()
        .flatten()
        .filter(|status| status["name"] != "queue-proxy")
        .all(|status| status.pointer("/state/running").is_some())
}

fn app_port(pod: &Value) -> String {
    let containers = pod["spec"]["containers"].as_array().into_iter().flatten();
    let environment = containers
        .filter(|container| container["name"] != "queue-proxy")
        .flat_map(|container| container["env"].as_array().into_iter().flatten());
    let mut ports = environment.filter(|variable| variable["name"] == "PORT");
    ports.next().map_or("8080", |variable| text(variable, "/value")).to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::doctor::finding::problems;
    use serde_json::json;

    fn object(kind: &str, name: &str, conditions: &[(&str, &str, &str, &str)]) -> Value {
        let conditions: Vec<Value> = conditions
            .iter()
            .map(|(kind, status, reason, message)| {
                json!({"type": kind, "status": status, "reason": reason, "message": message})
            })
            .collect();
        json!({"kind": kind, "metadata": {"name": name, "generation": 1},
               "status": {"observedGeneration": 1, "conditions": conditions}})
    }

    fn pod(status: &Value, log: &[&str]) -> Pod {
        let object = json!({"metadata": {"name": "p"}, "status": {"containerStatuses": status},
            "spec": {"containers": [{"name": "user-container", "env": [{"name": "PORT", "value": "3000"}]}]}});
        Pod { object, log: log.iter().map(|line| (*line).to_owned()).collect() }
    }

    #[test]
    fn a_service_that_is_ready_is_fine_and_one_that_is_not_there_is_named() {
        let ready = Tree { service: object("Service", "a", &[("Ready", "True", "", "")]), ..Tree::default() };
        assert_eq!(problems(&ready.judge("a", "default")), 0);
        let none = Tree { others: vec!["b".into()], ..Tree::default() };
        let finding = &none.judge("a", "default")[0];
        assert_eq!(finding.level, Level::Problem);
        assert!(finding.advice.as_ref().unwrap().starts_with("there is b"), "{finding:?}");
    }

    #[test]
    fn the_cause_is_told_and_the_events_with_it() {
        let revision = object(
            "Revision",
            "a-1",
            &[
                ("Ready", "False", "ContainerMissing", "no"),
                ("ContainerHealthy", "False", "ContainerMissing", "no"),
            ],
        );
        let event = json!({"type": "Warning", "reason": "InternalError", "message": "m",
                           "involvedObject": {"kind": "Revision", "name": "a-1"}});
        let tree = Tree {
            service: object("Service", "a", &[("Ready", "False", "RevisionMissing", "none")]),
            parts: vec![revision],
            events: vec![event.clone(), event],
            ..Tree::default()
        };
        let findings = tree.judge("a", "default");
        assert_eq!(
            (problems(&findings), findings[0].level),
            (1, Level::Note),
            "it follows from the revision"
        );
        assert_eq!(findings[1].about, "revision a-1");
        assert_eq!(findings[1].what, "ContainerHealthy is False: ContainerMissing: no");
        assert_eq!(findings[1].lines, ["InternalError: m"]);
        assert!(findings[1].advice.as_ref().unwrap().contains("dev.local/host"));
    }

    #[test]
    fn pods_tell_why_they_are_not_ready() {
        let sidecar = json!({"name": "queue-proxy", "ready": false, "state": {"running": {}}});
        let app = |state: Value, last: Value| json!({"name": "user-container", "ready": false, "restartCount": 2, "state": state, "lastState": last});
        let backoff = json!({"waiting": {"reason": "CrashLoopBackOff", "message": "back-off"}});
        let ended = json!({"terminated": {"exitCode": 3, "reason": "Error", "message": "dying"}});
        let unstarted =
            json!({"terminated": {"exitCode": 128, "reason": "StartError", "message": "no such file"}});
        let mut running = app(json!({"running": {}}), json!({}));
        running["ready"] = true.into();
        for (status, what, advice) in [
            (
                json!([app(backoff.clone(), ended), sidecar]),
                "ended with code 3, started again 2 times",
                "own log",
            ),
            (json!([app(backoff, unstarted), sidecar]), "cannot be started: no such file", "check command"),
            (json!([running, sidecar]), "does not answer its readiness probe", "$PORT (3000)"),
        ] {
            let findings = judge_pod(&pod(&status, &["last words"]));
            assert_eq!(findings.len(), 1, "{findings:?}");
            assert!(findings[0].what.contains(what), "{findings:?}");
            assert!(findings[0].advice.as_ref().unwrap().contains(advice), "{findings:?}");
        }
    }
}
