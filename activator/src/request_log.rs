//! The log of requests, switched and shaped by `config-observability` while the activator runs.

use std::sync::Arc;

use arc_swap::ArcSwapOption;
use ember_api::configmaps::observability::Observability;
use ember_dataplane::body::Body;
use ember_dataplane::server::Conn;
use ember_telemetry::request_log::{Output, Record, RequestLog};
use http::{Request, Response};
use http_body::Body as _;
use tokio_util::sync::CancellationToken;

use crate::revision::RevisionState;
use crate::settings::Settings;

/// The log as it is at the moment.
#[derive(Debug)]
pub(crate) struct Log {
    current: ArcSwapOption<RequestLog>,
    output: Option<Output>,
}

impl Log {
    /// A log to `output`, or to standard output, with the settings in force.
    pub(crate) fn new(settings: &Settings, output: Option<Output>) -> Self {
        let log = Self { current: ArcSwapOption::empty(), output };
        log.apply(&settings.load().observability);
        log
    }

    /// Follows the settings until `shutdown`.
    pub(crate) async fn follow(self: Arc<Self>, settings: Settings, shutdown: CancellationToken) {
        let mut changes = settings.subscribe();
        let mut applied = None;
        loop {
            changes.mark_unchanged();
            let snapshot = settings.load();
            let wanted = &snapshot.observability;
            let asked = (wanted.enable_request_log, wanted.request_log_template.clone());
            if applied.as_ref() != Some(&asked) {
                self.apply(wanted);
                applied = Some(asked);
            }
            tokio::select! {
                () = shutdown.cancelled() => return,
                changed = changes.changed() => if changed.is_err() { return },
            }
        }
    }

    fn apply(&self, settings: &Observability) {
        let template = if settings.enable_request_log { settings.request_log_template.as_str() } else { "" };
        match RequestLog::new(template, || self.output.clone().unwrap_or_else(Output::stdout)) {
            Ok(log) => self.current.store(log),
            // What was in force before stays.
            Err(error) => tracing::error!(%error, "the template of the request log cannot be used"),
        }
    }

    /// Begins the record of a request, if requests are logged. Probes do not come here.
    pub(crate) fn begin(
        &self,
        request: &Request<Body>,
        revision: &RevisionState,
        conn: &Conn,
    ) -> Option<Record> {
        let current = self.current.load();
        let length = request.body().size_hint().exact();
        current.as_ref().map(|log| log.begin(request, &revision.described, conn.peer(), length))
    }
}

/// Keeps the record until the exchange is over.
pub(crate) fn answered(mut record: Record, response: &mut Response<Body>) {
    let size = response.body_mut().count();
    record.answered(response.status(), size);
    response.body_mut().attach(record);
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_template_that_cannot_be_used_leaves_what_was() {
        let log = Log::new(&Settings::new(), Some(Output::new(std::io::sink())));
        let is_on = || log.current.load().is_some();
        assert!(!is_on(), "off unless asked for");
        let settings = |on: bool, template: &str| Observability {
            enable_request_log: on,
            request_log_template: template.to_owned(),
            ..Observability::default()
        };
        log.apply(&settings(false, "{{.TraceID}}"));
        assert!(!is_on());
        log.apply(&settings(true, "{{.TraceID}}"));
        assert!(is_on());
        let before = log.current.load_full();
        log.apply(&settings(true, "{{.TraceID"));
        assert!(before.zip(log.current.load_full()).is_some_and(|(a, b)| Arc::ptr_eq(&a, &b)));
        log.apply(&settings(true, ""));
        assert!(!is_on());
    }
}
