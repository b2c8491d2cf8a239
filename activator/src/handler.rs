//! One request through the activator.

use std::sync::Arc;

use ember_dataplane::body::Body;
use ember_dataplane::drain::Drain;
use ember_dataplane::error::{ProxyError, http_error, respond, timed_out};
use ember_dataplane::header;
use ember_dataplane::pool::Pool;
use ember_dataplane::probe;
use ember_dataplane::proxy::{Failure, Outbound, Proxy};
use ember_dataplane::server::{Conn, Handler};
use http::{HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::absence::Absence;
use crate::config::Config;
use crate::dispatcher::Refused;
use crate::http_metrics::{HttpMetrics, Measured};
use crate::link::Outbox;
use crate::metrics::{Active, Queued};
use crate::registry::Registry;
use crate::request_log;
use crate::revision::RevisionState;
use crate::settings::Settings;
use crate::tls::Secured;

const TIMEOUT_TEXT: &str = "activator request timeout";
const SERVER_TIMING: HeaderName = HeaderName::from_static("server-timing");
const ACTIVATOR: HeaderValue = HeaderValue::from_static("activator");
/// Where the kubelet asks whether the process lives; on any other path whether it is ready.
const LIVENESS_PATH: &str = "/livez";
/// How often a request is repeated that a pod may have seen.
const MOST_REPEATS: u32 = 3;

/// What the handlers of all workers share.
#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) config: Config,
    pub(crate) settings: Settings,
    pub(crate) registry: Arc<Registry>,
    pub(crate) outbox: Arc<Outbox>,
    pub(crate) http: Arc<HttpMetrics>,
    pub(crate) request_log: Arc<request_log::Log>,
    /// Cancelled when the activator begins to end.
    pub(crate) terminating: CancellationToken,
}

/// The handler of one worker.
#[derive(Debug)]
pub(crate) struct Activation {
    shared: Arc<Shared>,
    proxy: Proxy,
    /// Pods are spoken to by TLS.
    secured: bool,
}

impl Activation {
    pub(crate) fn new(shared: Arc<Shared>, pool: Pool, drain: Drain, secured: bool) -> Self {
        Self { shared, proxy: Proxy::new(pool, drain), secured }
    }
}

/// Counts a request in its revision's report until dropped.
struct Reported {
    revision: Arc<RevisionState>,
    outbox: Arc<Outbox>,
}

impl Reported {
    fn enter(revision: &Arc<RevisionState>, outbox: &Arc<Outbox>) -> Self {
        if revision.reporter.enter(outbox.now()) {
            outbox.wake(revision);
        }
        Self { revision: Arc::clone(revision), outbox: Arc::clone(outbox) }
    }
}

impl Drop for Reported {
    fn drop(&mut self) {
        self.revision.reporter.leave(self.outbox.now());
    }
}

impl Handler for Activation {
    async fn handle(&self, mut request: Request<Body>, conn: &Arc<Conn>) -> Response<Body> {
        if let Some(answer) = self.probe(&mut request) {
            return answer;
        }
        let mut measured = self.shared.http.begin(&mut request, conn);
        let (namespace, name) = self.target(&request);
        let Some(revision) = self.shared.registry.get(namespace, name) else {
            let mut response = not_found(name);
            if let Some(measured) = measured {
                measured.answered(&mut response);
            }
            return response;
        };
        if let Some(measured) = &mut measured {
            measured.of(&revision);
        }
        let record = self.shared.request_log.begin(&request, &revision, conn);
        let reported = Reported::enter(&revision, &self.shared.outbox);
        let deadlines = revision.timeouts.start();
        let answer =
            deadlines.before_response(self.activate(&revision, request, conn, reported, &mut measured));
        let mut response = match answer.await {
            Ok(mut response) => {
                response.body_mut().limit(deadlines, TIMEOUT_TEXT, Some(conn));
                response
            }
            Err(expired) => {
                tracing::debug!(revision = %revision.key, %expired, "a request was not answered in time");
                timed_out(TIMEOUT_TEXT)
            }
        };
        if let Some(record) = record {
            request_log::answered(record, &mut response);
        }
        if let Some(measured) = measured {
            measured.answered(&mut response);
        }
        response
    }
}

