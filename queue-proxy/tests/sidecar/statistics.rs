//! What the autoscaler scrapes, and Prometheus in its place.

use std::sync::Arc;

use ember_dataplane::stat::Stat;
use ember_queue_proxy::Config;
use tokio::io::AsyncReadExt as _;
use tokio::net::TcpStream;

use crate::pod::{MS, OK, Sidecar, Wire, app, config, echo, eventually};

#[tokio::test]
async fn statistics_are_protobuf_by_the_second() {
    let release = Arc::new(tokio::sync::Notify::new());
    let port = app({
        let release = Arc::clone(&release);
        move |mut wire| {
            let release = Arc::clone(&release);
            async move {
                wire.until("\r\n\r\n").await;
                release.notified().await;
                wire.send(OK).await;
                wire.rest().await;
            }
        }
    })
    .await;
    let config = Config { stat_period: 200 * MS, ..config(port, &[]) };
    let sidecar = Sidecar::start(config).await;
    let scrape = async || {
        let mut wire = sidecar.connect(9090).await;
        wire.send("GET /metrics HTTP/1.1\r\nhost: a\r\naccept: text/plain\r\nconnection: close\r\n\r\n")
            .await;
        let mut bytes = Vec::new();
        wire.stream.read_to_end(&mut bytes).await.unwrap();
        let at = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let body = bytes.split_off(at);
        (String::from_utf8(bytes).unwrap(), body)
    };
    let (head, body) = scrape().await;
    assert!(
        head.starts_with("HTTP/1.1 200") && head.contains("content-type: application/protobuf\r\n"),
        "{head}"
    );
    assert_eq!(body, b"\x0a\x05pod-1", "before the first tick there is only the name");
    let ip = sidecar.ip;
    let request = tokio::spawn(async move {
        let mut wire = Wire::connect((ip, 8012).into()).await;
        wire.send("GET / HTTP/1.1\r\nhost: a\r\nk-proxy-request: activator\r\n\r\n").await;
        wire.until("ok").await
    });
    let mut counted = 0.0;
    let mut seen = 0.0;
    eventually("a whole window of one request", async || {
        let stat = Stat::from_bytes(&scrape().await.1).unwrap();
        if stat.process_uptime != seen {
            seen = stat.process_uptime;
            counted += stat.request_count;
            assert_eq!(stat.request_count, stat.proxied_request_count);
        }
        assert_eq!((stat.pod_name.as_str(), stat.timestamp), ("pod-1", 0));
        stat.average_concurrent_requests == 1.0 && stat.average_proxied_concurrent_requests == 1.0
    })
    .await;
    assert_eq!(counted, 5.0, "one arrival in a fifth of a second");
    release.notify_one();
    request.await.unwrap();
    eventually("an idle window", async || {
        Stat::from_bytes(&scrape().await.1).unwrap().average_concurrent_requests == 0.0
    })
    .await;
    assert!(sidecar.get(9090, "/other", "").await.starts_with("HTTP/1.1 404"));
}

#[tokio::test]
async fn prometheus_where_the_cluster_asks_for_it() {
    let port = app(echo).await;
    let json = r#"{"requestMetrics":{"protocol":"prometheus"}}"#;
    let env = [("OBSERVABILITY_CONFIG", json), ("CONTAINER_CONCURRENCY", "3")];
    let sidecar = Sidecar::start(config(port, &env)).await;
    sidecar.get(8012, "/", "").await;
    let metrics = sidecar.get(9091, "/metrics", "").await;
    let scope =
        r#"otel_scope_name="knative.dev/serving/pkg/queue",otel_scope_schema_url="",otel_scope_version="""#;
    let count = format!(
        r#"kn_serving_invocation_duration_seconds_count{{http_response_status_code="200",{scope}}} 1"#
    );
    assert!(metrics.contains(&count), "{metrics}");
    assert!(metrics.contains(&format!("kn_serving_queue_depth{{{scope}}} 0")), "{metrics}");
    sidecar.running.abort();
    let sidecar = Sidecar::start(config(port, &[])).await;
    assert!(TcpStream::connect((sidecar.ip, 9091)).await.is_err());
}
