//! QP-BRK: how many run, how many wait, and who is refused.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use tokio::sync::Semaphore;

use crate::network::{APP, App, Memory};
use crate::sidecar::{S, Sidecar, config, eventually};
use crate::wire::{OK, Wire, body, status};

/// An app whose requests run until they are released; notes how many did at a time, and which.
#[derive(Clone)]
struct Held {
    release: Arc<Semaphore>,
    running: Arc<AtomicUsize>,
    most: Arc<AtomicUsize>,
    paths: Arc<parking_lot::Mutex<Vec<String>>>,
}

impl Held {
    fn start(memory: &Arc<Memory>) -> (Self, App) {
        let held = Self {
            release: Arc::new(Semaphore::new(0)),
            running: Arc::default(),
            most: Arc::default(),
            paths: Arc::default(),
        };
        let app = held.clone();
        let app = memory.app(move |mut wire: Wire| {
            let app = app.clone();
            async move {
                while let Some(head) = wire.head().await {
                    app.paths.lock().push(head.split(' ').nth(1).unwrap().to_owned());
                    let running = app.running.fetch_add(1, Ordering::SeqCst) + 1;
                    app.most.fetch_max(running, Ordering::SeqCst);
                    app.release.acquire().await.unwrap().forget();
                    app.running.fetch_sub(1, Ordering::SeqCst);
                    wire.try_send(OK).await;
                }
            }
        });
        (held, app)
    }

    fn running(&self) -> usize {
        self.running.load(Ordering::SeqCst)
    }
}

#[tokio::test(start_paused = true)]
async fn the_limit_runs_ten_times_as_many_wait_and_the_rest_is_refused_at_once() {
    for limit in [1, 2, 7] {
        let memory = Memory::new();
        let (held, _app) = Held::start(&memory);
        let env = [("CONTAINER_CONCURRENCY", &*limit.to_string())];
        let _sidecar = Sidecar::simulate(config(APP, &env), &memory).await;
        let mut clients = Vec::new();
        for index in 0..11 * limit + 3 {
            let path = format!("/{index}");
            let client = memory.connect(8012);
            clients.push(tokio::spawn(async move { client.exchange("GET", &path, "").await }));
            // One after the other, so that it is known who comes last.
            tokio::time::sleep(S / 1000).await;
        }
        for refused in clients.drain(11 * limit..) {
            let answer = refused.await.unwrap();
            assert_eq!((status(&answer), body(&answer)), (503, "pending request queue full\n"));
            assert!(answer.contains("content-type: text/plain; charset=utf-8\r\n"), "{answer}");
        }
        assert_eq!(held.running(), limit);
        held.release.add_permits(11 * limit);
        for client in clients {
            assert_eq!(body(&client.await.unwrap()), "ok");
        }
        assert_eq!(held.most.load(Ordering::SeqCst), limit);
        if limit == 1 {
            let arrivals: Vec<_> = (0..11).map(|index| format!("/{index}")).collect();
            assert_eq!(*held.paths.lock(), arrivals, "first come, first served");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn below_one_there_is_no_limit() {
    for limit in ["0", "-1"] {
        let memory = Memory::new();
        let (held, _app) = Held::start(&memory);
        let _sidecar = Sidecar::simulate(config(APP, &[("CONTAINER_CONCURRENCY", limit)]), &memory).await;
        let clients: Vec<_> =
            (0..200).map(|_| tokio::spawn(memory.connect(8012).exchange("GET", "/", ""))).collect();
        eventually("all run", async || held.running() == 200).await;
        held.release.add_permits(200);
        for client in clients {
            assert_eq!(body(&client.await.unwrap()), "ok");
        }
    }
}

#[tokio::test(start_paused = true)]
async fn who_leaves_or_is_timed_out_gives_up_its_place() {
    let memory = Memory::new();
    let (held, _app) = Held::start(&memory);
    let env = [("CONTAINER_CONCURRENCY", "1"), ("REVISION_TIMEOUT_SECONDS", "10")];
    let _sidecar = Sidecar::simulate(config(APP, &env), &memory).await;
    let runner = tokio::spawn(memory.connect(8012).exchange("GET", "/runner", ""));
    eventually("it runs", async || held.running() == 1).await;
    let leavers: Vec<_> =
        (0..10).map(|_| tokio::spawn(memory.connect(8012).exchange("GET", "/leaver", ""))).collect();
    tokio::time::sleep(S).await;
    assert_eq!(status(&memory.get(8012, "/", "").await), 503, "the queue is full");
    for leaver in leavers {
        leaver.abort();
        assert!(leaver.await.unwrap_err().is_cancelled());
    }
    tokio::time::sleep(S).await;
    let waiter = tokio::spawn(memory.connect(8012).exchange("GET", "/waiter", ""));
    // The runner's time is up: its place goes to the one who waits, who is the only one left.
    assert_eq!(status(&runner.await.unwrap()), 504);
    eventually("the waiter runs", async || held.paths.lock().last().is_some_and(|path| path == "/waiter"))
        .await;
    held.release.add_permits(2);
    assert_eq!(body(&waiter.await.unwrap()), "ok");
    assert_eq!(*held.paths.lock(), ["/runner", "/waiter"]);
}

#[tokio::test(start_paused = true)]
async fn an_upgraded_stream_holds_its_place_to_its_end() {
    let memory = Memory::new();
    let _app = memory.app(|mut wire: Wire| async move {
        while let Some(head) = wire.head().await {
            if head.contains("upgrade: websocket") {
                wire.send(
                    "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n",
                )
                .await;
                wire.rest().await;
                return;
            }
            wire.send(OK).await;
        }
    });
    let _sidecar = Sidecar::simulate(config(APP, &[("CONTAINER_CONCURRENCY", "1")]), &memory).await;
    let mut stream = memory.connect(8012);
    stream.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n").await;
    stream.until("\r\n\r\n").await;
    let waiting = tokio::spawn(memory.connect(8012).exchange("GET", "/", ""));
    tokio::time::sleep(S).await;
    assert!(!waiting.is_finished());
    drop(stream);
    assert_eq!(body(&waiting.await.unwrap()), "ok");
}
