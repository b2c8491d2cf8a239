//! Reads a pod's report over HTTP.

use std::collections::HashMap;
use std::time::Duration;

use bytes::{Bytes, BytesMut};
use ember_dataplane::io::Io;
use ember_dataplane::stat::Stat;
use http::{Method, Request, Response, header};
use http_body_util::{BodyExt, Empty};
use hyper::body::Incoming;
use hyper::client::conn::http1::{self, SendRequest};
use hyper_util::rt::TokioIo;
use parking_lot::Mutex;
use prost::Message;
use tokio_util::task::TaskTracker;

use crate::scraper::{Fetch, FetchError, Target};

/// The media type of a report.
const PROTOBUF: &str = "application/protobuf";

/// Longest report that is read; the rest is cut off. The longest that a pod can send: names have 253 characters.
const LONGEST_REPORT: usize = 336;

type Connection = SendRequest<Empty<Bytes>>;

/// Reads the reports of one revision's pods, over connections that stay open from one scrape to the next.
#[derive(Debug)]
pub(crate) struct ScrapeClient {
    io: Io,
    /// Host name of the revision's Service.
    service: String,
    port: u16,
    timeout: Duration,
    tasks: TaskTracker,
    idle: Mutex<HashMap<String, Connection>>,
}

impl ScrapeClient {
    pub(crate) fn new(io: Io, service: String, port: u16, timeout: Duration, tasks: TaskTracker) -> Self {
        Self { io, service, port, timeout, tasks, idle: Mutex::new(HashMap::new()) }
    }

    async fn connect(&self, host: &str) -> Result<Connection, FetchError> {
        let stream = self.io.network.connect(host, self.port).await.map_err(failed)?;
        let (sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(failed)?;
        self.tasks.spawn(async move {
            // It ends with an error when the pod goes away: the next request on it finds out.
            let _ = connection.await;
        });
        Ok(sender)
    }

    fn idle(&self, host: &str) -> Option<Connection> {
        self.idle.lock().remove(host).filter(|connection| !connection.is_closed() && connection.is_ready())
    }

    fn put_back(&self, host: &str, connection: Connection) {
        let mut idle = self.idle.lock();
        idle.retain(|_, connection| !connection.is_closed());
        idle.insert(host.to_owned(), connection);
    }

    async fn ask(&self, target: Target<'_>) -> Result<Stat, FetchError> {
        let host = match target {
            Target::Pod { ip, .. } => ip,
            Target::Service => &self.service,
        };
        let keep = matches!(target, Target::Pod { .. });
        if keep && let Some(mut connection) = self.idle(host) {
            // Fails when the pod closed the connection meanwhile: reading again from a new one changes nothing there.
            if let Ok(response) = connection.send_request(self.request(host, target)?).await {
                return self.report(host, Some(connection), response).await;
            }
        }
        let mut connection = self.connect(host).await?;
        let response = connection.send_request(self.request(host, target)?).await.map_err(failed)?;
        self.report(host, keep.then_some(connection), response).await
    }

    fn request(&self, host: &str, target: Target<'_>) -> Result<Request<Empty<Bytes>>, FetchError> {
        let request = Request::builder().method(Method::GET).uri("/metrics").header(header::ACCEPT, PROTOBUF);
        let request = match target {
            Target::Pod { through_mesh: true, .. } => {
                request.header(header::HOST, &self.service).header("Knative-Direct-Lb", "true")
            }
            Target::Pod { .. } => request.header(header::HOST, self.authority(host)),
            // Each request to the Service should have the chance to reach another pod.
            Target::Service => {
                request.header(header::HOST, self.authority(host)).header(header::CONNECTION, "close")
            }
        };
        request.body(Empty::new()).map_err(failed)
    }

    fn authority(&self, host: &str) -> String {
        if host.contains(':') { format!("[{host}]:{}", self.port) } else { format!("{host}:{}", self.port) }
    }

    async fn report(
        &self,
        host: &str,
        connection: Option<Connection>,
        response: Response<Incoming>,
    ) -> Result<Stat, FetchError> {
        let status = response.status();
        if !status.is_success() {
            let (code, url) = (status.as_u16(), format!("http://{}/metrics", self.authority(host)));
            return Err(FetchError {
                message: format!("GET request for URL \"{url}\" returned HTTP status {code}"),
                mesh: matches!(code, 502 | 503),
            });
        }
        let media_type = response.headers().get(header::CONTENT_TYPE);
        if media_type.is_none_or(|t| t.as_bytes() != PROTOBUF.as_bytes()) {
            return Err(failed("unsupported metric type"));
        }
        let mut body = response.into_body();
        let mut report = BytesMut::new();
        while report.len() <= LONGEST_REPORT {
            match body.frame().await {
                Some(frame) => {
                    if let Ok(data) = frame.map_err(failed)?.into_data() {
                        report.extend_from_slice(&data);
                    }
                }
                None => {
                    if let Some(connection) = connection {
                        self.put_back(host, connection);
                    }
                    break;
                }
            }
        }
        decode_report(&report)
    }
}

impl Fetch for ScrapeClient {
    async fn fetch(&self, target: Target<'_>) -> Result<Stat, FetchError> {
        match tokio::time::timeout(self.timeout, self.ask(target)).await {
            Ok(result) => result,
            Err(_) => Err(failed("no report in time")),
        }
    }
}

/// Decodes a report, of which only the first 336 bytes count.
pub(crate) fn decode_report(body: &[u8]) -> Result<Stat, FetchError> {
    let body = &body[..body.len().min(LONGEST_REPORT)];
    Stat::decode(body).map_err(|error| failed(format_args!("unmarshalling failed: {error}")))
}

fn failed(error: impl std::fmt::Display) -> FetchError {
    FetchError { message: error.to_string(), mesh: false }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #[test]
        fn what_comes_after_the_longest_report_is_not_looked_at(
            mut body in prop::collection::vec(any::<u8>(), 0..LONGEST_REPORT),
            more in prop::collection::vec(any::<u8>(), 0..500),
            named in any::<bool>(),
        ) {
            if named && body.len() > 2 {
                // One that is in order, as far as it goes: a name.
                let length = (body.len() - 2).min(127);
                body.truncate(length + 2);
                body[..2].copy_from_slice(&[0x0a, u8::try_from(length).unwrap()]);
                body[2..].fill(b'x');
            }
            let report = decode_report(&body).ok();
            prop_assert!(!named || body.len() <= 2 || report.is_some());
            let mut longest = body.clone();
            longest.resize(LONGEST_REPORT, 0);
            let exact = decode_report(&longest).ok();
            longest.extend(more);
            prop_assert_eq!(decode_report(&longest).ok(), exact);
        }
    }
}
