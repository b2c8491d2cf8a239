//! Requests wait, are reported, and reach pods.

use std::sync::atomic::Ordering;
use std::time::Duration;

use bytes::Bytes;
use ember_api::serving::v1::Revision;
use http::{Request, StatusCode};
use http_body_util::Full;
use hyper_util::rt::TokioIo;
use kube::Api;
use kube::api::DeleteParams;
use serde_json::json;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

use crate::world::*;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_at_zero_is_reported_at_once_and_waits_for_the_first_pod() {
    let mut world = World::start(json!({}), |_| {}).await;
    let waiting = world.spawn("/first", " body");
    assert_eq!(world.report().await, (1.0, 1.0));
    let pod = Pod::start("a").await;
    // Not ready by Kubernetes' word: the pod's own word is enough.
    world.pods(&[], &[&pod]).await;
    assert_eq!(soon("the answer", waiting).await.unwrap(), ok("a body"));

    let (path, headers) = pod.seen.lock()[0].clone();
    assert_eq!(path, "/first");
    assert_eq!(headers["host"], pod.addr.to_string().as_str());
    assert_eq!(headers["k-original-host"], "hello.example.com");
    assert_eq!(headers["k-proxy-request"], "activator");
    assert!(!headers.contains_key("knative-serving-revision"));
    assert!(!headers.contains_key("knative-serving-namespace"));

    // By host, too; and who is unknown is told so.
    let host = [("host", "rev.ns.svc.cluster.local:80")];
    let by_host = async {
        let stream = TcpStream::connect(world.addr).await.unwrap();
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake::<_, Full<Bytes>>(TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        let request = Request::get("/").header(host[0].0, host[0].1).body(Full::default()).unwrap();
        sender.send_request(request).await.unwrap().status()
    };
    assert_eq!(soon("the answer by host", by_host).await, StatusCode::OK);
    let unknown = [("knative-serving-namespace", "ns"), ("knative-serving-revision", "other")];
    let (status, text) = world.request("/", &unknown, "").await;
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(text, "Error getting active endpoint: revision.serving.knative.dev \"other\" not found\n");
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_request_that_comes_while_the_autoscaler_restarts_is_reported_to_the_next_one() {
    for told_before in [false, true] {
        let mut world = World::start(json!({}), |config| {
            config.longest_reconnect = Duration::from_millis(20);
        })
        .await;
        let mut waiting = None;
        if told_before {
            // Told to one that forgets it.
            waiting = Some(world.spawn("/", ""));
            assert_eq!(world.report().await, (1.0, 1.0));
        }
        world.autoscaler.abort();
        assert!((&mut world.autoscaler).await.unwrap_err().is_cancelled());
        let waiting = waiting.unwrap_or_else(|| world.spawn("/", ""));
        let listener = TcpListener::bind(world.autoscaler_addr).await.unwrap();
        let (send, reports) = mpsc::unbounded_channel();
        (world.autoscaler, world.reports) = (tokio::spawn(autoscaler(listener, send)), reports);
        world.until_concurrency(1.0).await;
        let pod = Pod::start("a").await;
        world.pods(&[&pod], &[]).await;
        assert_eq!(soon("the answer", waiting).await.unwrap(), ok("a"));
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_pod_never_has_more_requests_than_its_concurrency() {
    let world = World::start(json!({"containerConcurrency": 2}), |_| {}).await;
    let waiting: Vec<_> = (0..7).map(|_| world.spawn("/hold", "")).collect();
    let pod = Pod::start("a").await;
    world.pods(&[&pod], &[]).await;
    for answered in 0..7 {
        let expected = 2.min(7 - answered);
        eventually("a full pod", async || (pod.in_flight.load(Ordering::SeqCst) == expected).then_some(()))
            .await;
        assert_eq!(pod.seen.lock().len(), answered + expected, "a place is taken as soon as it is free");
        pod.permits.add_permits(1);
        eventually("the next request", async || {
            let seen = pod.seen.lock().len();
            (seen == (answered + 1 + 2).min(7)).then_some(())
        })
        .await;
    }
    for request in waiting {
        assert_eq!(soon("an answer", request).await.unwrap(), ok("a"));
    }
    assert_eq!(pod.most.load(Ordering::SeqCst), 2);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn requests_for_a_dead_pod_go_to_another_without_error() {
    for concurrency in [0, 5] {
        let world = World::start(json!({"containerConcurrency": concurrency}), |_| {}).await;
        let (dead, alive) = (Pod::start("dead").await, Pod::start("alive").await);
        world.pods(&[&dead], &[]).await;
        assert_eq!(soon("the first answer", world.spawn("/", "")).await.unwrap(), ok("dead"));
        // The Endpoints do not know yet.
        dead.kill().await;
        let waiting: Vec<_> = (0..5).map(|_| world.spawn("/", " post")).collect();
        world.pods(&[&dead, &alive], &[]).await;
        for request in waiting {
            assert_eq!(soon("an answer", request).await.unwrap(), ok("alive post"));
        }
        for _ in 0..20 {
            assert_eq!(soon("an answer", world.spawn("/", "")).await.unwrap(), ok("alive"));
        }
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_pod_hands_back_goes_to_another_or_waits_for_one() {
    for concurrency in [0, 5] {
        let world = World::start(json!({"containerConcurrency": concurrency}), |_| {}).await;
        let (looping, other) = (Pod::start("looping").await, Pod::start("other").await);
        world.pods(&[&looping], &[]).await;
        assert_eq!(soon("the first answer", world.spawn("/", "")).await.unwrap(), ok("looping"));
        looping.probe_status.store(503, Ordering::SeqCst);
        looping.app_away.store(true, Ordering::SeqCst);

        // Nobody else is there, and there is no time to wait.
        let (status, text) = soon("an answer", world.spawn("/", " post")).await.unwrap();
        assert_eq!(status, StatusCode::BAD_GATEWAY, "{text}");
        let refused = format!("dial tcp {}: connect: connection refused\n", looping.addr);
        assert_eq!(text, refused);

        // Known to be away: requests wait, and the first pod that is there takes them.
        looping.patience.store(20_000, Ordering::SeqCst);
        looping.probe_status.store(200, Ordering::SeqCst);
        let before = looping.seen.lock().len();
        let waiting: Vec<_> = (0..5).map(|_| world.spawn("/", " post")).collect();
        eventually("the pod to refuse", async || (looping.seen.lock().len() >= before + 5).then_some(()))
            .await;
        world.pods(&[&looping, &other], &[]).await;
        for request in waiting {
            assert_eq!(soon("an answer", request).await.unwrap(), ok("other post"));
        }
        looping.app_away.store(false, Ordering::SeqCst);
        other.kill().await;
        assert_eq!(soon("an answer", world.spawn("/", " post")).await.unwrap(), ok("looping post"));
        world.stop().await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_client_that_leaves_gives_up_its_place() {
    let mut world = World::start(json!({"containerConcurrency": 1}), |config| {
        config.report_interval = Duration::from_millis(50);
    })
    .await;
    let leavers = [world.spawn("/leaver", ""), world.spawn("/leaver", "with a body")];
    let stayer = world.spawn("/stayer", "");
    world.until_concurrency(3.0).await;
    for leaver in leavers {
        leaver.abort();
        assert!(leaver.await.unwrap_err().is_cancelled());
    }
    world.until_concurrency(1.0).await;
    let pod = Pod::start("a").await;
    world.pods(&[&pod], &[]).await;
    assert_eq!(soon("the answer", stayer).await.unwrap(), ok("a"));
    assert_eq!(pod.paths(), ["/stayer"]);
    world.until_concurrency(0.0).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_waits_for_a_revision_that_is_deleted_is_told_so() {
    let mut world = World::start(json!({}), |_| {}).await;
    let waiting = world.spawn("/", "");
    world.report().await;
    let old = world.uid().await;
    let revisions: Api<Revision> = Api::namespaced(world.client.clone(), "ns");
    revisions.delete("rev", &DeleteParams::default()).await.unwrap();
    let (status, text) = soon("the answer", waiting).await.unwrap();
    assert_eq!(status, StatusCode::NOT_FOUND);
    assert_eq!(text, "Error getting active endpoint: revision.serving.knative.dev \"rev\" not found\n");

    // Made anew under the same name: the old one's pods are not its own.
    let (before, now) = (Pod::start("before").await, Pod::start("now").await);
    world.pods_of(&old, &[&before], &[]).await;
    let containers = json!([{"name": "user-container", "image": "dev.local/host"}]);
    create_revision(&world.client, &json!({"containers": containers})).await;
    let waiting = eventually("the new revision", async || {
        let waiting = world.spawn("/", "");
        let reported = tokio::select! {
            _ = world.reports.recv() => true,
            () = async { while !waiting.is_finished() { tokio::task::yield_now().await } } => false,
        };
        reported.then_some(waiting)
    })
    .await;
    world.pods(&[&now], &[]).await;
    assert_eq!(soon("the answer", waiting).await.unwrap(), ok("now"));
    assert!(before.paths().is_empty());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn waiting_counts_against_the_timeout() {
    let world = World::start(json!({"timeoutSeconds": 1}), |_| {}).await;
    let answer = soon("the answer", world.spawn("/", "")).await.unwrap();
    assert_eq!(answer, (StatusCode::GATEWAY_TIMEOUT, "activator request timeout".to_owned()));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn probes_are_answered_without_waking_anything() {
    let mut world = World::start(json!({}), |_| {}).await;
    let probe =
        |value: &'static str| [OF_REV[0], OF_REV[1], ("k-network-probe", value), ("k-network-hash", "h")];
    assert_eq!(world.request("//healthz", &probe("activator"), "").await, ok("activator"));
    assert_eq!(world.request("/", &probe("probe"), "").await, ok(""));
    let (status, text) = world.request("/", &probe("\"<queue>"), "").await;
    assert_eq!(status, StatusCode::BAD_REQUEST);
    assert_eq!(text, "unexpected probe header value: \"&#34;&lt;queue&gt;\"\n");
    assert!(world.reports.try_recv().is_err());
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn pods_come_and_go_without_an_error() {
    for concurrency in [0, 2] {
        let world = World::start(json!({"containerConcurrency": concurrency}), |_| {}).await;
        let stop = CancellationToken::new();
        let clients: Vec<_> = ["", " post", "", " post"]
            .into_iter()
            .map(|body| {
                let (addr, stop) = (world.addr, stop.clone());
                tokio::spawn(async move {
                    while !stop.is_cancelled() {
                        let (status, text) = exchange(addr, "/", &OF_REV, body).await;
                        assert_eq!(status, StatusCode::OK, "{text}");
                    }
                })
            })
            .collect();
        let mut old = Pod::start("first").await;
        world.pods(&[], &[&old]).await;
        for _ in 0..5 {
            let new = Pod::start("next").await;
            world.pods(&[&old], &[&new]).await;
            eventually("the new pod to be used", async || (!new.paths().is_empty()).then_some(())).await;
            world.pods(&[&new], &[&old]).await;
            world.pods(&[&new], &[]).await;
            // Those that go end when nobody sends them anything any more.
            eventually("the old pod to be left alone", async || {
                let (before, others) = (old.paths().len(), new.paths().len());
                eventually("other requests", async || (new.paths().len() >= others + 20).then_some(())).await;
                let idle = old.in_flight.load(Ordering::SeqCst) == 0 && old.paths().len() == before;
                idle.then_some(())
            })
            .await;
            old.kill().await;
            old = new;
        }
        stop.cancel();
        for client in clients {
            soon("a client", client).await.unwrap();
        }
        world.stop().await;
    }
}
