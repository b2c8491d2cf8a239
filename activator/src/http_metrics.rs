//! Requests as HTTP's metrics have them: as a server, and as a client of the pods.
//!
//! Nothing is recorded while nobody can ask. Label sets are bounded, and those of a revision go with it: see
//! [`HttpMetrics::expose`].

use std::collections::HashSet;
use std::hash::{Hash, Hasher};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Weak};

use ember_dataplane::address::Address;
use ember_dataplane::body::Body;
use ember_dataplane::error::ProxyError;
use ember_dataplane::metrics::Expose;
use ember_dataplane::metrics::family::{Families, OTHER};
use ember_dataplane::metrics::histogram::nanoseconds;
use ember_dataplane::metrics::http::{
    CLIENT, Extra, HttpLabels, Observed, Outcome, Recorder, SCOPE, SERVER, method, version,
};
use ember_dataplane::metrics::text::{Label, Text};
use ember_dataplane::protocol::Protocol;
use ember_dataplane::server::Conn;
use ember_telemetry::request_log;
use http::{HeaderValue, Request, Response, StatusCode, header};
use http_body::Body as _;
use tokio::time::Instant;

use crate::registry::Registry;
use crate::revision::RevisionState;

/// What counts as the answer to a client that left before there was one.
const CLIENT_GONE: u16 = 499;

/// The revision a request is for.
#[derive(Debug, Clone)]
enum Of {
    /// None that is known.
    Nobody,
    /// This one. One that is made anew under the same name is another.
    Revision(Arc<request_log::Revision>),
    /// One of too many.
    Other,
}

impl Of {
    /// What tells it from others.
    fn id(&self) -> usize {
        match self {
            Self::Nobody => 0,
            Self::Other => 1,
            Self::Revision(revision) => Arc::as_ptr(revision).addr(),
        }
    }
}

impl PartialEq for Of {
    fn eq(&self, other: &Self) -> bool {
        self.id() == other.id()
    }
}

impl Eq for Of {}

impl Hash for Of {
    fn hash<H: Hasher>(&self, state: &mut H) {
        state.write_usize(self.id());
    }
}

impl Extra for Of {
    fn add_to<'a>(&'a self, labels: &mut Vec<Label<'a>>) {
        let values = match self {
            Self::Nobody => return,
            Self::Revision(of) => {
                [of.service.as_str(), of.configuration.as_str(), of.name.as_str(), of.namespace.as_str()]
            }
            Self::Other => [OTHER; 4],
        };
        let names = ["kn.service.name", "kn.configuration.name", "kn.revision.name", "k8s.namespace.name"];
        labels.extend(names.into_iter().zip(values.map(Into::into)));
    }

    fn other(&self) -> Self {
        match self {
            Self::Nobody => Self::Nobody,
            Self::Revision(_) | Self::Other => Self::Other,
        }
    }

    fn detached(&self) -> Self {
        self.clone()
    }
}

/// What is recorded of all requests.
#[derive(Debug)]
pub(crate) struct HttpMetrics {
    server: Arc<Families<HttpLabels<Of>>>,
    client: Arc<Families<HttpLabels<Of>>>,
    /// One for each worker: as a server, and as a client.
    recorders: Box<[(Recorder<Of>, Recorder<Of>)]>,
    exposed: AtomicBool,
    registry: Weak<Registry>,
}

impl HttpMetrics {
    pub(crate) fn new(workers: usize, registry: &Arc<Registry>) -> Self {
        let server = Arc::new(Families::new(SCOPE, SERVER));
        let client = Arc::new(Families::new(SCOPE, CLIENT));
        let recorders = (0..workers.max(1))
            .map(|_| (Recorder::new(Arc::clone(&server)), Recorder::new(Arc::clone(&client))))
            .collect();
        let (exposed, registry) = (AtomicBool::new(false), Arc::downgrade(registry));
        Self { server, client, recorders, exposed, registry }
    }

    /// Whether there is a place where they can be asked for.
    pub(crate) fn set_exposed(&self, exposed: bool) {
        self.exposed.store(exposed, Ordering::Relaxed);
    }

    /// A request has arrived; `None` while nobody can ask for metrics.
    pub(crate) fn begin(self: &Arc<Self>, request: &mut Request<Body>, conn: &Conn) -> Option<Box<Measured>> {
        if !self.exposed.load(Ordering::Relaxed) {
            return None;
        }
        let observed = Observed {
            method: method(request.method()),
            version: version(request.version()),
            tls: conn.is_tls(),
            host: request.headers().get(header::HOST).cloned(),
            outcome: Outcome::Other,
            extra: Of::Nobody,
        };
        let received = (!request.body().is_end_stream()).then(|| request.body_mut().count());
        // Boxed: where nobody asks, a request's futures are not to carry its size.
        Some(Box::new(Measured {
            metrics: Arc::clone(self),
            worker: conn.worker() % self.recorders.len(),
            observed,
            revision: None,
            started: Instant::now(),
            sent: None,
            status: None,
            received,
            returned: None,
        }))
    }
}

