//! One hop over real sockets: client → server → proxy → backend.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use ember_dataplane::address::Address;
use ember_dataplane::body::Body;
use ember_dataplane::drain::{Drain, InFlight, Outcome, Quiet};
use ember_dataplane::error::{respond, timed_out};
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::proxy::{Failure, Outbound, Proxy};
use ember_dataplane::server::{self, Conn, Handler, Options};
use ember_dataplane::timeout::Timeouts;
use ember_dataplane::worker::Workers;
use http::{Request, Response};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

const LONG: Duration = Duration::from_secs(30);

struct Hop {
    proxy: Proxy,
    backend: Address,
    timeouts: Timeouts,
    quiet: Quiet,
}

impl Handler for Hop {
    async fn handle(&self, request: Request<Body>, conn: &Arc<Conn>) -> Response<Body> {
        let deadlines = self.timeouts.start();
        let guard: InFlight = self.quiet.enter();
        let answer = deadlines.before_response(async {
            let outbound = match Outbound::new(request, conn) {
                Ok(outbound) => outbound,
                Err(error) => return respond(&error),
            };
            match self.proxy.forward(outbound, &self.backend, None).await {
                Ok(response) => response,
                Err(failure) => respond(failure.error()),
            }
        });
        let mut response = answer.await.unwrap_or_else(|_| timed_out("request timeout"));
        response.body_mut().limit(deadlines, "request timeout", Some(conn));
        response.body_mut().attach(guard);
        response
    }
}

struct Running {
    addr: SocketAddr,
    drain: Drain,
    quiet: Quiet,
    pool: Pool,
}

async fn hop_with(backend: SocketAddr, timeouts: Timeouts, options: Options) -> Running {
    let io = Io::system();
    let drain = Drain::new();
    let quiet = Quiet::new(Duration::from_millis(50));
    let pool = Pool::new(io.clone(), pool::Options::default());
    let hop = Arc::new(Hop {
        proxy: Proxy::new(pool.clone(), drain.clone()),
        backend: backend.into(),
        timeouts,
        quiet: quiet.clone(),
    });
    let listener = io.network.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let serving = drain.clone();
    tokio::spawn(async move {
        server::serve(listener, &Workers::current(), &options, &serving, |_| Arc::clone(&hop)).await;
    });
    Running { addr, drain, quiet, pool }
}

async fn hop(backend: SocketAddr) -> Running {
    hop_with(backend, Timeouts::default(), Options::default()).await
}

/// A backend that treats each connection with `serve`.
async fn backend<F, T>(serve: F) -> SocketAddr
where
    F: Fn(Wire) -> T + Send + Sync + 'static,
    T: Future<Output = ()> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            stream.set_nodelay(true).unwrap();
            tokio::spawn(serve(Wire { stream, read: Vec::new() }));
        }
    });
    addr
}

/// Either end of a connection, in bytes.
struct Wire {
    stream: TcpStream,
    read: Vec<u8>,
}

impl Wire {
    async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    /// Reads up to and including `text`, which has to come within the limit.
    async fn until(&mut self, text: &str) -> String {
        self.try_until(text).await.unwrap_or_else(|seen| panic!("no {text:?} in {seen:?}"))
    }

    async fn try_until(&mut self, text: &str) -> Result<String, String> {
        loop {
            let seen = String::from_utf8_lossy(&self.read).into_owned();
            if let Some(at) = seen.find(text) {
                let rest = self.read.split_off(at + text.len());
                return Ok(String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap());
            }
            match tokio::time::timeout(LONG, self.stream.read_buf(&mut self.read)).await {
                Ok(Ok(read)) if read > 0 => {}
                _ => return Err(seen),
            }
        }
    }

