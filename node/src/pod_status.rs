//! A pod's status from what happened to its containers, as the kubelet computes it.

use std::net::IpAddr;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting,
    ContainerStatus, HostIP, PodCondition, PodIP, PodSpec, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// How a run of a container ended.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Terminated {
    /// 128 + signal for one that was killed.
    pub exit_code: i32,
    /// `Completed`, `Error`, `StartError`.
    pub reason: String,
    /// What the container left as its last words.
    pub message: Option<String>,
    /// Start of the run.
    pub started_at: Timestamp,
    /// End of the run.
    pub finished_at: Timestamp,
}

/// Where a container is in its life.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum State {
    /// Not running, about to.
    Waiting {
        /// In Kubernetes' words.
        reason: String,
        /// For people.
        message: Option<String>,
    },
    /// Running.
    Running {
        /// Start of the run.
        since: Timestamp,
    },
    /// Ended.
    Terminated(Terminated),
}

/// What happens to a container.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    /// It waits for something.
    Waiting {
        /// In Kubernetes' words.
        reason: &'static str,
        /// For people.
        message: Option<String>,
    },
    /// It runs; with the identifier of the run.
    Running {
        /// Names the run.
        id: String,
    },
    /// Its startup probe, if any, succeeded.
    Started,
    /// Its readiness changed.
    Ready(bool),
    /// It ended.
    Terminated(Terminated),
}

/// What is known of one container.
#[derive(Debug, Clone)]
pub struct ContainerFacts {
    name: String,
    image: String,
    state: State,
    last: Option<Terminated>,
    restarts: i32,
    id: Option<String>,
    started: bool,
    ready: bool,
}

impl ContainerFacts {
    fn new(container: &Container, reason: &str) -> Self {
        Self {
            name: container.name.clone(),
            image: container.image.clone().unwrap_or_default(),
            state: State::Waiting { reason: reason.to_owned(), message: None },
            last: None,
            restarts: 0,
            id: None,
            started: false,
            ready: false,
        }
    }

    fn apply(&mut self, change: Change, now: Timestamp) {
        match change {
            Change::Waiting { reason, message } => {
                self.keep_last();
                self.state = State::Waiting { reason: reason.to_owned(), message };
            }
            Change::Running { id } => {
                self.keep_last();
                self.restarts += i32::from(self.last.is_some());
                self.state = State::Running { since: now };
                self.id = Some(id);
            }
            Change::Started => self.started = true,
            Change::Ready(ready) => self.ready = ready,
            Change::Terminated(terminated) => {
                self.keep_last();
                self.started = false;
                self.ready = false;
                self.state = State::Terminated(terminated);
            }
        }
    }

    fn keep_last(&mut self) {
        if let State::Terminated(terminated) = &self.state {
            self.last = Some(terminated.clone());
        }
    }

    fn is_ready(&self) -> bool {
        matches!(self.state, State::Running { .. }) && self.started && self.ready
    }

    fn status(&self) -> ContainerStatus {
        let state = match &self.state {
            State::Waiting { reason, message } => ContainerState {
                waiting: Some(ContainerStateWaiting {
                    reason: Some(reason.clone()),
                    message: message.clone(),
                }),
                ..ContainerState::default()
            },
            State::Running { since } => ContainerState {
                running: Some(ContainerStateRunning { started_at: Some(Time(*since)) }),
                ..ContainerState::default()
            },
            State::Terminated(terminated) => terminated_state(terminated, self.id.as_ref()),
        };
        ContainerStatus {
            name: self.name.clone(),
            image: self.image.clone(),
            image_id: if self.id.is_some() { self.image.clone() } else { String::new() },
            container_id: self.id.clone(),
            ready: self.is_ready(),
            started: Some(matches!(self.state, State::Running { .. }) && self.started),
            restart_count: self.restarts,
            state: Some(state),
            last_state: Some(self.last.as_ref().map(|t| terminated_state(t, None)).unwrap_or_default()),
            ..ContainerStatus::default()
        }
    }
}

fn terminated_state(terminated: &Terminated, id: Option<&String>) -> ContainerState {
    ContainerState {
        terminated: Some(ContainerStateTerminated {
            exit_code: terminated.exit_code,
            reason: Some(terminated.reason.clone()),
            message: terminated.message.clone(),
            started_at: Some(Time(terminated.started_at)),
            finished_at: Some(Time(terminated.finished_at)),
            container_id: id.cloned(),
            signal: None,
        }),
        ..ContainerState::default()
    }
}

/// What is known of a pod.
#[derive(Debug, Clone)]
pub struct PodFacts {
    restart_policy: String,
    pod_ip: IpAddr,
    host_ip: IpAddr,
    start_time: Timestamp,
    init: Vec<ContainerFacts>,
    containers: Vec<ContainerFacts>,
    conditions: Vec<PodCondition>,
}

/// Which container of a pod.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Index {
    /// One of `initContainers`.
    Init(usize),
    /// One of `containers`.
    Main(usize),
}

