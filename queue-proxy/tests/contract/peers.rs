//! SH-1: the sidecar's peers as they are elsewhere, byte by byte what theirs write.

use std::time::Duration;

use ember_dataplane::body::Body;
use ember_dataplane::stat::{MAX_BYTES, Stat};
use http::Request;
use http_body_util::BodyExt as _;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::{TcpListener, TcpStream};

use crate::sidecar::{MS, Sidecar, app, config, eventually};
use crate::wire::{Wire, body, echo, status};

/// The answer to the next request on a connection that stays open, by its length.
async fn answer(wire: &mut Wire) -> String {
    let head = wire.until("\r\n\r\n").await;
    let length = head.split("content-length: ").nth(1).and_then(|rest| rest.split("\r\n").next());
    let length: usize = length.unwrap_or_else(|| panic!("{head}")).parse().unwrap();
    assert!(!head.contains("connection: close"), "{head}");
    head + &wire.take(length).await
}

#[tokio::test]
async fn an_activator_probes_and_sends_requests_on_one_connection() {
    let reserved = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = reserved.local_addr().unwrap().port();
    drop(reserved);
    let probe =
        format!(r#"{{"httpGet":{{"port":{port},"host":"127.0.0.1"}},"periodSeconds":1,"timeoutSeconds":1}}"#);
    let sidecar = Sidecar::start(config(port, &[("SERVING_READINESS_PROBE", &probe)])).await;
    let mut wire = sidecar.connect(8012).await;
    let ask = format!(
        "GET /healthz HTTP/1.1\r\nHost: {}:8012\r\nUser-Agent: Knative-Activator-Probe\r\nK-Network-Probe: queue\r\n\r\n",
        sidecar.ip
    );
    // Not ready: anything but 200 and `queue`. The next probe comes on the same connection.
    wire.send(&ask).await;
    assert_eq!(status(&answer(&mut wire).await), 503);
    let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            tokio::spawn(echo(Wire::of_socket(stream)));
        }
    });
    loop {
        wire.send(&ask).await;
        let answer = answer(&mut wire).await;
        if status(&answer) == 200 {
            assert_eq!(body(&answer), "queue");
            break;
        }
        assert_eq!(status(&answer), 503);
    }
    for _ in 0..3 {
        wire.send(&format!(
            "POST /buy?x=1 HTTP/1.1\r\nHost: {}:8012\r\nUser-Agent: curl/8.5.0\r\nContent-Length: 0\r\nAccept: */*\r\nForwarded: for=1.2.3.4;proto=http\r\nK-Original-Host: shop.default.example.com\r\nK-Proxy-Request: activator\r\nX-Forwarded-For: 1.2.3.4, 10.0.0.7\r\nX-Forwarded-Proto: http\r\n\r\n",
            sidecar.ip
        ))
        .await;
        let seen = answer(&mut wire).await;
        let seen = body(&seen);
        assert!(seen.starts_with("POST /buy?x=1 HTTP/1.1\r\n"), "{seen}");
        assert!(seen.contains("host: shop.default.example.com\r\n"), "{seen}");
        assert!(seen.contains("x-forwarded-for: 1.2.3.4, 10.0.0.7, 127."), "{seen}");
        assert!(seen.contains("forwarded: for=1.2.3.4;proto=http\r\n"), "{seen}");
    }
}

