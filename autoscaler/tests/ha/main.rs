//! Several replicas against one API server. Each has a runtime of its own, which a test can end without a word, as a
//! lost node ends; reports, scrapes and what replicas tell each other go over real sockets.

#![allow(clippy::unwrap_used, clippy::expect_used, reason = "a test that cannot go on fails")]

mod network;
#[path = "../stage/mod.rs"]
mod stage;
mod world;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ember_api::autoscaling::v1alpha1::PodAutoscaler;
use ember_autoscaler::{Config, Replica};
use ember_dataplane::io::{Io, SystemClock, SystemNetwork};
use futures::SinkExt;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::{Api, Client};
use network::Reach;
use serde_json::{Value, json};
use stage::cluster::{SYSTEM, cluster, create};
use stage::{PATIENCE, eventually, no_timers, report};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use world::{World, loopback};

type Reports = tokio_tungstenite::WebSocketStream<tokio::net::TcpStream>;

async fn connect(address: SocketAddr) -> Reports {
    let url = format!("ws://autoscaler.{SYSTEM}.svc.cluster.local:8080");
    eventually("the stats port", async || {
        let stream = tokio::net::TcpStream::connect(address).await.ok()?;
        Some(tokio_tungstenite::client_async(&url, stream).await.ok()?.0)
    })
    .await
}

