//! One request on its way into the log.

use std::fmt;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Instant;

use ember_template::text::format_float;
use http::{HeaderMap, Method, Request, StatusCode, Uri, Version};

use super::input::Input;
use super::{RequestLog, Revision};

/// What is logged of a client that left before it was answered, as proxies have it by custom.
const CLIENT_GONE: u16 = 499;
/// What is logged of a handler that failed itself.
const PANICKED: u16 = 500;

/// A request that is logged when this is dropped. Held by what owns the request: the handler's future, then the
/// response's body.
pub struct Record(Box<Exchange>);

struct Exchange {
    log: Arc<RequestLog>,
    head: Head,
    revision: Arc<Revision>,
    started: Instant,
    answer: Option<(u16, Arc<AtomicU64>)>,
}

/// A request as it arrived.
pub(super) struct Head {
    pub(super) method: Method,
    pub(super) uri: Uri,
    pub(super) version: Version,
    pub(super) headers: HeaderMap,
    pub(super) peer: SocketAddr,
    pub(super) content_length: Option<u64>,
}

/// What came of a request.
#[derive(Clone, Copy, Debug)]
pub(super) struct Response {
    pub(super) code: u16,
    /// In bytes.
    pub(super) size: u64,
    /// In seconds.
    pub(super) latency: f64,
}

impl Record {
    pub(super) fn new<B>(
        log: Arc<RequestLog>,
        request: &Request<B>,
        revision: Arc<Revision>,
        peer: SocketAddr,
        content_length: Option<u64>,
    ) -> Self {
        let head = Head {
            method: request.method().clone(),
            uri: request.uri().clone(),
            version: request.version(),
            headers: request.headers().clone(),
            peer,
            content_length,
        };
        Self(Box::new(Exchange { log, head, revision, started: Instant::now(), answer: None }))
    }

    /// The headers as the template will see them, to change them as the request's are changed on its way.
    pub fn headers_mut(&mut self) -> &mut HeaderMap {
        &mut self.0.head.headers
    }

    /// The client has its answer; `size` counts the bytes of the body as they pass.
    pub fn answered(&mut self, status: StatusCode, size: Arc<AtomicU64>) {
        self.0.answer = Some((status.as_u16(), size));
    }
}

impl Drop for Exchange {
    fn drop(&mut self) {
        let (code, size) = match &self.answer {
            Some((code, size)) => (*code, size.load(Ordering::Relaxed)),
            None if std::thread::panicking() => (PANICKED, 0),
            None => (CLIENT_GONE, 0),
        };
        let response = Response { code, size, latency: self.started.elapsed().as_secs_f64() };
        self.log.output.write(self.log.line(&self.head, response, &self.revision));
    }
}

impl RequestLog {
    /// The line of a request.
    pub(super) fn line(&self, head: &Head, response: Response, revision: &Revision) -> String {
        let rendered = self.template.render(&Input::new(head, response, revision));
        let mut line = rendered.unwrap_or_else(|_| {
            format!(
                "Invalid request log template: method: {}, response code: {}, latency: {}, url: {}\n",
                head.method,
                response.code,
                format_float(response.latency),
                head.target(),
            )
        });
        // An action that trims what follows it, as `{{.Latency -}}`, has taken the line feed at the template's end.
        if !line.ends_with('\n') {
            line.push('\n');
        }
        line
    }
}

impl Head {
    /// What the request line names.
    pub(super) fn target(&self) -> &str {
        match (self.uri.path_and_query(), self.uri.authority()) {
            (Some(target), _) => target.as_str(),
            // Of CONNECT.
            (None, Some(authority)) => authority.as_str(),
            (None, None) => "",
        }
    }
}

impl fmt::Debug for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Record").field("method", &self.0.head.method).finish_non_exhaustive()
    }
}