impl PodFacts {
    /// A pod that the node has just accepted.
    #[must_use]
    pub fn new(spec: &PodSpec, pod_ip: IpAddr, host_ip: IpAddr, now: Timestamp) -> Self {
        let init: Vec<_> = spec
            .init_containers
            .iter()
            .flatten()
            .map(|c| ContainerFacts {
                ready: true,
                started: true,
                ..ContainerFacts::new(c, "PodInitializing")
            })
            .collect();
        let reason = if init.is_empty() { "ContainerCreating" } else { "PodInitializing" };
        let mut facts = Self {
            restart_policy: spec.restart_policy.clone().unwrap_or_else(|| "Always".to_owned()),
            pod_ip,
            host_ip,
            start_time: now,
            containers: spec.containers.iter().map(|c| ContainerFacts::new(c, reason)).collect(),
            init,
            conditions: Vec::new(),
        };
        facts.conclude(now);
        facts
    }

    /// Takes note of what happened to a container.
    pub fn apply(&mut self, index: Index, change: Change, now: Timestamp) {
        let container = match index {
            Index::Init(at) => self.init.get_mut(at),
            Index::Main(at) => self.containers.get_mut(at),
        };
        if let Some(container) = container {
            container.apply(change, now);
        }
        self.conclude(now);
    }

    /// Whether all containers are ready.
    #[must_use]
    pub fn is_ready(&self) -> bool {
        self.containers.iter().all(ContainerFacts::is_ready)
    }

