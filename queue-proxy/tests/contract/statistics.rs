//! QP-STA: what the autoscaler reads.

use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::stat::{MAX_BYTES, Stat};
use tokio::time::Instant;

use crate::network::{APP, App, Memory};
use crate::sidecar::{MS, S, Sidecar, app, config, eventually};
use crate::wire::{OK, Wire, ok};

/// An app that takes the milliseconds of the path.
fn slow(memory: &Arc<Memory>) -> App {
    memory.app(|mut wire: Wire| async move {
        while let Some(head) = wire.head().await {
            let wanted = head.split(['/', ' ']).nth(2).unwrap().parse().unwrap();
            tokio::time::sleep(Duration::from_millis(wanted)).await;
            wire.try_send(OK).await;
        }
    })
}

/// The head and the body of an answer in bytes.
fn split(mut bytes: Vec<u8>) -> (String, Vec<u8>) {
    let at = bytes.windows(4).position(|window| window == b"\r\n\r\n").unwrap() + 4;
    let body = bytes.split_off(at);
    (String::from_utf8(bytes).unwrap(), body)
}

/// As the autoscaler does: the exact type, and no more than it reads.
async fn scrape(mut wire: Wire) -> Vec<u8> {
    wire.send("GET /metrics HTTP/1.1\r\nhost: 10.0.0.1:9090\r\nuser-agent: Go-http-client/1.1\r\naccept: application/protobuf\r\nconnection: close\r\n\r\n").await;
    let (head, mut body) = split(wire.bytes().await);
    assert!(head.starts_with("HTTP/1.1 200"), "{head}");
    assert!(head.contains("content-type: application/protobuf\r\n"), "{head}");
    body.truncate(MAX_BYTES);
    body
}

async fn stat(memory: &Memory) -> Stat {
    Stat::from_bytes(&scrape(memory.connect(9090)).await).unwrap()
}

/// Averages and counts, proxied last.
fn assert_stat(stat: &Stat, expected: [f64; 4]) {
    let found = [
        stat.average_concurrent_requests,
        stat.request_count,
        stat.average_proxied_concurrent_requests,
        stat.proxied_request_count,
    ];
    for (found, expected) in found.iter().zip(expected) {
        assert!((found - expected).abs() < 0.01, "{stat:?} instead of {expected:?}");
    }
    assert_eq!((stat.pod_name.as_str(), stat.timestamp), ("pod-1", 0));
}

const PROXIED: &str = "k-proxy-request: activator\r\n";

#[tokio::test(start_paused = true)]
async fn averages_are_integrals_of_a_second_and_counts_are_arrivals() {
    // Requests as (start, duration, headers) in milliseconds, and the reports of the seconds.
    type Vector = (&'static [(u64, u64, &'static str)], &'static [[f64; 4]]);
    let vectors: [Vector; 5] = [
        (&[(0, 600, ""), (100, 890, "")], &[[1.49, 2.0, 0.0, 0.0], [0.0; 4]]),
        (&[(0, 1500, "")], &[[1.0, 1.0, 0.0, 0.0], [0.5, 0.0, 0.0, 0.0], [0.0; 4]]),
        (&[(0, 500, PROXIED), (0, 990, "")], &[[1.49, 2.0, 0.5, 1.0], [0.0; 4]]),
        (&[(0, 2990, PROXIED)], &[[1.0, 1.0, 1.0, 1.0], [1.0, 0.0, 1.0, 0.0], [0.99, 0.0, 0.99, 0.0]]),
        // Somebody else's name is none.
        (&[(250, 500, "k-proxy-request: gateway\r\n")], &[[0.5, 1.0, 0.0, 0.0]]),
    ];
    for (requests, reports) in vectors {
        let memory = Memory::new();
        let _app = slow(&memory);
        let begun = Instant::now();
        let _sidecar = Sidecar::simulate(config(APP, &[]), &memory).await;
        for (start, duration, headers) in requests {
            let memory = Arc::clone(&memory);
            tokio::spawn(async move {
                tokio::time::sleep_until(begun + Duration::from_millis(*start)).await;
                memory.get(8012, &format!("/{duration}"), headers).await
            });
        }
        for (second, expected) in (1..).zip(reports) {
            // Twice between two ticks: reading changes nothing, and the uptime is that of the tick.
            for part in [200, 700] {
                tokio::time::sleep_until(begun + second * S + part * MS).await;
                let stat = stat(&memory).await;
                assert_stat(&stat, *expected);
                assert!((stat.process_uptime - f64::from(second)).abs() < 0.01, "{stat:?}");
            }
        }
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_counts_and_what_the_kubelet_asks_does_not() {
    let memory = Memory::new();
    let _app = slow(&memory);
    let begun = Instant::now();
    let _sidecar = Sidecar::simulate(config(APP, &[("CONTAINER_CONCURRENCY", "1")]), &memory).await;
    for headers in ["", PROXIED, "user-agent: kube-probe/1\r\n", "k-kubelet-probe: x\r\n"] {
        tokio::spawn(memory.connect(8012).exchange("GET", "/5000", headers));
    }
    tokio::time::sleep_until(begun + 1500 * MS).await;
    assert_stat(&stat(&memory).await, [2.0, 2.0, 1.0, 1.0]);
}

#[tokio::test(start_paused = true)]
async fn the_bytes_are_those_of_the_reference() {
    let memory = Memory::new();
    let _app = slow(&memory);
    let begun = Instant::now();
    let _sidecar = Sidecar::simulate(config(APP, &[]), &memory).await;
    assert_eq!(scrape(memory.connect(9090)).await, b"\x0a\x05pod-1", "before the first tick");
    tokio::spawn(memory.connect(8012).exchange("GET", "/5000", ""));
    tokio::time::sleep_until(begun + 1500 * MS).await;
    let bytes = scrape(memory.connect(9090)).await;
    let (name, rest) = bytes.split_at(7);
    assert_eq!(name, b"\x0a\x05pod-1");
    assert_eq!((bytes.len(), [rest[0], rest[9], rest[18]]), (34, [0x11, 0x21, 0x31]), "zeros are left out");
    assert_eq!(rest[1..9], 1.0f64.to_le_bytes());
    assert_eq!(rest[10..18], 1.0f64.to_le_bytes());
}

#[tokio::test]
async fn the_longest_name_fits_and_neither_accept_nor_method_matter() {
    let name = "p".repeat(253);
    let config = config(app(ok).await, &[("SERVING_POD", &name)]);
    let sidecar = Sidecar::start(ember_queue_proxy::Config { stat_period: 20 * MS, ..config }).await;
    for headers in ["", PROXIED] {
        assert!(sidecar.get(8012, "/", headers).await.ends_with("ok"));
    }
    eventually("a report", async || {
        let bytes = scrape(sidecar.connect(9090).await).await;
        let stat = Stat::from_bytes(&bytes).unwrap();
        assert_eq!(stat.pod_name, name);
        stat.process_uptime > 0.0
    })
    .await;
    for accept in ["text/plain", "*/*", "application/openmetrics-text", ""] {
        for method in ["GET", "POST", "PUT"] {
            let wire = sidecar.connect(9090).await;
            let answer = wire.exchange(method, "/metrics?x=y", &format!("accept: {accept}\r\n")).await;
            assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
            assert!(answer.contains("content-type: application/protobuf\r\n"), "{answer}");
            assert!(answer.contains(&name), "{answer}");
        }
    }
    for other in ["/", "/metrics/", "/stats"] {
        assert!(sidecar.get(9090, other, "").await.starts_with("HTTP/1.1 404"));
    }
}
