//! HTTP/2 over real sockets: client → server → proxy → backend, in all mixtures with HTTP/1.1.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::convert::Infallible;
use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ember_dataplane::body::Body;
use ember_dataplane::drain::{Drain, InFlight, Outcome, Quiet};
use ember_dataplane::error::{respond, timed_out};
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::protocol::Protocol;
use ember_dataplane::proxy::{Failure, Outbound, Proxy};
use ember_dataplane::server::{self, Conn, Handler, Options};
use ember_dataplane::timeout::Timeouts;
use ember_dataplane::worker::Workers;
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, Request, Response, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Notify, mpsc};

const LONG: Duration = Duration::from_secs(30);

struct Hop {
    proxy: Proxy,
    backend: SocketAddr,
    protocol: Protocol,
    timeouts: Timeouts,
    quiet: Quiet,
}

impl Handler for Hop {
    async fn handle(&self, request: Request<Body>, conn: &Arc<Conn>) -> Response<Body> {
        let deadlines = self.timeouts.start();
        let guard: InFlight = self.quiet.enter();
        let answer = deadlines.before_response(async {
            let mut outbound = match Outbound::new(request, conn) {
                Ok(outbound) => outbound,
                Err(error) => return respond(&error),
            };
            outbound.set_protocol(self.protocol);
            match self.proxy.forward(outbound, &self.backend.into(), None).await {
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

async fn hop_with(backend: SocketAddr, protocol: Protocol, timeouts: Timeouts) -> Running {
    let io = Io::system();
    let drain = Drain::new();
    let quiet = Quiet::new(Duration::from_millis(50));
    let pool = Pool::new(io.clone(), pool::Options::default());
    let proxy = Proxy::new(pool.clone(), drain.clone());
    let hop = Arc::new(Hop { proxy, backend, protocol, timeouts, quiet: quiet.clone() });
    let addr = serve(hop, &drain).await;
    Running { addr, drain, quiet, pool }
}

async fn hop(backend: SocketAddr, protocol: Protocol) -> Running {
    hop_with(backend, protocol, Timeouts::default()).await
}

/// One of our servers.
async fn serve<H: Handler>(handler: Arc<H>, drain: &Drain) -> SocketAddr {
    let listener = Io::system().network.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let drain = drain.clone();
    tokio::spawn(async move {
        server::serve(listener, &Workers::current(), &Options::default(), &drain, |_| Arc::clone(&handler))
            .await;
    });
    addr
}

/// A backend of hyper's own that speaks HTTP/2 only, `max_streams` at a time.
async fn backend<F, T>(max_streams: u32, answer: F) -> SocketAddr
where
    F: Fn(Request<Incoming>) -> T + Clone + Send + Sync + 'static,
    T: Future<Output = Response<Body>> + Send + 'static,
{
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let answer = answer.clone();
            let service = hyper::service::service_fn(move |request| {
                let answer = answer(request);
                async move { Ok::<_, Infallible>(answer.await) }
            });
            tokio::spawn(
                hyper::server::conn::http2::Builder::new(TokioExecutor::new())
                    .max_concurrent_streams(max_streams)
                    .serve_connection(TokioIo::new(stream), service),
            );
        }
    });
    addr
}

/// A backend that speaks bytes.
async fn raw<F, T>(serve: F) -> SocketAddr
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

    async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.unwrap();
    }

    async fn until(&mut self, text: &str) -> String {
        loop {
            let seen = String::from_utf8_lossy(&self.read).into_owned();
            if let Some(at) = seen.find(text) {
                let rest = self.read.split_off(at + text.len());
                return String::from_utf8(std::mem::replace(&mut self.read, rest)).unwrap();
            }
            self.more().await;
        }
    }

    async fn more(&mut self) {
        let read = tokio::time::timeout(LONG, self.stream.read_buf(&mut self.read)).await.unwrap().unwrap();
        assert!(read > 0, "ended after {:?}", String::from_utf8_lossy(&self.read));
    }

    async fn take(&mut self, length: usize) -> Vec<u8> {
        while self.read.len() < length {
            self.more().await;
        }
        let rest = self.read.split_off(length);
        std::mem::replace(&mut self.read, rest)
    }

