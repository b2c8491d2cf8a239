//! Pods behind a mesh: reached through their Service, or through the mesh by name.

use std::sync::atomic::Ordering;

use serde_json::json;

use crate::world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn where_a_mesh_answers_in_the_pods_stead_their_service_is_used() {
    let world = World::start(json!({"containerConcurrency": 2}), |_| {}).await;
    let (pod, later, service) =
        (Pod::start("pod").await, Pod::start("later").await, Pod::start("service").await);
    pod.probe_status.store(503, Ordering::SeqCst);
    later.probe_status.store(502, Ordering::SeqCst);
    world.pods(&[], &[&pod]).await;
    let waiting = world.spawn("/", "");
    // Without a Service there is nothing to use.
    eventually("a probe of the pod", async || (pod.probes.lock().len() > 2).then_some(())).await;
    world.service(service.addr).await;
    world.pods(&[&pod], &[&later]).await;
    assert_eq!(soon("the answer", waiting).await.unwrap(), ok("service"));
    let host = service.seen.lock()[0].1["host"].clone();
    assert_eq!(host, service.addr.to_string().as_str());

    // It has the places of all ready pods. It goes on being used though pods could be reached now, until there are none.
    let running: Vec<_> = (0..3).map(|_| world.spawn("/hold", "")).collect();
    world.until_held(1.0, 2.0).await;
    pod.probe_status.store(200, Ordering::SeqCst);
    later.probe_status.store(200, Ordering::SeqCst);
    world.pods(&[&pod, &later], &[]).await;
    world.until_held(0.0, 3.0).await;
    service.permits.add_permits(3);
    for request in running {
        assert_eq!(soon("an answer", request).await.unwrap(), ok("service"));
    }
    assert!(pod.paths().is_empty() && later.paths().is_empty());
    world.pods(&[], &[]).await;
    let waiting = world.until_cold().await;
    world.pods(&[&pod], &[]).await;
    assert_eq!(soon("the answer", waiting).await.unwrap(), ok("pod"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_that_answer_themselves_are_waited_for() {
    let world = World::start(json!({}), |_| {}).await;
    let (pod, service) = (Pod::start("pod").await, Pod::start("service").await);
    pod.probe_status.store(404, Ordering::SeqCst);
    world.service(service.addr).await;
    world.pods(&[&pod], &[]).await;
    let waiting = world.spawn("/", "");
    eventually("probes of the pod", async || (pod.probes.lock().len() > 5).then_some(())).await;
    pod.probe_status.store(200, Ordering::SeqCst);
    assert_eq!(soon("the answer", waiting).await.unwrap(), ok("pod"));
    assert!(service.probes.lock().is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn in_a_mesh_pods_are_never_addressed() {
    let network = json!({"mesh-compatibility-mode": "Enabled"});
    let world = World::start_in(&network, json!({}), |_| {}).await;
    let (pod, service) = (Pod::start("pod").await, Pod::start("service").await);
    let waiting = world.spawn("/", "");
    world.until_held(1.0, 0.0).await;
    world.pods(&[&pod], &[]).await;
    world.service(service.addr).await;
    assert_eq!(soon("the answer", waiting).await.unwrap(), ok("service"));
    // When it cannot be reached it has to prove itself again; nothing is lost meanwhile.
    service.probe_status.store(503, Ordering::SeqCst);
    service.kill().await;
    let waiting = world.spawn("/", "");
    world.until_held(1.0, 0.0).await;
    assert!(pod.probes.lock().is_empty() && pod.paths().is_empty());
    waiting.abort();
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_a_mesh_ready_pods_are_trusted() {
    let network = json!({"mesh-compatibility-mode": "disabled"});
    let world = World::start_in(&network, json!({}), |_| {}).await;
    let (pod, service) = (Pod::start("pod").await, Pod::start("service").await);
    pod.probe_status.store(503, Ordering::SeqCst);
    world.service(service.addr).await;
    world.pods(&[&pod], &[]).await;
    assert_eq!(soon("the answer", world.spawn("/", "")).await.unwrap(), ok("pod"));
    assert!(pod.probes.lock().is_empty() && service.probes.lock().is_empty());
    // Not ready any more: it has to prove itself.
    world.pods(&[], &[&pod]).await;
    eventually("a probe", async || (!pod.probes.lock().is_empty()).then_some(())).await;
    let waiting = world.spawn("/", "");
    world.until_held(1.0, 0.0).await;
    pod.probe_status.store(200, Ordering::SeqCst);
    assert_eq!(soon("the answer", waiting).await.unwrap(), ok("pod"));
    assert!(service.probes.lock().is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_mesh_may_be_asked_to_pass_requests_through() {
    let network = json!({"enable-mesh-pod-addressability": "true"});
    let world = World::start_in(&network, json!({}), |_| {}).await;
    let (pod, service) = (Pod::start("pod").await, Pod::start("service").await);
    pod.probe_status.store(503, Ordering::SeqCst);
    world.service(service.addr).await;
    world.pods(&[&pod], &[]).await;
    let waiting = world.spawn("/", "");
    eventually("probes", async || (pod.probes.lock().len() > 3).then_some(())).await;
    pod.probe_status.store(200, Ordering::SeqCst);
    assert_eq!(soon("the answer", waiting).await.unwrap(), ok("pod"));
    let probe = pod.probes.lock()[0].clone();
    let request = pod.seen.lock()[0].1.clone();
    for headers in [&probe, &request] {
        assert_eq!(headers["host"], "rev-private.ns");
        assert_eq!(headers["k-passthrough-lb"], "true");
    }
    assert_eq!(request["k-original-host"], "hello.example.com");
    assert!(service.probes.lock().is_empty());
    world.stop().await;
}
