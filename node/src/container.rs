//! The life of one app container: prepared, started, watched, restarted, stopped.

use std::net::IpAddr;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{ConfigMap, Container, Pod, PodSpec, Secret};
use kube::Api;
use sha2::{Digest, Sha256};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::backoff::BackOff;
use crate::env::{self, Sources};
use crate::event::{Kind, Told};
use crate::helper::protocol::{Identity, Start};
use crate::kubelet::Node;
use crate::logs::Run;
use crate::pod::revision;
use crate::pod_status::{Change, Index, Terminated};
use crate::runtime::{Process, StartError, Stop};
use crate::volume::Volumes;

/// The image whose containers are programs of this host.
const HOST_IMAGE: &str = "dev.local/host";
/// How long the output of a process that has ended may take to arrive.
const LAST_WORDS: Duration = Duration::from_millis(200);

/// What the containers of one pod share.
pub(crate) struct PodContext {
    pub(crate) node: Arc<Node>,
    /// As it was accepted.
    pub(crate) pod: Arc<Pod>,
    /// With the picked ports.
    pub(crate) spec: PodSpec,
    pub(crate) facts: env::PodFacts,
    pub(crate) pod_ip: IpAddr,
    pub(crate) volumes: Volumes,
    pub(crate) events: mpsc::Sender<(Index, Change)>,
    /// The sidecar drains.
    pub(crate) drain: CancellationToken,
    /// Processes are asked to end.
    pub(crate) terminate: CancellationToken,
    /// Everything ends.
    pub(crate) kill: CancellationToken,
    /// The longest that an unhealthy container may take to end.
    pub(crate) grace: Duration,
}

/// Why a container is not started: a waiting reason and a message.
struct NotReady(&'static str, String, Cause);

/// What it is that keeps a container from its start.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    Container,
    Volume,
}

/// How a container's task ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum End {
    /// The pod is being stopped.
    Stopped,
    /// It ended and is not to be started again, with this exit code.
    Exited(i32),
}

impl PodContext {
    pub(crate) fn namespace(&self) -> &str {
        self.pod.metadata.namespace.as_deref().unwrap_or_default()
    }

    pub(crate) fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    pub(crate) async fn tell(&self, index: Index, change: Change) {
        // The receiver is gone only when the pod is.
        let _ = self.events.send((index, change)).await;
    }

    /// Has an Event written about a container.
    pub(crate) fn record(
        &self,
        index: Index,
        container: &str,
        kind: Kind,
        reason: &'static str,
        message: String,
    ) {
        self.node.events.record(Told::new(&self.pod, kind, reason, message).of(index, container));
    }

    /// Has Events written about why a container is not started.
    fn record_not_ready(&self, index: Index, container: &Container, why: &NotReady) {
        let NotReady(reason, message, cause) = why;
        let record = |reason, message| self.record(index, &container.name, Kind::Warning, reason, message);
        match (*reason, cause) {
            ("ErrImagePull", _) => {
                record("Failed", message.clone());
                record("Failed", "Error: ErrImagePull".to_owned());
            }
            ("ImagePullBackOff", _) => {
                let message =
                    format!("Back-off pulling image {:?}", container.image.as_deref().unwrap_or_default());
                self.record(index, &container.name, Kind::Normal, "BackOff", message);
                record("Failed", "Error: ImagePullBackOff".to_owned());
            }
            (_, Cause::Volume) => {
                let told = Told::new(&self.pod, Kind::Warning, "FailedMount", message.clone());
                self.node.events.record(told);
            }
            (_, Cause::Container) => record("Failed", format!("Error: {message}")),
        }
    }

    /// The environment of a container, its references read from the API.
    pub(crate) async fn environment(&self, container: &Container) -> Result<Vec<(String, String)>, String> {
        let (config_maps, secrets) = env::references(container);
        let sources = self.sources(config_maps, secrets).await?;
        env::resolve(container, &self.pod, &self.facts, &sources).map_err(|e| e.to_string())
    }

    /// The objects of these names; those that do not exist are left out.
    pub(crate) async fn sources(
        &self,
        config_maps: Vec<String>,
        secrets: Vec<String>,
    ) -> Result<Sources, String> {
        let mut sources = Sources::default();
        let client = &self.node.client;
        for name in config_maps {
            let found = Api::<ConfigMap>::namespaced(client.clone(), self.namespace()).get_opt(&name).await;
            sources.config_maps.extend(found.map_err(|e| e.to_string())?.map(|found| (name, found)));
        }
        for name in secrets {
            let found = Api::<Secret>::namespaced(client.clone(), self.namespace()).get_opt(&name).await;
            sources.secrets.extend(found.map_err(|e| e.to_string())?.map(|found| (name, found)));
        }
        Ok(sources)
    }

