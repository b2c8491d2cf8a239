//! QP-DRN: the end, in the contract's own times, on a clock that jumps.

use std::sync::Arc;

use tokio::task::JoinHandle;
use tokio::time::Instant;

use crate::network::{APP, App, Memory};
use crate::sidecar::{ACTIVATOR, AUTOSCALER, KUBELET, MS, S, Sidecar, config};
use crate::wire::{OK, Wire, body, status};

/// An app that takes the seconds of the path, and switches protocols when asked.
fn app(memory: &Arc<Memory>) -> App {
    memory.app(|mut wire: Wire| async move {
        while let Some(head) = wire.head().await {
            if head.contains("upgrade: websocket") {
                wire.send(
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
                )
                .await;
                while wire.try_until("ping").await.is_ok() {
                    wire.try_send("pong").await;
                }
                return;
            }
            let seconds: u32 = head.split(['/', ' ']).nth(2).unwrap().parse().unwrap_or(0);
            tokio::time::sleep(seconds * S).await;
            wire.try_send(OK).await;
        }
    })
}

async fn simulate(memory: &Arc<Memory>) -> Sidecar {
    let mut sidecar = Sidecar::simulate(config(APP, &[]), memory).await;
    sidecar.until_ready().await;
    sidecar
}

/// The preStop hook of the app's container.
fn hook(memory: &Arc<Memory>) -> JoinHandle<Instant> {
    let wire = memory.connect(8022);
    tokio::spawn(async move {
        let answer = wire.exchange("GET", "/wait-for-drain", "").await;
        assert_eq!((status(&answer), body(&answer)), (200, ""));
        Instant::now()
    })
}

fn get(memory: &Arc<Memory>, path: &'static str) -> JoinHandle<String> {
    tokio::spawn(memory.connect(8012).exchange("GET", path, ""))
}

/// Timers run in whole milliseconds.
#[track_caller]
fn about(since: Instant, at: Instant, seconds: u32) {
    let took = at - since;
    assert!(took >= seconds * S && took < seconds * S + 20 * MS, "{took:?} instead of {seconds} s");
}

#[tokio::test(start_paused = true)]
async fn an_idle_pod_is_gone_after_the_quiet_period_and_the_hook_waits_for_it() {
    let memory = Memory::new();
    let _app = app(&memory);
    let mut sidecar = simulate(&memory).await;
    let begun = Instant::now();
    // The kubelet runs the hook first, or ends the sidecar first: the containers of a pod end side by side.
    let early = hook(&memory);
    tokio::time::sleep(500 * MS).await;
    sidecar.shutdown.cancel();
    tokio::time::sleep(S).await;
    let late = hook(&memory);
    assert_eq!(body(&memory.get(8012, "/", KUBELET).await), "shutting down\n");
    // Idle connections, of clients and of the autoscaler, hold nothing up.
    let (_client, _scraper) = (memory.connect(8012), memory.connect(9090));
    sidecar.end().await;
    about(begun, Instant::now(), 30);
    about(begun, early.await.unwrap(), 30);
    about(begun, late.await.unwrap(), 30);
    for port in [8012, 8022, 9090] {
        assert!(!memory.listens(port), "{port}");
    }
}

#[tokio::test(start_paused = true)]
async fn requests_are_served_and_begin_the_quiet_period_anew_and_probes_do_not() {
    let memory = Memory::new();
    let _app = app(&memory);
    let mut sidecar = simulate(&memory).await;
    let begun = Instant::now();
    sidecar.shutdown.cancel();
    let waiting = hook(&memory);
    for at in 1..=25 {
        tokio::time::sleep_until(begun + at * S).await;
        for probe in [KUBELET, ACTIVATOR, AUTOSCALER, "k-network-probe: probe\r\nk-network-hash: h\r\n"] {
            assert_eq!(status(&memory.get(8012, "/", probe).await), 503);
        }
        if at == 10 {
            assert_eq!(body(&memory.get(8012, "/", "").await), "ok");
        }
        // Still scraped, so that the autoscaler takes it for no mesh.
        assert!(memory.get(9090, "/metrics", "").await.starts_with("HTTP/1.1 200"));
    }
    sidecar.end().await;
    about(begun, Instant::now(), 40);
    about(begun, waiting.await.unwrap(), 40);
}

#[tokio::test(start_paused = true)]
async fn what_runs_is_waited_for_and_the_app_outlives_it() {
    let memory = Memory::new();
    let _app = app(&memory);
    let mut sidecar = simulate(&memory).await;
    let begun = Instant::now();
    let running = get(&memory, "/100");
    tokio::time::sleep(S).await;
    sidecar.shutdown.cancel();
    let waiting = hook(&memory);
    sidecar.end().await;
    assert_eq!(body(&running.await.unwrap()), "ok");
    about(begun, Instant::now(), 100);
    about(begun, waiting.await.unwrap(), 100);
}

#[tokio::test(start_paused = true)]
async fn a_hook_without_sigterm_returns_after_a_second_and_probes_recover() {
    let memory = Memory::new();
    let _app = app(&memory);
    let mut sidecar = simulate(&memory).await;
    let running = get(&memory, "/50");
    for _ in 0..3 {
        let begun = Instant::now();
        let (one, another) = (hook(&memory), hook(&memory));
        tokio::time::sleep(500 * MS).await;
        assert_eq!(body(&memory.get(8012, "/", ACTIVATOR).await), "shutting down\n");
        assert_eq!(body(&memory.get(8012, "/0", "").await), "ok");
        about(begun, one.await.unwrap(), 1);
        about(begun, another.await.unwrap(), 1);
        assert_eq!(body(&memory.get(8012, "/", ACTIVATOR).await), "queue");
    }
    for (path, code) in [("/", 404), ("/wait-for-drain/", 404), ("/other", 404)] {
        assert_eq!(status(&memory.get(8022, path, "").await), code);
    }
    assert_eq!(body(&running.await.unwrap()), "ok", "none of this has touched it");
    // The pod's own end is not shortened by what went before.
    let begun = Instant::now();
    sidecar.end().await;
    about(begun, Instant::now(), 30);
}

#[tokio::test(start_paused = true)]
async fn upgraded_streams_have_sixty_seconds_after_the_quiet_period() {
    let memory = Memory::new();
    let _app = app(&memory);
    for leaves_at in [None, Some(45)] {
        let mut sidecar = simulate(&memory).await;
        let mut stream = memory.connect(8012);
        stream.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
        stream.until("\r\n\r\n").await;
        let begun = Instant::now();
        sidecar.shutdown.cancel();
        let client = tokio::spawn(async move {
            for at in (5..).step_by(5) {
                tokio::time::sleep_until(begun + at * S).await;
                if leaves_at == Some(at)
                    || !stream.try_send("ping").await
                    || stream.try_until("pong").await.is_err()
                {
                    return if leaves_at.is_some() { String::new() } else { stream.rest().await };
                }
            }
            unreachable!()
        });
        sidecar.end().await;
        about(begun, Instant::now(), leaves_at.unwrap_or(90));
        assert_eq!(client.await.unwrap(), "", "a clean end");
    }
}
