//! The whole component against an API server: reports over a websocket, scrapes over HTTP, writes over the API.
//! What other components do, the test does: the ServerlessService's status, the pods, the activator's probe answer.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod collection;
mod convergence;
mod exposition;
mod horizontal;
#[path = "../stage/mod.rs"]
mod stage;
mod world;

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ember_api::autoscaling::v1alpha1::PodAutoscaler;
use ember_api::networking::v1alpha1::ServerlessService;
use futures::{SinkExt, StreamExt};
use http::Request;
use k8s_openapi::api::core::v1::{ConfigMap, Event, Pod};
use kube::api::{DeleteParams, Patch, PatchParams};
use kube::{Api, ResourceExt};
use serde_json::{Value, json};
use stage::cluster::create;
use stage::{PATIENCE, eventually, no_timers};
use tokio::time::Instant;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use world::{World, sleepy};

const NEVER_RAN: &str = "autoscaling.knative.dev/initial-scale";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_first_report_wakes_a_revision_without_any_timer() {
    let world = World::start(sleepy(), no_timers).await;
    world.revision("rev", 0, json!({NEVER_RAN: "0"})).await;
    let pa = world.until_active("rev", "False", "NoTraffic").await;
    assert_eq!(pa.status.unwrap().desired_scale, Some(-1), "it was never evaluated");

    let begin = Instant::now();
    world.report("rev").await;
    world.until_replicas("rev", 1).await;
    println!("report to scale: {:?}", begin.elapsed());
    let pa = world.until_active("rev", "Unknown", "Queued").await;
    assert_eq!(pa.status.unwrap().desired_scale, Some(1));

    world.pod("rev", "rev-1").await;
    world.until_active("rev", "True", "").await;
    let status = eventually("Ready", async || {
        let pa = world.api::<PodAutoscaler>().get("rev").await.unwrap();
        pa.status.filter(|s| s.conditions.is_true("Ready"))
    })
    .await;
    assert_eq!((status.actual_scale, status.service_name.as_str()), (Some(1), "rev"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_that_comes_before_the_revision_is_known_is_not_lost() {
    let world = World::start(sleepy(), no_timers).await;
    world.report("rev").await;
    world.revision("rev", 0, json!({NEVER_RAN: "0"})).await;
    world.until_replicas("rev", 1).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_restarted_autoscaler_wakes_sleeping_revisions_without_any_timer() {
    let mut world = World::start(sleepy(), no_timers).await;
    world.revision("rev", 0, json!({NEVER_RAN: "0"})).await;
    world.until_active("rev", "False", "NoTraffic").await;
    world.autoscaler.cancel();
    world.start_autoscaler().await;
    world.report("rev").await;
    world.until_replicas("rev", 1).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_revision_wakes_scales_with_its_load_and_sleeps() {
    let world = World::start(sleepy(), |config| {
        config.tick = Duration::from_millis(200);
        config.scrape_interval = Duration::from_millis(500);
    })
    .await;
    world.revision("rev", 0, json!({NEVER_RAN: "0", "autoscaling.knative.dev/target": "10"})).await;
    world.report("rev").await;
    world.until_replicas("rev", 1).await;

    // 14 a scrape, twice a second: more than one pod should carry.
    world.answers.scrapes.lock().load = 14.0;
    world.pod("rev", "rev-1").await;
    eventually("more replicas", async || world.replicas("rev").await.filter(|n| *n >= 3)).await;
    world.until_active("rev", "True", "").await;

    world.answers.scrapes.lock().load = 0.0;
    world.answers.activator_in_path.store(false, Ordering::SeqCst);
    let pa = world.until_active("rev", "False", "NoTraffic").await;
    assert_eq!(pa.status.unwrap().desired_scale, Some(0));
    assert_ne!(world.replicas("rev").await, Some(0), "pods stay until the activator is in the path");
    world.answers.activator_in_path.store(true, Ordering::SeqCst);
    world.until_replicas("rev", 0).await;

    world.api::<Pod>().delete("rev-1", &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually("no pods in the status", async || {
        let pa = world.api::<PodAutoscaler>().get("rev").await.unwrap();
        (pa.status.unwrap().actual_scale == Some(0)).then_some(())
    })
    .await;

    // And again: it has been at zero before.
    world.report("rev").await;
    world.until_replicas("rev", 1).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waking_and_sleeping_costs_few_writes_and_the_scale_comes_first() {
    let world = World::start(sleepy(), |config| {
        config.tick = Duration::from_millis(200);
        config.scrape_interval = Duration::from_millis(500);
    })
    .await;
    world.revision("rev", 0, json!({NEVER_RAN: "0"})).await;
    world.until_active("rev", "False", "NoTraffic").await;
    // Nothing of the beginning is still on its way.
    eventually("a settled ServerlessService", async || {
        let sks = world.api::<ServerlessService>().get("rev").await.unwrap();
        let pa = world.api::<PodAutoscaler>().get("rev").await.unwrap();
        let seen = sks.status?.observed_generation == sks.metadata.generation?;
        (seen && sks.spec.num_activators == 3 && pa.status?.conditions.is_true("SKSReady")).then_some(())
    })
    .await;
    world.writes.lock().clear();
    world.report("rev").await;
    world.until_active("rev", "Unknown", "Queued").await;
    world.pod("rev", "rev-1").await;
    world.until_active("rev", "True", "").await;
    world.until_active("rev", "False", "NoTraffic").await;
    world.until_replicas("rev", 0).await;
    world.api::<Pod>().delete("rev-1", &DeleteParams::default().grace_period(0)).await.unwrap();
    eventually("no pods in the status", async || {
        let pa = world.api::<PodAutoscaler>().get("rev").await.unwrap();
        (pa.status.unwrap().actual_scale == Some(0)).then_some(())
    })
    .await;
    let writes = world.writes.lock().clone();
    println!("{} writes:\n{}", writes.len(), writes.join("\n"));
    assert_eq!(writes[0], "PATCH /apis/apps/v1/namespaces/ns/deployments/rev-deployment/scale");
    assert_eq!(writes.iter().filter(|w| w.ends_with("/scale")).count(), 2, "once up, once down");
    // Eight, and room for a write that is refused as outdated and done again.
    assert!(writes.len() <= 10, "{writes:#?}");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn bounds_follow_edits_of_annotations_and_configuration() {
    let world = World::start(sleepy(), |config| {
        config.tick = Duration::from_millis(100);
        config.scrape_interval = Duration::from_millis(300);
    })
    .await;
    world.revision("rev", 1, json!({"autoscaling.knative.dev/min-scale": "2"})).await;
    world.pod("rev", "rev-1").await;
    world.until_replicas("rev", 2).await;
    let patch = json!({"metadata": {"annotations": {"autoscaling.knative.dev/min-scale": "4"}}});
    world.api::<PodAutoscaler>().patch("rev", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    world.until_replicas("rev", 4).await;

    let patch = json!({"metadata": {"annotations": {"autoscaling.knative.dev/min-scale": null}}});
    world.api::<PodAutoscaler>().patch("rev", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "knative-serving");
    let patch = json!({"data": {"min-scale": "5"}});
    maps.patch("config-autoscaler", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    world.until_replicas("rev", 5).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_unreachable_revision_has_no_least_scale_but_a_greatest() {
    let world = World::start(sleepy(), |config| config.tick = Duration::from_millis(500)).await;
    let annotations = json!({
        "autoscaling.knative.dev/min-scale": "2", "autoscaling.knative.dev/max-scale": "3",
        "autoscaling.knative.dev/target": "10",
    });
    world.revision("rev", 1, annotations).await;
    for name in ["rev-1", "rev-2"] {
        world.pod("rev", name).await;
    }
    world.until_active("rev", "True", "").await;
    world.until_replicas("rev", 2).await;
    let patch = json!({"spec": {"reachability": "Unreachable"}});
    world.api::<PodAutoscaler>().patch("rev", &PatchParams::default(), &Patch::Merge(patch)).await.unwrap();
    world.until_replicas("rev", 0).await;
    // Pods that are still there carry more than five could.
    world.answers.scrapes.lock().load = 40.0;
    world.until_replicas("rev", 3).await;
    let pa = world.api::<PodAutoscaler>().get("rev").await.unwrap();
    assert_eq!(pa.status.unwrap().desired_scale, Some(3));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_bad_configuration_leaves_the_last_good_one_in_force() {
    let mut first = sleepy();
    first["min-scale"] = "3".into();
    // As where the webhook is away: what is stored may be anything.
    let data = tempfile::tempdir().unwrap();
    let mut server = ember_apiserver::Config::new(data.path());
    server.admission = Arc::new(ember_apiserver::AdmitAll);
    let world = World::start_on(server, data, first, no_timers, None).await;
    world.revision("rev", 1, json!({})).await;
    world.until_replicas("rev", 3).await;
    let maps: Api<ConfigMap> = Api::namespaced(world.client.clone(), "knative-serving");
    let change = async |data: Value| {
        let patch = Patch::Merge(json!({"data": data}));
        maps.patch("config-autoscaler", &PatchParams::default(), &patch).await.unwrap();
    };
    change(json!({"min-scale": "7", "max-scale-up-rate": "1.0"})).await;
    world.revision("other", 1, json!({})).await;
    world.until_replicas("other", 3).await;
    change(json!({"min-scale": "5", "max-scale-up-rate": "2.0"})).await;
    for name in ["rev", "other"] {
        world.until_replicas(name, 5).await;
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_hpa_class_says_so_where_nothing_runs_it() {
    let world = World::start(sleepy(), no_timers).await;
    let pa = json!({
        "metadata": {
            "name": "rev",
            "annotations": {"autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev"},
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "rev-deployment"},
            "protocolType": "http1",
        },
    });
    create::<PodAutoscaler>(&world.client, "ns", pa).await;
    let pa = world.until_active("rev", "False", "HorizontalPodAutoscalerUnavailable").await;
    let ready = pa.status.unwrap().conditions.get("Ready").unwrap().clone();
    assert_eq!(ready.status.as_str(), "False");
    assert!(ready.message.contains("use class kpa.autoscaling.knative.dev"), "{}", ready.message);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_foreign_child_is_left_alone_and_reported() {
    let world = World::start(sleepy(), no_timers).await;
    let sks = json!({
        "metadata": {"name": "rev"},
        "spec": {"mode": "Serve", "protocolType": "http1", "objectRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "other"}},
    });
    create::<ServerlessService>(&world.client, "ns", sks).await;
    let pa = json!({
        "metadata": {
            "name": "rev",
            "annotations": {"autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev"},
        },
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "rev-deployment"},
            "protocolType": "http1",
        },
    });
    create::<PodAutoscaler>(&world.client, "ns", pa).await;
    world.until_active("rev", "False", "NotOwned").await;
    eventually("the event", async || {
        let events = world.api::<Event>().list(&Default::default()).await.unwrap();
        let text = "error reconciling SKS: PA: rev does not own SKS: rev";
        events
            .into_iter()
            .find(|e| e.reason.as_deref() == Some("InternalError") && e.message.as_deref() == Some(text))
    })
    .await;
    let sks = world.api::<ServerlessService>().get("rev").await.unwrap();
    assert_eq!((sks.spec.mode.as_str(), sks.owner_references().len()), ("Serve", 0));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_stats_port_speaks_as_activators_and_kubelets_expect() {
    let world = World::start(sleepy(), no_timers).await;
    let ask = async |headers: &str| {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let mut stream = tokio::net::TcpStream::connect(world.stats).await.unwrap();
        let request = format!("GET /any HTTP/1.1\r\nHost: autoscaler\r\nConnection: close\r\n{headers}\r\n");
        stream.write_all(request.as_bytes()).await.unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await.unwrap();
        answer.lines().next().unwrap_or_default().to_owned()
    };
    assert_eq!(ask("User-Agent: kube-probe/1.34\r\n").await, "HTTP/1.1 200 OK");
    assert_eq!(ask("K-Kubelet-Probe: queue\r\n").await, "HTTP/1.1 200 OK");
    assert_eq!(ask("").await, "HTTP/1.1 400 Bad Request");

    let connect = async |request: http::request::Builder| {
        let stream = tokio::net::TcpStream::connect(world.stats).await.unwrap();
        let request = request
            .uri("ws://autoscaler:8080")
            .header("Host", "autoscaler:8080")
            .header("Connection", "Upgrade")
            .header("Upgrade", "websocket")
            .header("Sec-WebSocket-Version", "13")
            .header("Sec-WebSocket-Key", "dGhlIHNhbXBsZSBub25jZQ==");
        tokio_tungstenite::client_async(request.body(()).unwrap(), stream).await
    };
    assert!(connect(Request::builder().header("Origin", "http://elsewhere")).await.is_err());
    let (mut socket, _) =
        connect(Request::builder().header("Origin", "http://autoscaler:8080")).await.unwrap();
    // What cannot be read ends nothing, and a ping is answered.
    socket.send(Message::Binary(Bytes::from_static(b"\xff\xff"))).await.unwrap();
    socket.send(Message::Text("hello".into())).await.unwrap();
    socket.send(Message::Ping(Bytes::from_static(b"there"))).await.unwrap();
    let pong = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    assert_eq!(pong, Message::Pong(Bytes::from_static(b"there")));

    world.shutdown.cancel();
    let goodbye = tokio::time::timeout(PATIENCE, socket.next()).await.unwrap().unwrap().unwrap();
    let Message::Close(Some(frame)) = goodbye else { panic!("{goodbye:?}") };
    assert_eq!((frame.code, frame.reason.as_str()), (CloseCode::Restart, "Restarting"));
    while let Some(Ok(_)) = socket.next().await {}
    world.stop().await;
}
