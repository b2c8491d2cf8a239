//! QP-TMO: the three timers, in the contract's own units, on a clock that jumps.

use std::sync::Arc;
use std::time::Duration;

use tokio::time::Instant;

use crate::network::{APP, App, Memory};
use crate::sidecar::{MS, S, Sidecar, config, eventually};
use crate::wire::{OK, Wire, body, status};

const TOTAL: &str = "REVISION_TIMEOUT_SECONDS";
const START: &str = "REVISION_RESPONSE_START_TIMEOUT_SECONDS";
const IDLE: &str = "REVISION_IDLE_TIMEOUT_SECONDS";
const UPGRADE: &str = "GET /upgrade HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const SWITCH: &str = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n";
const CHUNKED: &str = "HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n";

/// An app that does what the path says.
fn app(memory: &Arc<Memory>) -> App {
    memory.app(|mut wire: Wire| async move {
        while let Some(head) = wire.head().await {
            match head.split(' ').nth(1).unwrap() {
                "/silent" => {}
                "/late" => {
                    tokio::time::sleep(200 * S).await;
                    wire.try_send(OK).await;
                }
                "/pause" => {
                    wire.send(&format!("{CHUNKED}3\r\none\r\n")).await;
                    tokio::time::sleep(20 * S).await;
                    wire.try_send("3\r\ntwo\r\n0\r\n\r\n").await;
                }
                "/steps" => {
                    wire.send(CHUNKED).await;
                    for _ in 0..5 {
                        tokio::time::sleep(3 * S).await;
                        wire.try_send("4\r\nstep\r\n").await;
                    }
                }
                "/sized" => wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart").await,
                "/upgrade" => {
                    wire.send(SWITCH).await;
                    while wire.try_until("ping").await.is_ok() {
                        wire.try_send("pong").await;
                    }
                }
                _ => wire.send(OK).await,
            }
        }
    })
}

async fn simulate(memory: &Arc<Memory>, env: &[(&str, &str)]) -> Sidecar {
    Sidecar::simulate(config(APP, env), memory).await
}

/// Timers run in whole milliseconds.
fn took(begun: Instant, expected: Duration) {
    let took = begun.elapsed();
    assert!(took >= expected && took < expected + 10 * MS, "{took:?} instead of {expected:?}");
}

#[tokio::test(start_paused = true)]
async fn each_timer_alone_answers_504_in_its_time() {
    for (timer, seconds) in [(TOTAL, 5), (START, 3), (IDLE, 4)] {
        let memory = Memory::new();
        let _app = app(&memory);
        let _sidecar = simulate(&memory, &[(timer, &seconds.to_string())]).await;
        let begun = Instant::now();
        let answer = memory.get(8012, "/silent", "").await;
        took(begun, seconds * S);
        assert_eq!((status(&answer), body(&answer)), (504, "request timeout"), "{timer}");
        assert!(!answer.contains("retry-after"), "{answer}");
    }
}

#[tokio::test(start_paused = true)]
async fn zero_switches_off_two_of_them_and_the_whole_to_at_once() {
    let memory = Memory::new();
    let _app = app(&memory);
    let _sidecar = simulate(&memory, &[(START, "0"), (IDLE, "0")]).await;
    let begun = Instant::now();
    assert_eq!(body(&memory.get(8012, "/late", "").await), "ok");
    took(begun, 200 * S);
    for whole in ["0", "-1"] {
        let memory = Memory::new();
        let _app = app(&memory);
        let _sidecar = simulate(&memory, &[(TOTAL, whole)]).await;
        let begun = Instant::now();
        assert_eq!(status(&memory.get(8012, "/", "").await), 504);
        took(begun, Duration::ZERO);
    }
}