    /// The next HTTP/2 frame: type, flags, stream, payload.
    async fn frame(&mut self) -> (u8, u8, u32, Vec<u8>) {
        let head = self.take(9).await;
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let stream = u32::from_be_bytes([head[5], head[6], head[7], head[8]]);
        (head[3], head[4], stream, self.take(length as usize).await)
    }

    /// The next frame of that type.
    async fn frame_of(&mut self, kind: u8) -> (u8, u32, Vec<u8>) {
        loop {
            let (found, flags, stream, payload) = self.frame().await;
            if found == kind {
                return (flags, stream, payload);
            }
        }
    }

    /// The server's side of the beginning.
    async fn greet(&mut self) {
        assert_eq!(self.take(24).await, PREFACE);
        self.send(frame(SETTINGS, 0, 0, &[])).await;
    }
}

const PREFACE: &[u8] = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n";
const DATA: u8 = 0;
const HEADERS: u8 = 1;
const RST_STREAM: u8 = 3;
const SETTINGS: u8 = 4;
const GOAWAY: u8 = 7;
const END_STREAM: u8 = 1;
const END_HEADERS: u8 = 4;

fn frame(kind: u8, flags: u8, stream: u32, payload: &[u8]) -> Vec<u8> {
    let length = u32::try_from(payload.len()).unwrap().to_be_bytes();
    let mut frame = vec![length[1], length[2], length[3], kind, flags];
    frame.extend(stream.to_be_bytes());
    frame.extend(payload);
    frame
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap()
}

async fn client(addr: SocketAddr) -> SendRequest<Body> {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    // What it does not read of one stream does not keep it from reading another.
    let mut builder = hyper::client::conn::http2::Builder::new(TokioExecutor::new());
    builder.initial_stream_window_size(256 << 10).initial_connection_window_size(64 << 20);
    let (sender, connection) = builder.handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}

fn request(path: &str, body: Body) -> Request<Body> {
    Request::post(format!("http://app.example{path}")).body(body).unwrap()
}

type Frames = futures::channel::mpsc::Sender<Result<Frame<Bytes>, Infallible>>;

/// A body that is sent frame by frame.
fn channel() -> (Frames, Body) {
    let (sender, frames) = futures::channel::mpsc::channel(1);
    (sender, Body::stream(StreamBody::new(frames)))
}

/// A gRPC message: not compressed, its length, itself.
fn message(text: &str) -> Bytes {
    let mut bytes = vec![0];
    bytes.extend(u32::try_from(text.len()).unwrap().to_be_bytes());
    bytes.extend(text.as_bytes());
    bytes.into()
}

fn trailers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
    pairs.iter().map(|(name, value)| (name.parse().unwrap(), value.parse().unwrap())).collect()
}

/// Answers every message with itself, then with a status.
async fn grpc_echo(request: Request<Incoming>) -> Response<Body> {
    assert_eq!(request.version(), Version::HTTP_2);
    assert_eq!(request.headers()["te"], "trailers");
    assert_eq!(request.headers()["grpc-timeout"], "5S");
    assert_eq!(request.uri().authority().unwrap(), "app.example");
    let frames = request.into_body().into_data_stream().map(|data| Ok::<_, hyper::Error>(Frame::data(data?)));
    let status = trailers(&[("grpc-status", "0"), ("grpc-message", "fine")]);
    let status = futures::stream::once(async move { Ok(Frame::trailers(status)) });
    let mut response = Response::new(Body::stream(StreamBody::new(Locked::new(frames.chain(status)))));
    response.headers_mut().insert("content-type", "application/grpc".parse().unwrap());
    response
}

use locked::Locked;
/// hyper's bodies are no `Sync`, ours have to be.
mod locked {
    use std::pin::Pin;
    use std::task::{Context, Poll};

    use futures::Stream;
    use futures::stream::BoxStream;
    use parking_lot::Mutex;