impl Activation {
    /// Answers what concerns the activator itself.
    fn probe(&self, request: &mut Request<Body>) -> Option<Response<Body>> {
        let is_liveness = request.uri().path() == LIVENESS_PATH;
        let headers = request.headers_mut();
        if probe::is_kubelet_probe(headers) {
            return Some(if is_liveness {
                // To restart it because the autoscaler is away, or while it drains, would only lose requests.
                ember_dataplane::error::status(StatusCode::OK)
            } else if self.shared.terminating.is_cancelled() {
                http_error(StatusCode::INTERNAL_SERVER_ERROR, "received SIGTERM from kubelet")
            } else if !self.shared.outbox.is_connected() {
                http_error(StatusCode::INTERNAL_SERVER_ERROR, "connection has not yet been established")
            } else {
                ember_dataplane::error::status(StatusCode::OK)
            });
        }
        match probe::network_probe(headers) {
            b"" => {
                headers.remove(header::NETWORK_HASH);
                None
            }
            b"probe" => Some(probe::echo(headers)),
            b"activator" => Some(probe::success(probe::ACTIVATOR)),
            other => {
                let escaped = String::from_utf8_lossy(other)
                    .replace('&', "&amp;")
                    .replace('<', "&lt;")
                    .replace('>', "&gt;")
                    .replace('"', "&#34;")
                    .replace('\'', "&#39;");
                Some(http_error(
                    StatusCode::BAD_REQUEST,
                    &format!("unexpected probe header value: {escaped:?}"),
                ))
            }
        }
    }

    /// Namespace and name of the revision: from the headers, else from a host `name.namespace.svc.<cluster domain>`.
    fn target<'a>(&self, request: &'a Request<Body>) -> (&'a str, &'a str) {
        let text = |name: HeaderName| -> &'a str {
            request.headers().get(name).and_then(|value| value.to_str().ok()).unwrap_or("")
        };
        let (namespace, name) = (text(header::NAMESPACE), text(header::REVISION));
        if namespace.is_empty() || name.is_empty() {
            let host = text(http::header::HOST);
            if let Some((name, namespace)) = revision_of_host(host, &self.shared.config.cluster_domain) {
                return (namespace, name);
            }
        }
        (namespace, name)
    }

    /// Waits for a pod and forwards. A request that may be repeated goes back to the head of the queue, and its pod
    /// has to prove itself again.
    async fn activate(
        &self,
        revision: &Arc<RevisionState>,
        mut request: Request<Body>,
        conn: &Arc<Conn>,
        reported: Reported,
        measured: &mut Option<Box<Measured>>,
    ) -> Response<Body> {
        let headers = request.headers_mut();
        if let Some(host) = headers.remove(http::header::HOST)
            && !headers.contains_key(header::ORIGINAL_HOST)
        {
            headers.insert(header::ORIGINAL_HOST, host);
        }
        headers.insert(header::PROXY_REQUEST, ACTIVATOR);
        headers.remove(header::REVISION);
        headers.remove(header::NAMESPACE);
        let mut outbound = match Outbound::new(request, conn) {
            Ok(outbound) => outbound,
            Err(error) => return respond(&error),
        };
        outbound.set_protocol(revision.protocol);
        outbound.allow_return();
        let mut absence = Absence::default();
        let queued_at = self.shared.outbox.now();
        let (mut again, mut repeats) = (false, 0);
        let mut server_timing = None;
        // Boxed: requests in clear text are not to carry its size.
        let mut secured = self.secured.then(|| Box::new(Secured::new(&revision.identity)));
        loop {
            let queued = Queued::enter(&revision.metrics);
            let acquired = absence.bound(revision.dispatcher.acquire(again)).await;
            drop(queued);
            let acquired = match acquired {
                Ok(acquired) => acquired,
                Err(error) => return respond(&error),
            };
            let grant = match acquired {
                Ok(grant) => grant,
                Err(Refused::QueueFull) => {
                    return http_error(StatusCode::SERVICE_UNAVAILABLE, &Refused::QueueFull.to_string());
                }
                Err(Refused::Closed) => return not_found(&revision.key.name),
            };
            let active = Active::enter(revision);
            tracing::debug!(target: "ember::coldstart", phase = "forwarded", revision = %revision.key);
            if grant.is_cold() && !again {
                let phases = revision.cold_start(queued_at);
                if self.shared.settings.load().observability.activator_server_timing {
                    server_timing = HeaderValue::from_str(&phases.server_timing()).ok();
                }
            }
            match &revision.passthrough_host {
                Some(host) => {
                    outbound.set_host(host.clone());
                    outbound.headers_mut().insert(header::PASSTHROUGH_LB, HeaderValue::from_static("true"));
                }
                // Each pod is a backend of its own: its address is the Host.
                None => drop(outbound.headers_mut().remove(http::header::HOST)),
            }
            let connect_by = Instant::now() + self.shared.config.connect_timeout;
            let address = match &mut secured {
                Some(secured) => secured.way_to(grant.address()),
                None => grant.address(),
            };
            if let Some(measured) = measured {
                measured.sending(address, revision.protocol, self.secured);
            }
            let answer = self.proxy.forward(outbound, address, Some(connect_by)).await;
            if let Some(measured) = measured {
                measured.sent(answer.as_ref().map(Response::status).map_err(Failure::error));
            }
            match answer {
                Ok(mut response) => {
                    if let Some(value) = server_timing {
                        response.headers_mut().append(SERVER_TIMING, value);
                    }
                    response.body_mut().attach((grant, active, reported));
                    return response;
                }
                Err(failure) => {
                    let seen = !matches!(failure, Failure::Unsent(..) | Failure::Refused(..));
                    let (intact, error) = failure.into_retry();
                    tracing::debug!(revision = %revision.key, address = %grant.address(), %error, "a pod failed");
                    if is_the_pods_fault(&error) {
                        revision.doubt(grant.address());
                    }
                    let again = secured.as_mut().is_some_and(|secured| secured.failed(grant.address()));
                    repeats += u32::from(seen || again);
                    match intact {
                        Some(intact) if repeats <= MOST_REPEATS => outbound = intact,
                        _ => return respond(&error),
                    }
                    drop((grant, active));
                    if let ProxyError::AppAway { patience, .. } = error {
                        absence.refused(error, patience).await;
                    }
                }
            }
            again = true;
        }
    }
}

