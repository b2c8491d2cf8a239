//! What the sidecar tells about requests, over real sockets. What is pushed is in `otlp.rs`.

use std::process::Command;
use std::sync::Arc;

use ember_dataplane::timeout::Timeouts;
use ember_queue_proxy::Config;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;

use crate::container::environment;
use crate::pod::{MS, Sidecar, Wire, app, config, echo};

const PROMETHEUS: (&str, &str) =
    ("OBSERVABILITY_CONFIG", r#"{"requestMetrics":{"protocol":"prometheus"},"tracing":{}}"#);
const OWN_SCOPE: &str =
    r#"otel_scope_name="knative.dev/serving/pkg/queue",otel_scope_schema_url="",otel_scope_version="""#;
const HTTP_SCOPE: &str = r#"otel_scope_name="go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp",otel_scope_schema_url="",otel_scope_version="0.69.0""#;

fn invocations(status: u16, count: u64) -> String {
    format!(
        "kn_serving_invocation_duration_seconds_count{{http_response_status_code=\"{status}\",{OWN_SCOPE}}} {count}"
    )
}

fn server(host: &str, status: u16, tag: &str) -> String {
    format!(
        r#"http_request_method="GET",http_response_status_code="{status}",kn_route_tag="{tag}",network_protocol_name="http",network_protocol_version="1.1",{HTTP_SCOPE},server_address="{host}",url_scheme="http""#
    )
}

#[tokio::test]
async fn all_families_after_known_traffic() {
    let port = app(echo).await;
    let sidecar = Sidecar::start(config(port, &[PROMETHEUS, ("CONTAINER_CONCURRENCY", "3")])).await;
    for _ in 0..2 {
        sidecar.get(8012, "/", "knative-serving-default-route: true\r\n").await;
    }
    let missing = sidecar.get(8012, "/missing", "knative-serving-tag: canary\r\n").await;
    let sent = missing.split_once("\r\n\r\n").unwrap().1.len();
    let post =
        "POST / HTTP/1.1\r\nhost: shop.example:8080\r\nconnection: close\r\ncontent-length: 7\r\n\r\n1234567";
    let answer = sidecar.send(8012, post).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    sidecar.until_line(&invocations(200, 3)).await;
    sidecar.until_line(&invocations(404, 1)).await;

    let text = sidecar.metrics().await;
    assert!(
        text.contains("content-type: text/plain; version=0.0.4; charset=utf-8; escaping=underscores\r\n"),
        "{text}"
    );
    for family in [
        "kn_serving_invocation_duration_seconds histogram",
        "kn_serving_queue_depth gauge",
        "http_server_request_duration_seconds histogram",
        "http_server_request_body_size_bytes histogram",
        "http_server_response_body_size_bytes histogram",
        "http_client_request_duration_seconds histogram",
        "http_client_request_body_size_bytes histogram",
        "target_info gauge",
    ] {
        assert_eq!(text.matches(&format!("# TYPE {family}\n")).count(), 1, "{family} in {text}");
    }
    let default = server("app", 200, "kn:default");
    let canary = server("app", 404, "canary");
    let shop = format!(
        r#"http_request_method="POST",http_response_status_code="200",kn_route_tag="kn:disabled",network_protocol_name="http",network_protocol_version="1.1",{HTTP_SCOPE},server_address="shop.example",server_port="8080",url_scheme="http""#
    );
    let client = format!(
        r#"http_request_method="GET",http_response_status_code="404",kn_route_tag="canary",network_protocol_name="http",network_protocol_version="1.1",{HTTP_SCOPE},server_address="127.0.0.1",server_port="{port}",url_scheme="http""#
    );
    for line in [
        format!("http_server_request_duration_seconds_count{{{default}}} 2"),
        format!("http_server_request_duration_seconds_bucket{{{default},le=\"+Inf\"}} 2"),
        format!("http_server_request_body_size_bytes_bucket{{{default},le=\"0\"}} 2"),
        format!("http_server_response_body_size_bytes_sum{{{canary}}} {sent}"),
        format!("http_server_request_body_size_bytes_sum{{{shop}}} 7"),
        format!("http_server_request_body_size_bytes_bucket{{{shop},le=\"5\"}} 0"),
        format!("http_server_request_body_size_bytes_bucket{{{shop},le=\"10\"}} 1"),
        format!("http_client_request_duration_seconds_count{{{client}}} 1"),
        format!("http_client_request_body_size_bytes_count{{{client}}} 1"),
        format!("kn_serving_queue_depth{{{OWN_SCOPE}}} 0"),
    ] {
        assert!(text.lines().any(|found| found == line), "{line} in {text}");
    }
    let bounds = |name: &str, labels: &str| -> Vec<String> {
        let start = format!("{name}_bucket{{{labels},le=\"");
        let bound = |line: &str| Some(line.strip_prefix(&start)?.split('"').next()?.to_owned());
        text.lines().filter_map(bound).collect()
    };
    let long = [
        "0.005", "0.01", "0.025", "0.05", "0.075", "0.1", "0.25", "0.5", "0.75", "1", "2.5", "5", "7.5",
        "10", "+Inf",
    ];
    let sizes = [
        "0", "5", "10", "25", "50", "75", "100", "250", "500", "750", "1000", "2500", "5000", "7500",
        "10000", "+Inf",
    ];
    assert_eq!(bounds("http_server_request_duration_seconds", &default), long);
    assert_eq!(bounds("http_client_request_duration_seconds", &client), long);
    let own = format!("http_response_status_code=\"200\",{OWN_SCOPE}");
    assert_eq!(bounds("kn_serving_invocation_duration_seconds", &own), long);
    assert_eq!(bounds("http_server_request_body_size_bytes", &default), sizes);
    assert_eq!(bounds("http_server_response_body_size_bytes", &default), sizes);
    assert_eq!(bounds("http_client_request_body_size_bytes", &client), sizes);
    let target = text.lines().find(|line| line.starts_with("target_info{")).unwrap();
    for label in [
        r#"container_name="queue-proxy""#,
        r#"k8s_namespace_name="default""#,
        r#"k8s_pod_name="pod-1""#,
        r#"service_instance_id="pod-1""#,
        r#"service_name="app""#,
        r#"kn_configuration_name="app""#,
        r#"kn_revision_name="app-00001""#,
        r#"service_version=""#,
    ] {
        assert!(target.contains(label), "{label} in {target}");
    }
    assert!(target.ends_with("} 1"), "{target}");
    assert!(
        sidecar
            .send(9091, "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n")
            .await
            .starts_with("HTTP/1.1 404")
    );
}

#[tokio::test]
async fn probes_are_not_counted() {
    let port = app(echo).await;
    let sidecar = Sidecar::start(config(port, &[PROMETHEUS])).await;
    for probe in [
        "user-agent: kube-probe/1.34\r\nk-network-probe: queue\r\n",
        "k-network-probe: probe\r\nk-network-hash: x\r\n",
        "k-network-probe: queue\r\n",
        "k-kubelet-probe: x\r\n",
    ] {
        sidecar.get(8012, "/", probe).await;
    }
    // The two that the app has seen are told as what they are.
    let client = format!(
        r#"http_request_method="GET",http_response_status_code="200",network_protocol_name="http",network_protocol_version="1.1",{HTTP_SCOPE},server_address="127.0.0.1",server_port="{port}",url_scheme="http""#
    );
    sidecar.until_line(&format!("http_client_request_duration_seconds_count{{{client}}} 2")).await;
    let text = sidecar.metrics().await;
    for absent in ["http_server", "kn_serving_invocation", "kn_route_tag", "kn_serving_queue_depth"] {
        assert!(!text.contains(absent), "{absent} in {text}");
    }
}

#[tokio::test]
async fn a_timeout_is_a_504_wherever_it_is_counted() {
    let port = app(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.rest().await;
    })
    .await;
    let timeouts = Timeouts { total: Some(100 * MS), ..Timeouts::default() };
    let sidecar = Sidecar::start(Config { timeouts, ..config(port, &[PROMETHEUS]) }).await;
    assert!(sidecar.get(8012, "/", "").await.starts_with("HTTP/1.1 504"));
    sidecar.until_line(&invocations(504, 1)).await;
    let labels = server("app", 504, "kn:disabled");
    sidecar.until_line(&format!("http_server_request_duration_seconds_count{{{labels}}} 1")).await;
    sidecar.until_line(&format!("http_server_response_body_size_bytes_sum{{{labels}}} 15")).await;
    let text = sidecar.metrics().await;
    assert!(text.contains(r#"http_client_request_duration_seconds_count{error_type="timeout","#), "{text}");
    assert!(!text.contains(r#"http_response_status_code="200""#), "{text}");
}

#[tokio::test]
async fn the_depth_rises_and_goes_back_and_refusals_are_the_servers() {
    let release = Arc::new(Semaphore::new(0));
    let port = app({
        let release = Arc::clone(&release);
        move |mut wire: Wire| {
            let release = Arc::clone(&release);
            async move {
                while wire.try_until("\r\n\r\n").await.is_ok() {
                    release.acquire().await.unwrap().forget();
                    wire.send("HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await;
                }
            }
        }
    })
    .await;
    let sidecar = Sidecar::start(config(port, &[PROMETHEUS, ("CONTAINER_CONCURRENCY", "1")])).await;
    let mut clients = Vec::new();
    for _ in 0..11 {
        let mut wire = Wire::connect((sidecar.ip, 8012).into()).await;
        wire.send("GET / HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n").await;
        clients.push(wire);
    }
    sidecar.until_line(&format!("kn_serving_queue_depth{{{OWN_SCOPE}}} 11")).await;
    assert!(sidecar.get(8012, "/", "").await.starts_with("HTTP/1.1 503"));
    let refused = server("app", 503, "kn:disabled");
    sidecar.until_line(&format!("http_server_request_duration_seconds_count{{{refused}}} 1")).await;
    release.add_permits(11);
    for mut client in clients {
        assert!(client.rest().await.ends_with("ok"));
    }
    sidecar.until_line(&format!("kn_serving_queue_depth{{{OWN_SCOPE}}} 0")).await;
    sidecar.until_line(&invocations(200, 11)).await;
    assert!(
        !sidecar
            .metrics()
            .await
            .contains(r#"kn_serving_invocation_duration_seconds_count{http_response_status_code="503""#)
    );
}

#[tokio::test]
async fn a_client_that_leaves_is_told_apart() {
    let (arrive, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let port = app(move |mut wire: Wire| {
        let arrive = arrive.clone();
        async move {
            wire.until("\r\n\r\n").await;
            arrive.send(()).unwrap();
            wire.rest().await;
        }
    })
    .await;
    let sidecar = Sidecar::start(config(port, &[PROMETHEUS])).await;
    let mut wire = Wire::connect((sidecar.ip, 8012).into()).await;
    wire.send("GET / HTTP/1.1\r\nhost: app\r\n\r\n").await;
    arrived.recv().await.unwrap();
    drop(wire);
    sidecar.until_line(&invocations(499, 1)).await;
    assert!(sidecar.metrics().await.contains(r#"error_type="canceled""#));
}

#[tokio::test]
async fn hosts_are_the_clients_to_choose_and_too_many_are_one() {
    let port = app(echo).await;
    let sidecar = Sidecar::start(config(port, &[PROMETHEUS])).await;
    let mut wire = Wire::connect((sidecar.ip, 8012).into()).await;
    for number in 0..400 {
        let tag = if number % 2 == 0 { "t" } else { "u" };
        wire.send(&format!(
            "GET / HTTP/1.1\r\nhost: h{number}\r\nknative-serving-tag: {tag}{number}\r\n\r\n"
        ))
        .await;
        wire.until("\r\n\r\n").await;
        wire.until("\r\n\r\n").await;
    }
    let other = server("_other_", 200, "_other_");
    sidecar.until_line(&format!("http_server_request_duration_seconds_count{{{other}}} 144")).await;
    let text = sidecar.metrics().await;
    let series = text.matches("http_server_request_duration_seconds_count{").count();
    assert_eq!(series, 257, "256 for themselves");
}

#[tokio::test]
async fn the_environment_says_where_metrics_are() {
    let port = app(echo).await;
    let settings = config(port, &[PROMETHEUS, ("METRICS_PROMETHEUS_PORT", "2345")]);
    let sidecar = Sidecar::start(settings).await;
    let answer = sidecar.send(2345, "GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n").await;
    assert!(answer.contains("target_info{"), "{answer}");
    assert!(TcpStream::connect((sidecar.ip, 9091)).await.is_err());
    let none = Sidecar::start(config(port, &[])).await;
    assert!(TcpStream::connect((none.ip, 9091)).await.is_err());
    let first = config(port, &[PROMETHEUS]);
    let host = first.bind.to_string();
    let elsewhere = Sidecar::start(config(port, &[PROMETHEUS, ("METRICS_PROMETHEUS_HOST", &host)])).await;
    assert!(TcpStream::connect((first.bind, 9091)).await.is_ok());
    assert!(TcpStream::connect((elsewhere.ip, 9091)).await.is_err());
}

/// A trace's headers, in lines that the app echoes.
const TRACE: &str = "traceparent: 00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01\r\ntracestate: a=1, b=2\r\ntracestate: c=3\r\nbaggage: user=x;p=1, y=%20\r\n";

async fn passes_untouched(sidecar: &Sidecar) {
    let answer = sidecar.get(8012, "/", TRACE).await;
    for line in TRACE.lines() {
        assert!(answer.lines().any(|found| found == line), "{line} in {answer}");
    }
    let bare = sidecar.get(8012, "/", "").await;
    for name in ["traceparent", "tracestate", "baggage"] {
        assert!(!bare.contains(name), "{name} in {bare}");
    }
}

#[tokio::test]
async fn without_tracing_the_callers_context_passes_untouched() {
    let port = app(echo).await;
    let sidecar = Sidecar::start(config(port, &[PROMETHEUS, ("CONTAINER_CONCURRENCY", "1")])).await;
    passes_untouched(&sidecar).await;
}

#[cfg(not(feature = "otlp"))]
#[tokio::test]
async fn what_this_build_cannot_export_is_said_once_and_served_without() {
    use std::io::Write;
    use std::sync::Mutex;

    #[derive(Clone, Default)]
    struct Log(Arc<Mutex<Vec<u8>>>);

    impl Write for Log {
        fn write(&mut self, text: &[u8]) -> std::io::Result<usize> {
            self.0.lock().unwrap().write(text)
        }

        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }

    let log = Log::default();
    let writer = log.clone();
    let subscriber = tracing_subscriber::fmt().with_ansi(false).with_writer(move || writer.clone()).finish();
    // The runtime of this test is on this thread.
    let _installed = tracing::subscriber::set_default(subscriber);
    let port = app(echo).await;
    let json = r#"{"tracing":{"protocol":"grpc","endpoint":"http://127.0.0.1:1","samplingRate":1},
        "requestMetrics":{"protocol":"http/protobuf","endpoint":"http://127.0.0.1:1"},"runtime":{"profiling":"enabled"}}"#;
    let sidecar = Sidecar::start(config(port, &[("OBSERVABILITY_CONFIG", json)])).await;
    passes_untouched(&sidecar).await;
    passes_untouched(&sidecar).await;
    sidecar.end().await;
    let log = String::from_utf8(log.0.lock().unwrap().clone()).unwrap();
    for key in ["tracing-protocol", "request-metrics-protocol", "runtime-profiling"] {
        let said: Vec<&str> = log.lines().filter(|line| line.contains(key)).collect();
        assert_eq!(said.len(), 1, "{key} in {log}");
        assert!(said[0].contains("WARN"), "{said:?}");
    }
    assert_eq!(log.matches("cargo feature otlp").count(), 2, "{log}");
}

#[test]
fn the_program_refuses_what_it_does_not_know() {
    let cases: [(&str, &[(&str, &str)]); 5] = [
        ("statsd", &[("OBSERVABILITY_CONFIG", r#"{"requestMetrics":{"protocol":"statsd"}}"#)]),
        ("zipkin", &[("OBSERVABILITY_CONFIG", r#"{"tracing":{"protocol":"zipkin"}}"#)]),
        ("OBSERVABILITY_CONFIG", &[("OBSERVABILITY_CONFIG", "{")]),
        ("1024", &[PROMETHEUS, ("METRICS_PROMETHEUS_PORT", "1023")]),
        ("METRICS_PROMETHEUS_TLS_CERT", &[PROMETHEUS, ("METRICS_PROMETHEUS_TLS_CERT", "/tls.crt")]),
    ];
    for (named, more) in cases {
        let mut program = Command::new(env!("CARGO_BIN_EXE_queue-proxy"));
        let output = program.env_clear().envs(environment(8080, more)).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(1), "{said}");
        assert!(said.contains(named), "{named} in {said}");
    }
}