    /// Waits out a back-off and tells of it; false when the pod is being stopped meanwhile.
    pub(crate) async fn wait(&self, index: Index, container: &str, wait: Duration) -> bool {
        if !wait.is_zero() {
            let message = format!(
                "back-off {} restarting failed container={container} pod={}_{}({})",
                go_duration(wait),
                self.name(),
                self.namespace(),
                self.uid()
            );
            self.tell(index, Change::Waiting { reason: "CrashLoopBackOff", message: Some(message) }).await;
            // Without the time, so that each wait counts the same Event up.
            let message = format!(
                "Back-off restarting failed container {container} in pod {}_{}({})",
                self.name(),
                self.namespace(),
                self.uid()
            );
            self.record(index, container, Kind::Warning, "BackOff", message);
        }
        self.sleep(wait).await
    }

    async fn sleep(&self, wait: Duration) -> bool {
        tokio::select! {
            biased;
            () = self.terminate.cancelled() => false,
            () = self.kill.cancelled() => false,
            () = sleep(wait) => true,
        }
    }

    /// Runs a container until the pod stops or its restart policy is satisfied.
    pub(crate) async fn run(self: Arc<Self>, index: Index, container: Container) -> End {
        let policy = match (index, self.spec.restart_policy.as_deref().unwrap_or("Always")) {
            // An init container is only started again if it failed.
            (Index::Init(_), "Always") => "OnFailure",
            (_, policy) => policy,
        };
        let mut back_off = BackOff::new(self.node.config.back_off);
        let mut attempts = 0;
        loop {
            if self.terminate.is_cancelled() || self.kill.is_cancelled() {
                return End::Stopped;
            }
            let began = Instant::now();
            let exit_code = match self.attempt_run(index, &container, attempts).await {
                Ok(exit_code) => exit_code,
                Err(why) => {
                    attempts += 1;
                    self.record_not_ready(index, &container, &why);
                    let NotReady(reason, message, _) = why;
                    self.tell(index, Change::Waiting { reason, message: Some(message) }).await;
                    if !self.sleep(self.node.config.back_off.initial).await {
                        return End::Stopped;
                    }
                    continue;
                }
            };
            let again = match policy {
                "Never" => false,
                "OnFailure" => exit_code != 0,
                _ => true,
            };
            if !again {
                return End::Exited(exit_code);
            }
            if !self.wait(index, &container.name, back_off.after_run(began.elapsed())).await {
                return End::Stopped;
            }
        }
    }

    /// One run, prepared; returns the exit code, or why there was none.
    async fn attempt_run(&self, index: Index, container: &Container, attempts: u32) -> Result<i32, NotReady> {
        let start = self.prepare(container, attempts).await?;
        self.run_once(index, container, start).await
    }

    /// What to start, or why not.
    async fn prepare(&self, container: &Container, attempts: u32) -> Result<Start, NotReady> {
        let config_error =
            |message: String| NotReady("CreateContainerConfigError", message, Cause::Container);
        let mount_error = |message: String| NotReady("CreateContainerConfigError", message, Cause::Volume);
        let image = container.image.as_deref().unwrap_or_default();
        if !is_host_image(image) {
            let message = format!(
                "cannot run image {image:?}: this machine runs only {HOST_IMAGE} images, programs of the host"
            );
            return Err(if attempts == 0 {
                NotReady("ErrImagePull", message, Cause::Container)
            } else {
                NotReady(
                    "ImagePullBackOff",
                    format!("Back-off pulling image {image:?}: ErrImagePull: {message}"),
                    Cause::Container,
                )
            });
        }
        let identity = self.identity(container).map_err(config_error)?;
        let mut env = self.environment(container).await.map_err(config_error)?;
        let expand = |text: &String| env::expand(text, |name| env::lookup(&env, name));
        let mut words = container.command.iter().flatten().chain(container.args.iter().flatten()).map(expand);
        if container.command.as_ref().is_none_or(Vec::is_empty) {
            return Err(config_error(format!(
                "command: an image {HOST_IMAGE} has no program of its own; name one in the container's command"
            )));
        }
        let program = words.next().unwrap_or_default();
        let args: Vec<String> = words.collect();
        let mark = format!("HOSTNAME={}", self.name());
        for (name, value) in [("HOSTNAME", self.name()), ("PATH", self.node.config.path.as_str())] {
            if env::lookup(&env, name).is_none() {
                env.push((name.to_owned(), value.to_owned()));
            }
        }
        let mounts = self.mounts(container, &env, identity).await.map_err(mount_error)?;
        let declared = container.working_dir.as_deref().filter(|dir| !dir.is_empty());
        Ok(Start {
            id: 0,
            program: (program != "ember").then_some(program),
            args,
            env,
            dir: declared
                .map_or_else(|| self.node.config.working_dir.to_string_lossy().into_owned(), str::to_owned),
            dir_is_declared: declared.is_some(),
            mounts,
            identity,
            mark,
        })
    }

