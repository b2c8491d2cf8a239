//! One request through the gateway.

use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use ember_dataplane::address::Address;
use ember_dataplane::body::Body;
use ember_dataplane::drain::Drain;
use ember_dataplane::error::{ProxyError, http_error, respond};
use ember_dataplane::header;
use ember_dataplane::pool::Pool;
use ember_dataplane::proxy::{Outbound, Proxy};
use ember_dataplane::server::{Conn, Handler};
use http::{HeaderMap, HeaderName, HeaderValue, Request, Response, StatusCode};
use tokio::time::Instant;

use crate::backend::{Backend, Target};
use crate::table::{Choice, PathRoute, Table, Visibility, without_port};

/// How many addresses are tried for a request that may be repeated, the activator's included.
const MOST_ATTEMPTS: usize = 8;

/// How long connecting may take before another address is tried: one that answers does so within a round trip.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(1);

/// Headers that only Ember's own components may set.
const INTERNAL: [HeaderName; 8] = [
    header::KUBELET_PROBE,
    header::PROXY_REQUEST,
    header::ORIGINAL_HOST,
    header::PASSTHROUGH_LB,
    header::DIRECT_LB,
    header::REVISION,
    header::NAMESPACE,
    header::RETURNABLE,
];

/// The handler of one worker.
#[derive(Debug)]
pub struct Gateway {
    visibility: Visibility,
    table: Arc<ArcSwap<Table>>,
    activator: Arc<Backend>,
    proxy: Proxy,
}

impl Gateway {
    /// A handler that routes by `table` as it is at each request's arrival.
    #[must_use]
    pub fn new(
        visibility: Visibility,
        table: Arc<ArcSwap<Table>>,
        activator: Arc<Backend>,
        pool: Pool,
        drain: Drain,
    ) -> Self {
        Self { visibility, table, activator, proxy: Proxy::new(pool, drain) }
    }

    /// The path that takes the request. The table's guard is gone before anything is awaited.
    fn route(&self, request: &Request<Body>) -> Option<(Arc<[PathRoute]>, usize)> {
        let host = request.headers().get(http::header::HOST)?.to_str().ok()?;
        self.table.load().route(self.visibility, without_port(host), request.uri().path(), request.headers())
    }
}

impl Handler for Gateway {
    async fn handle(&self, mut request: Request<Body>, conn: &Arc<Conn>) -> Response<Body> {
        let Some((paths, index)) = self.route(&request) else {
            return http_error(StatusCode::NOT_FOUND, "no service is known by this host");
        };
        let route = &paths[index];
        let Some(choice) = route.choose() else {
            return http_error(
                StatusCode::SERVICE_UNAVAILABLE,
                "no backend has a share of this route's traffic",
            );
        };
        prepare(request.headers_mut(), self.visibility, route, choice);
        let outbound = match Outbound::new(request, conn) {
            Ok(outbound) => outbound,
            Err(error) => return respond(&error),
        };
        self.forward(outbound, choice).await
    }
}

impl Gateway {
    /// Tries addresses until one answers, as far as the one retry rule allows; the activator comes last.
    async fn forward(&self, mut outbound: Outbound, choice: &Choice) -> Response<Body> {
        let mut tried: Vec<Address> = Vec::new();
        outbound.set_protocol(choice.backend.protocol());
        if choice.names_revision() {
            outbound.allow_return();
        }
        loop {
            let Some(target) = self.target(choice, &tried) else {
                return http_error(
                    StatusCode::SERVICE_UNAVAILABLE,
                    "no address of the service can be reached",
                );
            };
            let counted = target.enter();
            let connect_by = Instant::now() + CONNECT_TIMEOUT;
            match self.proxy.forward(outbound, &target.address, Some(connect_by)).await {
                Ok(mut response) => {
                    response.body_mut().attach(counted);
                    return response;
                }
                Err(failure) => match failure.into_retry() {
                    (Some(again), error) if tried.len() + 1 < MOST_ATTEMPTS => {
                        tracing::debug!(address = %target.address, %error, "trying another address");
                        outbound = again;
                        tried.push(target.address.clone());
                    }
                    (_, error) => return failed(&error),
                },
            }
        }
    }

    /// The next address to try. The last attempt is the activator's, however many addresses there are; what has no
    /// revision it cannot serve.
    fn target(&self, choice: &Choice, tried: &[Address]) -> Option<Arc<Target>> {
        if !choice.names_revision() {
            return choice.backend.pick(tried);
        }
        let own = (tried.len() + 1 < MOST_ATTEMPTS).then(|| choice.backend.pick(tried)).flatten();
        own.or_else(|| self.activator.pick(tried))
    }
}

fn failed(error: &ProxyError) -> Response<Body> {
    tracing::debug!(%error, "a request failed");
    respond(error)
}

/// Removes what a client may not say, and sets what the route says.
fn prepare(headers: &mut HeaderMap, visibility: Visibility, route: &PathRoute, choice: &Choice) {
    for name in &INTERNAL {
        // Our own gateway may be the client of a mapped domain's second hop.
        if visibility == Visibility::External || *name != header::ORIGINAL_HOST {
            headers.remove(name);
        }
    }
    if headers.get_all(header::NETWORK_PROBE).iter().any(|probe| probe != "probe") {
        headers.remove(header::NETWORK_PROBE);
    }
    if headers.get(header::NETWORK_HASH).is_some_and(|hash| hash == "override") {
        headers.insert(header::NETWORK_HASH, HeaderValue::clone(&route.fingerprint));
    }
    if visibility == Visibility::External || !headers.contains_key(header::X_FORWARDED_PROTO) {
        headers.insert(header::X_FORWARDED_PROTO, HeaderValue::from_static("http"));
    }
    for (name, value) in choice.headers.iter().chain(&route.headers) {
        headers.insert(name.clone(), value.clone());
    }
    if let Some(host) = &route.rewrite_host {
        headers.insert(http::header::HOST, host.clone());
    }
}