    pub(crate) struct Locked<T>(Mutex<BoxStream<'static, T>>);

    impl<T> Locked<T> {
        pub(crate) fn new(stream: impl Stream<Item = T> + Send + 'static) -> Self {
            Self(Mutex::new(Box::pin(stream)))
        }
    }

    impl<T> Stream for Locked<T> {
        type Item = T;

        fn poll_next(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<T>> {
            self.0.lock().as_mut().poll_next(cx)
        }
    }
}

fn grpc(body: Body) -> Request<Body> {
    let mut request = request("/echo.Echo/Talk", body);
    let headers = request.headers_mut();
    headers.insert("content-type", "application/grpc".parse().unwrap());
    headers.insert("te", "trailers".parse().unwrap());
    headers.insert("grpc-timeout", "5S".parse().unwrap());
    request
}

#[tokio::test]
async fn grpc_unary() {
    let hop = hop(backend(100, grpc_echo).await, Protocol::H2c).await;
    let mut client = client(hop.addr).await;
    for round in 0..20 {
        let text = format!("round {round}");
        let response = soon(client.send_request(grpc(Body::full(message(&text))))).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(response.headers()["content-type"], "application/grpc");
        let collected = soon(response.into_body().collect()).await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.trailers().unwrap()["grpc-message"], "fine");
        assert_eq!(collected.to_bytes(), message(&text));
    }
    assert_eq!((hop.pool.shared(), hop.pool.idle()), (1, 0), "one connection for all");
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn grpc_bidirectional_streams_run_side_by_side() {
    let hop = hop(backend(100, grpc_echo).await, Protocol::H2c).await;
    let client = client(hop.addr).await;
    let mut calls = Vec::new();
    for call in 0..30 {
        let mut client = client.clone();
        calls.push(tokio::spawn(async move {
            let (mut frames, body) = channel();
            let response = soon(client.send_request(grpc(body))).await.unwrap();
            let mut body = response.into_body();
            for round in 0..20 {
                let sent = message(&format!("{call} {round}"));
                frames.send(Ok(Frame::data(sent.clone()))).await.unwrap();
                // The answer to each comes before the next is sent.
                let frame = soon(body.frame()).await.unwrap().unwrap();
                assert_eq!(frame.into_data().unwrap(), sent);
            }
            drop(frames);
            let frame = soon(body.frame()).await.unwrap().unwrap();
            assert_eq!(frame.into_trailers().unwrap()["grpc-status"], "0");
        }));
    }
    for call in calls {
        call.await.unwrap();
    }
    assert_eq!(hop.pool.shared(), 1);
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
}

#[tokio::test]
async fn an_http1_client_reaches_an_h2c_backend() {
    let addr = backend(100, |request: Request<Incoming>| async move {
        assert_eq!(request.version(), Version::HTTP_2);
        let head = format!("{} {} {:?}", request.method(), request.uri(), request.headers());
        let collected = request.into_body().collect().await.unwrap();
        let sum = collected.trailers().map(|trailers| trailers["x-sum"].to_str().unwrap().to_owned());
        let body = String::from_utf8(collected.to_bytes().to_vec()).unwrap();
        Response::new(Body::full(format!("{head} body {body:?} {sum:?}.")))
    })
    .await;
    let hop = hop(addr, Protocol::H2c).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET /a?b=%zz;c HTTP/1.1\r\nhost: shop.example:8080\r\nkeep-alive: 1\r\n\r\n").await;
    let head = client.until("\r\n\r\n").await;
    assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length"), "{head}");
    let seen = client.until(".").await;
    assert!(seen.starts_with("GET http://shop."), "{seen}");
    let seen = client.until("None.").await;
    assert!(seen.starts_with("example:8080/a?b=%zz;c"), "{seen}");
    assert!(!seen.contains("keep-alive") && !seen.contains("\"host\""), "{seen}");
    // The body is asked for at once, and its trailers pass.
    client
        .send("POST / HTTP/1.1\r\nhost: a\r\nexpect: 100-continue\r\ntrailer: x-sum\r\ntransfer-encoding: chunked\r\n\r\n")
        .await;
    client.until("100 Continue\r\n\r\n").await;
    client.send("5\r\nhello\r\n0\r\nx-sum: 7\r\n\r\n").await;
    client.until("body \"hello\" Some(\"7\").").await;
    assert_eq!(hop.pool.shared(), 1);
}

#[tokio::test]
async fn an_h2c_client_reaches_an_http1_backend() {
    let addr = raw(|mut wire| async move {
        let head = wire.until("\r\n\r\n").await.to_lowercase();
        assert!(head.starts_with("post /a http/1.1\r\n"), "{head}");
        assert!(head.contains("host: app.example\r\n") && head.contains("te: trailers\r\n"), "{head}");
        assert!(head.contains("cookie: a=1; b=2\r\n"), "{head}");
        wire.until("hello").await;
        wire.send("HTTP/1.1 200 OK\r\ntransfer-encoding: chunked\r\ntrailer: x-sum\r\nkeep-alive: 5\r\n\r\n")
            .await;
        wire.send("3\r\none\r\n").await;
        wire.until("0\r\n\r\n").await;
        wire.send("3\r\ntwo\r\n0\r\nx-sum: 42\r\n\r\n").await;
    })
    .await;
    let hop = hop(addr, Protocol::Http1).await;
    let mut client = client(hop.addr).await;
    let (mut frames, body) = channel();
    let mut request = request("/a", body);
    request.headers_mut().insert("te", "trailers".parse().unwrap());
    request.headers_mut().append("cookie", "a=1".parse().unwrap());
    request.headers_mut().append("cookie", "b=2".parse().unwrap());
    frames.send(Ok(Frame::data("hello".into()))).await.unwrap();
    let response = soon(client.send_request(request)).await.unwrap();
    assert!(!response.headers().contains_key("keep-alive"));
    let mut body = response.into_body();
    assert_eq!(soon(body.frame()).await.unwrap().unwrap().into_data().unwrap(), "one");
    drop(frames);
    let collected = soon(body.collect()).await.unwrap();
    assert_eq!(collected.trailers().unwrap()["x-sum"], "42");
    assert_eq!(collected.to_bytes(), "two");
}

#[tokio::test]
async fn upgrades_stay_on_http1() {
    let addr = raw(|mut wire| async move {
        let head = wire.until("\r\n\r\n").await.to_lowercase();
        assert!(head.contains("http/1.1") && head.contains("upgrade: websocket"), "{head}");
        wire.send("HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: websocket\r\n\r\n")
            .await;
        wire.until("ping").await;
        wire.send("pong").await;
    })
    .await;
    let hop = hop(addr, Protocol::H2c).await;
    let mut client = Wire::connect(hop.addr).await;
    client.send("GET / HTTP/1.1\r\nhost: a\r\nconnection: Upgrade\r\nupgrade: websocket\r\n\r\n").await;
    client.until("\r\n\r\n").await;
    client.send("ping").await;
    client.until("pong").await;
}

#[tokio::test]
async fn another_connection_is_opened_when_the_streams_are_in_use() {
    let addr = backend(2, grpc_echo).await;
    let hop = hop(addr, Protocol::H2c).await;
    let client = client(hop.addr).await;
    let mut calls = Vec::new();
    for _ in 0..7 {
        let (mut frames, body) = channel();
        frames.send(Ok(Frame::data(message("x")))).await.unwrap();
        let mut client = client.clone();
        let response = soon(client.send_request(grpc(body))).await.unwrap();
        calls.push((frames, response));
    }
    assert_eq!(hop.pool.shared(), 4, "two streams on each, all at a time");
    for (frames, response) in calls {
        drop(frames);
        assert_eq!(soon(response.into_body().collect()).await.unwrap().to_bytes(), message("x"));
    }
}

#[tokio::test]
async fn a_burst_opens_one_connection() {
    let hop = hop(backend(250, grpc_echo).await, Protocol::H2c).await;
    let client = client(hop.addr).await;
    let calls = (0..80).map(|_| {
        let mut client = client.clone();
        async move { client.send_request(grpc(Body::full(message("x")))).await.unwrap().status() }
    });
    assert!(soon(futures::future::join_all(calls)).await.iter().all(|status| *status == 200));
    assert_eq!(hop.pool.shared(), 1);
}

fn direct(body: Body) -> Outbound {
    let request = Request::post("/").header("host", "a").body(body).unwrap();
    let mut outbound = Outbound::direct(request);
    outbound.set_protocol(Protocol::H2c);
    outbound
}

#[tokio::test]
async fn what_a_backend_has_refused_is_unsent_body_and_all() {
    // Takes the request whole, then says that it has not looked at it.
    let refusing = raw(|mut wire| async move {
        wire.greet().await;
        loop {
            let (flags, stream, payload) = wire.frame_of(DATA).await;
            assert_eq!((flags & END_STREAM, payload.as_slice()), (END_STREAM, &b"body"[..]));
            wire.send(frame(RST_STREAM, 0, stream, &7_u32.to_be_bytes())).await;
        }
    })
    .await;
    let leaving = raw(|mut wire| async move {
        wire.greet().await;
        wire.frame_of(DATA).await;
        // The last stream it took is none.
        wire.send(frame(GOAWAY, 0, 0, &[0; 8])).await;
        wire.frame_of(GOAWAY).await;
    })
    .await;
    // It has looked at the request, and does not want it.
    let resetting = raw(|mut wire| async move {
        wire.greet().await;
        let (_, stream, _) = wire.frame_of(DATA).await;
        wire.send(frame(RST_STREAM, 0, stream, &2_u32.to_be_bytes())).await;
        wire.frame_of(GOAWAY).await;
    })
    .await;
    let vanishing = raw(|mut wire| async move {
        wire.greet().await;
        wire.frame_of(HEADERS).await;
    })
    .await;
    let working = backend(100, |request: Request<Incoming>| async move {
        Response::new(Body::full(request.into_body().collect().await.unwrap().to_bytes()))
    })
    .await;
    let proxy = Proxy::new(Pool::new(Io::system(), pool::Options::default()), Drain::new());
    let forward = async |outbound, addr: SocketAddr| soon(proxy.forward(outbound, &addr.into(), None)).await;
    for addr in [refusing, leaving] {
        let Err(Failure::Unsent(intact, error)) = forward(direct("body".into()), addr).await else {
            panic!()
        };
        assert_eq!(error.status(), 502);
        let response = forward(intact, working).await.unwrap();
        assert_eq!(response.into_body().collect(10).await.unwrap(), "body");
    }
    assert!(matches!(forward(direct("body".into()), resetting).await, Err(Failure::Final(_))));
    assert!(matches!(forward(direct("body".into()), vanishing).await, Err(Failure::Final(_))));
    let mut keyed = direct(Body::empty());
    keyed.headers_mut().insert("idempotency-key", "1".parse().unwrap());
    assert!(matches!(forward(keyed, vanishing).await, Err(Failure::NoResponse(..))));
    let closed = {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        listener.local_addr().unwrap()
    };
    let Err(Failure::Unsent(_, error)) = forward(direct("body".into()), closed).await else { panic!() };
    assert!(error.to_string().ends_with("connect: connection refused"), "{error}");
}

#[tokio::test]
async fn a_backend_that_speaks_http1_only_has_seen_nothing() {
    let addr = raw(|mut wire| async move {
        wire.until("\r\n\r\n").await;
        wire.send("HTTP/1.1 400 Bad Request\r\ncontent-length: 0\r\nconnection: close\r\n\r\n").await;
    })
    .await;
    let proxy = Proxy::new(Pool::new(Io::system(), pool::Options::default()), Drain::new());
    let forwarded = soon(proxy.forward(direct("body".into()), &addr.into(), None)).await;
    assert!(matches!(forwarded, Err(Failure::Unsent(..))), "{forwarded:?}");
    assert_eq!(proxy.pool().shared(), 0, "the connection is not kept");
}

#[tokio::test]
async fn connections_that_a_backend_has_closed_are_replaced_whatever_the_method() {
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    // One exchange on each connection, and then no word of leaving.
    let addr = raw(|mut wire| async move {
        CONNECTIONS.fetch_add(1, Ordering::SeqCst);
        wire.greet().await;
        let (_, stream, _) = wire.frame_of(DATA).await;
        // `:status: 200` of the static table.
        wire.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &[0x88])).await;
    })
    .await;
    let pool = Pool::new(Io::system(), pool::Options::default());
    let proxy = Proxy::new(pool, Drain::new());
    for round in 1..=50 {
        let response = soon(proxy.forward(direct("body".into()), &addr.into(), None)).await.unwrap();
        assert_eq!(response.status(), 200);
        assert_eq!(CONNECTIONS.load(Ordering::SeqCst), round);
        eventually("the close is seen", || proxy.pool().shared() == 0).await;
    }
}

