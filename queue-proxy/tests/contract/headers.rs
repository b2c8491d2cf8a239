//! QP-HDR: what the app sees of a request.

use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use ember_dataplane::body::Body;
use http::{HeaderMap, Request, Response, Uri};
use http_body_util::Full;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo};
use parking_lot::Mutex;
use tokio::net::{TcpListener, TcpStream};

use crate::sidecar::{Sidecar, app, config};
use crate::wire::{body, echo};

/// What the app saw of a request with these lines, in lower case.
async fn seen(sidecar: &Sidecar, path: &str, headers: &str) -> String {
    let answer = sidecar.get(8012, path, headers).await;
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    body(&answer).to_lowercase()
}

/// The values of a header, line by line.
fn values<'a>(head: &'a str, name: &str) -> Vec<&'a str> {
    let lines = head.lines().filter_map(|line| line.split_once(": "));
    lines.filter(|(found, _)| *found == name).map(|(_, value)| value).collect()
}

#[tokio::test]
async fn forwarded_is_made_of_what_there_is_and_never_overwritten() {
    let sidecar = Sidecar::start(config(app(echo).await, &[])).await;
    let (xff, xfh, xfp) =
        ("x-forwarded-for: 127.0.0.1, ::1\r\n", "x-forwarded-host: h\r\n", "x-forwarded-proto: p\r\n");
    for (headers, expected) in [
        ([xff, xfh, xfp].concat(), Some(r#"for=127.0.0.1;host=h;proto=p, for="[::1]""#)),
        (xff.to_owned(), Some(r#"for=127.0.0.1, for="[::1]""#)),
        ([xff, xfp].concat(), Some(r#"for=127.0.0.1;proto=p, for="[::1]""#)),
        ([xfh, xfp].concat(), Some("host=h;proto=p")),
        ("x-forwarded-for: ,,,\r\n".to_owned(), Some("for=, for=, for=")),
        // Only the first line of each counts.
        (
            ["x-forwarded-for: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2\r\n", xfh].concat(),
            Some("for=1.1.1.1;host=h"),
        ),
        (["forwarded: for=9.9.9.9\r\n", xff, xfh].concat(), Some("for=9.9.9.9")),
        (String::new(), None),
    ] {
        let head = seen(&sidecar, "/", &headers).await;
        assert_eq!(values(&head, "forwarded").first().copied(), expected, "{head}");
    }
}

#[tokio::test]
async fn the_peer_is_added_and_what_concerns_one_hop_goes() {
    let sidecar = Sidecar::start(config(app(echo).await, &[])).await;
    let head = seen(&sidecar, "/", "").await;
    let peer = values(&head, "x-forwarded-for").join("|");
    assert!(peer.starts_with("127.") && !peer.contains(','), "{head}");
    for absent in ["x-forwarded-proto", "x-forwarded-host", "user-agent", "accept-encoding"] {
        assert!(values(&head, absent).is_empty(), "nothing is invented: {head}");
    }
    let head = seen(
        &sidecar,
        "/",
        "x-forwarded-for: 1.1.1.1\r\nx-forwarded-for: 2.2.2.2, 3.3.3.3\r\nx-forwarded-proto: https\r\nx-forwarded-host: a.b\r\nuser-agent: mine/1\r\naccept-encoding: br\r\n",
    )
    .await;
    assert_eq!(values(&head, "x-forwarded-for"), [format!("1.1.1.1, 2.2.2.2, 3.3.3.3, {peer}")]);
    for (name, value) in [
        ("x-forwarded-proto", "https"),
        ("x-forwarded-host", "a.b"),
        ("user-agent", "mine/1"),
        ("accept-encoding", "br"),
    ] {
        assert_eq!(values(&head, name), [value]);
    }
    let mut client = sidecar.connect(8012).await;
    client
        .send("GET / HTTP/1.1\r\nhost: a\r\nconnection: x-mine, close\r\nx-mine: 1\r\nx-kept: 1\r\nte: deflate, trailers\r\nkeep-alive: 5\r\nproxy-connection: x\r\nproxy-authenticate: x\r\nproxy-authorization: x\r\ntrailer: x\r\nupgrade: ignored\r\n\r\n")
        .await;
    let answer = client.rest().await.to_lowercase();
    let head = body(&answer);
    assert_eq!((values(head, "x-kept"), values(head, "te")), (vec!["1"], vec!["trailers"]), "{head}");
    for gone in [
        "x-mine",
        "keep-alive",
        "proxy-connection",
        "proxy-authenticate",
        "proxy-authorization",
        "trailer",
        "upgrade",
    ] {
        assert!(values(head, gone).is_empty(), "{gone} in {head}");
    }
    let head = seen(&sidecar, "/", "te: gzip\r\n").await;
    assert!(values(&head, "te").is_empty(), "{head}");
}

#[tokio::test]
async fn the_original_host_is_restored_and_the_revisions_headers_go() {
    let sidecar = Sidecar::start(config(app(echo).await, &[])).await;
    let internal = "knative-serving-revision: r\r\nknative-serving-namespace: n\r\n";
    let head = seen(&sidecar, "/", &format!("k-original-host: shop.example:8443\r\n{internal}")).await;
    assert_eq!(values(&head, "host"), ["shop.example:8443"]);
    let head = seen(&sidecar, "/", &format!("k-original-host: \r\n{internal}")).await;
    assert_eq!(values(&head, "host"), ["app"], "an empty one says nothing");
    for gone in ["k-original-host", "knative-serving-revision", "knative-serving-namespace"] {
        assert!(values(&head, gone).is_empty(), "{gone} in {head}");
    }
    // These the app sees.
    let head = seen(
        &sidecar,
        "/",
        "k-proxy-request: activator\r\nk-network-hash: x\r\nknative-serving-tag: t\r\nknative-serving-default-route: true\r\nk-passthrough-lb: true\r\n",
    )
    .await;
    for kept in [
        "k-proxy-request",
        "k-network-hash",
        "knative-serving-tag",
        "knative-serving-default-route",
        "k-passthrough-lb",
    ] {
        assert_eq!(values(&head, kept).len(), 1, "{kept} in {head}");
    }
}

#[tokio::test]
async fn the_target_arrives_byte_by_byte() {
    let sidecar = Sidecar::start(config(app(echo).await, &[])).await;
    for path in ["/", "//a//b", "/a%2Fb?x=%zz;y&&=;", "/?", "/%E4?a=b+c|d", "/x?http://y/z"] {
        let answer = sidecar.get(8012, path, "").await;
        assert!(body(&answer).starts_with(&format!("GET {path} HTTP/1.1\r\n")), "{path}: {answer}");
    }
}

#[tokio::test]
async fn over_http2_the_same_rules_hold() {
    let heads: Arc<Mutex<Vec<(Uri, HeaderMap)>>> = Arc::default();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let seen = Arc::clone(&heads);
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let seen = Arc::clone(&seen);
            let service = hyper::service::service_fn(move |request: Request<Incoming>| {
                seen.lock().push((request.uri().clone(), request.headers().clone()));
                async { Ok::<_, Infallible>(Response::new(Full::new(Bytes::from("ok")))) }
            });
            let server = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
            tokio::spawn(server.serve_connection(TokioIo::new(stream), service));
        }
    });
    let sidecar = Sidecar::start(config(port, &[("QUEUE_SERVING_PORT", "8013")])).await;
    let stream = TcpStream::connect((sidecar.ip, 8013)).await.unwrap();
    let (mut client, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::get("http://10.0.0.1:8013/a?b;c=%zz")
        .header("k-original-host", "grpc.example")
        .header("knative-serving-revision", "r")
        .header("knative-serving-namespace", "n")
        .header("x-forwarded-for", "1.1.1.1")
        .header("te", "trailers")
        .body(Body::empty())
        .unwrap();
    assert_eq!(client.send_request(request).await.unwrap().status(), 200);
    let (uri, head) = heads.lock().pop().unwrap();
    assert_eq!(uri.authority().unwrap(), "grpc.example");
    assert_eq!(uri.path_and_query().unwrap(), "/a?b;c=%zz");
    assert_eq!(
        (&head["te"], &head["forwarded"]),
        (&"trailers".parse().unwrap(), &"for=1.1.1.1".parse().unwrap())
    );
    assert!(head["x-forwarded-for"].to_str().unwrap().starts_with("1.1.1.1, 127."));
    for gone in
        ["k-original-host", "knative-serving-revision", "knative-serving-namespace", "user-agent", "host"]
    {
        assert!(!head.contains_key(gone), "{gone} in {head:?}");
    }
}
