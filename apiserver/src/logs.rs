//! The seam to whoever keeps the output of containers.

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::stream::BoxStream;

/// Output of one container; ends at the end of the log, or with the container when following.
pub type LogStream = BoxStream<'static, Bytes>;

/// What `kubectl logs` can ask for.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct LogOptions {
    /// Keep the stream open for what is yet to be written.
    pub follow: bool,
    /// Only the last lines.
    pub tail_lines: Option<u64>,
    /// The log of the instance before the current one.
    pub previous: bool,
    /// Only lines of the last so many seconds.
    pub since_seconds: Option<u64>,
    /// Only lines written at or after this time, RFC 3339.
    pub since_time: Option<String>,
    /// Prefix every line with its RFC 3339 time.
    pub timestamps: bool,
    /// Stop after this many bytes.
    pub limit_bytes: Option<u64>,
}

/// Why there is no log.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum LogError {
    /// The container never ran, or nothing of it is kept.
    #[error("{0}")]
    NotFound(String),
    /// The options cannot be honoured, or the container has not started yet.
    #[error("{0}")]
    Unavailable(String),
}

/// Serves `pods/log`. The composition root supplies it.
pub trait PodLogs: Send + Sync + 'static {
    /// Opens the log of one container of a Pod that exists.
    fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        options: LogOptions,
    ) -> BoxFuture<'static, Result<LogStream, LogError>>;
}
