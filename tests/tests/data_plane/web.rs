//! HTTP/1.1 clients that keep their connections, and clients that speak HTTP/2 from the first byte.

use std::convert::Infallible;
use std::net::IpAddr;

use bytes::Bytes;
use ember_tests::soon;
use http::{Request, Response, Version};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::net::TcpListener;

use crate::hops::{HOST, Hops, REVISION};

/// Answers with what it saw: version, authority, target, headers, body. HTTP/1.1 or HTTP/2 only.
async fn app(multiplexed: bool) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let service = hyper::service::service_fn(|request: Request<Incoming>| async {
        let (head, body) = request.into_parts();
        let mut text = format!("{:?} {} {}\n", head.version, head.method, head.uri);
        for (name, value) in &head.headers {
            text += &format!("{name}: {}\n", value.to_str().unwrap());
        }
        let body = body.collect().await.unwrap().to_bytes();
        text += &format!("\n{}", String::from_utf8_lossy(&body));
        Ok::<_, Infallible>(Response::new(Full::new(Bytes::from(text))))
    });
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let io = TokioIo::new(stream);
            tokio::spawn(async move {
                if multiplexed {
                    let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    server.serve_connection(io, service).await.ok();
                } else {
                    hyper::server::conn::http1::Builder::new().serve_connection(io, service).await.ok();
                }
            });
        }
    });
    port
}

fn request(uri: &str, body: &str) -> Request<Full<Bytes>> {
    let mut request = Request::post(uri);
    for (name, value) in REVISION {
        request = request.header(name, value);
    }
    request.body(Full::new(Bytes::from(body.to_owned()))).unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    assert_eq!(response.status(), 200);
    String::from_utf8(response.into_body().collect().await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Both hops have done what is theirs.
fn assert_seen(seen: &str, h2c: bool, body: &str) {
    let value = |name: &str| {
        let mut found = seen.lines().filter_map(|line| line.strip_prefix(name)?.strip_prefix(": "));
        (found.next(), found.next())
    };
    if h2c {
        assert!(seen.starts_with(&format!("HTTP/2.0 POST http://{HOST}/a?b;c=%zz\n")), "{seen}");
    } else {
        assert!(seen.starts_with("HTTP/1.1 POST /a?b;c=%zz\n"), "{seen}");
        assert_eq!(value("host"), (Some(HOST), None), "{seen}");
    }
    assert_eq!(value("k-proxy-request"), (Some("activator"), None), "{seen}");
    for gone in ["k-original-host", "knative-serving-revision", "knative-serving-namespace", "k-network-hash"]
    {
        assert_eq!(value(gone), (None, None), "{seen}");
    }
    // Two peers, each added by the hop it spoke to.
    let peers: Vec<IpAddr> =
        value("x-forwarded-for").0.unwrap().split(", ").map(|ip| ip.parse().unwrap()).collect();
    assert_eq!(peers.len(), 2, "{seen}");
    assert_eq!(value("forwarded").0, Some(&*format!("for={}", peers[0])), "{seen}");
    assert!(seen.ends_with(&format!("\n\n{body}")), "{seen}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_http1_client_wakes_a_revision_and_keeps_its_connection() {
    for h2c in [false, true] {
        let mut hops = Hops::start(app(h2c).await, h2c).await;
        let (mut client, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(hops.connect().await)).await.unwrap();
        tokio::spawn(connection);
        let send = |client: &mut hyper::client::conn::http1::SendRequest<Full<Bytes>>, body: &str| {
            let mut request = request("/a?b;c=%zz", body);
            request.headers_mut().insert("host", HOST.parse().unwrap());
            request.headers_mut().insert("k-network-hash", "x".parse().unwrap());
            client.send_request(request)
        };
        // The first one is reported at once and waits for the pod, which the activator finds ready by itself.
        let first = tokio::spawn(send(&mut client, "first"));
        assert_eq!(soon("the report", hops.reports.recv()).await, Some((1.0, 1.0)));
        hops.publish().await;
        let first = soon("the first answer", first).await.unwrap().unwrap();
        assert_seen(&text(first).await, h2c, "first");
        for round in 0..50 {
            let body = "x".repeat(round * 100);
            soon("the connection", client.ready()).await.unwrap();
            let answer = soon("an answer", send(&mut client, &body)).await.unwrap();
            assert_seen(&text(answer).await, h2c, &body);
        }
        // The autoscaler is told that it came through the activator.
        let busy = async {
            let mut stat = hops.scrape().await;
            while stat.request_count == 0.0 {
                send(&mut client, "").await.unwrap();
                stat = hops.scrape().await;
            }
            stat
        };
        let stat = soon("a busy window", busy).await;
        assert_eq!((stat.pod_name.as_str(), stat.proxied_request_count), ("rev-1", stat.request_count));
        assert_eq!(stat.average_proxied_concurrent_requests, stat.average_concurrent_requests);
        hops.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn many_exchanges_share_an_http2_connection() {
    for h2c in [false, true] {
        let hops = Hops::start(app(h2c).await, h2c).await;
        hops.publish().await;
        let io = TokioIo::new(hops.connect().await);
        let (client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let exchanges = (0..60).map(|round| {
            let mut client = client.clone();
            tokio::spawn(async move {
                let body = format!("{round}").repeat(1000);
                client.ready().await.unwrap();
                let answer =
                    client.send_request(request(&format!("http://{HOST}/a?b;c=%zz"), &body)).await.unwrap();
                assert_eq!(answer.version(), Version::HTTP_2);
                assert_seen(&text(answer).await, h2c, &body);
            })
        });
        for exchange in exchanges.collect::<Vec<_>>() {
            soon("an answer", exchange).await.unwrap();
        }
        hops.stop().await;
    }
}