#[tokio::test(start_paused = true)]
async fn response_start_is_over_with_the_first_byte() {
    let memory = Memory::new();
    let _app = app(&memory);
    let _sidecar = simulate(&memory, &[(START, "2")]).await;
    let answer = memory.get(8012, "/pause", "").await;
    assert_eq!(status(&answer), 200);
    assert!(answer.ends_with("3\r\none\r\n3\r\ntwo\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn writes_put_off_idle_and_silence_ends_what_has_begun() {
    let memory = Memory::new();
    let _app = app(&memory);
    let _sidecar = simulate(&memory, &[(IDLE, "4")]).await;
    let begun = Instant::now();
    let answer = memory.get(8012, "/steps", "").await;
    took(begun, 19 * S);
    assert_eq!(answer.matches("4\r\nstep\r\n").count(), 5, "{answer}");
    assert!(answer.ends_with("4\r\nstep\r\nF\r\nrequest timeout\r\n0\r\n\r\n"), "{answer}");
    // What has a length cannot be added to: it breaks off.
    let begun = Instant::now();
    let answer = memory.get(8012, "/sized", "").await;
    took(begun, 4 * S);
    assert!(answer.contains("content-length: 100\r\n") && answer.ends_with("\r\n\r\npart"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn the_whole_request_ends_in_the_middle_too() {
    let memory = Memory::new();
    let _app = app(&memory);
    let _sidecar = simulate(&memory, &[(TOTAL, "7")]).await;
    let begun = Instant::now();
    let answer = memory.get(8012, "/steps", "").await;
    took(begun, 7 * S);
    assert!(answer.ends_with("4\r\nstep\r\n4\r\nstep\r\nF\r\nrequest timeout\r\n0\r\n\r\n"), "{answer}");
}

#[tokio::test(start_paused = true)]
async fn what_the_client_sends_is_no_progress() {
    for (timer, seconds) in [(START, 3), (IDLE, 4)] {
        let memory = Memory::new();
        let _app = app(&memory);
        let _sidecar = simulate(&memory, &[(timer, &seconds.to_string())]).await;
        let mut client = memory.connect(8012);
        client.send("POST /silent HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let begun = Instant::now();
        for _ in 0..seconds {
            client.try_send("1\r\nx\r\n").await;
            tokio::time::sleep(S).await;
        }
        assert_eq!(status(&client.until("request timeout").await), 504);
        took(begun, seconds * S);
    }
}

#[tokio::test(start_paused = true)]
async fn waiting_for_a_place_counts_and_ends_by_the_same_timers() {
    let memory = Memory::new();
    let _app = app(&memory);
    let sidecar = simulate(&memory, &[("CONTAINER_CONCURRENCY", "1"), (TOTAL, "10"), (IDLE, "6")]).await;
    // Holds the place: writes keep it from idling.
    let holder = tokio::spawn(memory.connect(8012).exchange("GET", "/steps", ""));
    tokio::time::sleep(S).await;
    let begun = Instant::now();
    let waiting = memory.get(8012, "/silent", "").await;
    took(begun, 6 * S);
    assert_eq!((status(&waiting), body(&waiting)), (504, "request timeout"));
    assert!(!holder.is_finished());
    // The one who waited has left: the place goes to who comes now, when the holder's time is up.
    let next = memory.get(8012, "/", "").await;
    assert_eq!(body(&next), "ok");
    took(begun, 9 * S);
    assert!(holder.await.unwrap().ends_with("request timeout\r\n0\r\n\r\n"));
    drop(sidecar);
}

#[tokio::test(start_paused = true)]
async fn upgraded_streams_live_within_the_timers_and_end_with_them() {
    let memory = Memory::new();
    let _app = app(&memory);
    let upgraded = async || {
        let mut client = memory.connect(8012);
        client.send(UPGRADE).await;
        client.until("\r\n\r\n").await;
        client
    };
    let ping = async |client: &mut Wire, after: u32| {
        tokio::time::sleep(after * S).await;
        client.try_send("ping").await && client.try_until("pong").await.is_ok()
    };
    for (timer, value, steps, silent_for) in [
        // Traffic keeps it from idling; silence ends it.
        (IDLE, "4", &[3, 3, 3, 3, 3][..], Some(4)),
        // It has begun with its first message; nothing ends it then.
        (START, "4", &[3, 20, 20], None),
        // The whole is the whole, whatever passes.
        (TOTAL, "10", &[3, 3, 3], Some(1)),
    ] {
        let mut sidecar = simulate(&memory, &[(timer, value)]).await;
        let mut client = upgraded().await;
        for step in steps {
            assert!(ping(&mut client, *step).await, "{timer}");
        }
        let begun = Instant::now();
        match silent_for {
            Some(seconds) => {
                assert_eq!(client.rest().await, "");
                took(begun, seconds * S);
            }
            None => drop(client),
        }
        // One whose first message is too late fails, whichever timer it is.
        let mut late = upgraded().await;
        assert!(!ping(&mut late, 11).await, "{timer}");
        sidecar.end().await;
        eventually("the port is free", async || !memory.listens(8012)).await;
    }
}
