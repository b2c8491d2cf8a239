//! The link to the autoscaler, seen from its end: pings, silence, what a tick says, and what the kubelet is told.

use std::time::Duration;

use ember_dataplane::stat::WireStatMessages;
use futures::StreamExt;
use http::{Method, StatusCode};
use prost::Message as _;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::world::*;

const KUBELET: [(&str, &str); 1] = [("user-agent", "kube-probe/1")];

/// Takes the autoscaler's place: nobody answers there until the listener is used.
async fn replace_autoscaler(world: &mut World) -> TcpListener {
    world.autoscaler.abort();
    assert!((&mut world.autoscaler).await.unwrap_err().is_cancelled());
    TcpListener::bind(world.autoscaler_addr).await.unwrap()
}

async fn accept(listener: &TcpListener) -> WebSocketStream<TcpStream> {
    let (stream, _) = soon("a connection", listener.accept()).await.unwrap();
    soon("the handshake", tokio_tungstenite::accept_async(stream)).await.unwrap()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_link_that_answers_pings_is_kept_and_a_silent_one_is_made_again() {
    let mut world = World::start(json!({}), |config| {
        config.ping_interval = Duration::from_millis(100);
        config.longest_reconnect = Duration::from_millis(20);
    })
    .await;
    let listener = replace_autoscaler(&mut world).await;
    // More pings than a silent link lives for; reading answers them.
    loop {
        let (mut socket, mut pings) = (accept(&listener).await, 0);
        while let Some(Ok(message)) = soon("a ping", socket.next()).await {
            pings += u32::from(matches!(message, Message::Ping(_)));
            if pings == 6 {
                break;
            }
        }
        if pings == 6 {
            break;
        }
    }
    // One that is connected and says nothing is given up, whoever takes its place.
    let silent = accept(&listener).await;
    let next = accept(&listener).await;
    drop((silent, next));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_tick_is_one_message_for_all_revisions() {
    let mut world = World::start(json!({}), |config| {
        config.report_interval = Duration::from_millis(50);
        config.longest_reconnect = Duration::from_millis(20);
    })
    .await;
    let containers = json!([{"name": "user-container", "image": "dev.local/host"}]);
    create_revision_named(&world.client, "other", &json!({"containers": containers})).await;
    let of_other = [OF_REV[0], ("knative-serving-revision", "other")];
    let addr = world.addr;
    let waiting = eventually("the other revision", async || {
        let request = tokio::spawn(async move { exchange(addr, "/", &of_other, "").await });
        let reported = tokio::select! {
            message = world.reports.recv() => message.is_some(),
            () = async { while !request.is_finished() { tokio::task::yield_now().await } } => false,
        };
        reported.then_some(request)
    })
    .await;
    let of_rev = world.spawn("/", "");
    world.until_held(1.0, 0.0).await;

    let listener = replace_autoscaler(&mut world).await;
    let mut socket = accept(&listener).await;
    let mut whole = 0;
    while whole < 3 {
        let message = soon("a report", socket.next()).await.unwrap().unwrap();
        let Message::Binary(bytes) = message else { continue };
        let messages = WireStatMessages::decode(bytes).unwrap().messages;
        let mut names: Vec<_> = messages.iter().map(|message| message.name.as_str()).collect();
        names.sort_unstable();
        // What is told at once may come first, by itself.
        if names == ["other", "rev"] {
            whole += 1;
        } else {
            assert_eq!(whole, 0, "{names:?}");
        }
    }
    waiting.abort();
    of_rev.abort();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_kubelet_is_told_that_the_autoscaler_is_away() {
    let mut world = World::start(json!({}), |config| {
        config.longest_reconnect = Duration::from_millis(20);
    })
    .await;
    // It takes no connection: there is no link until it does.
    let listener = replace_autoscaler(&mut world).await;
    let answer = eventually("the loss of the link", async || {
        let answer = world.request("/", &KUBELET, "").await;
        (answer.0 != StatusCode::OK).then_some(answer)
    })
    .await;
    let text = "connection has not yet been established\n";
    assert_eq!(answer, (StatusCode::INTERNAL_SERVER_ERROR, text.to_owned()));
    let _socket = accept(&listener).await;
    eventually("the link", async || (world.request("/", &KUBELET, "").await == ok("")).then_some(())).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_port_answers_probes_whatever_method_asks() {
    let mut world = World::start(json!({}), |config| config.ports = vec![0, 0]).await;
    let ports = eventually("both ports", async || {
        let ports = world.network.listening(world.addr.ip());
        (ports.len() == 2).then_some(ports)
    })
    .await;
    for port in ports {
        for method in [
            Method::GET,
            Method::HEAD,
            Method::POST,
            Method::PUT,
            Method::PATCH,
            Method::DELETE,
            Method::OPTIONS,
            Method::TRACE,
        ] {
            for (value, body) in [("activator", "activator"), ("probe", "")] {
                let probe = [OF_REV[0], OF_REV[1], ("k-network-probe", value), ("k-network-hash", "h")];
                let answer = respond_to(port, method.clone(), "/any/path", &probe, "").await;
                assert_eq!(answer.status(), StatusCode::OK, "{method} {value}");
                let body = if method == Method::HEAD { "" } else { body };
                assert_eq!(answer.body(), body, "{method} {value}");
                if value == "probe" {
                    assert_eq!(answer.headers()["k-network-hash"], "h", "{method}");
                }
            }
        }
    }
    assert!(world.reports.try_recv().is_err());
    world.stop().await;
}