#[tokio::test]
async fn a_client_that_resets_its_stream_ends_the_exchange_and_nothing_else() {
    let (arrive, mut arrived) = mpsc::unbounded_channel();
    let (gone, mut left) = mpsc::unbounded_channel();
    let addr = backend(100, move |request: Request<Incoming>| {
        let (arrive, gone) = (arrive.clone(), gone.clone());
        async move {
            struct Told(mpsc::UnboundedSender<()>);
            impl Drop for Told {
                fn drop(&mut self) {
                    // The test may be over.
                    let _ = self.0.send(());
                }
            }
            let told = Told(gone);
            arrive.send(()).unwrap();
            match request.uri().path() {
                "/silent" => std::future::pending().await,
                "/started" => {
                    let endless = futures::stream::pending::<Result<Frame<Bytes>, Infallible>>();
                    let mut body = Body::stream(StreamBody::new(endless));
                    body.attach(told);
                    Response::new(body)
                }
                _ => Response::new("ok".into()),
            }
        }
    })
    .await;
    let hop = hop(addr, Protocol::H2c).await;
    let mut client = client(hop.addr).await;
    // Before the head of the response, with a body that is still being sent.
    let (_frames, body) = channel();
    let silent = tokio::spawn(client.send_request(request("/silent", body)));
    soon(arrived.recv()).await.unwrap();
    assert_eq!(hop.quiet.in_flight(), 1);
    silent.abort();
    soon(left.recv()).await.unwrap();
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
    // In the middle of the response's body.
    let (_frames, body) = channel();
    let started = soon(client.send_request(request("/started", body))).await.unwrap();
    soon(arrived.recv()).await.unwrap();
    assert_eq!(hop.quiet.in_flight(), 1);
    drop((started, _frames));
    soon(left.recv()).await.unwrap();
    eventually("the guard is gone", || hop.quiet.in_flight() == 0).await;
    // Both connections are as good as before.
    assert_eq!(soon(client.send_request(request("/", Body::empty()))).await.unwrap().status(), 200);
    assert_eq!(hop.pool.shared(), 1);
}

