//! One of two activators is lost without a word: what it carried is lost, and nothing else.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ember_activator::Config;
use ember_dataplane::io::{Io, SystemClock};
use ember_dataplane::worker::Workers;
use http::StatusCode;
use serde_json::json;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_util::sync::CancellationToken;

use crate::world::*;

/// Whether a request on a connection of its own is answered as it should be.
async fn is_served(addr: SocketAddr) -> bool {
    let exchange = async {
        let mut stream = TcpStream::connect(addr).await?;
        let head = "GET / HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\
                    knative-serving-namespace: ns\r\nknative-serving-revision: rev\r\n\r\n";
        stream.write_all(head.as_bytes()).await?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer).await?;
        Ok::<_, std::io::Error>(answer)
    };
    soon("an end", exchange).await.is_ok_and(|answer| answer.starts_with("HTTP/1.1 200"))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_loss_of_an_activator_loses_no_more_than_it_carried() {
    const CLIENTS: usize = 4;
    let world = World::start(json!({"containerConcurrency": 2}), |config| {
        config.pod_ip = "10.0.0.1".to_owned();
    })
    .await;
    let network = Arc::new(TestNetwork::default());
    let config = Config {
        bind: [127, 0, 0, 1].into(),
        ports: vec![0],
        metrics: ([127, 0, 0, 2], 0).into(),
        pod_ip: "10.0.0.2".to_owned(),
        autoscaler: ("127.0.0.1".to_owned(), world.autoscaler_addr.port()),
        report_interval: NEVER,
        drain_settle: Duration::ZERO,
        drain_timeout: Duration::from_secs(5),
        ..Config::default()
    };
    let io = Io { clock: Arc::new(SystemClock), network: Arc::clone(&network) as _ };
    let (workers, shutdown) = (Workers::start(1).unwrap(), CancellationToken::new());
    let running = tokio::spawn(ember_activator::run(
        config,
        io,
        world.client.clone(),
        workers.clone(),
        shutdown.clone(),
    ));
    let other =
        eventually("the other activator", async || network.listening([127, 0, 0, 1].into()).first().copied())
            .await;

    let (a, b) = (Pod::start("a").await, Pod::start("b").await);
    world.public(&["10.0.0.1", "10.0.0.2"], "http").await;
    world.pods(&[&a, &b], &[]).await;
    let (stop, served) = (CancellationToken::new(), Arc::new(AtomicUsize::new(0)));
    // Those of the first activator turn to the other when they are not served, as a gateway does.
    let clients: Vec<_> = (0..2 * CLIENTS)
        .map(|client| {
            let first = if client < CLIENTS { world.addr } else { other };
            let (stop, served) = (stop.clone(), Arc::clone(&served));
            tokio::spawn(async move {
                let (mut addr, mut lost) = (first, 0);
                while !stop.is_cancelled() {
                    if is_served(addr).await {
                        served.fetch_add(1, Ordering::SeqCst);
                    } else {
                        lost += 1;
                        addr = other;
                    }
                }
                lost
            })
        })
        .collect();
    let go_on = async || {
        let before = served.load(Ordering::SeqCst);
        eventually("requests to be served", async || {
            (served.load(Ordering::SeqCst) >= before + 200).then_some(())
        })
        .await;
    };
    go_on().await;
    world.activator.abort();
    world.workers.shutdown().await;
    go_on().await;
    // Routing has learnt of it: all places are the other's.
    world.public(&["10.0.0.2"], "http").await;
    go_on().await;
    stop.cancel();
    for (client, ended) in clients.into_iter().enumerate() {
        let lost = soon("a client", ended).await.unwrap();
        let most = usize::from(client < CLIENTS);
        assert!(lost <= most, "client {client} lost {lost} requests");
    }
    let held: Vec<_> =
        (0..4).map(|_| tokio::spawn(async move { exchange(other, "/hold", &OF_REV, "").await })).collect();
    eventually("all places to be the other's", async || {
        let there = [&a, &b].map(|pod| pod.in_flight.load(Ordering::SeqCst));
        (there == [2, 2]).then_some(())
    })
    .await;
    for pod in [&a, &b] {
        pod.permits.add_permits(2);
    }
    for request in held {
        assert_eq!(soon("an answer", request).await.unwrap().0, StatusCode::OK);
    }
    shutdown.cancel();
    soon("the other activator to end", running).await.unwrap().unwrap();
    workers.shutdown().await;
    world.autoscaler.abort();
    world.server.close();
}
