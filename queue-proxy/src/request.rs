//! A request on the data port: answer a probe, or count, admit, proxy.

use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::address::Address;
use ember_dataplane::body::Body;
use ember_dataplane::breaker::Breaker;
use ember_dataplane::drain::Quiet;
use ember_dataplane::error::{ProxyError, http_error, respond, status, timed_out};
use ember_dataplane::header::{APP_AWAY, NAMESPACE, ORIGINAL_HOST, PROXY_REQUEST, RETURNABLE, REVISION};
use ember_dataplane::probe;
use ember_dataplane::protocol::Protocol;
use ember_dataplane::proxy::{Failure, Outbound, Proxy};
use ember_dataplane::server::{Conn, Handler};
use ember_dataplane::stats::Kind;
use ember_dataplane::timeout::Timeouts;
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode, header};
use tokio::time::Instant;

use crate::forwarded;
use crate::observation::{Observation, Observer};
use crate::readiness::Readiness;
use crate::reporter::Reporter;
use crate::request_log;

/// Body of the 504, and what is appended to a response that is cut.
const TIMEOUT_TEXT: &str = "request timeout";

/// The data port's handler, one for each worker.
#[derive(Clone)]
pub(crate) struct Data {
    pub(crate) proxy: Proxy,
    pub(crate) app: Address,
    /// What the app speaks.
    pub(crate) protocol: Protocol,
    pub(crate) app_absence: Duration,
    pub(crate) timeouts: Timeouts,
    pub(crate) breaker: Option<Breaker>,
    pub(crate) reporter: Arc<Reporter>,
    pub(crate) observer: Observer,
    pub(crate) readiness: Readiness,
    pub(crate) quiet: Quiet,
    pub(crate) request_log: Option<request_log::Log>,
}

impl Handler for Data {
    async fn handle(&self, request: Request<Body>, conn: &Arc<Conn>) -> Response<Body> {
        let record = self.request_log.as_ref().and_then(|log| log.begin(&request, conn));
        let mut response = self.serve(request, conn).await;
        if let Some(record) = record {
            request_log::answered(record, &mut response);
        }
        response
    }
}

impl Data {
    async fn serve(&self, mut request: Request<Body>, conn: &Arc<Conn>) -> Response<Body> {
        if let Some(answer) = self.answer_probe(request.headers()).await {
            return answer;
        }
        // Held until the exchange is over, also if it ends here.
        let in_flight = self.quiet.enter();
        let deadlines = self.timeouts.start();
        let mut observation = self.observer.begin(&mut request, conn);
        forwarded::add(request.headers_mut());
        let mut response = match Outbound::new(request, conn) {
            Err(error) => failed(&error),
            Ok(outbound) => match deadlines.before_response(self.admit(outbound, &mut observation)).await {
                Ok(mut response) => {
                    response.body_mut().limit(deadlines, TIMEOUT_TEXT, Some(conn));
                    response
                }
                Err(expired) => {
                    tracing::info!("{expired}");
                    timed_out(TIMEOUT_TEXT)
                }
            },
        };
        observation.answered(&mut response);
        response.body_mut().attach(in_flight);
        response
    }
}

impl Data {
    /// Probes are answered on every path and by every method.
    async fn answer_probe(&self, headers: &HeaderMap) -> Option<Response<Body>> {
        let health_check = probe::is_health_check(headers);
        let asked = probe::network_probe(headers);
        if !health_check && asked != probe::PROBE.as_bytes() {
            return None;
        }
        if self.quiet.is_draining() {
            return Some(shutting_down());
        }
        if !health_check {
            return Some(probe::echo(headers));
        }
        if asked != probe::QUEUE.as_bytes() {
            let asked = String::from_utf8_lossy(asked);
            return Some(http_error(
                StatusCode::BAD_REQUEST,
                &format!("unexpected probe header value: {asked}"),
            ));
        }
        let ready = self.readiness.check().await;
        Some(if self.quiet.is_draining() {
            // The question was held, and the answer has changed.
            shutting_down()
        } else if ready {
            probe::success(probe::QUEUE)
        } else {
            status(StatusCode::SERVICE_UNAVAILABLE)
        })
    }

