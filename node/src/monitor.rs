//! The probes of a container that runs, and what follows from them.

use std::future::pending;
use std::time::Duration;

use k8s_openapi::api::core::v1::{Container, Probe};
use tokio::io::AsyncReadExt;
use tokio::net::unix::pipe;
use tokio::time::{sleep, timeout};

use crate::container::PodContext;
use crate::event::Kind;
use crate::helper::protocol::Start;
use crate::pod_status::{Change, Index};
use crate::probe::{self, Tally, Timing};
use crate::runtime::Stop;

impl PodContext {
    /// Runs the container's probes and tells what follows from them. Completes only when the container is to be
    /// started anew; with the time that it has to end.
    pub(crate) async fn monitor(&self, index: Index, container: &Container, template: &Start) -> Duration {
        let fail = |kind: &str, probe: &Probe, error: String| {
            tracing::warn!(pod = self.name(), container = container.name, "{kind} probe failed: {error}");
            let message = format!(
                "Container {} failed {} probe, will be restarted",
                container.name,
                kind.to_lowercase()
            );
            self.record(index, &container.name, Kind::Normal, "Killing", message);
            let own = probe.termination_grace_period_seconds.and_then(|s| u64::try_from(s).ok());
            own.map_or(self.grace, Duration::from_secs)
        };
        let unhealthy = |kind: &str, error: &str| {
            let message = format!("{kind} probe failed: {error}");
            self.record(index, &container.name, Kind::Warning, "Unhealthy", message);
        };
        if let Some(probe) = &container.startup_probe
            && let Err(error) =
                self.verdict(&mut Tally::new(probe), probe, template, |e| unhealthy("Startup", e)).await
        {
            return fail("Startup", probe, error);
        }
        self.tell(index, Change::Started).await;
        let readiness = async {
            let Some(probe) = &container.readiness_probe else {
                self.tell(index, Change::Ready(true)).await;
                return pending().await;
            };
            let mut tally = Tally::new(probe);
            loop {
                let verdict = self.verdict(&mut tally, probe, template, |e| unhealthy("Readiness", e)).await;
                let ready = verdict.is_ok();
                self.tell(index, Change::Ready(ready)).await;
            }
        };
        let liveness = async {
            let Some(probe) = &container.liveness_probe else { return pending().await };
            let mut tally = Tally::new(probe);
            loop {
                let verdict = self.verdict(&mut tally, probe, template, |e| unhealthy("Liveness", e)).await;
                if let Err(error) = verdict {
                    return fail("Liveness", probe, error);
                }
            }
        };
        tokio::select! {
            grace = liveness => grace,
            grace = readiness => grace,
        }
    }

    /// Attempts a probe until an outcome is to be believed; `failed` hears of every attempt that fails.
    async fn verdict(
        &self,
        tally: &mut Tally,
        probe: &Probe,
        template: &Start,
        failed: impl Fn(&str),
    ) -> Result<(), String> {
        loop {
            sleep(tally.wait()).await;
            let outcome = self.attempt(probe, template).await;
            if let Err(error) = &outcome {
                failed(error);
            }
            if tally.count(outcome.is_ok()) {
                return outcome;
            }
        }
    }

    async fn attempt(&self, probe: &Probe, template: &Start) -> Result<(), String> {
        let Some(action) = &probe.exec else { return probe::attempt(probe).await };
        let mut words = action.command.iter().flatten().cloned();
        let program = words.next().ok_or("exec: no command")?;
        let program = (program != "ember").then_some(program);
        let start = Start { program, args: words.collect(), ..template.clone() };
        let runtime = &self.node.runtime;
        let process = runtime.start(start).await.map_err(|e| e.to_string())?;
        let silent = tokio::spawn(discard(process.output));
        let code = match timeout(Timing::of(probe).timeout, process.exit).await {
            Ok(code) => code.unwrap_or(137),
            Err(_) => {
                runtime.stop(process.id, Stop::Kill).await;
                137
            }
        };
        silent.abort();
        if code == 0 { Ok(()) } else { Err(format!("command ended with exit code {code}")) }
    }
}

async fn discard(mut output: pipe::Receiver) {
    let mut buffer = [0; 4096];
    while let Ok(1..) = output.read(&mut buffer).await {}
}