#[tokio::test]
async fn a_timer_ends_one_stream_and_a_client_that_does_not_read_holds_nobody_up() {
    let addr = backend(100, |request: Request<Incoming>| async move {
        if request.uri().path() == "/quick" {
            return Response::new("ok".into());
        }
        let chunk = Bytes::from(vec![b'x'; 16 << 10]);
        let flood = futures::stream::repeat_with(move || Ok::<_, Infallible>(Frame::data(chunk.clone())));
        Response::new(Body::stream(StreamBody::new(flood)))
    })
    .await;
    let timeouts = Timeouts { total: Some(Duration::from_secs(2)), ..Timeouts::default() };
    let hop = hop_with(addr, Protocol::H2c, timeouts).await;
    let mut client = client(hop.addr).await;
    let mut unread = Vec::new();
    for _ in 0..5 {
        unread.push(soon(client.send_request(request("/flood", Body::empty()))).await.unwrap());
    }
    assert_eq!(hop.quiet.in_flight(), 5);
    let quick = soon(client.send_request(request("/quick", Body::empty()))).await.unwrap();
    assert_eq!(soon(quick.into_body().collect()).await.unwrap().to_bytes(), "ok");
    eventually("the guards are gone", || hop.quiet.in_flight() == 0).await;
    let quick = soon(client.send_request(request("/quick", Body::empty()))).await.unwrap();
    assert_eq!(quick.status(), 200);
}

