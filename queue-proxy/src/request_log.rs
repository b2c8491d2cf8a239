//! The log of requests, where the cluster asks for one.

use std::sync::Arc;

use ember_dataplane::body::Body;
use ember_dataplane::header::ORIGINAL_HOST;
use ember_dataplane::probe;
use ember_dataplane::server::Conn;
use ember_telemetry::request_log::{DEFAULT_TEMPLATE, Output, Record, RequestLog, Revision};
use http::{Request, Response};
use http_body::Body as _;

use crate::config::Config;
use crate::forwarded;

/// The log and what of it is the same for all requests.
#[derive(Debug, Clone)]
pub(crate) struct Log {
    log: Arc<RequestLog>,
    revision: Arc<Revision>,
    probes: bool,
}

impl Log {
    /// The log that `config` asks for, if it does. A template that does not parse is an error for whoever reads this
    /// process's own log, and requests are served without theirs.
    pub(crate) fn new(config: &Config) -> Option<Self> {
        let settings = &config.observability;
        if !settings.enable_request_log {
            return None;
        }
        let output = || config.request_log_output.clone().unwrap_or_else(Output::stdout);
        let template = settings.request_log_template.as_deref().unwrap_or(DEFAULT_TEMPLATE);
        let log = match RequestLog::new(template, output) {
            Ok(log) => log?,
            Err(error) => {
                tracing::error!(%error, "requests are not logged: the template cannot be used");
                return None;
            }
        };
        let revision = Arc::new(Revision {
            name: config.revision.clone(),
            namespace: config.namespace.clone(),
            service: config.service.clone(),
            configuration: config.configuration.clone(),
            pod_name: config.pod.clone(),
            pod_ip: config.pod_ip.clone(),
        });
        Some(Self { log, revision, probes: settings.enable_probe_request_log })
    }

    /// Begins the record of a request, unless it is a probe that is not to be logged.
    pub(crate) fn begin(&self, request: &Request<Body>, conn: &Conn) -> Option<Record> {
        if !self.probes && probe::is_probe(request.headers()) {
            return None;
        }
        let length = request.body().size_hint().exact();
        let mut record = self.log.begin(request, &self.revision, conn.peer(), length);
        // The template sees the headers as they leave here.
        let headers = record.headers_mut();
        forwarded::add(headers);
        if !probe::is_kubelet_probe(headers) {
            headers.remove(ORIGINAL_HOST);
        }
        Some(record)
    }
}

/// Keeps the record until the exchange is over.
pub(crate) fn answered(mut record: Record, response: &mut Response<Body>) {
    let size = response.body_mut().count();
    record.answered(response.status(), size);
    response.body_mut().attach(record);
}