fn election(buckets: &str, [lease, renew, retry]: [&str; 3]) -> Value {
    json!({"buckets": buckets, "lease-duration": lease, "renew-deadline": renew, "retry-period": retry})
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_scale_dips_when_an_owner_is_lost() {
    const LEASE: Duration = Duration::from_secs(4);
    const WINDOW: Duration = Duration::from_secs(12);
    let revisions = ["steady", "small", "growing"];
    let autoscaler = json!({"stable-window": "12s", "panic-window-percentage": "20"});
    let mut world = World::start(
        3,
        election("3", ["4s", "3s", "500ms"]),
        autoscaler,
        |config| config.tick = Duration::from_millis(500),
        async |_| {},
    )
    .await;
    // Each pod should carry 7 of its 10. Of the last one's five pods only two are ready by now: what its new owner
    // sees first, one report, calls for a single pod.
    let scale = |scale: &str| json!({"autoscaling.knative.dev/target": "10", "autoscaling.knative.dev/initial-scale": scale});
    world.revision("steady", 3, &[21, 22, 23], 6.0, scale("3")).await;
    world.revision("small", 2, &[31, 32], 6.0, scale("2")).await;
    world.revision("growing", 2, &[41, 42], 16.0, scale("2")).await;
    let before = world.holders(3, &world.identities()).await;
    for (name, desired) in [("steady", 3), ("small", 2), ("growing", 5)] {
        world.until_settled(name, desired).await;
    }
    eventually("the growing one's Deployment", async || {
        (world.replicas_of("growing").await == 5).then_some(())
    })
    .await;

    let lost = world.replicas.iter().position(|replica| before.values().any(|h| *h == replica.identity));
    let lost = lost.unwrap();
    let survivor = world.replicas[(lost + 1) % 3].address;
    let scales = world.scales().await;
    let mut socket = connect(survivor).await;
    let reporting = tokio::spawn(world.shutdown.clone().run_until_cancelled_owned(async move {
        loop {
            socket.send(report(&revisions, 1.0)).await.unwrap();
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }));
    let killed = Instant::now();
    world.replicas[lost].kill();
    world.holders(3, &world.identities()).await;
    let without_owner = killed.elapsed();
    println!("new owners after {without_owner:?}, of {} that one replica had", before.len());
    assert!(without_owner < LEASE + Duration::from_secs(3), "{without_owner:?}");

    // The floor is gone after a window, and the new owner has one of its own by then.
    tokio::time::sleep_until(killed + without_owner + WINDOW + Duration::from_secs(3)).await;
    let scales = scales.lock().clone();
    println!("scales since then: {scales:?}");
    for (name, least) in [("steady-deployment", 3), ("small-deployment", 2), ("growing-deployment", 5)] {
        let dips: Vec<_> = scales.iter().filter(|(of, scale)| of == name && *scale < least).collect();
        assert!(dips.is_empty(), "{dips:?}");
    }
    assert!(!reporting.is_finished());
    world.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_reaches_the_owner_through_any_replica() {
    let autoscaler = json!({"allow-zero-initial-scale": "true"});
    let world =
        World::start(2, election("2", ["60s", "40s", "10s"]), autoscaler, no_timers, async |_| {}).await;
    let names: Vec<String> = (0..6).map(|number| format!("rev-{number}")).collect();
    let zero = json!({"autoscaling.knative.dev/initial-scale": "0"});
    for name in &names {
        world.revision(name, 0, &[], 0.0, zero.clone()).await;
        world.until_settled(name, -1).await;
    }
    let holders = world.holders(2, &world.identities()).await;
    println!("{holders:?}");
    // Half of them by one replica, half by the other: whoever owns them, some are another's.
    for (replica, names) in world.replicas.iter().zip(names.chunks(3)) {
        let mut socket = connect(replica.address).await;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        socket.send(report(&names, 1.0)).await.unwrap();
        for name in names {
            eventually(&format!("{name} awake"), async || (world.replicas_of(name).await == 1).then_some(()))
                .await;
        }
    }
    // Who asks for a bucket by its name is served by its owner only.
    for (bucket, holder) in &holders {
        for replica in &world.replicas {
            let stream = tokio::net::TcpStream::connect(replica.address).await.unwrap();
            let url = format!("ws://{bucket}.{SYSTEM}.svc.cluster.local:8080");
            let served = tokio_tungstenite::client_async(url, stream).await.is_ok();
            assert_eq!(served, *holder == replica.identity, "{bucket} at {}", replica.identity);
        }
        // And is led there.
        let slices = Api::<EndpointSlice>::namespaced(world.client.clone(), SYSTEM);
        let slice = eventually("the EndpointSlice", async || slices.get_opt(bucket).await.unwrap()).await;
        assert!(holder.ends_with(&format!("_{}", slice.endpoints[0].addresses[0])), "{holder}");
        let services = Api::<Service>::namespaced(world.client.clone(), SYSTEM);
        assert!(services.get_opt(bucket).await.unwrap().is_some());
    }
    world.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_goes_by_the_buckets_service_where_the_owners_address_leads_nowhere() {
    let maps = (election("2", ["60s", "40s", "10s"]), json!({"allow-zero-initial-scale": "true"}));
    let world = World::start_reached(Reach::Service, 2, maps, no_timers, async |_| {}).await;
    let names: Vec<String> = (0..6).map(|number| format!("rev-{number}")).collect();
    for name in &names {
        world.revision(name, 0, &[], 0.0, json!({"autoscaling.knative.dev/initial-scale": "0"})).await;
        world.until_settled(name, -1).await;
    }
    let holders = world.holders(2, &world.identities()).await;
    for (replica, names) in world.replicas.iter().zip(names.chunks(3)) {
        let mut socket = connect(replica.address).await;
        let names: Vec<&str> = names.iter().map(String::as_str).collect();
        socket.send(report(&names, 1.0)).await.unwrap();
        for name in names {
            eventually(&format!("{name} awake"), async || (world.replicas_of(name).await == 1).then_some(()))
                .await;
        }
    }
    let named = world.named.lock().clone();
    println!("{holders:?}, by name: {named:?}");
    assert!(!named.is_empty() && named.iter().all(|bucket| holders.contains_key(bucket)), "{named:?}");
    world.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_ends_in_order_is_followed_at_once() {
    let autoscaler = json!({"allow-zero-initial-scale": "true"});
    let mut world =
        World::start(2, election("1", ["60s", "40s", "10s"]), autoscaler, no_timers, async |_| {}).await;
    world.revision("rev", 0, &[], 0.0, json!({"autoscaling.knative.dev/initial-scale": "0"})).await;
    world.until_settled("rev", -1).await;
    let holders = world.holders(1, &world.identities()).await;
    let owner =
        world.replicas.iter().position(|r| r.identity == holders["autoscaler-bucket-00-of-01"]).unwrap();
    // One that goes on reporting to the other notices nothing.
    let mut socket = connect(world.replicas[1 - owner].address).await;
    let begun = Instant::now();
    world.replicas[owner].shutdown.cancel();
    let heir = vec![world.replicas[1 - owner].identity.clone()];
    world.holders(1, &heir).await;
    println!("followed after {:?}", begun.elapsed());
    assert!(begun.elapsed() < Duration::from_secs(20), "that is, long before the Lease was over");
    socket.send(report(&["rev"], 1.0)).await.unwrap();
    eventually("awake", async || (world.replicas_of("rev").await == 1).then_some(())).await;
    world.replicas[owner].kill();
    world.stop();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_report_waits_while_its_bucket_has_no_owner() {
    let autoscaler = json!({"allow-zero-initial-scale": "true"});
    let world = World::start(
        1,
        election("1", ["60s", "40s", "1s"]),
        autoscaler,
        no_timers,
        async |client: &Client| {
            // Held by one that is gone, for a little longer.
            let lease = json!({
                "metadata": {"name": "autoscaler-bucket-00-of-01"},
                "spec": {
                    "holderIdentity": format!("autoscaler-gone_{}", loopback(250)), "leaseDurationSeconds": 3,
                    "renewTime": "2026-01-01T00:00:00.000000Z",
                },
            });
            create::<Lease>(client, SYSTEM, lease).await;
            // A foreign Lease is none of our business.
            create::<Lease>(client, SYSTEM, json!({"metadata": {"name": "foreign"}, "spec": {}})).await;
        },
    )
    .await;
    let mut socket = connect(world.replicas[0].address).await;
    world.revision("rev", 0, &[], 0.0, json!({"autoscaling.knative.dev/initial-scale": "0"})).await;
    socket.send(report(&["rev"], 1.0)).await.unwrap();
    let api = Api::<PodAutoscaler>::namespaced(world.client.clone(), "ns");
    assert_eq!(api.get("rev").await.unwrap().status, None, "nobody owns it");
    eventually("awake", async || (world.replicas_of("rev").await == 1).then_some(())).await;
    let foreign = Api::<Lease>::namespaced(world.client.clone(), SYSTEM).get("foreign").await.unwrap();
    assert_eq!(foreign.spec.unwrap().holder_identity, None);
    world.stop();
}

#[tokio::test]
async fn times_that_could_make_two_owners_are_refused() {
    let data = tempfile::tempdir().unwrap();
    let maps = [("config-leader-election", &json!({"lease-duration": "30s"}))];
    let server = cluster(ember_apiserver::Config::new(data.path()), &maps).await;
    let client = server.client();
    let config = Config {
        stats_addr: "127.0.0.1:0".parse().unwrap(),
        replica: Some(Replica { pod_name: "a".into(), pod_ip: "127.0.0.1".parse().unwrap() }),
        ..Config::default()
    };
    let io = Io { clock: Arc::new(SystemClock), network: Arc::new(SystemNetwork) };
    let running = ember_autoscaler::run(config, io, client, CancellationToken::new());
    let error = tokio::time::timeout(PATIENCE, running).await.unwrap().unwrap_err();
    assert_eq!(
        error.to_string(),
        "ConfigMap config-leader-election: leaseDuration must be greater than renewDeadline"
    );
    server.close();
}