#[tokio::test]
async fn a_drain_with_goaway_loses_nothing() {
    // Two of our own servers in a row: the first drains while requests keep coming, and says so to its client.
    let release = Arc::new(Notify::new());
    let (arrive, mut arrived) = mpsc::unbounded_channel();
    let addr = backend(250, {
        let release = Arc::clone(&release);
        move |request: Request<Incoming>| {
            let (release, arrive) = (Arc::clone(&release), arrive.clone());
            async move {
                if request.uri().path() == "/slow" {
                    arrive.send(()).unwrap();
                    release.notified().await;
                }
                Response::new(Body::full(request.into_body().collect().await.unwrap().to_bytes()))
            }
        }
    })
    .await;
    let first = hop(addr, Protocol::H2c).await;
    let outer = hop(first.addr, Protocol::H2c).await;
    let outer_client = client(outer.addr).await;
    let slow = tokio::spawn(outer_client.clone().send_request(request("/slow", "slow".into())));
    soon(arrived.recv()).await.unwrap();
    let load = tokio::spawn(async move {
        for round in 0..400 {
            let calls = (0..5).map(|_| {
                let mut client = outer_client.clone();
                async move {
                    let response = client.send_request(request("/", "body".into())).await.unwrap();
                    assert_eq!(response.status(), 200, "round {round}");
                    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "body");
                }
            });
            futures::future::join_all(calls).await;
        }
    });
    // Each answer from now on takes its connection along; new ones are accepted.
    eventually("requests flow", || first.quiet.in_flight() > 1).await;
    first.drain.announce();
    soon(load).await.unwrap();
    assert!(!slow.is_finished());
    let finishing = tokio::spawn({
        let drain = first.drain.clone();
        async move { drain.finish(LONG).await }
    });
    tokio::time::sleep(Duration::from_millis(20)).await;
    assert!(!finishing.is_finished(), "the slow one is waited for");
    release.notify_one();
    let response = soon(slow).await.unwrap().unwrap();
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "slow");
    assert_eq!(soon(finishing).await.unwrap(), Outcome::Drained);
    assert!(TcpStream::connect(first.addr).await.is_err());
}