impl Expose for HttpMetrics {
    /// Writes all families, but first forgets the revisions that are gone.
    fn expose(&self, text: &mut Text) {
        let all = self.registry.upgrade().map(|registry| registry.all()).unwrap_or_default();
        let there: HashSet<usize> =
            all.iter().map(|revision| Arc::as_ptr(&revision.described).addr()).collect();
        let keep = |of: &Of| !matches!(of, Of::Revision(_)) || there.contains(&of.id());
        for (server, client) in &self.recorders {
            server.retain(keep);
            client.retain(keep);
        }
        self.server.retain(|labels| keep(labels.extra()));
        self.client.retain(|labels| keep(labels.extra()));
        self.client.expose(text);
        self.server.expose(text);
    }
}

/// Follows one request, and records it when it ends.
#[derive(Debug)]
pub(crate) struct Measured {
    metrics: Arc<HttpMetrics>,
    worker: usize,
    observed: Observed<Of>,
    revision: Option<Arc<RevisionState>>,
    started: Instant,
    /// Since when a pod is asked, and how that is measured.
    sent: Option<(Instant, Observed<Of>)>,
    status: Option<u16>,
    received: Option<Arc<AtomicU64>>,
    returned: Option<Arc<AtomicU64>>,
}

impl Measured {
    /// It is for that revision.
    pub(crate) fn of(&mut self, revision: &Arc<RevisionState>) {
        self.observed.extra = Of::Revision(Arc::clone(&revision.described));
        self.revision = Some(Arc::clone(revision));
    }

    /// It goes to a pod.
    pub(crate) fn sending(&mut self, address: &Address, protocol: Protocol, tls: bool) {
        let observed = Observed {
            version: match protocol {
                Protocol::Http1 => "1.1",
                Protocol::H2c => "2.0",
            },
            tls,
            host: HeaderValue::from_str(&address.to_string()).ok(),
            ..self.observed.clone()
        };
        self.sent = Some((Instant::now(), observed));
    }

    /// The pod has answered, or there is no answer.
    pub(crate) fn sent(&mut self, answer: Result<StatusCode, &ProxyError>) {
        self.finish_sending(match answer {
            Ok(status) => Outcome::Status(status.as_u16()),
            Err(error) => Outcome::Error(error.kind()),
        });
    }

    fn finish_sending(&mut self, outcome: Outcome) {
        let Some((since, mut observed)) = self.sent.take() else { return };
        if self.is_forgotten() {
            observed.extra = Of::Nobody;
        }
        observed.outcome = outcome;
        let values = [nanoseconds(since.elapsed()), counted(self.received.as_ref())];
        self.metrics.recorders[self.worker].1.record(&observed, &values);
    }

    /// Whether its revision is gone: nothing is recorded for that any more.
    fn is_forgotten(&self) -> bool {
        self.revision.as_ref().is_some_and(|revision| revision.is_gone())
    }

    /// The client is answered; the end of the body is the end of the request.
    pub(crate) fn answered(mut self: Box<Self>, response: &mut Response<Body>) {
        self.status = Some(response.status().as_u16());
        let body = response.body_mut();
        // What is upgraded has no body, but bytes.
        if !body.is_end_stream() || response.status() == StatusCode::SWITCHING_PROTOCOLS {
            self.returned = Some(response.body_mut().count());
        }
        response.body_mut().attach(self);
    }
}

impl Drop for Measured {
    fn drop(&mut self) {
        let status = self.status.unwrap_or(CLIENT_GONE);
        let late = status == StatusCode::GATEWAY_TIMEOUT.as_u16();
        self.finish_sending(Outcome::Error(if late { "timeout" } else { "canceled" }));
        if self.is_forgotten() {
            self.observed.extra = Of::Nobody;
        }
        self.observed.outcome = Outcome::Status(status);
        let values = [
            nanoseconds(self.started.elapsed()),
            counted(self.received.as_ref()),
            counted(self.returned.as_ref()),
        ];
        self.metrics.recorders[self.worker].0.record(&self.observed, &values);
    }
}

fn counted(bytes: Option<&Arc<AtomicU64>>) -> u64 {
    bytes.map_or(0, |bytes| bytes.load(Ordering::Relaxed))
}