    /// Counts the request and waits for its turn.
    async fn admit(&self, mut outbound: Outbound, observation: &mut Observation) -> Response<Body> {
        if probe::is_kubelet_probe(outbound.headers()) {
            return self.forward(outbound, observation).await;
        }
        observation.proxying();
        let headers = outbound.headers_mut();
        let proxied = headers.get(PROXY_REQUEST).is_some_and(|by| by == probe::ACTIVATOR);
        let counted = self.reporter.count(if proxied { Kind::Proxied } else { Kind::Direct });
        if let Some(host) = headers.remove(ORIGINAL_HOST).filter(|host| !host.is_empty()) {
            headers.insert(header::HOST, host);
        }
        let mut admitted = None;
        if let Some(breaker) = &self.breaker {
            let enqueued = self.observer.enqueued();
            observation.waiting();
            let Ok(permit) = breaker.acquire().await else {
                return respond(&ProxyError::QueueFull);
            };
            admitted = Some((permit, enqueued));
        }
        let mut response = self.forward(outbound, observation).await;
        match admitted {
            Some((permit, enqueued)) => response.body_mut().attach((permit, enqueued, counted)),
            None => response.body_mut().attach(counted),
        }
        response
    }

    /// Proxies to the app.
    async fn forward(&self, mut outbound: Outbound, observation: &mut Observation) -> Response<Body> {
        outbound.headers_mut().remove(REVISION);
        outbound.headers_mut().remove(NAMESPACE);
        let returnable = outbound.headers_mut().remove(RETURNABLE).is_some();
        outbound.set_protocol(self.protocol);
        observation.invoking(&self.observer, &mut outbound);
        let answer = self.reach(outbound, returnable).await;
        observation.invoked(answer.as_ref().map(Response::status));
        match answer {
            Ok(mut response) => {
                // Not the app's to say.
                response.headers_mut().remove(APP_AWAY);
                response
            }
            Err(ProxyError::AppAway { patience, .. }) => {
                tracing::debug!("a request goes back: the app does not listen");
                handed_back(patience)
            }
            Err(error) => failed(&error),
        }
    }
}

/// The answer to a request that could not be proxied.
fn failed(error: &ProxyError) -> Response<Body> {
    tracing::error!("error reverse proxying request: {error}");
    respond(error)
}

/// Pauses between attempts to reach an app that is away.
const FIRST_PAUSE: Duration = Duration::from_millis(1);
const LAST_PAUSE: Duration = Duration::from_millis(50);

impl Data {
    /// Sends the request to the app, which may be away for a moment. A `returnable` request goes back to the hop before,
    /// which may know another pod. Any other has nowhere else to go and waits; one that the app may have seen is not
    /// repeated, except on a connection that was stale.
    async fn reach(&self, mut outbound: Outbound, returnable: bool) -> Result<Response<Body>, ProxyError> {
        let until = Instant::now() + self.app_absence;
        let mut pause = FIRST_PAUSE;
        loop {
            let error = match self.proxy.forward(outbound, &self.app, None).await {
                Err(Failure::Unsent(unsent, error @ ProxyError::Connect { .. })) => {
                    outbound = unsent;
                    error
                }
                other => return Ok(other?),
            };
            let next = Instant::now() + pause;
            if returnable && (outbound.can_return() || outbound.read_ahead(next).await) {
                return Err(ProxyError::AppAway { address: self.app.clone(), patience: self.app_absence });
            }
            if Instant::now() >= until || self.quiet.is_draining() {
                return Err(error);
            }
            tokio::time::sleep_until(next).await;
            pause = (pause * 2).min(LAST_PAUSE);
        }
    }
}

/// The answer that hands a request back to the hop before.
fn handed_back(patience: Duration) -> Response<Body> {
    let mut response = status(StatusCode::SERVICE_UNAVAILABLE);
    let millis = u64::try_from(patience.as_millis()).unwrap_or(u64::MAX);
    response.headers_mut().insert(APP_AWAY, HeaderValue::from(millis));
    response
}

fn shutting_down() -> Response<Body> {
    http_error(StatusCode::SERVICE_UNAVAILABLE, "shutting down")
}