#[tokio::test]
async fn idle_connections_are_told_to_go_and_busy_ones_are_cut_in_the_end() {
    let addr = backend(100, |_| std::future::pending::<Response<Body>>()).await;
    let hop = hop(addr, Protocol::H2c).await;
    let mut silent = Wire::connect(hop.addr).await;
    let mut idle = Wire::connect(hop.addr).await;
    idle.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    idle.frame_of(SETTINGS).await;
    let mut busy = client(hop.addr).await;
    let answer = tokio::spawn(busy.send_request(request("/", Body::empty())));
    eventually("it has arrived", || hop.quiet.in_flight() == 1).await;
    let finishing = tokio::spawn({
        let drain = hop.drain.clone();
        async move { drain.finish(Duration::from_millis(100)).await }
    });
    let (_, _, payload) = idle.frame_of(GOAWAY).await;
    assert_eq!(payload[4..8], [0; 4], "without an error");
    assert_eq!(
        soon(silent.stream.read_buf(&mut silent.read)).await.unwrap(),
        0,
        "who said nothing is closed"
    );
    assert_eq!(soon(finishing).await.unwrap(), Outcome::Forced);
    assert!(soon(answer).await.unwrap().is_err());
    assert_eq!(hop.quiet.in_flight(), 0);
}

/// Opens a stream: GET http://a/.
fn open(stream: u32) -> Vec<u8> {
    frame(HEADERS, END_STREAM | END_HEADERS, stream, &[0x82, 0x86, 0x84, 0x41, 1, b'a'])
}

#[tokio::test]
async fn a_flood_of_resets_is_ended_and_others_are_served() {
    static RUNNING: AtomicUsize = AtomicUsize::new(0);
    static MOST: AtomicUsize = AtomicUsize::new(0);
    let addr = backend(250, |request: Request<Incoming>| async move {
        if request.uri().path() == "/other" {
            return Response::new("ok".into());
        }
        struct Leave;
        impl Drop for Leave {
            fn drop(&mut self) {
                RUNNING.fetch_sub(1, Ordering::SeqCst);
            }
        }
        MOST.fetch_max(RUNNING.fetch_add(1, Ordering::SeqCst) + 1, Ordering::SeqCst);
        let _leave = Leave;
        std::future::pending().await
    })
    .await;
    let hop = hop(addr, Protocol::H2c).await;
    let mut other = client(hop.addr).await;
    let attack = tokio::spawn(async move {
        let mut ended = 0;
        for _ in 0..5 {
            let mut wire = Wire::connect(hop.addr).await;
            wire.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
            let mut flood = Vec::new();
            for index in 0..20_000_u32 {
                flood.extend(open(2 * index + 1));
                flood.extend(frame(RST_STREAM, 0, 2 * index + 1, &8_u32.to_be_bytes()));
            }
            // The server hangs up in the middle of it.
            let _ = wire.stream.write_all(&flood).await;
            let mut rest = Vec::new();
            let _ = soon(wire.stream.read_to_end(&mut rest)).await;
            ended += 1;
        }
        ended
    });
    let mut served = 0;
    while !attack.is_finished() || served < 10 {
        let response = soon(other.send_request(request("/other", Body::empty()))).await.unwrap();
        assert_eq!(response.status(), 200);
        served += 1;
    }
    assert_eq!(attack.await.unwrap(), 5, "every flood has come to its end");
    eventually("nothing is in flight", || hop.quiet.in_flight() == 0).await;
    eventually("nothing runs", || RUNNING.load(Ordering::SeqCst) == 0).await;
    assert!(MOST.load(Ordering::SeqCst) <= 250, "{MOST:?} ran at a time");
}

