//! `pods/log` of the API, answered from what the node keeps.

use ember_api::names::QUEUE_CONTAINER;
use ember_apiserver::{LogError, LogOptions, LogStream, PodLogs};
use ember_node::Logs;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use jiff::{SignedDuration, Timestamp};

/// The node's logs as the API server takes them.
pub(crate) struct NodeLogs(pub(crate) Logs);

impl PodLogs for NodeLogs {
    fn logs(
        &self,
        namespace: &str,
        pod: &str,
        container: &str,
        options: LogOptions,
    ) -> BoxFuture<'static, Result<LogStream, LogError>> {
        // The sidecar is part of this process, and logs with it: of its own there is nothing.
        if container == QUEUE_CONTAINER {
            return futures::future::ready(Ok(futures::stream::empty().boxed())).boxed();
        }
        let result = translate(options).and_then(|options| {
            let stream = self.0.get(namespace, pod, container, options);
            stream.map(StreamExt::boxed).ok_or_else(|| {
                LogError::NotFound(format!("nothing is kept of container {container:?} in pod {pod:?}"))
            })
        });
        futures::future::ready(result).boxed()
    }
}

fn translate(options: LogOptions) -> Result<ember_node::LogOptions, LogError> {
    let since = match (options.since_time, options.since_seconds) {
        (Some(time), _) => Some(
            time.parse::<Timestamp>()
                .map_err(|e| LogError::Unavailable(format!("invalid sinceTime {time:?}: {e}")))?,
        ),
        (None, Some(seconds)) => {
            let seconds = i64::try_from(seconds).unwrap_or(i64::MAX);
            Timestamp::now().checked_sub(SignedDuration::from_secs(seconds)).ok()
        }
        (None, None) => None,
    };
    let count = |number: Option<u64>| number.map(|n| usize::try_from(n).unwrap_or(usize::MAX));
    Ok(ember_node::LogOptions {
        follow: options.follow,
        previous: options.previous,
        timestamps: options.timestamps,
        tail_lines: count(options.tail_lines),
        since,
        limit_bytes: count(options.limit_bytes),
    })
}