    /// Everything up to the end of the stream.
    async fn rest(&mut self) -> String {
        tokio::time::timeout(LONG, self.stream.read_to_end(&mut self.read)).await.unwrap().ok();
        String::from_utf8(std::mem::take(&mut self.read)).unwrap()
    }
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

#[tokio::test]
async fn headers_follow_the_rules_of_a_proxy_hop() {
    let addr = backend(|mut wire| async move {
        let head = wire.until("\r\n\r\n").await;
        let answer = format!(
            "HTTP/1.1 200 OK\r\ncontent-length: {}\r\nconnection: x-mine\r\nx-mine: 1\r\nkeep-alive: 5\r\nx-kept: 1\r\n\r\n{head}",
            head.len()
        );
        wire.send(&answer).await;
        wire.rest().await;
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client
        .send(
            "GET /a?b=%zz;c HTTP/1.1\r\nHost: app.example\r\nConnection: x-hop, keep-alive\r\nX-Hop: 1\r\nTE: gzip, trailers\r\nX-Forwarded-For: 1.1.1.1\r\nX-Forwarded-For: 2.2.2.2\r\nProxy-Authorization: x\r\nX-End: 1\r\n\r\n",
        )
        .await;
    let head = client.until("\r\n\r\n").await.to_lowercase();
    let sent = client.until("\r\n\r\n").await.to_lowercase();
    assert!(head.contains("x-kept: 1") && !head.contains("x-mine") && !head.contains("keep-alive"), "{head}");
    assert!(sent.starts_with("get /a?b=%zz;c http/1.1\r\n"), "{sent}");
    assert!(sent.contains("x-forwarded-for: 1.1.1.1, 2.2.2.2, 127.0.0.1\r\n"), "{sent}");
    assert!(sent.contains("te: trailers\r\n") && sent.contains("host: app.example\r\n"), "{sent}");
    for gone in ["x-hop", "proxy-authorization", "connection:", "user-agent"] {
        assert!(!sent.contains(gone), "{gone} in {sent}");
    }
}

#[tokio::test]
async fn both_bodies_stream_and_trailers_pass() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.until("first").await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\n\r\n3\r\none\r\n")
            .await;
        let rest = wire.until("x-up: 7\r\n\r\n").await;
        assert!(rest.contains("second"), "{rest}");
        wire.send("3\r\ntwo\r\n0\r\nx-sum: 42\r\n\r\n").await;
        wire.rest().await;
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\nte: trailers\r\ntrailer: x-up\r\ntransfer-encoding: chunked\r\n\r\n5\r\nfirst\r\n")
        .await;
    client.until("one\r\n").await;
    client.send("6\r\nsecond\r\n0\r\nx-up: 7\r\n\r\n").await;
    let rest = client.until("x-sum: 42\r\n\r\n").await;
    assert!(rest.contains("two"), "{rest}");
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    eventually("the connection is back in the pool", || hop.pool.idle() == 1).await;
}

#[tokio::test]
async fn connections_are_reused_on_both_sides() {
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    let addr = backend(|mut wire| async move {
        CONNECTIONS.fetch_add(1, Ordering::SeqCst);
        while wire.try_until("\r\n\r\n").await.is_ok() {
            wire.send(OK).await;
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    for _ in 0..20 {
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.until("ok").await;
    }
    assert_eq!(CONNECTIONS.load(Ordering::SeqCst), 1);
}

#[tokio::test]
async fn a_get_of_unknown_length_keeps_its_body() {
    let addr = backend(|mut wire| async move {
        let seen = wire.until("0\r\n\r\n").await;
        assert!(seen.contains("hello"), "{seen}");
        wire.send(OK).await;
        wire.rest().await;
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client
        .send("GET / HTTP/1.1\r\nhost: a\r\ntransfer-encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n")
        .await;
    client.until("ok").await;
}

#[tokio::test]
async fn an_upgraded_stream_is_joined_half_closed_and_held() {
    let addr = backend(|mut wire| async move {
        let head = wire.until("\r\n\r\n").await.to_lowercase();
        assert!(head.contains("upgrade: echo") && head.contains("connection: upgrade"), "{head}");
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: Echo\r\n\r\nhi").await;
        wire.until("ping").await;
        wire.send("pong").await;
        assert_eq!(wire.rest().await, "", "the client's end of stream arrives");
        wire.send("bye").await;
    })
    .await;
    let options = Options { header_read_timeout: Duration::from_millis(50), ..Options::default() };
    let hop = hop_with(addr, Timeouts::default(), options).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    let head = client.until("\r\n\r\nhi").await.to_lowercase();
    assert!(head.starts_with("http/1.1 101") && head.contains("upgrade: echo"), "{head}");
    // Longer than a head may take: the timer of heads is none of an upgraded stream's business.
    tokio::time::sleep(Duration::from_millis(120)).await;
    assert_eq!(hop.quiet.in_flight(), 1, "the guard lives as long as the stream");
    client.send("ping").await;
    client.until("pong").await;
    client.stream.shutdown().await.unwrap();
    assert_eq!(client.rest().await, "bye");
    eventually("the stream is over", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn an_upgrade_to_something_else_is_a_502() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: other\r\n\r\n").await;
        wire.rest().await;
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    let head = client.until("was requested\n").await;
    assert!(head.starts_with("HTTP/1.1 502"), "{head}");
}

#[tokio::test]
async fn a_client_that_leaves_ends_the_exchange() {
    let (gone, mut left) = tokio::sync::mpsc::unbounded_channel();
    let addr = backend(move |mut wire| {
        let gone = gone.clone();
        async move {
            wire.until("\r\n\r\n").await;
            // One leaves before the head of the response, the other in the middle of the body.
            if wire.read.is_empty() {
                gone.send(()).unwrap();
            }
            wire.rest().await;
            gone.send(()).unwrap();
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    left.recv().await.unwrap();
    assert_eq!(hop.quiet.in_flight(), 1);
    drop(client);
    tokio::time::timeout(LONG, left.recv()).await.unwrap().unwrap();
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_leaves_in_mid_body_ends_the_exchange() {
    let (gone, mut left) = tokio::sync::mpsc::unbounded_channel();
    let addr = backend(move |mut wire| {
        let gone = gone.clone();
        async move {
            wire.until("\r\n\r\n").await;
            wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart").await;
            wire.rest().await;
            gone.send(()).unwrap();
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("part").await;
    drop(client);
    tokio::time::timeout(LONG, left.recv()).await.unwrap().unwrap();
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn the_body_is_asked_for_when_the_backend_agrees() {
    let (ask, mut asked) = tokio::sync::mpsc::unbounded_channel();
    let addr = backend(move |mut wire| {
        let ask = ask.clone();
        async move {
            let head = wire.until("\r\n\r\n").await.to_lowercase();
            assert!(head.contains("expect: 100-continue"), "{head}");
            ask.send(()).unwrap();
            wire.send("HTTP/1.1 100 Continue\r\n\r\n").await;
            wire.until("data").await;
            wire.send(OK).await;
            wire.rest().await;
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 4\r\nexpect: 100-continue\r\n\r\n").await;
    client.until("100 Continue\r\n\r\n").await;
    asked.try_recv().unwrap();
    client.send("data").await;
    client.until("ok").await;
}

#[tokio::test]
async fn a_refused_connection_is_a_502_in_gos_words() {
    let addr = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("POST / HTTP/1.1\r\nhost: a\r\ncontent-length: 2\r\n\r\nhi").await;
    let answer = client.until("connection refused\n").await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    assert!(answer.ends_with(&format!("dial tcp {addr}: connect: connection refused\n")), "{answer}");
}

fn post(body: &'static str) -> Outbound {
    let mut request = Request::new(Body::full(body));
    *request.method_mut() = http::Method::POST;
    Outbound::direct(request)
}

fn get() -> Outbound {
    Outbound::direct(Request::new(Body::empty()))
}

#[tokio::test]
async fn what_may_be_repeated_comes_back() {
    // Reads the request and closes without a word.
    let silent = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
    })
    .await;
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    // Breaks off within the head of the response.
    let torn = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 200").await;
    })
    .await;
    let proxy = Proxy::new(Pool::new(Io::system(), pool::Options::default()), Drain::new());
    let forward = async |outbound, addr: SocketAddr| proxy.forward(outbound, &addr.into(), None).await;

    let Err(Failure::Unsent(mut intact, error)) = forward(post("body"), closed).await else { panic!() };
    assert_eq!(error.status(), 502);
    // The very same request, body and all, reaches a backend that works.
    intact.headers_mut().insert("x-try", "2".parse().unwrap());
    let echo = backend(|mut wire| async move {
        wire.until("x-try: 2").await;
        wire.until("body").await;
        wire.send(OK).await;
        wire.rest().await;
    })
    .await;
    assert_eq!(forward(intact, echo).await.unwrap().status(), 200);

    assert!(matches!(forward(get(), silent).await, Err(Failure::NoResponse(..))));
    assert!(matches!(forward(post("body"), silent).await, Err(Failure::Final(_))));
    assert!(matches!(forward(post(""), silent).await, Err(Failure::Final(_))), "the method is not safe");
    let mut keyed = post("");
    keyed.headers_mut().insert("idempotency-key", "1".parse().unwrap());
    assert!(matches!(forward(keyed, silent).await, Err(Failure::NoResponse(..))));
    let mut keyed = post("body");
    keyed.headers_mut().insert("idempotency-key", "1".parse().unwrap());
    assert!(matches!(forward(keyed, silent).await, Err(Failure::Final(_))), "the body is gone");
    assert!(matches!(forward(get(), torn).await, Err(Failure::Final(_))), "an answer had begun");
}

#[tokio::test]
async fn stale_connections_are_noticed_whatever_the_method() {
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    // Serves one request a connection and closes without announcing it.
    let addr = backend(|mut wire| async move {
        CONNECTIONS.fetch_add(1, Ordering::SeqCst);
        wire.until("body").await;
        wire.send(OK).await;
    })
    .await;
    let pool = Pool::new(Io::system(), pool::Options::default());
    let proxy = Proxy::new(pool.clone(), Drain::new());
    for round in 1..=50 {
        let response = proxy.forward(post("body"), &addr.into(), None).await.unwrap();
        response.into_body().collect(100).await.unwrap();
        assert_eq!(CONNECTIONS.load(Ordering::SeqCst), round);
    }
}

#[tokio::test]
async fn timers_answer_504_or_end_the_body() {
    let addr = backend(|mut wire| async move {
        while let Ok(head) = wire.try_until("\r\n\r\n").await {
            if head.contains("/chunked") {
                wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n3\r\none\r\n").await;
            } else if head.contains("/sized") {
                wire.send("HTTP/1.1 200 OK\r\ncontent-length: 100\r\n\r\npart").await;
            }
        }
    })
    .await;
    let timeouts = Timeouts { total: Some(Duration::from_millis(100)), ..Timeouts::default() };
    let hop = hop_with(addr, timeouts, Options::default()).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET /silent HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let answer = client.until("request timeout").await;
    assert!(answer.starts_with("HTTP/1.1 504") && answer.contains("content-length: 15"), "{answer}");

    client.send("GET /chunked HTTP/1.1\r\nhost: a\r\n\r\n").await;
    let answer = client.until("0\r\n\r\n").await;
    assert!(answer.ends_with("3\r\none\r\nF\r\nrequest timeout\r\n0\r\n\r\n"), "{answer}");

    client.send("GET /sized HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(client.rest().await.ends_with("\r\n\r\npart"));
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_cut_off_in_time() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\n\r\n").await;
        let chunk = format!("10000\r\n{}\r\n", "x".repeat(0x10000));
        while wire.stream.write_all(chunk.as_bytes()).await.is_ok() {}
    })
    .await;
    let timeouts = Timeouts { total: Some(Duration::from_millis(200)), ..Timeouts::default() };
    let hop = hop_with(addr, timeouts, Options::default()).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn idle_upgraded_streams_end_by_the_idle_timer_active_ones_do_not() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
        while wire.try_until("ping").await.is_ok() {
            wire.send("pong").await;
        }
    })
    .await;
    let timeouts = Timeouts { idle: Some(Duration::from_millis(300)), ..Timeouts::default() };
    let hop = hop_with(addr, timeouts, Options::default()).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    let begun = tokio::time::Instant::now();
    while begun.elapsed() < Duration::from_millis(700) {
        client.send("ping").await;
        client.until("pong").await;
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert_eq!(client.rest().await, "");
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn a_draining_server_says_so_finishes_and_stops() {
    let (arrive, mut arrived) = tokio::sync::mpsc::unbounded_channel();
    let release = Arc::new(tokio::sync::Notify::new());
    let addr = backend({
        let release = Arc::clone(&release);
        move |mut wire| {
            let (arrive, release) = (arrive.clone(), Arc::clone(&release));
            async move {
                while let Ok(head) = wire.try_until("\r\n\r\n").await {
                    if head.contains("/slow") {
                        arrive.send(()).unwrap();
                        release.notified().await;
                    }
                    wire.send(OK).await;
                }
            }
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut slow = Wire::connect(hop.addr).await;
    slow.send("GET /slow HTTP/1.1\r\nhost: a\r\n\r\n").await;
    arrived.recv().await.unwrap();
    let mut idle = Wire::connect(hop.addr).await;
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    idle.until("ok").await;
    hop.drain.announce();
    let mut late = Wire::connect(hop.addr).await;
    late.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(late.rest().await.contains("connection: close"), "accepted, answered, closed");
    let finishing = tokio::spawn({
        let drain = hop.drain.clone();
        async move { drain.finish(LONG).await }
    });
    assert_eq!(idle.rest().await, "", "idle connections close");
    assert!(!finishing.is_finished());
    release.notify_one();
    let answer = slow.rest().await;
    assert!(answer.ends_with("ok") && answer.contains("connection: close"), "{answer}");
    assert_eq!(finishing.await.unwrap(), Outcome::Drained);
    assert!(TcpStream::connect(hop.addr).await.is_err(), "no longer listening");
}

#[tokio::test]
async fn an_aborted_drain_cuts_upgraded_streams() {
    let addr = backend(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n").await;
        wire.rest().await;
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: echo\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    assert_eq!(hop.drain.finish(Duration::from_millis(50)).await, Outcome::Forced);
    assert_eq!(client.rest().await, "");
    assert_eq!(hop.quiet.in_flight(), 0);
}

#[tokio::test]
async fn heads_are_bounded_in_time_and_size_and_idle_connections_are_not() {
    let addr = backend(|mut wire| async move {
        while wire.try_until("\r\n\r\n").await.is_ok() {
            wire.send(OK).await;
        }
    })
    .await;
    let options = Options {
        header_read_timeout: Duration::from_millis(100),
        max_header_bytes: 16 << 10,
        ..Options::default()
    };
    let hop = hop_with(addr, Timeouts::default(), options).await;
    let mut idle = Wire::connect(hop.addr).await;
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    idle.until("ok").await;
    let mut silent = Wire::connect(hop.addr).await;
    assert_eq!(silent.rest().await, "", "a connection that never asks is closed");
    let mut slow = Wire::connect(hop.addr).await;
    slow.send("GET / HT").await;
    assert_eq!(slow.rest().await, "", "half a head is closed");
    let mut large = Wire::connect(hop.addr).await;
    let filler = "x".repeat(20 << 10);
    large.stream.write_all(format!("GET / HTTP/1.1\r\nhost: a\r\nx: {filler}\r\n\r\n").as_bytes()).await.ok();
    assert!(large.rest().await.starts_with("HTTP/1.1 431"));
    idle.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
    idle.until("ok").await;
    idle.send("GET / HT").await;
    assert_eq!(idle.rest().await, "", "later heads are timed from their first byte");
}

#[tokio::test]
async fn the_server_settles_targets_and_hosts() {
    let addr = backend(|mut wire| async move {
        while let Ok(head) = wire.try_until("\r\n\r\n").await {
            let answer = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{head}", head.len());
            wire.send(&answer).await;
        }
    })
    .await;
    let hop = hop(addr).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET http://other.example/x?y HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    let sent = client.until("\r\n\r\n").await;
    assert!(sent.starts_with("GET /x?y HTTP/1.1") && sent.contains("host: other.example"), "{sent}");
    client.send("OPTIONS * HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(client.until("\r\n\r\n").await.starts_with("HTTP/1.1 200"));
    client.send("GET / HTTP/1.1\r\n\r\n").await;
    assert!(client.until("\n").await.starts_with("HTTP/1.1 400"));
    let mut connect = Wire::connect(hop.addr).await;
    connect.send("CONNECT a:80 HTTP/1.1\r\nhost: a\r\n\r\n").await;
    assert!(connect.until("unsupported CONNECT request\n").await.starts_with("HTTP/1.1 502"));
    let mut old = Wire::connect(hop.addr).await;
    old.send("GET / HTTP/1.0\r\n\r\n").await;
    let answer = old.rest().await;
    assert!(answer.contains("GET / HTTP/1.1") && answer.contains(&format!("host: {addr}")), "{answer}");
}

#[tokio::test]
async fn workers_share_the_connections() {
    let addr = backend(|mut wire| async move {
        while wire.try_until("\r\n\r\n").await.is_ok() {
            wire.send(OK).await;
        }
    })
    .await;
    let io = Io::system();
    let drain = Drain::new();
    let workers = Workers::start(2).unwrap();
    let listener = io.network.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let server = listener.local_addr().unwrap();
    let served: Arc<[AtomicUsize; 2]> = Arc::default();
    let serving = tokio::spawn({
        let (drain, workers, served) = (drain.clone(), workers.clone(), Arc::clone(&served));
        async move {
            server::serve(listener, &workers, &Options::default(), &drain, |_| {
                let proxy = Proxy::new(Pool::new(io.clone(), pool::Options::default()), drain.clone());
                let served = Arc::clone(&served);
                Arc::new(move |request: Request<Body>, conn: Arc<Conn>| {
                    let (proxy, served) = (proxy.clone(), Arc::clone(&served));
                    async move {
                        served[conn.worker()].fetch_add(1, Ordering::SeqCst);
                        let outbound = Outbound::new(request, &conn).unwrap();
                        proxy.forward(outbound, &addr.into(), None).await.unwrap()
                    }
                })
            })
            .await;
        }
    });
    let mut clients = Vec::new();
    for _ in 0..4 {
        let mut client = Wire::connect(server).await;
        client.send("GET / HTTP/1.1\r\nhost: a\r\n\r\n").await;
        client.until("ok").await;
        clients.push(client);
    }
    assert_eq!([0, 1].map(|worker| served[worker].load(Ordering::SeqCst)), [2, 2]);
    assert_eq!(drain.finish(LONG).await, Outcome::Drained);
    serving.await.unwrap();
    workers.shutdown().await;
}