#[tokio::test]
async fn streams_heads_and_continuations_are_bounded() {
    let addr = backend(1000, |_| std::future::pending::<Response<Body>>()).await;
    let hop = hop(addr, Protocol::H2c).await;
    let mut greedy = Wire::connect(hop.addr).await;
    greedy.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    for index in 0..251_u32 {
        greedy.send(open(2 * index + 1)).await;
    }
    let (_, stream, payload) = greedy.frame_of(RST_STREAM).await;
    assert_eq!((stream, payload), (501, 7_u32.to_be_bytes().to_vec()), "the 251st is refused");
    eventually("250 are served", || hop.quiet.in_flight() == 250).await;
    drop(greedy);
    eventually("they are gone with their client", || hop.quiet.in_flight() == 0).await;

    let mut endless = Wire::connect(hop.addr).await;
    endless.send([PREFACE, &frame(SETTINGS, 0, 0, &[])].concat()).await;
    endless.send(frame(HEADERS, END_STREAM, 1, &[0x82, 0x86, 0x84, 0x41, 1, b'a'])).await;
    let part = frame(9, 0, 1, &[0x82; 1000]);
    let flood = async {
        for _ in 0..10_000 {
            if endless.stream.write_all(&part).await.is_err() {
                return;
            }
        }
        panic!("a head of 10 MB is read");
    };
    soon(flood).await;

    let mut large = client(hop.addr).await;
    let mut request = request("/", Body::empty());
    for index in 0..300 {
        request.headers_mut().append("x-line", index.to_string().parse().unwrap());
    }
    assert_eq!(soon(large.send_request(request)).await.unwrap().status(), 431);
}

#[tokio::test]
async fn a_backend_that_gives_no_sign_of_life_is_given_up() {
    static CONNECTIONS: AtomicUsize = AtomicUsize::new(0);
    // The first connection goes silent, as if its machine had gone; the second works.
    let addr = raw(|mut wire| async move {
        let silent = CONNECTIONS.fetch_add(1, Ordering::SeqCst) == 0;
        wire.greet().await;
        let (_, stream, _) = wire.frame_of(HEADERS).await;
        if silent {
            std::future::pending::<()>().await;
        }
        wire.send(frame(HEADERS, END_STREAM | END_HEADERS, stream, &[0x88])).await;
        wire.frame_of(GOAWAY).await;
    })
    .await;
    let ping = Duration::from_millis(50);
    let options = pool::Options { ping_interval: Some(ping), ping_timeout: ping, ..pool::Options::default() };
    let proxy = Proxy::new(Pool::new(Io::system(), options), Drain::new());
    let mut keyed = direct(Body::empty());
    keyed.headers_mut().insert("idempotency-key", "1".parse().unwrap());
    let forward = async |outbound| soon(proxy.forward(outbound, &addr.into(), None)).await;
    let Err(Failure::NoResponse(again, _)) = forward(keyed).await else { panic!() };
    assert_eq!(forward(again).await.unwrap().status(), 200);
}

#[tokio::test]
async fn idle_shared_connections_are_closed() {
    let addr = backend(100, |_| async { Response::new("ok".into()) }).await;
    let options = pool::Options { idle_timeout: Duration::from_millis(100), ..pool::Options::default() };
    let proxy = Proxy::new(Pool::new(Io::system(), options), Drain::new());
    for _ in 0..2 {
        let response = soon(proxy.forward(direct(Body::empty()), &addr.into(), None)).await.unwrap();
        assert_eq!(response.into_body().collect(10).await.unwrap(), "ok");
        assert_eq!(proxy.pool().shared(), 1);
        eventually("it is closed", || proxy.pool().shared() == 0).await;
    }
}
