//! What is behind a Service: pods that come and go, what they speak, and the activator where there are none.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};

use bytes::Bytes;
use http::{Request, StatusCode};
use http_body_util::{BodyExt, Full};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpStream;

use crate::pod::{Pod, h2c_pod};
use crate::world::{Connection, HOST, World, eventually, rule, split};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_request_fails_while_pods_come_and_go() {
    let world = World::start().await;
    let activator = Pod::start("activator").await;
    world.backend("knative-serving", "activator-service", &[&activator]).await;
    let mut pod = Pod::start("pod").await;
    world.backend("ns", "rev", &[&pod]).await;
    world.ingress("hello", json!([rule(HOST, &[split("rev", 100)])])).await;

    let (over, answered) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicUsize::new(0)));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let (over, answered, addr) = (Arc::clone(&over), Arc::clone(&answered), world.external);
            tokio::spawn(async move {
                let mut client = Connection::open(addr).await;
                while !over.load(Ordering::SeqCst) {
                    let answer = client.get(HOST, &[]).await;
                    assert_eq!(answer.status, StatusCode::OK, "{}", answer.text);
                    answered.fetch_add(1, Ordering::SeqCst);
                }
            })
        })
        .collect();
    let some_more = async || {
        let before = answered.load(Ordering::SeqCst);
        let alive = || clients.iter().all(|client| !client.is_finished());
        eventually("more answers", async || {
            (answered.load(Ordering::SeqCst) > before + 50 || !alive()).then_some(())
        })
        .await;
        assert!(alive(), "a request failed");
    };
    for turn in 0..6 {
        let next = Pod::start("pod").await;
        if turn % 2 == 0 {
            // The next one is known before the last one ends.
            world.backend("ns", "rev", &[&pod, &next]).await;
            some_more().await;
            world.backend("ns", "rev", &[&next]).await;
            pod.stop().await;
        } else {
            // It ends first, and the Endpoints follow: to none, to the next.
            pod.stop().await;
            some_more().await;
            world.backend("ns", "rev", &[]).await;
            some_more().await;
            world.backend("ns", "rev", &[&next]).await;
        }
        some_more().await;
        pod = next;
    }
    over.store(true, Ordering::SeqCst);
    for client in clients {
        client.await.unwrap();
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_port_of_a_service_says_what_its_pods_speak() {
    let world = World::start().await;
    let (h2c, http1) = (h2c_pod().await, Pod::start("http1").await);
    world.backend_at("ns", "named", json!({"name": "http2", "port": 80}), &[&h2c]).await;
    let port = json!({"name": "web", "port": 80, "appProtocol": "kubernetes.io/h2c"});
    world.backend_at("ns", "declared", port, &[&h2c]).await;
    world.backend("ns", "plain", &[&http1]).await;
    let rules = ["named", "declared", "plain"]
        .map(|service| rule(&format!("{service}.example.com"), &[split(service, 100)]));
    world.ingress("hello", json!(rules)).await;
    let stream = TcpStream::connect(world.external).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut client = world.outside().await;
    for (service, answer) in [("named", "HTTP/2.0 "), ("declared", "HTTP/2.0 "), ("plain", "http1")] {
        let host = format!("{service}.example.com");
        // Both kinds of clients reach both kinds of backends.
        let text = client.get(&host, &[]).await.text;
        assert!(text.starts_with(answer), "{service}: {text}");
        let request = Request::get(format!("http://{host}/")).body(Full::<Bytes>::default()).unwrap();
        let response = sender.clone().send_request(request).await.unwrap();
        assert_eq!(response.status(), StatusCode::OK);
        let other = response.into_body().collect().await.unwrap().to_bytes();
        assert_eq!(other, text);
        assert!(service == "plain" || text.ends_with(&format!("http://{host}/")), "{text}");
    }
    drop((client, sender));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_address_a_revision_is_the_activators_and_anything_else_is_unavailable() {
    let world = World::start().await;
    let activator = Pod::start("activator").await;
    world.backend("knative-serving", "activator-service", &[&activator]).await;
    world.backend("ns", "rev", &[]).await;
    world.backend("ns", "plain", &[]).await;
    let mut plain = split("plain", 100);
    plain.as_object_mut().unwrap().remove("appendHeaders");
    world
        .ingress("hello", json!([rule(HOST, &[split("rev", 100)]), rule("plain.example.com", &[plain])]))
        .await;
    let mut client = world.outside().await;
    assert_eq!(client.get(HOST, &[]).await.text, "activator");
    let seen = activator.last();
    assert_eq!(
        (&seen["host"], &seen["knative-serving-revision"]),
        (&HOST.parse().unwrap(), &"rev".parse().unwrap())
    );
    assert_eq!(client.get("plain.example.com", &[]).await.status, StatusCode::SERVICE_UNAVAILABLE);

    // More dead addresses than attempts: the activator still has its turn.
    let pods = futures::future::join_all((0..12).map(|_| Pod::start("dead"))).await;
    for pod in &pods {
        pod.stop().await;
    }
    world.backend("ns", "rev", &pods.iter().map(|pod| &**pod).collect::<Vec<_>>()).await;
    for _ in 0..20 {
        assert_eq!(client.get(HOST, &[]).await.text, "activator");
    }
    drop(client);
    world.stop().await;
}
