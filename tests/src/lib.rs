//! Drives the whole system as its users do: `ember up` as a process, its API through a Kubernetes client, its gateway
//! through HTTP clients.
//!
//! Every wait is on a condition and has a deadline; nothing here sleeps for a fixed time and hopes.

#![expect(clippy::expect_used, clippy::print_stderr, reason = "a test harness panics to fail its test")]

pub mod api;
pub mod grpc;
pub mod http;
pub mod instance;
pub mod load;

use std::fmt::Debug;
use std::future::Future;
use std::time::Duration;

/// How long anything may take on a busy machine before a test calls it broken.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Asks until the answer is `Ok`, and panics with the last `Err` when it is not within `patience`.
pub async fn eventually<T, E: Debug, F: Future<Output = Result<T, E>>>(
    what: &str,
    patience: Duration,
    mut ask: impl FnMut() -> F,
) -> T {
    let deadline = tokio::time::Instant::now() + patience;
    loop {
        let problem = match ask().await {
            Ok(answer) => return answer,
            Err(problem) => problem,
        };
        assert!(tokio::time::Instant::now() < deadline, "{what}: not within {patience:?}: {problem:?}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

/// Waits for `awaited`, and panics when it is not there within [`PATIENCE`].
pub async fn soon<T>(what: &str, awaited: impl Future<Output = T>) -> T {
    let done = tokio::time::timeout(PATIENCE, awaited).await;
    done.unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}
