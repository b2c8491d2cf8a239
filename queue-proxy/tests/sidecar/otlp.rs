//! Traces and pushed metrics, over real sockets to a collector of the test's own.

use std::time::Duration;

use tokio::net::TcpListener;
use tokio::time::Instant;

use crate::collector::{Collector, Seen};
use crate::pod::{MS, Sidecar, app, config, echo};

const TRACE: &str = "0af7651916cd43dd8448eb211c80319c";
const PARENT: &str = "b7ad6b7169203331";
const HTTP: &str = "go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp";
const OWN: &str = "knative.dev/serving/pkg/queue";

fn caller(sampled: bool) -> String {
    format!(
        "traceparent: 00-{TRACE}-{PARENT}-0{}\r\ntracestate: a=1\r\nbaggage: user=x\r\n",
        u8::from(sampled)
    )
}

fn one<'a>(spans: &'a [Seen], name: &str) -> &'a Seen {
    let found: Vec<&Seen> = spans.iter().filter(|span| span.name == name).collect();
    assert_eq!(found.len(), 1, "{name} in {spans:#?}");
    found[0]
}

fn header(answer: &str, name: &str) -> Option<String> {
    let line = answer.lines().find_map(|line| line.strip_prefix(&format!("{name}: ")));
    line.map(str::to_owned)
}

async fn traced(protocol: &str, endpoint: &str, rate: f64, port: u16, more: &[(&str, &str)]) -> Sidecar {
    let json =
        format!(r#"{{"tracing":{{"protocol":"{protocol}","endpoint":"{endpoint}","samplingRate":{rate}}}}}"#);
    let mut more = more.to_vec();
    more.push(("OBSERVABILITY_CONFIG", &json));
    Sidecar::start(config(port, &more)).await
}

#[tokio::test]
async fn spans_of_a_request_with_a_limit_over_http() {
    let (collector, addr) = Collector::start().await;
    let port = app(echo).await;
    let limit = [("CONTAINER_CONCURRENCY", "2"), ("OTEL_RESOURCE_ATTRIBUTES", "team=a")];
    let sidecar = traced("http/protobuf", &format!("http://{addr}"), 1.0, port, &limit).await;
    let headers = format!(
        "{}x-forwarded-for: 9.9.9.9, 8.8.8.8\r\nuser-agent: test\r\nknative-serving-default-route: true\r\n",
        caller(false)
    );
    let answer = sidecar.get(8012, "/a/b?c=d", &headers).await;
    let peer = sidecar.ip;
    sidecar.end().await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 4, "{spans:#?}");
    assert!(collector.paths().iter().all(|path| path == "/v1/traces"));
    let (server, proxy) = (one(&spans, "GET"), one(&spans, "kn.queueproxy.proxy"));
    let (wait, client) = (one(&spans, "kn.queueproxy.wait"), one(&spans, "HTTP GET"));
    for span in &spans {
        assert_eq!(span.trace, TRACE, "of the caller's trace");
        assert_eq!((span.state.as_str(), span.status, span.lasted), ("a=1", 0, true), "{span:#?}");
        for attribute in ["service.name=app", "container.name=queue-proxy", "team=a", "k8s.pod.name=pod-1"] {
            assert!(span.resource.iter().any(|found| found == attribute), "{attribute} in {span:#?}");
        }
    }
    assert_eq!(server.parent, PARENT);
    assert_eq!((&proxy.parent, &wait.parent, &client.parent), (&server.id, &proxy.id, &wait.id));
    assert_eq!([server.kind, proxy.kind, wait.kind, client.kind], [2, 1, 1, 3]);
    assert_eq!([&server.scope, &proxy.scope, &wait.scope, &client.scope], [HTTP, OWN, OWN, HTTP]);
    let sent = answer.split_once("\r\n\r\n").unwrap().1.len();
    for attribute in [
        "server.address=app",
        "http.request.method=GET",
        "url.scheme=http",
        "user_agent.original=test",
        "client.address=9.9.9.9",
        "url.path=/a/b",
        "network.protocol.version=1.1",
        "http.response.status_code=200",
        "kn.route.tag=kn:default",
        &format!("network.peer.address={peer}"),
        &format!("http.response.body.size={sent}"),
    ] {
        // The peer's address is that of the client, which the system chose.
        assert!(
            server.has(attribute) || attribute.starts_with("network.peer.address=127."),
            "{attribute} in {server:#?}"
        );
    }
    assert!(server.attributes.iter().any(|found| found.starts_with("network.peer.port=")));
    for attribute in [
        "http.request.method=GET",
        "server.address=127.0.0.1",
        &format!("server.port={port}"),
        &format!("url.full=http://127.0.0.1:{port}/a/b?c=d"),
        "http.response.status_code=200",
    ] {
        assert!(client.has(attribute), "{attribute} in {client:#?}");
    }
    // What the app has seen.
    assert_eq!(header(&answer, "traceparent"), Some(format!("00-{TRACE}-{}-01", client.id)));
    assert_eq!(header(&answer, "tracestate").as_deref(), Some("a=1"));
    assert_eq!(header(&answer, "baggage").as_deref(), Some("user=x"));
}

