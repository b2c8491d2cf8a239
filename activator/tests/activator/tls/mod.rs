//! TLS inside the system, over real sockets: clients → activator → queue-proxies → apps, with what the API says of
//! certificates.

mod authority;
mod world;

use ember_dataplane::body::Body;
use ember_dataplane::tls::Settings;
use http::Request;
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints};
use kube::Api;
use kube::api::{Patch, PatchParams};
use serde_json::json;
use tokio::net::TcpStream;

use self::authority::{Authority, ROUTING, secret};
use self::world::{Pod, SYSTEM, World, http1, http2, post, put, text};
use crate::world::{eventually, soon};

const DATA_PLANE: &str = "data-plane.knative.dev";

const OF_NS: [&str; 2] = ["kn-user-ns", DATA_PLANE];

#[tokio::test]
async fn http1_requests_go_by_tls_from_end_to_end() {
    let authority = Authority::new("one");
    let world = World::serving(authority.secret()).await;
    let pod = Pod::start(false, Some(authority.pair(&OF_NS))).await;
    world.revision(false, &[&pod]).await;
    assert_eq!(world.ask("/plain").await, (200, "HTTP/1.1 /plain body".to_owned()));
    let response = http1(authority.connect(world.tls()).await.unwrap(), "/a").await;
    assert_eq!(text(response).await, "HTTP/1.1 /a body");
    let response = http2(authority.connect(world.tls()).await.unwrap(), "/b").await;
    assert_eq!(text(response).await, "HTTP/1.1 /b body");
    // Its own probes are answered there, too.
    let stream = authority.connect(world.tls()).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let probe = Request::get("/healthz")
        .header("host", "a")
        .header("k-network-probe", "probe")
        .header("k-network-hash", "abc")
        .body(Body::empty())
        .unwrap();
    let answer = soon("an answer", sender.send_request(probe)).await.unwrap();
    assert_eq!(answer.headers()["k-network-hash"], "abc");
    world.stop().await;
}

#[tokio::test]
async fn http2_requests_keep_their_trailers() {
    let authority = Authority::new("one");
    let world = World::serving(authority.secret()).await;
    let pod = Pod::start(true, Some(authority.pair(&OF_NS))).await;
    world.revision(true, &[&pod]).await;
    for round in 0..10 {
        let stream = authority.connect(world.tls()).await.unwrap();
        let response = http2(stream, "/echo.Echo/Talk").await;
        assert_eq!(response.status(), 200, "{round}");
        let collected = soon("the answer's end", response.into_body().collect()).await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "HTTP/2.0 /echo.Echo/Talk body");
    }
    world.stop().await;
}

#[tokio::test]
async fn a_pod_of_another_namespace_is_told_nothing() {
    let authority = Authority::new("one");
    let world = World::serving(authority.secret()).await;
    let pod = Pod::start(false, Some(authority.pair(&["kn-user-other", DATA_PLANE]))).await;
    world.revision(false, &[&pod]).await;
    let refused =
        "san \"kn-user-ns\" does not have a matching name in [kn-user-other data-plane.knative.dev]\n";
    assert_eq!(world.ask("/").await, (502, refused.to_owned()));
    // Nothing but its certificate was wrong.
    put(&pod.files, &authority.pair(&OF_NS));
    eventually("the right certificate", async || (world.ask("/").await.0 == 200).then_some(())).await;
    world.stop().await;
}

#[tokio::test]
async fn a_pod_that_speaks_no_tls_is_not_tried_for_ever() {
    let authority = Authority::new("one");
    let world = World::serving(authority.secret()).await;
    let (one, two) = (Pod::start(false, None).await, Pod::start(false, None).await);
    world.revision(false, &[&one, &two]).await;
    let (status, answer) = world.ask("/").await;
    assert_eq!(status, 502, "{answer}");
    assert!(answer.ends_with(":8112: connect: connection refused\n"), "{answer}");
    world.stop().await;
}