/// Whether an error speaks against the pod: what breaks in the middle of an exchange, or with the request's body, may
/// be the client's doing.
fn is_the_pods_fault(error: &ProxyError) -> bool {
    match error {
        ProxyError::Connect { .. } | ProxyError::ConnectTimeout { .. } | ProxyError::AppAway { .. } => true,
        ProxyError::NoResponse(error) => !error.is_user(),
        _ => false,
    }
}

/// Name and namespace in a host `name.namespace.svc.<cluster domain>`.
fn revision_of_host<'a>(host: &'a str, cluster_domain: &str) -> Option<(&'a str, &'a str)> {
    let host = host.split(':').next()?;
    let (name, namespace) = host.strip_suffix(cluster_domain)?.strip_suffix(".svc.")?.split_once('.')?;
    (!namespace.contains('.')).then_some((name, namespace))
}

fn not_found(name: &str) -> Response<Body> {
    let text = format!("Error getting active endpoint: revision.serving.knative.dev {name:?} not found");
    http_error(StatusCode::NOT_FOUND, &text)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    /// The same by upstream's words: four parts at most, the third is `svc`, the fourth up to `:` the domain.
    fn by_parts<'a>(host: &'a str, cluster_domain: &str) -> Option<(&'a str, &'a str)> {
        let parts: Vec<&str> = host.splitn(4, '.').collect();
        let [name, namespace, "svc", domain] = parts[..] else { return None };
        (domain.split(':').next() == Some(cluster_domain)).then_some((name, namespace))
    }

    proptest! {
        #[test]
        fn a_host_names_a_revision_as_upstream_reads_it(host in prop_oneof![
            ".*",
            r"[a-z.]{0,8}\.?[a-z]{0,3}\.(svc|svv)\.cluster\.(local|locally)(:[0-9]{0,5})?",
            r"[a-z0-9-]{1,63}\.[a-z0-9-]{1,63}\.svc\.cluster\.local(:80)?",
        ]) {
            let found = revision_of_host(&host, "cluster.local");
            // A colon further ahead makes it no host.
            if host.matches(':').count() <= 1 && !host.contains(":.") {
                let expected = by_parts(&host, "cluster.local").filter(|(name, namespace)| {
                    !name.contains(':') && !namespace.contains(':')
                });
                prop_assert_eq!(found, expected);
            }
            if let Some((name, namespace)) = found {
                prop_assert!(!name.contains(['.', ':']) && !namespace.contains(['.', ':']));
            }
        }
    }
}