#[tokio::test]
async fn spans_over_grpc_without_a_limit_and_what_fails() {
    let (collector, addr) = Collector::start().await;
    let port = app(echo).await;
    let sidecar = traced("grpc", &format!("http://{addr}"), 1.0, port, &[]).await;
    let missing = sidecar.get(8012, "/missing", "tracestate: a=1\r\n").await;
    assert_eq!(header(&missing, "tracestate"), None, "of no trace");
    for probe in ["k-network-probe: queue\r\n", "k-kubelet-probe: x\r\n"] {
        let answer = sidecar.get(8012, "/", &format!("{probe}{}", caller(true))).await;
        assert!(answer.contains(PARENT), "untouched: {answer}");
    }
    sidecar.end().await;
    let spans = collector.spans();
    assert_eq!(spans.len(), 3, "probes have none: {spans:#?}");
    let (server, proxy, client) =
        (one(&spans, "GET"), one(&spans, "kn.queueproxy.proxy"), one(&spans, "HTTP GET"));
    assert_eq!(server.parent, "");
    assert_eq!((&proxy.parent, &client.parent), (&server.id, &proxy.id));
    assert_eq!((server.status, client.status), (0, 2), "404 is an error of the client's");
    assert!(client.has("error.type=404"), "{client:#?}");
    assert_eq!(collector.paths(), ["/opentelemetry.proto.collector.trace.v1.TraceService/Export"]);

    let (collector, addr) = Collector::start().await;
    let gone = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = gone.local_addr().unwrap().port();
    drop(gone);
    let sidecar = traced("grpc", &format!("http://{addr}"), 1.0, port, &[]).await;
    let unknown = "BREW / HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n";
    assert!(sidecar.send(8012, unknown).await.starts_with("HTTP/1.1 502"));
    sidecar.end().await;
    let spans = collector.spans();
    let (server, client) = (one(&spans, "HTTP"), one(&spans, "HTTP BREW"));
    assert_eq!((server.status, client.status), (2, 2));
    assert!(server.has("http.request.method=_OTHER") && server.has("http.request.method_original=BREW"));
    assert!(client.has("error.type=connect") && client.message.contains("connection refused"), "{client:#?}");
}

