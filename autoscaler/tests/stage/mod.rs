//! What the tests of the whole component share: the cluster around it, pods that answer it, and patience.

pub(crate) mod cluster;

use std::net::IpAddr;
use std::time::Duration;

use ember_autoscaler::Config;
use ember_dataplane::stat::{Stat, WireStatMessage, WireStatMessages};
use http::{Request, Response};
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use prost::Message as _;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long a test waits for what has to come.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) async fn eventually<T>(what: &str, mut look: impl AsyncFnMut() -> Option<T>) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(found) = look().await {
            return found;
        }
        assert!(Instant::now() < deadline, "still waiting for {what}");
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
}

/// No tick and no scrape within a test's lifetime: what happens, happens because of an event.
pub(crate) fn no_timers(config: &mut Config) {
    config.tick = Duration::from_secs(3600);
    config.scrape_interval = Duration::from_secs(3600);
}

/// The labels of a revision's objects.
pub(crate) fn labels(revision: &str) -> Value {
    json!({
        "serving.knative.dev/revision": revision, "serving.knative.dev/revisionUID": "u-1",
        "serving.knative.dev/configuration": "hello", "serving.knative.dev/service": "hello",
    })
}

/// What an activator reports of revisions.
pub(crate) fn report(revisions: &[&str], concurrency: f64) -> Message {
    let message = |name: &&str| WireStatMessage {
        namespace: "ns".into(),
        name: (*name).to_owned(),
        stat: Some(Stat {
            pod_name: "activator-1".into(),
            average_concurrent_requests: concurrency,
            request_count: 1.0,
            ..Stat::default()
        }),
    };
    let messages = WireStatMessages { messages: revisions.iter().map(message).collect() };
    Message::Binary(messages.encode_to_vec().into())
}

/// What a pod says when it is scraped.
pub(crate) fn scraped(stat: &Stat) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::from(stat.encode_to_vec()));
    response.headers_mut().insert("content-type", "application/protobuf".parse().unwrap());
    response
}

/// Answers like queue-proxies and activators: `respond` is told the address that was asked.
pub(crate) async fn answer(
    listener: TcpListener,
    respond: impl Fn(IpAddr, &Request<Incoming>) -> Response<Full<Bytes>> + Clone + Send + Sync + 'static,
    shutdown: CancellationToken,
) {
    let connections = TaskTracker::new();
    while let Some(Ok((stream, _))) = shutdown.run_until_cancelled(listener.accept()).await {
        let ip = stream.local_addr().unwrap().ip();
        let (respond, shutdown) = (respond.clone(), shutdown.clone());
        connections.spawn(async move {
            let service = service_fn(|request: Request<Incoming>| {
                let response = respond(ip, &request);
                async move { Ok::<_, std::convert::Infallible>(response) }
            });
            let http = hyper::server::conn::http1::Builder::new();
            let _ = shutdown.run_until_cancelled(http.serve_connection(TokioIo::new(stream), service)).await;
        });
    }
    connections.close();
    connections.wait().await;
}
