//! A component of the process: what runs it, and how it is ended.

use std::fmt::Display;
use std::time::Duration;

use tokio_util::sync::CancellationToken;

/// A component that runs.
pub(super) struct Component {
    pub(super) name: &'static str,
    stop: CancellationToken,
    pub(super) task: tokio::task::JoinHandle<Result<(), String>>,
}

impl Component {
    pub(super) fn spawn<E: Display>(
        name: &'static str,
        stop: CancellationToken,
        run: impl Future<Output = Result<(), E>> + Send + 'static,
    ) -> Self {
        let task = tokio::spawn(async move { run.await.map_err(|e| e.to_string()) });
        Self { name, stop, task }
    }

    /// As [`Component::spawn`], on a thread and a runtime of its own, where `start` is called.
    pub(super) fn spawn_apart<E: Display, F: Future<Output = Result<(), E>>>(
        name: &'static str,
        stop: CancellationToken,
        start: impl FnOnce() -> F + Send + 'static,
    ) -> std::io::Result<Self> {
        let (ended, end) = tokio::sync::oneshot::channel();
        std::thread::Builder::new().name(name.to_owned()).spawn(move || {
            let result = match tokio::runtime::Builder::new_current_thread().enable_all().build() {
                Ok(runtime) => runtime.block_on(async { start().await.map_err(|e| e.to_string()) }),
                Err(error) => Err(error.to_string()),
            };
            // Nobody listens any more if it took too long.
            let _ = ended.send(result);
        })?;
        let task =
            tokio::spawn(async move { end.await.unwrap_or_else(|_| Err("its thread broke".to_owned())) });
        Ok(Self { name, stop, task })
    }

    /// Asks it to end and waits for it, no longer than `patience`.
    pub(super) async fn end(self, patience: Duration) {
        self.stop.cancel();
        match tokio::time::timeout(patience, self.task).await {
            Ok(Ok(Ok(()))) => {}
            Ok(Ok(Err(error))) => tracing::error!(component = self.name, %error, "ended with an error"),
            Ok(Err(error)) => tracing::error!(component = self.name, %error, "ended badly"),
            Err(_) => tracing::warn!(component = self.name, "did not end in time"),
        }
    }
}