#[tokio::test]
async fn who_samples() {
    let port = app(echo).await;
    // Rate, sampler of the environment, whether the caller samples, whether the span is exported.
    let cases: [(f64, Option<&str>, Option<bool>, bool); 8] = [
        (0.0, None, Some(true), false),
        (1.0, None, Some(false), true),
        (0.000_001, None, Some(true), true),
        (0.999_999, None, Some(false), false),
        (0.0, Some("always_on"), None, true),
        (1.0, Some("always_off"), Some(true), false),
        (0.0, Some("parentbased_always_off"), Some(true), true),
        (1.0, Some("parentbased_always_off"), None, false),
    ];
    for (rate, sampler, parent, exported) in cases {
        let (collector, addr) = Collector::start().await;
        let more = sampler.map(|sampler| ("OTEL_TRACES_SAMPLER", sampler));
        let more: Vec<(&str, &str)> = more.into_iter().collect();
        let sidecar = traced("http/protobuf", &format!("http://{addr}"), rate, port, &more).await;
        let answer = sidecar.get(8012, "/", &parent.map_or_else(String::new, caller)).await;
        sidecar.end().await;
        let case = format!("{rate} {sampler:?} {parent:?}");
        assert_eq!(!collector.spans().is_empty(), exported, "{case}");
        // The app is told in any case.
        let told = header(&answer, "traceparent").unwrap();
        assert!(told.ends_with(if exported { "-01" } else { "-00" }), "{case}: {told}");
        assert!(!told.contains(PARENT), "{case}: {told}");
    }
}

#[tokio::test]
async fn metrics_are_pushed_over_http_and_grpc() {
    let port = app(echo).await;
    for protocol in ["http/protobuf", "grpc"] {
        let (collector, addr) = Collector::start().await;
        let json = format!(
            r#"{{"requestMetrics":{{"protocol":"{protocol}","endpoint":"http://{addr}","exportInterval":3600000000000}}}}"#
        );
        let more = [("OBSERVABILITY_CONFIG", json.as_str()), ("CONTAINER_CONCURRENCY", "2")];
        let sidecar = Sidecar::start(config(port, &more)).await;
        for _ in 0..3 {
            sidecar.get(8012, "/", "knative-serving-tag: canary\r\n").await;
        }
        sidecar.get(8012, "/", "k-network-probe: queue\r\n").await;
        sidecar.end().await;
        let only = |name: &str| {
            let points = collector.points(name);
            assert_eq!(points.len(), 1, "{name} {points:#?}");
            points[0].clone()
        };
        let invocations = only("kn.serving.invocation.duration");
        assert_eq!((invocations.unit.as_str(), invocations.count, invocations.cumulative), ("s", 3, true));
        assert_eq!((invocations.scope.as_str(), invocations.bounds.len()), (OWN, 14));
        assert_eq!(invocations.attributes, ["http.response.status_code=200"]);
        let server = only("http.server.request.duration");
        assert_eq!((server.scope.as_str(), server.unit.as_str(), server.count), (HTTP, "s", 3));
        assert_eq!(
            server.attributes,
            [
                "http.request.method=GET",
                "http.response.status_code=200",
                "kn.route.tag=canary",
                "network.protocol.name=http",
                "network.protocol.version=1.1",
                "server.address=app",
                "url.scheme=http",
            ]
        );
        let sizes = only("http.server.response.body.size");
        assert_eq!((sizes.unit.as_str(), sizes.bounds.len()), ("By", 15));
        assert!(sizes.sum > 100.0, "{sizes:?}");
        let clients = collector.points("http.client.request.duration");
        assert_eq!(clients.len(), 2, "the probe has no tag: {clients:#?}");
        let depth = only("kn.serving.queue.depth");
        assert_eq!((depth.unit.as_str(), depth.count), ("{request}", 0));
    }
}

#[tokio::test]
async fn a_collector_that_does_not_answer_holds_nobody_up_for_long() {
    let silent = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let endpoint = format!("http://{}", silent.local_addr().unwrap());
    let port = app(echo).await;
    let sidecar = traced("http/protobuf", &endpoint, 1.0, port, &[]).await;
    assert!(sidecar.get(8012, "/", "").await.starts_with("HTTP/1.1 200"));
    let begun = Instant::now();
    let mut sidecar = sidecar;
    sidecar.shutdown.cancel();
    // Ten seconds, and patience with a busy machine.
    tokio::time::timeout(Duration::from_secs(40), &mut sidecar.running).await.unwrap().unwrap().unwrap();
    assert!(begun.elapsed() > 100 * MS);
}