    /// The phase.
    #[must_use]
    pub fn phase(&self) -> &'static str {
        if !self.is_initialized() {
            let failed = self.restart_policy == "Never"
                && self.init.iter().any(|c| matches!(&c.state, State::Terminated(t) if t.exit_code != 0));
            return if failed { "Failed" } else { "Pending" };
        }
        let (mut pending, mut running, mut failed) = (false, false, false);
        for container in &self.containers {
            match &container.state {
                State::Waiting { .. } if container.last.is_none() => pending = true,
                State::Waiting { .. } => failed = true,
                State::Running { .. } => running = true,
                State::Terminated(terminated) => failed |= terminated.exit_code != 0,
            }
        }
        match (pending, running, self.restart_policy.as_str(), failed) {
            (true, ..) => "Pending",
            (_, true, ..) | (.., "Always", _) | (.., "OnFailure", true) => "Running",
            (.., true) => "Failed",
            _ => "Succeeded",
        }
    }

    /// How many init containers have done their work; they run in order.
    #[must_use]
    pub fn init_completed(&self) -> usize {
        self.init.iter().take_while(|c| matches!(&c.state, State::Terminated(t) if t.exit_code == 0)).count()
    }

    fn is_initialized(&self) -> bool {
        self.init.iter().all(|c| matches!(&c.state, State::Terminated(t) if t.exit_code == 0))
    }

    /// Keeps the conditions, whose transition times depend on their history.
    fn conclude(&mut self, now: Timestamp) {
        let not_ready: Vec<&str> =
            self.containers.iter().filter(|c| !c.is_ready()).map(|c| c.name.as_str()).collect();
        let names = format!("containers with unready status: [{}]", not_ready.join(" "));
        let unready = (!not_ready.is_empty()).then_some(("ContainersNotReady", names));
        let not_initialized: Vec<&str> = self
            .init
            .iter()
            .filter(|c| !matches!(&c.state, State::Terminated(t) if t.exit_code == 0))
            .map(|c| c.name.as_str())
            .collect();
        let names = format!("containers with incomplete status: [{}]", not_initialized.join(" "));
        let incomplete = (!not_initialized.is_empty()).then_some(("ContainersNotInitialized", names));
        self.condition("PodScheduled", None, now);
        self.condition("Initialized", incomplete, now);
        self.condition("ContainersReady", unready.clone(), now);
        self.condition("Ready", unready, now);
    }

    fn condition(&mut self, kind: &str, problem: Option<(&str, String)>, now: Timestamp) {
        let status = if problem.is_none() { "True" } else { "False" };
        let (reason, message) = problem.map(|(r, m)| (r.to_owned(), m)).unzip();
        match self.conditions.iter_mut().find(|c| c.type_ == kind) {
            Some(condition) => {
                if condition.status != status {
                    status.clone_into(&mut condition.status);
                    condition.last_transition_time = Some(Time(now));
                }
                condition.reason = reason;
                condition.message = message;
            }
            None => self.conditions.push(PodCondition {
                type_: kind.to_owned(),
                status: status.to_owned(),
                reason,
                message,
                last_transition_time: Some(Time(now)),
                ..PodCondition::default()
            }),
        }
    }

    /// The status to write.
    #[must_use]
    pub fn status(&self) -> PodStatus {
        let statuses = |list: &[ContainerFacts]| {
            (!list.is_empty()).then(|| list.iter().map(ContainerFacts::status).collect::<Vec<_>>())
        };
        PodStatus {
            phase: Some(self.phase().to_owned()),
            conditions: Some(self.conditions.clone()),
            host_ip: Some(self.host_ip.to_string()),
            host_ips: Some(vec![HostIP { ip: self.host_ip.to_string() }]),
            pod_ip: Some(self.pod_ip.to_string()),
            pod_ips: Some(vec![PodIP { ip: self.pod_ip.to_string() }]),
            start_time: Some(Time(self.start_time)),
            qos_class: Some("BestEffort".to_owned()),
            init_container_statuses: statuses(&self.init),
            container_statuses: statuses(&self.containers),
            ..PodStatus::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn facts(spec: serde_json::Value) -> PodFacts {
        let ip = "127.16.0.2".parse().unwrap();
        PodFacts::new(&serde_json::from_value(spec).unwrap(), ip, "127.0.0.1".parse().unwrap(), at(0))
    }

    fn pod() -> PodFacts {
        facts(
            json!({"containers": [{"name": "user-container", "image": "dev.local/host"}, {"name": "queue-proxy"}]}),
        )
    }

    fn ended(code: i32, reason: &str) -> Change {
        Change::Terminated(Terminated {
            exit_code: code,
            reason: reason.into(),
            message: Some("last words".into()),
            started_at: at(1),
            finished_at: at(2),
        })
    }

    fn condition(facts: &PodFacts, kind: &str) -> (String, Timestamp) {
        let status = facts.status();
        let found = status.conditions.unwrap().into_iter().find(|c| c.type_ == kind).unwrap();
        (found.status, found.last_transition_time.unwrap().0)
    }

    fn start(facts: &mut PodFacts, index: usize, second: i64) {
        let index = Index::Main(index);
        facts.apply(index, Change::Running { id: "ember://1".into() }, at(second));
        facts.apply(index, Change::Started, at(second));
        facts.apply(index, Change::Ready(true), at(second));
    }

    #[test]
    fn from_pending_to_ready() {
        let mut facts = pod();
        assert_eq!(facts.phase(), "Pending");
        assert_eq!(condition(&facts, "PodScheduled").0, "True");
        assert_eq!(condition(&facts, "Ready"), ("False".into(), at(0)));
        start(&mut facts, 0, 1);
        assert_eq!(facts.phase(), "Pending");
        start(&mut facts, 1, 2);
        assert_eq!(facts.phase(), "Running");
        assert_eq!(condition(&facts, "Ready"), ("True".into(), at(2)));
        facts.apply(Index::Main(1), Change::Ready(false), at(5));
        let status = facts.status();
        let ready = status.conditions.unwrap().into_iter().find(|c| c.type_ == "Ready").unwrap();
        assert_eq!(ready.message.as_deref(), Some("containers with unready status: [queue-proxy]"));
        assert_eq!(ready.last_transition_time.unwrap().0, at(5));
    }

    #[test]
    fn a_crash_loop() {
        let mut facts = pod();
        start(&mut facts, 0, 1);
        start(&mut facts, 1, 1);
        facts.apply(Index::Main(0), ended(3, "Error"), at(2));
        assert_eq!(condition(&facts, "Ready").0, "False");
        start(&mut facts, 0, 3);
        let waiting = Change::Waiting { reason: "CrashLoopBackOff", message: Some("back-off 10s".into()) };
        facts.apply(Index::Main(0), ended(4, "Error"), at(4));
        facts.apply(Index::Main(0), waiting, at(4));
        let status = facts.status().container_statuses.unwrap().remove(0);
        assert_eq!(status.restart_count, 1);
        assert_eq!(status.state.unwrap().waiting.unwrap().reason.as_deref(), Some("CrashLoopBackOff"));
        let last = status.last_state.unwrap().terminated.unwrap();
        assert_eq!((last.exit_code, last.message.as_deref()), (4, Some("last words")));
        assert_eq!(facts.phase(), "Running");
        start(&mut facts, 0, 20);
        assert_eq!(facts.status().container_statuses.unwrap()[0].restart_count, 2);
        assert!(facts.is_ready());
    }

    #[test]
    fn pods_that_end() {
        let mut facts = facts(json!({"restartPolicy": "Never", "containers": [{"name": "a"}]}));
        start(&mut facts, 0, 1);
        let mut failed = facts.clone();
        facts.apply(Index::Main(0), ended(0, "Completed"), at(2));
        failed.apply(Index::Main(0), ended(1, "Error"), at(2));
        assert_eq!((facts.phase(), failed.phase()), ("Succeeded", "Failed"));
    }

    #[test]
    fn init_containers_come_first() {
        let mut facts = facts(json!({"initContainers": [{"name": "i"}], "containers": [{"name": "a"}]}));
        let waiting = facts.status().container_statuses.unwrap().remove(0).state.unwrap().waiting.unwrap();
        assert_eq!(waiting.reason.as_deref(), Some("PodInitializing"));
        assert_eq!(condition(&facts, "Initialized").0, "False");
        facts.apply(Index::Init(0), ended(0, "Completed"), at(1));
        assert_eq!(condition(&facts, "Initialized").0, "True");
        start(&mut facts, 0, 2);
        assert_eq!(facts.phase(), "Running");
    }
}
