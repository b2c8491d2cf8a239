//! `pods/log`: which container is meant, and what of its log.

use std::sync::OnceLock;

use serde_json::{Value, json};

use crate::logs::{LogError, LogOptions, LogStream, PodLogs};
use crate::object::Object;
use crate::request::Query;
use crate::resource::Resource;
use crate::status::{ApiError, Cause};

/// Opens the log that `query` asks for.
///
/// # Errors
/// 400 that names the containers there are, or says why there is no log of this one; 422 for options that
/// contradict each other; 503 where no logs are kept.
pub(crate) async fn open(
    logs: &OnceLock<std::sync::Arc<dyn PodLogs>>,
    pod: &Object,
    resource: &Resource,
    query: &Query,
) -> Result<LogStream, ApiError> {
    let options = options(query, resource, pod.name())?;
    let value = pod.value();
    let container = container(&value, pod.name(), query.get("container"))?;
    let logs = logs.get().ok_or_else(|| ApiError::unavailable("no pod logs are kept here"))?;
    let previous = options.previous;
    logs.logs(pod.namespace(), pod.name(), &container, options).await.map_err(|error| match error {
        LogError::NotFound(_) if previous => ApiError::bad_request(format!(
            "previous terminated container {container:?} in pod {:?} not found",
            pod.name()
        )),
        LogError::NotFound(text) => {
            let waiting = waiting(&value, &container).map(|reason| {
                format!("container {container:?} in pod {:?} is waiting to start: {reason}", pod.name())
            });
            ApiError::bad_request(waiting.unwrap_or(text))
        }
        LogError::Unavailable(text) => ApiError::bad_request(text),
    })
}

fn names<'a>(pod: &'a Value, path: &str) -> Vec<&'a str> {
    let containers = pod.pointer(path).and_then(Value::as_array).into_iter().flatten();
    containers.filter_map(|c| c.get("name").and_then(Value::as_str)).collect()
}

/// The container that is asked for, or the only one, or the one the pod's annotation names.
fn container(pod: &Value, name: &str, asked: Option<&str>) -> Result<String, ApiError> {
    let (containers, init) = (names(pod, "/spec/containers"), names(pod, "/spec/initContainers"));
    let choice = || {
        let mut text = format!("choose one of: [{}]", containers.join(" "));
        if !init.is_empty() {
            text = format!("{text} or one of the init containers: [{}]", init.join(" "));
        }
        text
    };
    match (asked, containers.as_slice()) {
        (Some(asked), _) if containers.contains(&asked) || init.contains(&asked) => Ok(asked.to_owned()),
        (Some(asked), _) => {
            Err(ApiError::bad_request(format!("container {asked} is not valid for pod {name}, {}", choice())))
        }
        (None, [only]) => Ok((*only).to_owned()),
        (None, _) => Err(ApiError::bad_request(format!(
            "a container name must be specified for pod {name}, {}",
            choice()
        ))),
    }
}

/// Why a container has not started yet.
fn waiting<'a>(pod: &'a Value, container: &str) -> Option<&'a str> {
    ["/status/containerStatuses", "/status/initContainerStatuses"].iter().find_map(|path| {
        let statuses = pod.pointer(path).and_then(Value::as_array)?;
        let status = statuses.iter().find(|s| s.get("name").and_then(Value::as_str) == Some(container))?;
        status.pointer("/state/waiting/reason").and_then(Value::as_str)
    })
}

fn options(query: &Query, resource: &Resource, pod: &str) -> Result<LogOptions, ApiError> {
    let mut causes = Vec::new();
    // As on a cluster: no lines are a wish, no bytes and no seconds are a mistake.
    let mut natural = |field: &str, least: i64| -> Result<Option<u64>, ApiError> {
        let Some(number) = query.number::<i64>(field)? else { return Ok(None) };
        if number < least {
            let detail = format!("must be greater than or equal to {least}");
            causes.push(Cause::invalid(field, &json!(number), detail));
        }
        Ok(u64::try_from(number).ok())
    };
    let tail_lines = natural("tailLines", 0)?;
    let limit_bytes = natural("limitBytes", 1)?;
    let since_seconds = natural("sinceSeconds", 1)?;
    let since_time = query.get("sinceTime").map(str::to_owned);
    if let Some(time) = &since_time
        && let Err(error) = time.parse::<jiff::Timestamp>()
    {
        return Err(ApiError::bad_request(format!("sinceTime {time:?} is not a time of RFC 3339: {error}")));
    }
    if since_time.is_some() && since_seconds.is_some() {
        causes.push(Cause {
            reason: "FieldValueForbidden",
            field: "sinceSeconds".into(),
            message: "Forbidden: at most one of `sinceTime` or `sinceSeconds` may be specified".into(),
        });
    }
    if let Some(stream) = query.get("stream").filter(|stream| *stream != "All") {
        let text = format!("stream {stream:?} is not kept apart, both streams of a container are one log");
        return Err(ApiError::bad_request(text));
    }
    if !causes.is_empty() {
        return Err(ApiError::invalid(resource, pod, &causes));
    }
    Ok(LogOptions {
        follow: query.flag("follow"),
        tail_lines,
        previous: query.flag("previous"),
        since_seconds,
        since_time,
        timestamps: query.flag("timestamps"),
        limit_bytes,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::resource::{PODS, RESOURCES};

    fn ask(query: &str) -> Result<LogOptions, ApiError> {
        options(&Query::parse(Some(query)), &RESOURCES[PODS], "p")
    }

    #[test]
    fn errors_name_the_containers_there_are() {
        let pod = json!({ "spec": { "containers": [{ "name": "a" }, { "name": "b" }],
                                    "initContainers": [{ "name": "i" }] } });
        let text = |asked| container(&pod, "p", asked).unwrap_err().to_string();
        let choice = "choose one of: [a b] or one of the init containers: [i]";
        assert_eq!(text(None), format!("a container name must be specified for pod p, {choice}"));
        assert_eq!(text(Some("x")), format!("container x is not valid for pod p, {choice}"));
        assert_eq!(container(&pod, "p", Some("i")).unwrap(), "i");
    }

    #[test]
    fn options_are_checked() {
        let options = ask("follow=true&tailLines=0&limitBytes=1&sinceSeconds=5&timestamps=true").unwrap();
        assert!(options.follow && options.timestamps && !options.previous);
        assert_eq!(
            (options.tail_lines, options.limit_bytes, options.since_seconds),
            (Some(0), Some(1), Some(5))
        );
        for (query, code) in [
            ("tailLines=-1", 422),
            ("limitBytes=0", 422),
            ("sinceSeconds=0", 422),
            ("sinceSeconds=1&sinceTime=2020-01-01T00:00:00Z", 422),
            ("tailLines=x", 400),
            ("sinceTime=yesterday", 400),
            ("stream=Stderr", 400),
        ] {
            assert_eq!(ask(query).unwrap_err().code(), code, "{query}");
        }
    }
}