    /// The user that the container runs as: the one it asks for, or one of its service's own.
    fn identity(&self, container: &Container) -> Result<Option<Identity>, String> {
        let of_pod = self.spec.security_context.as_ref();
        let own = container.security_context.as_ref();
        let user = own.and_then(|c| c.run_as_user).or_else(|| of_pod.and_then(|c| c.run_as_user));
        let group = own.and_then(|c| c.run_as_group).or_else(|| of_pod.and_then(|c| c.run_as_group));
        let non_root = own.and_then(|c| c.run_as_non_root).or_else(|| of_pod.and_then(|c| c.run_as_non_root));
        let current = nix::unistd::geteuid();
        if let Some(user) = user {
            let uid = u32::try_from(user).map_err(|_| format!("runAsUser: {user} is no user"))?;
            let gid = u32::try_from(group.unwrap_or(user)).map_err(|_| "runAsGroup: no group".to_owned())?;
            if uid == 0 && non_root == Some(true) {
                return Err("container has runAsNonRoot and image will run as root".to_owned());
            }
            if uid == current.as_raw() {
                return Ok(None);
            }
            if !current.is_root() {
                return Err(format!("runAsUser: {uid}: only root can start programs as another user"));
            }
            return Ok(Some(Identity { uid, gid, required: true }));
        }
        let required = non_root == Some(true);
        match self.node.config.service_uids.as_ref().filter(|_| current.is_root()) {
            Some(uids) => {
                let uid = service_uid(&self.service(), uids);
                Ok(Some(Identity { uid, gid: uid, required }))
            }
            None if required && current.is_root() => {
                Err("container has runAsNonRoot and image will run as root".to_owned())
            }
            None => Ok(None),
        }
    }

    /// Who shares a user: the pods of a Knative Service, or else of a Deployment.
    fn service(&self) -> String {
        let label = self.pod.metadata.labels.as_ref().and_then(|l| l.get("serving.knative.dev/service"));
        let owner = self.pod.metadata.owner_references.iter().flatten().next().map(|o| &o.name);
        let name = label.or(owner).map_or_else(|| self.name(), String::as_str);
        format!("{}/{name}", self.namespace())
    }