#[tokio::test]
async fn certificate_and_authorities_follow_the_api() {
    let (one, two, three) = (Authority::new("one"), Authority::new("two"), Authority::new("three"));
    let world = World::serving(one.secret()).await;
    let pod = Pod::start(false, Some(one.pair(&OF_NS))).await;
    world.revision(false, &[&pod]).await;
    assert_eq!(world.ask("/").await.0, 200);
    let stream = one.connect(world.tls()).await.unwrap();
    let (mut open, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);

    // Another certificate for the activator; the authority of the pods, among others, in the same text as before.
    let (certificate, key) = two.pair(&[ROUTING]);
    let authorities = format!("{}\n-----BEGIN CERTIFICATE-----\nAAAA\n{}", two.pem, one.pem);
    world.edit_secret(secret(&certificate, &key, &authorities)).await;
    eventually("the new certificate", async || two.connect(world.tls()).await.ok()).await;
    assert!(one.connect(world.tls()).await.is_err());
    let response = soon("an answer", open.send_request(post("/open"))).await.unwrap();
    assert_eq!(text(response).await, "HTTP/1.1 /open body");
    assert_eq!(world.ask("/").await.0, 200);

    // One that cannot be used is not.
    world.edit_secret(json!({"tls.crt": ByteString(b"garbage".to_vec())})).await;
    world.bundle("garbage", json!({"a": "garbage", "b": "-----BEGIN CERTIFICATE-----\nAAAA"})).await;
    // Whatever comes later has been seen by then.
    let stranger = Pod::start(false, Some(three.pair(&OF_NS))).await;
    let endpoints: Api<Endpoints> = Api::namespaced(world.client.clone(), "ns");
    let moved = json!({"subsets": [
        {"addresses": [{"ip": stranger.ip}], "ports": [{"name": "http", "port": 8012}]},
    ]});
    endpoints.patch("rev-private", &PatchParams::default(), &Patch::Merge(&moved)).await.unwrap();
    eventually("the stranger", async || {
        let (status, answer) = world.ask("/").await;
        (status == 502 && answer.contains("invalid peer certificate")).then_some(())
    })
    .await;
    world.bundle("more", json!({"any": format!("{}{}", one.pem, three.pem)})).await;
    eventually("trust in the stranger", async || (world.ask("/").await.0 == 200).then_some(())).await;
    assert!(two.connect(world.tls()).await.is_ok());

    // A good one is taken again.
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), SYSTEM);
    world.edit_secret(three.secret()).await;
    eventually("the last certificate", async || three.connect(world.tls()).await.ok()).await;
    maps.delete("more", &kube::api::DeleteParams::default()).await.unwrap();
    assert_eq!(world.ask("/").await.0, 200);
    world.stop().await;
}

#[tokio::test]
async fn what_cannot_be_served_with_is_fatal() {
    let world = World::start(None, |_| {}).await;
    let missing =
        "system-internal-tls is enabled, but Secret knative-serving/routing-serving-certs is missing";
    assert_eq!(world.failed().await, missing);

    let authority = Authority::new("one");
    let (certificate, _) = authority.pair(&[ROUTING]);
    let world = World::start(Some(secret(&certificate, "", &authority.pem)), |_| {}).await;
    let said = world.failed().await;
    assert!(said.contains("routing-serving-certs cannot be used: private key"), "{said}");

    let wrong = Settings::from_env("ACTIVATOR_", |name| name.ends_with("MIN_VERSION").then_some("1.1"));
    let world = World::start(Some(authority.secret()), |config| config.tls_settings = wrong).await;
    assert_eq!(world.failed().await, "invalid ACTIVATOR_TLS_MIN_VERSION \"1.1\": must be 1.2 or 1.3");
}

#[tokio::test]
async fn where_there_is_no_tls_requests_go_in_clear_text() {
    let world = World::start(None, |config| config.tls_port = None).await;
    eventually("the activator", async || TcpStream::connect((world.ip, 8012)).await.ok()).await;
    let pod = Pod::start(false, None).await;
    world.revision(false, &[&pod]).await;
    assert_eq!(world.ask("/").await.0, 200);
    assert!(TcpStream::connect(world.tls()).await.is_err());
    world.stop().await;
}
