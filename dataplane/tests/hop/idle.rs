//! Connections between requests, over real sockets: they give up their buffers and lose nothing.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::body::Body;
use ember_dataplane::drain::{Drain, Outcome};
use ember_dataplane::io::Io;
use ember_dataplane::server::{self, Conn, Options};
use ember_dataplane::worker::Workers;
use http::{Request, Response};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

const LONG: Duration = Duration::from_secs(30);

/// A server that answers with the path and what was sent, and knows its connections.
struct Server {
    addr: SocketAddr,
    drain: Drain,
    seen: Arc<Mutex<Vec<Arc<Conn>>>>,
}

impl Server {
    async fn start(options: Options) -> Self {
        let seen = Arc::new(Mutex::new(Vec::new()));
        let known = Arc::clone(&seen);
        let handler = Arc::new(move |request: Request<Body>, conn: Arc<Conn>| {
            let mut known = known.lock();
            if !known.iter().any(|other: &Arc<Conn>| Arc::ptr_eq(other, &conn)) {
                known.push(conn);
            }
            async move {
                let path = request.uri().path().to_owned();
                let body = match path.as_str() {
                    "/unread" => bytes::Bytes::new(),
                    _ => request.into_body().collect(1 << 20).await.unwrap_or_default(),
                };
                Response::new(Body::full(format!("<{path} {}>", String::from_utf8_lossy(&body))))
            }
        });
        let drain = Drain::new();
        let listener = Io::system().network.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
        let addr = listener.local_addr().unwrap();
        let serving = drain.clone();
        tokio::spawn(async move {
            server::serve(listener, &Workers::current(), &options, &serving, |_| Arc::clone(&handler)).await;
        });
        Self { addr, drain, seen }
    }

    async fn connect(&self) -> Client {
        Client { stream: TcpStream::connect(self.addr).await.unwrap(), read: String::new() }
    }

    /// Waits until the connection accepted as number `index` has been parked `times`.
    async fn parked(&self, index: usize, times: u64) {
        let parked = async {
            while self.seen.lock().get(index).is_none_or(|conn| conn.parked() < times) {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        tokio::time::timeout(LONG, parked).await.unwrap();
    }
}

struct Client {
    stream: TcpStream,
    read: String,
}

impl Client {
    async fn send(&mut self, text: &str) {
        self.stream.write_all(text.as_bytes()).await.unwrap();
    }

    async fn get(&mut self, path: &str) {
        self.send(&format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n")).await;
        self.until(&format!("<{path} >")).await;
    }

    /// Reads until `text` has come.
    async fn until(&mut self, text: &str) {
        let reading = async {
            while !self.read.contains(text) {
                let mut buffer = [0; 1024];
                let length = self.stream.read(&mut buffer).await.unwrap();
                assert!(length > 0, "the end, and no {text:?} in {:?}", self.read);
                self.read.push_str(std::str::from_utf8(&buffer[..length]).unwrap());
            }
        };
        tokio::time::timeout(LONG, reading).await.unwrap();
        let end = self.read.find(text).unwrap() + text.len();
        self.read.drain(..end);
    }

    async fn closed(&mut self) {
        let mut rest = Vec::new();
        // A reset is an end, too.
        let _ = tokio::time::timeout(LONG, self.stream.read_to_end(&mut rest)).await.unwrap();
        assert!(rest.is_empty(), "{:?}", String::from_utf8_lossy(&rest));
    }
}

fn soon() -> Options {
    Options { park_after: Duration::from_millis(5), ..Options::default() }
}

/// Every connection is parked as soon as it is idle.
fn at_once() -> Options {
    Options { warm_connections: 0, ..Options::default() }
}

#[tokio::test]
async fn a_parked_connection_serves_on() {
    let server = Server::start(soon()).await;
    let mut client = server.connect().await;
    for round in 1..4 {
        client.get("/a").await;
        server.parked(0, round).await;
    }
    client.send("POST /b HTTP/1.1\r\nHost: x\r\nContent-Length: 3\r\n\r\nabc").await;
    client.until("</b abc>").await;
    server.parked(0, 4).await;
    client
        .send("POST /c HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\n3\r\nabc\r\n0\r\n\r\n")
        .await;
    client.until("</c abc>").await;
    server.parked(0, 5).await;
    assert_eq!(server.seen.lock().len(), 1, "one connection all along");
}

#[tokio::test]
async fn a_busy_connection_is_left_alone() {
    let server = Server::start(Options { park_after: LONG, ..Options::default() }).await;
    let mut client = server.connect().await;
    for _ in 0..20 {
        client.get("/a").await;
    }
    assert_eq!(server.seen.lock()[0].parked(), 0);
}

#[tokio::test]
async fn what_was_read_of_the_next_request_is_kept() {
    for options in [soon(), at_once()] {
        let server = Server::start(options).await;
        let mut client = server.connect().await;
        client.send("GET /a HTTP/1.1\r\nHost: x\r\n\r\nGET /b HT").await;
        client.until("</a >").await;
        server.parked(0, 1).await;
        client.send("TP/1.1\r\nHost: x\r\n\r\n").await;
        client.until("</b >").await;
    }
}

#[tokio::test]
async fn pipelined_requests_are_answered_in_order() {
    let server = Server::start(at_once()).await;
    let mut client = server.connect().await;
    for _ in 0..10 {
        let get = |path| format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n");
        let post = "POST /p HTTP/1.1\r\nHost: x\r\nContent-Length: 4\r\n\r\nbody";
        client.send(&format!("{}{post}{}{post}", get("/1"), get("/2"))).await;
        for answer in ["</1 >", "</p body>", "</2 >", "</p body>"] {
            client.until(answer).await;
        }
    }
}

#[tokio::test]
async fn the_rest_of_a_body_is_never_a_request() {
    for options in [soon(), at_once()] {
        let server = Server::start(options).await;
        let mut client = server.connect().await;
        client.send("POST /unread HTTP/1.1\r\nHost: x\r\nContent-Length: 37\r\n\r\nGET /evil").await;
        client.until("</unread >").await;
        // The rest completes a request, if the body is taken for one.
        let _ = client.stream.write_all(b" HTTP/1.1\r\nHost: x\r\n\r\n1234567").await;
        client.closed().await;
        assert_eq!(server.seen.lock()[0].parked(), 0);
    }
}

#[tokio::test]
async fn a_parked_connection_ends_with_its_client_and_with_the_server() {
    let server = Server::start(soon()).await;
    let (mut one, mut other) = (server.connect().await, server.connect().await);
    one.get("/a").await;
    other.get("/a").await;
    server.parked(0, 1).await;
    server.parked(1, 1).await;
    let before = server.drain.tasks().len();
    drop(one);
    let ended = async {
        while server.drain.tasks().len() == before {
            tokio::time::sleep(Duration::from_millis(1)).await;
        }
    };
    tokio::time::timeout(LONG, ended).await.unwrap();
    assert_eq!(server.drain.finish(LONG).await, Outcome::Drained);
    other.closed().await;
}

#[tokio::test]
async fn the_next_head_is_timed_from_its_first_byte() {
    let server = Server::start(Options { header_read_timeout: Duration::from_millis(200), ..soon() }).await;
    let mut client = server.connect().await;
    client.get("/a").await;
    server.parked(0, 1).await;
    client.send("GET /b HT").await;
    client.closed().await;
}