#[tokio::test]
async fn an_activator_probes_8013_over_http1_and_sends_requests_over_http2() {
    // The app speaks HTTP/2 only.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let service = hyper::service::service_fn(async |request: Request<hyper::body::Incoming>| {
                let text =
                    format!("{} {}", request.uri(), request.headers()["k-proxy-request"].to_str().unwrap());
                Ok::<_, std::convert::Infallible>(http::Response::new(text))
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let config = config(port, &[("QUEUE_SERVING_PORT", "8013")]);
    let sidecar = Sidecar::start(ember_queue_proxy::Config { stat_period: 30 * MS, ..config }).await;
    let mut wire = sidecar.connect(8013).await;
    for _ in 0..2 {
        wire.send(&format!(
            "GET /healthz HTTP/1.1\r\nHost: {}:8013\r\nUser-Agent: Knative-Activator-Probe\r\nK-Network-Probe: queue\r\n\r\n",
            sidecar.ip
        ))
        .await;
        let answer = answer(&mut wire).await;
        assert_eq!((status(&answer), body(&answer)), (200, "queue"));
    }
    let stream = TcpStream::connect((sidecar.ip, 8013)).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut call = async || {
        let request = Request::get(format!("http://{}:8013/call", sidecar.ip))
            .header("k-original-host", "grpc.default.example.com")
            .header("k-proxy-request", "activator")
            .body(Body::empty())
            .unwrap();
        let answer = client.send_request(request).await.unwrap().collect().await.unwrap().to_bytes();
        assert_eq!(answer, "http://grpc.default.example.com/call activator");
    };
    // The autoscaler: at most 336 bytes of exactly this type. What came through the activator is told apart.
    eventually("a window with a request", async || {
        call().await;
        let mut scraper = sidecar.connect(9090).await;
        scraper.send(&format!("GET /metrics HTTP/1.1\r\nHost: {}:9090\r\nUser-Agent: Go-http-client/1.1\r\nAccept: application/protobuf\r\nAccept-Encoding: gzip\r\nConnection: close\r\n\r\n", sidecar.ip)).await;
        let mut bytes = scraper.bytes().await;
        let at = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
        let head = String::from_utf8_lossy(&bytes[..at]).to_lowercase();
        assert!(head.starts_with("http/1.1 200") && head.contains("content-type: application/protobuf\r\n"));
        assert!(!head.contains("content-encoding"), "{head}");
        bytes.truncate(at + MAX_BYTES);
        let stat = Stat::from_bytes(&bytes[at..]).unwrap();
        assert_eq!((stat.pod_name.as_str(), stat.request_count), ("pod-1", stat.proxied_request_count));
        stat.request_count > 0.0
    })
    .await;
}

#[tokio::test]
async fn a_kubelet_an_autoscaler_and_an_ingress_ask_each_in_their_way() {
    let sidecar = Sidecar::start(config(app(echo).await, &[])).await;
    let ip = sidecar.ip;
    let ask = async |request: String| {
        let mut wire = sidecar.connect(8012).await;
        wire.send(&request).await;
        tokio::time::timeout(Duration::from_secs(10), wire.rest()).await.unwrap()
    };
    let kubelet = ask(format!(
        "GET / HTTP/1.1\r\nHost: {ip}:8012\r\nUser-Agent: kube-probe/1.34\r\nAccept: */*\r\nK-Network-Probe: queue\r\nConnection: close\r\n\r\n"
    ));
    assert_eq!(status(&kubelet.await), 200);
    // Through the public Service when the activator is not in the path: it has to learn so.
    let autoscaler = ask(
        "GET //healthz HTTP/1.1\r\nHost: rev.ns.svc.cluster.local\r\nUser-Agent: Knative-Autoscaling-Probe\r\nK-Network-Probe: activator\r\nConnection: close\r\n\r\n"
            .to_owned(),
    );
    assert_ne!(status(&autoscaler.await), 200);
    let ingress = ask(
        "GET /healthz HTTP/1.1\r\nHost: app.ns.example.com\r\nUser-Agent: Knative-Ingress-Probe\r\nK-Network-Hash: 6c9d\r\nK-Network-Probe: probe\r\nKnative-Serving-Namespace: ns\r\nKnative-Serving-Revision: rev\r\nConnection: close\r\n\r\n"
            .to_owned(),
    );
    let ingress = ingress.await;
    assert_eq!((status(&ingress), body(&ingress)), (200, ""));
    assert!(ingress.contains("k-network-hash: 6c9d\r\n"), "{ingress}");
}
