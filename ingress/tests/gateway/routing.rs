//! Hosts, splits, and the headers that the gateway sees to.

use std::collections::HashMap;

use ember_api::networking::v1alpha1::Ingress;
use ember_api::status::Conditioned;
use ember_ingress::fingerprint::fingerprint;
use http::StatusCode;
use kube::Api;
use serde_json::json;

use crate::pod::Pod;
use crate::world::{Connection, HOST, LOCAL_HOST, World, eventually, rule, split};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn hosts_are_known_or_not_and_local_ones_only_inside() {
    let world = World::start().await;
    let pod = Pod::start("pod").await;
    world.backend("ns", "rev", &[&pod]).await;
    let mut local = rule(LOCAL_HOST, &[split("rev", 100)]);
    local["visibility"] = "ClusterLocal".into();
    let ingress = world.ingress("hello", json!([rule(HOST, &[split("rev", 100)]), local])).await;
    let status = ingress.status.unwrap();
    for balancer in [status.public_load_balancer, status.private_load_balancer] {
        assert_eq!(
            balancer.unwrap().ingress[0].domain_internal,
            "ember-gateway.knative-serving.svc.cluster.local"
        );
    }
    let (mut outside, mut inside) = (world.outside().await, Connection::open(world.internal).await);
    assert_eq!(outside.get("other.example.com", &[]).await.status, StatusCode::NOT_FOUND);
    assert_eq!(outside.get(LOCAL_HOST, &[]).await.status, StatusCode::NOT_FOUND);
    let answers = [
        outside.get("HELLO.ns.example.com:8080", &[]).await,
        inside.get(HOST, &[]).await,
        inside.get(LOCAL_HOST, &[]).await,
    ];
    for answer in answers {
        assert_eq!((answer.status, answer.text.as_str()), (StatusCode::OK, "pod"));
    }
    drop((outside, inside));
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn internal_headers_of_clients_do_not_pass_and_the_hash_is_filled_in() {
    let world = World::start().await;
    let pod = Pod::start("pod").await;
    world.backend("ns", "rev", &[&pod]).await;
    let ingress = world.ingress("hello", json!([rule(HOST, &[split("rev", 100)])])).await;
    let mut client = world.outside().await;
    let forged = [
        ("k-kubelet-probe", "x"),
        ("k-proxy-request", "activator"),
        ("k-original-host", "x"),
        ("k-passthrough-lb", "true"),
        ("knative-direct-lb", "true"),
        ("knative-serving-revision", "other"),
        ("knative-serving-namespace", "other"),
        ("k-network-probe", "probe"),
        ("k-network-probe", "queue"),
        ("x-forwarded-proto", "https"),
        ("x-forwarded-for", "192.0.2.1"),
        ("k-network-hash", "mine"),
        ("traceparent", "00-1-2-03"),
    ];
    assert_eq!(client.get(HOST, &forged).await.status, StatusCode::OK);
    let seen = pod.last();
    for name in
        ["k-kubelet-probe", "k-proxy-request", "k-original-host", "k-passthrough-lb", "knative-direct-lb"]
    {
        assert!(!seen.contains_key(name), "{name}");
    }
    assert!(!seen.contains_key("k-network-probe"));
    assert_eq!(seen["host"], HOST);
    assert_eq!(seen.get_all("knative-serving-revision").iter().collect::<Vec<_>>(), ["rev"]);
    assert_eq!(seen.get_all("knative-serving-namespace").iter().collect::<Vec<_>>(), ["ns"]);
    assert_eq!(seen["x-forwarded-proto"], "http");
    assert_eq!(seen["x-forwarded-for"], "192.0.2.1, 127.0.0.1");
    assert_eq!(seen["k-network-hash"], "mine");
    assert_eq!(seen["traceparent"], "00-1-2-03");

    // Nor does a client get rid of what the gateway says by naming it as its own hop's.
    let named = [
        ("connection", "knative-serving-revision, knative-serving-namespace, x-forwarded-proto"),
        ("connection", "x-forwarded-for, host, x-mine"),
        ("x-forwarded-for", "192.0.2.1"),
        ("x-mine", "1"),
    ];
    assert_eq!(client.get(HOST, &named).await.status, StatusCode::OK);
    let seen = pod.last();
    assert_eq!(
        (&seen["knative-serving-revision"], &seen["knative-serving-namespace"]),
        (&"rev".parse().unwrap(), &"ns".parse().unwrap())
    );
    assert_eq!(
        (&seen["x-forwarded-proto"], &seen["host"]),
        (&"http".parse().unwrap(), &HOST.parse().unwrap())
    );
    assert_eq!(seen["x-forwarded-for"], "192.0.2.1, 127.0.0.1");
    assert!(!seen.contains_key("x-mine"));

    // Such a request ends the connection, too.
    let mut two = world.outside().await;
    assert_eq!(two.get(HOST, &[("host", LOCAL_HOST)]).await.status, StatusCode::BAD_REQUEST);
    assert!(two.0.ready().await.is_err());

    client.get(HOST, &[("k-network-probe", "probe"), ("k-network-hash", "override")]).await;
    let seen = pod.last();
    assert_eq!(seen["k-network-probe"], "probe");
    assert_eq!(seen["k-network-hash"], fingerprint(&ingress.spec, "ns", "hello").as_str());
    drop(client);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn shares_are_exact_and_go_on_while_pods_change() {
    let world = World::start().await;
    let (most, few) = (Pod::start("most").await, Pod::start("few").await);
    world.backend("ns", "most", &[&most]).await;
    world.backend("ns", "few", &[&few]).await;
    world.backend("ns", "none", &[&few]).await;
    let splits = [split("most", 93), split("few", 7), split("none", 0)];
    world.ingress("hello", json!([rule(HOST, &splits)])).await;
    let mut clients = [world.outside().await, world.outside().await];
    let mut counts: HashMap<String, usize> = HashMap::new();
    for turn in 0..200 {
        if turn == 150 {
            // Other changes leave the turns where they are.
            world.ingress("other", json!([rule("other.example.com", &[split("few", 100)])])).await;
        }
        let answer = clients[turn % 2].get(HOST, &[]).await;
        *counts.entry(answer.text).or_default() += 1;
    }
    assert_eq!(counts, HashMap::from([("most".to_owned(), 186), ("few".to_owned(), 14)]));
    assert!(few.seen.lock().iter().all(|seen| seen["knative-serving-revision"] == "few"));
    drop(clients);
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_older_ingress_takes_its_new_host_and_the_younger_one_is_told() {
    let world = World::start().await;
    let (first, second) = (Pod::start("first").await, Pod::start("second").await);
    world.backend("ns", "first", &[&first]).await;
    world.backend("ns", "second", &[&second]).await;
    // Of one second, the name decides.
    world.ingress("a", json!([rule("a.example.com", &[split("first", 100)])])).await;
    world.ingress("b", json!([rule(HOST, &[split("second", 100)])])).await;
    let mut client = world.outside().await;
    assert_eq!(client.get(HOST, &[]).await.text, "second");

    let of_first = |host| rule(host, &[split("first", 100)]);
    world.ingress("a", json!([of_first("a.example.com"), of_first(HOST)])).await;
    assert_eq!(client.get(HOST, &[]).await.text, "first");
    let api: Api<Ingress> = Api::namespaced(world.client.clone(), "ns");
    eventually("the conflict", async || {
        let ready = api.get("b").await.unwrap();
        (ready.ready_condition()?.reason == "DomainConflict").then_some(())
    })
    .await;

    world.ingress("a", json!([of_first("a.example.com")])).await;
    eventually("the host to be free", async || api.get("b").await.unwrap().is_ready().then_some(())).await;
    assert_eq!(client.get(HOST, &[]).await.text, "second");
    drop(client);
    world.stop().await;
}