    /// One run, from start to end; returns the exit code.
    async fn run_once(&self, index: Index, container: &Container, start: Start) -> Result<i32, NotReady> {
        let runtime = &self.node.runtime;
        let logs = &self.node.config.logs;
        let log = logs.container(self.namespace(), self.name(), &container.name).rotate(logs.capacity());
        let started_at = Timestamp::now();
        let template = Start { args: Vec::new(), ..start.clone() };
        let Process { id, pid, output, mut exit } = match runtime.start(start).await {
            Ok(process) => process,
            Err(StartError::Mounts(error)) => {
                return Err(NotReady("CreateContainerConfigError", error, Cause::Volume));
            }
            Err(StartError::Program(error)) => {
                let message = format!("failed to start container {:?}: {error}", container.name);
                self.record(index, &container.name, Kind::Warning, "Failed", format!("Error: {message}"));
                let terminated = Terminated {
                    exit_code: 128,
                    reason: "StartError".to_owned(),
                    message: Some(message),
                    started_at,
                    finished_at: Timestamp::now(),
                };
                self.tell(index, Change::Terminated(terminated)).await;
                return Ok(128);
            }
        };
        let revision = || revision(&self.pod);
        tracing::debug!(target: "ember::coldstart", phase = "process_started", revision = revision());
        self.tell(index, Change::Running { id: format!("ember://{}-{id}-{pid}", self.uid()) }).await;
        let pump = tokio::spawn(pump(output, Arc::clone(&log)));
        let monitor = self.monitor(index, container, &template);
        tokio::pin!(monitor);
        let (mut monitored, mut asked, mut killed) = (true, false, false);
        let mut deadline: Option<Instant> = None;
        let exit_code = loop {
            tokio::select! {
                code = &mut exit => break code,
                grace = &mut monitor, if monitored => {
                    (asked, monitored) = (true, false);
                    deadline = Some(Instant::now() + grace);
                    runtime.stop(id, Stop::Terminate).await;
                }
                () = self.terminate.cancelled(), if !asked => {
                    (asked, monitored) = (true, false);
                    runtime.stop(id, Stop::Terminate).await;
                }
                () = self.kill.cancelled(), if !killed => {
                    (killed, monitored) = (true, false);
                    runtime.stop(id, Stop::Kill).await;
                }
                () = sleep_until(deadline.unwrap_or_else(Instant::now)), if deadline.is_some() && !killed => {
                    killed = true;
                    runtime.stop(id, Stop::Kill).await;
                }
            }
        };
        let abort = pump.abort_handle();
        if timeout(LAST_WORDS, pump).await.is_err() {
            abort.abort();
        }
        log.close();
        let fallback = match container.termination_message_policy.as_deref() {
            Some(policy) => policy == "FallbackToLogsOnError",
            // Knative says it of the containers of a service, and leaves these out.
            None => matches!(index, Index::Init(_)),
        };
        let said = self.last_words(container).await;
        let (exit_code, message) = match exit_code {
            Ok(0) => (0, said),
            Ok(code) => (code, said.or_else(|| fallback.then(|| log.message()).flatten())),
            Err(_) => (137, Some("the process helper ended".to_owned())),
        };
        let terminated = Terminated {
            exit_code,
            reason: if exit_code == 0 { "Completed" } else { "Error" }.to_owned(),
            message,
            started_at,
            finished_at: Timestamp::now(),
        };
        self.tell(index, Change::Terminated(terminated)).await;
        Ok(exit_code)
    }
}

async fn pump(mut output: pipe::Receiver, log: Arc<Run>) {
    let mut buffer = vec![0; 16 << 10];
    while let Ok(length @ 1..) = output.read(&mut buffer).await {
        log.append(&buffer[..length], Timestamp::now());
    }
}

/// With any tag or digest.
fn is_host_image(image: &str) -> bool {
    let name = image.split_once('@').map_or(image, |(name, _)| name);
    name == HOST_IMAGE || name.strip_prefix(HOST_IMAGE).is_some_and(|rest| rest.starts_with(':'))
}

fn service_uid(service: &str, uids: &std::ops::RangeInclusive<u32>) -> u32 {
    let digest = Sha256::digest(service.as_bytes());
    let number = digest.iter().take(4).fold(0_u32, |n, b| n << 8 | u32::from(*b));
    uids.start() + number % (uids.end() - uids.start() + 1)
}

/// As Go prints durations of whole seconds: `10s`, `1m20s`, `5m0s`.
fn go_duration(duration: Duration) -> String {
    let seconds = duration.as_secs();
    match (seconds, seconds / 60) {
        (0, _) => format!("{}ms", duration.as_millis()),
        (_, 0) => format!("{seconds}s"),
        (_, minutes) => format!("{minutes}m{}s", seconds % 60),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn host_images() {
        for image in
            ["dev.local/host", "dev.local/host:v1", "dev.local/host@sha256:00", "dev.local/host:v1@sha256:00"]
        {
            assert!(is_host_image(image), "{image}");
        }
        for image in ["", "dev.local/hosts", "dev.local/host/x", "docker.io/library/nginx"] {
            assert!(!is_host_image(image), "{image}");
        }
    }

    #[test]
    fn durations_are_written_as_kubernetes_writes_them() {
        let text = |seconds| go_duration(Duration::from_secs(seconds));
        assert_eq!((text(10), text(80), text(300)), ("10s".into(), "1m20s".into(), "5m0s".into()));
    }

    #[test]
    fn a_service_has_one_user_in_the_range() {
        let uids = 1000..=1009;
        assert_eq!(service_uid("a/b", &uids), service_uid("a/b", &uids));
        assert!((0..100).all(|i| uids.contains(&service_uid(&format!("ns/{i}"), &uids))));
    }
}
