//! What becomes of requests that wait, and what is told of them: whatever their end, nothing of them stays behind.

use std::sync::atomic::Ordering;
use std::time::Duration;

use ember_api::serving::v1::Revision;
use http::StatusCode;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use tokio::net::TcpListener;
use tokio::sync::mpsc;

use crate::world::*;

/// That all places are free: as many requests as there are run at a time.
async fn all_places_are_free(world: &World, pod: &Pod, places: usize) {
    let running: Vec<_> = (0..places).map(|_| world.spawn("/hold", "")).collect();
    eventually("all places to be taken", async || {
        (pod.in_flight.load(Ordering::SeqCst) == places).then_some(())
    })
    .await;
    pod.permits.add_permits(places);
    for request in running {
        assert_eq!(soon("an answer", request).await.unwrap(), ok(pod.name));
    }
    world.until_held(0.0, 0.0).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_finds_the_queue_full_is_turned_away() {
    for concurrency in [0, 2] {
        let world = World::start(json!({"containerConcurrency": concurrency}), |config| {
            config.queue_depth = 3;
        })
        .await;
        let waiting: Vec<_> = (0..3).map(|_| world.spawn("/", "")).collect();
        world.until_held(3.0, 0.0).await;
        let (status, text) = soon("the refusal", world.spawn("/", "")).await.unwrap();
        assert_eq!(status, StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(text, "pending request queue full\n");
        world.until_held(3.0, 0.0).await;
        let pod = Pod::start("a").await;
        world.pods(&[&pod], &[]).await;
        for request in waiting {
            assert_eq!(soon("an answer", request).await.unwrap(), ok("a"));
        }
        all_places_are_free(&world, &pod, 2).await;
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_too_long_leaves_nothing_behind() {
    let world = World::start(json!({"containerConcurrency": 1, "timeoutSeconds": 1}), |_| {}).await;
    let waiting: Vec<_> = (0..5).map(|_| world.spawn("/", "")).collect();
    for request in waiting {
        let answer = soon("the answer", request).await.unwrap();
        assert_eq!(answer, (StatusCode::GATEWAY_TIMEOUT, "activator request timeout".to_owned()));
    }
    world.until_held(0.0, 0.0).await;
    // One that runs out of time in its pod gives its place back, too.
    let pod = Pod::start("a").await;
    world.pods(&[&pod], &[]).await;
    let (status, _) = soon("the answer", world.spawn("/hold", "")).await.unwrap();
    assert_eq!(status, StatusCode::GATEWAY_TIMEOUT);
    world.until_held(0.0, 0.0).await;
    assert_eq!(soon("an answer", world.spawn("/", "")).await.unwrap(), ok("a"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn clients_that_leave_take_their_counts_with_them() {
    let world = World::start(json!({"containerConcurrency": 1}), |_| {}).await;
    let pod = Pod::start("a").await;
    world.pods(&[&pod], &[]).await;
    let running = world.spawn("/hold", "");
    world.until_held(0.0, 1.0).await;
    let waiting: Vec<_> = (0..4).map(|_| world.spawn("/", " body")).collect();
    world.until_held(4.0, 1.0).await;
    for request in waiting {
        request.abort();
    }
    world.until_held(0.0, 1.0).await;
    running.abort();
    world.until_held(0.0, 0.0).await;
    pod.in_flight.store(0, Ordering::SeqCst);
    all_places_are_free(&world, &pod, 1).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_counted_for_a_revision_goes_with_it() {
    let world = World::start(json!({"containerConcurrency": 1}), |_| {}).await;
    let waiting: Vec<_> = (0..3).map(|_| world.spawn("/", "")).collect();
    world.until_held(3.0, 0.0).await;
    let revisions: Api<Revision> = Api::namespaced(world.client.clone(), "ns");
    revisions.delete("rev", &DeleteParams::default()).await.unwrap();
    for request in waiting {
        let (status, text) = soon("the answer", request).await.unwrap();
        assert_eq!(status, StatusCode::NOT_FOUND);
        assert!(text.contains("\"rev\" not found"), "{text}");
    }
    assert!(!world.scrape().await.contains(r#"="rev""#));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_carry_the_labels_of_the_contract() {
    let mut world = World::start(json!({}), |config| {
        config.report_interval = Duration::from_millis(50);
    })
    .await;
    let reachable = "kn_activator_stats_conn_reachable";
    let errors = "kn_activator_stats_conn_errors_total";
    let peer = [r#"peer="autoscaler""#, r#"otel_scope_name="knative.dev/serving/pkg/activator""#];
    assert_eq!(world.sample(reachable, &peer).await, Some(1.0));
    assert_eq!(world.sample(errors, &peer).await, Some(0.0));
    assert!(!world.scrape().await.contains(r#"="rev""#), "nothing of a revision without requests");

    let waiting = world.spawn("/", "");
    world.until_concurrency(1.0).await;
    let labels = [
        r#"kn_revision_name="rev""#,
        r#"k8s_namespace_name="ns""#,
        r#"kn_service_name="""#,
        r#"kn_configuration_name="""#,
        r#"otel_scope_name="knative.dev/serving/pkg/activator""#,
        r#"otel_scope_version="""#,
        r#"otel_scope_schema_url="""#,
    ];
    eventually("the concurrency", async || {
        let average = world.sample("kn_revision_request_concurrency", &labels).await;
        ((average? - 1.0).abs() < 1e-6).then_some(())
    })
    .await;

    world.autoscaler.abort();
    eventually("the loss of the link", async || {
        (world.sample(reachable, &peer).await == Some(0.0)).then_some(())
    })
    .await;
    assert_eq!(world.sample(errors, &peer).await, Some(1.0));
    let listener =
        eventually("the autoscaler's port", async || TcpListener::bind(world.autoscaler_addr).await.ok())
            .await;
    let (send, reports) = mpsc::unbounded_channel();
    (world.autoscaler, world.reports) = (tokio::spawn(autoscaler(listener, send)), reports);
    eventually("the link", async || (world.sample(reachable, &peer).await == Some(1.0)).then_some(())).await;
    let pod = Pod::start("a").await;
    world.pods(&[&pod], &[]).await;
    assert_eq!(soon("the answer", waiting).await.unwrap(), ok("a"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_are_measured_as_a_server_and_as_a_client() {
    let world = World::start(json!({}), |_| {}).await;
    let pod = Pod::start("a").await;
    world.pods(&[&pod], &[]).await;
    assert_eq!(soon("the answer", world.spawn("/", "12345")).await.unwrap(), ok("a12345"));
    let unknown = [OF_REV[0], ("knative-serving-revision", "other")];
    assert_eq!(world.request("/", &unknown, "").await.0, StatusCode::NOT_FOUND);
    world.request("/healthz", &[("k-network-probe", "activator")], "").await;

    let of_rev = [r#"kn_revision_name="rev""#, r#"k8s_namespace_name="ns""#, r#"kn_service_name="""#];
    let common = [
        r#"http_request_method="POST""#,
        r#"http_response_status_code="200""#,
        r#"network_protocol_version="1.1""#,
        r#"url_scheme="http""#,
        r#"otel_scope_name="go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp""#,
    ];
    let own = r#"server_address="hello.example.com""#;
    let port = format!(r#"server_port="{}""#, pod.addr.port());
    for (family, address, sum) in [
        ("http_server_request_duration_seconds", own, None),
        ("http_server_request_body_size_bytes", own, Some(5.0)),
        ("http_server_response_body_size_bytes", own, Some(6.0)),
        ("http_client_request_duration_seconds", &port, None),
        ("http_client_request_body_size_bytes", &port, Some(5.0)),
    ] {
        let labels: Vec<&str> = of_rev.iter().chain(&common).copied().chain([address]).collect();
        // A request is over when its body is, which its client may know before.
        eventually(family, async || {
            let count = world.sample(&format!("{family}_count"), &labels).await;
            (count == Some(1.0)).then_some(())
        })
        .await;
        if sum.is_some() {
            assert_eq!(world.sample(&format!("{family}_sum"), &labels).await, sum, "{family}");
        }
    }
    let text = world.scrape().await;
    let of_nobody = text.lines().find(|line| {
        line.starts_with("http_server_request_duration_seconds_count") && line.contains(r#"code="404""#)
    });
    assert!(of_nobody.is_some_and(|line| !line.contains("kn_revision_name")), "{text}");
    assert_eq!(text.matches("http_server_request_duration_seconds_count{").count(), 2, "no probe: {text}");

    // What was measured for a revision goes with it.
    let revisions: Api<Revision> = Api::namespaced(world.client.clone(), "ns");
    revisions.delete("rev", &DeleteParams::default()).await.unwrap();
    eventually("the revision to be forgotten", async || {
        (!world.scrape().await.contains(r#"="rev""#)).then_some(())
    })
    .await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_move_with_the_settings() {
    let world = World::start(json!({}), |_| {}).await;
    assert!(world.scrape().await.contains("kn_activator"));
    world.configure("config-observability", &json!({"metrics-protocol": "none"})).await;
    let scrapable = async || tokio::net::TcpStream::connect(world.metrics).await.is_ok();
    eventually("the endpoint to close", async || (!scrapable().await).then_some(())).await;
    let endpoint = format!("127.0.0.2:{}", world.metrics.port());
    let data = json!({"metrics-protocol": "prometheus", "metrics-endpoint": endpoint});
    world.configure("config-observability", &data).await;
    eventually("the endpoint to open", async || scrapable().await.then_some(())).await;
    assert!(world.scrape().await.contains("kn_activator"));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn cold_starts_are_measured_by_phase() {
    let world = World::start(json!({}), |_| {}).await;
    let family = "kn_revision_cold_start_duration_seconds";
    let pod = Pod::start("a").await;
    let answer = || {
        let addr = world.addr;
        tokio::spawn(async move { respond(addr, "/", &OF_REV, "").await })
    };
    let waiting = answer();
    world.until_held(1.0, 0.0).await;
    world.pods(&[], &[&pod]).await;
    let cold = soon("the answer", waiting).await.unwrap();
    let timing = cold.headers()["server-timing"].to_str().unwrap();
    let phases: Vec<(&str, f64)> = timing
        .split(", ")
        .map(|entry| entry.split_once(";dur=").unwrap())
        .map(|(name, millis)| (name, millis.parse().unwrap()))
        .collect();
    let names: Vec<_> = phases.iter().map(|(name, _)| *name).collect();
    assert_eq!(names, ["reported", "pod_seen", "ready", "forwarded", "total"]);
    let sum: f64 = phases[..4].iter().map(|(_, millis)| millis).sum();
    assert!((sum - phases[4].1).abs() < 0.01, "{timing}");
    assert!(phases[1].1 > 0.0, "{timing}");

    // One that finds a pod is none.
    let warm = soon("the answer", answer()).await.unwrap();
    assert!(!warm.headers().contains_key("server-timing"));
    for phase in names {
        let labels = [r#"namespace="ns""#, r#"revision="rev""#, &format!("phase=\"{phase}\"")];
        let count = world.sample(&format!("{family}_count"), &labels).await;
        assert_eq!(count, Some(1.0), "{phase}");
        let labels = [labels[1], labels[2], r#"le="60.0""#];
        assert_eq!(world.sample(&format!("{family}_bucket"), &labels).await, Some(1.0));
    }
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_activator_that_ends_serves_on_while_routing_lets_go_of_it() {
    let world = World::start(json!({}), |config| config.drain_settle = Duration::from_secs(3600)).await;
    let pod = Pod::start("a").await;
    world.pods(&[&pod], &[]).await;
    let running = world.spawn("/hold", "");
    world.until_held(0.0, 1.0).await;
    world.shutdown.cancel();
    let kubelet = [("user-agent", "kube-probe/1")];
    let answer = world.request("/", &kubelet, "").await;
    assert_eq!(answer, (StatusCode::INTERNAL_SERVER_ERROR, "received SIGTERM from kubelet\n".to_owned()));
    assert_eq!(world.request("/livez", &kubelet, "").await, ok(""));
    let probe = [("k-network-probe", "probe"), ("k-network-hash", "h")];
    assert_eq!(world.request("/healthz", &probe, "").await, ok(""));
    assert_eq!(soon("the answer", world.spawn("/", "")).await.unwrap(), ok("a"));
    pod.permits.add_permits(1);
    assert_eq!(soon("the answer", running).await.unwrap(), ok("a"));
    world.activator.abort();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_are_shared_out_among_activators() {
    let world = World::start(json!({"containerConcurrency": 1}), |config| {
        config.pod_ip = "10.0.0.2".to_owned();
    })
    .await;
    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    let mut first = world.until_cold().await;
    for (activators, port_name, count) in [
        (None, "", 2),
        (Some(&["10.0.0.1", "10.0.0.2"][..]), "http", 1),
        // On a port of another name they say nothing; nor if this activator is not among them.
        (Some(&["10.0.0.2"]), "http2", 1),
        (Some(&["10.0.0.1", "10.0.0.3", "10.0.0.4"]), "http", 1),
        (Some(&["10.0.0.2"]), "http", 2),
    ] {
        if let Some(ips) = activators {
            world.public(ips, port_name).await;
        }
        // Endpoints arrive in order: once there are pods, what was before is known.
        world.pods(&[&a, &b], &[]).await;
        assert_eq!(soon("the first answer", first).await.unwrap().0, StatusCode::OK);
        // As long as one of the pods is not proven, the other alone is used, whoever it belongs to: tried again then.
        let expected = (f64::from(2 - count), f64::from(count));
        eventually("the pods to be shared out", async || {
            let running: Vec<_> = (0..2).map(|_| world.spawn("/hold", "")).collect();
            let held = eventually("two requests to be held", async || {
                world.held().await.filter(|(queued, active)| queued + active == 2.0)
            })
            .await;
            for pod in [&a, &b] {
                pod.permits.add_permits(2);
            }
            for request in running {
                assert_eq!(soon("an answer", request).await.unwrap().0, StatusCode::OK);
            }
            for pod in [&a, &b] {
                while let Ok(permit) = pod.permits.try_acquire() {
                    permit.forget();
                }
            }
            (held == expected).then_some(())
        })
        .await;
        world.until_held(0.0, 0.0).await;
        world.pods(&[], &[]).await;
        first = world.until_cold().await;
    }
    drop(first);
    world.stop().await;
}
