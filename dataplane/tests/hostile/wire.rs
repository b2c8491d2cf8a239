//! A hop, and both of its ends in bytes.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use ember_dataplane::address::Address;
use ember_dataplane::body::Body;
use ember_dataplane::drain::{Drain, InFlight, Quiet};
use ember_dataplane::error::{respond, timed_out};
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::protocol::Protocol;
use ember_dataplane::proxy::{Outbound, Proxy};
use ember_dataplane::server::{self, Conn, Handler, Options};
use ember_dataplane::timeout::Timeouts;
use ember_dataplane::worker::Workers;
use http::{Request, Response};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};

/// Longer than anything takes that is going to happen.
pub(crate) const LONG: Duration = Duration::from_secs(60);

pub(crate) const OK: &str = "HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";

pub(crate) struct Hop {
    pub(crate) proxy: Proxy,
    pub(crate) backend: Address,
    pub(crate) protocol: Protocol,
    pub(crate) timeouts: Timeouts,
    pub(crate) quiet: Quiet,
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

pub(crate) struct Running {
    pub(crate) addr: SocketAddr,
    pub(crate) quiet: Quiet,
    pub(crate) pool: Pool,
}

pub(crate) async fn hop_with(
    backend: SocketAddr,
    protocol: Protocol,
    timeouts: Timeouts,
    options: Options,
) -> Running {
    start(backend, protocol, timeouts, pool::Options::default(), options).await
}

/// A hop with limits of its own on both sides.
pub(crate) async fn hop_over(backend: SocketAddr, pool: pool::Options, options: Options) -> Running {
    start(backend, Protocol::Http1, Timeouts::default(), pool, options).await
}

async fn start(
    backend: SocketAddr,
    protocol: Protocol,
    timeouts: Timeouts,
    pool: pool::Options,
    options: Options,
) -> Running {
    let io = Io::system();
    let drain = Drain::new();
    let quiet = Quiet::new(Duration::from_millis(50));
    let pool = Pool::new(io.clone(), pool);
    let hop = Arc::new(Hop {
        proxy: Proxy::new(pool.clone(), drain.clone()),
        backend: backend.into(),
        protocol,
        timeouts,
        quiet: quiet.clone(),
    });
    let listener = io.network.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    tokio::spawn(async move {
        server::serve(listener, &Workers::current(), &options, &drain, |_| Arc::clone(&hop)).await;
    });
    Running { addr, quiet, pool }
}

pub(crate) async fn hop(backend: SocketAddr) -> Running {
    hop_with(backend, Protocol::Http1, Timeouts::default(), Options::default()).await
}

/// A hop whose requests take no longer than `total`.
pub(crate) async fn brief_hop(backend: SocketAddr, total: Duration) -> Running {
    let timeouts = Timeouts { total: Some(total), ..Timeouts::default() };
    hop_with(backend, Protocol::Http1, timeouts, Options::default()).await
}

/// A backend that treats each connection with `serve`.
pub(crate) async fn backend<F, T>(serve: F) -> SocketAddr
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

/// A backend that answers every request with [`OK`].
pub(crate) async fn friendly() -> SocketAddr {
    backend(|mut wire| async move {
        while wire.try_until("\r\n\r\n").await.is_ok() {
            if wire.stream.write_all(OK.as_bytes()).await.is_err() {
                return;
            }
        }
    })
    .await
}

/// A backend whose answers soon fill all buffers on their way.
pub(crate) async fn verbose() -> SocketAddr {
    backend(|mut wire| async move {
        let body = "x".repeat(100_000);
        let long = format!("HTTP/1.1 200 OK\r\ncontent-length: {}\r\n\r\n{body}", body.len());
        while let Ok(head) = wire.try_until("\r\n\r\n").await {
            wire.send(if head.starts_with("GET /other") { OK } else { &long }).await;
        }
    })
    .await
}

/// Either end of a connection, in bytes.
pub(crate) struct Wire {
    pub(crate) stream: TcpStream,
    pub(crate) read: Vec<u8>,
}

impl Wire {
    pub(crate) async fn connect(addr: SocketAddr) -> Self {
        let stream = TcpStream::connect(addr).await.unwrap();
        stream.set_nodelay(true).unwrap();
        Self { stream, read: Vec::new() }
    }

    /// Sends what the other side still takes.
    pub(crate) async fn send(&mut self, bytes: impl AsRef<[u8]>) {
        self.stream.write_all(bytes.as_ref()).await.ok();
    }

    /// Reads up to and including `text`, which has to come within the limit.
    pub(crate) async fn until(&mut self, text: &str) -> String {
        self.try_until(text).await.unwrap_or_else(|seen| panic!("no {text:?} in {seen:?}"))
    }

    pub(crate) async fn try_until(&mut self, text: &str) -> Result<String, String> {
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

    /// Everything up to the end of the stream, which has to come within the limit.
    pub(crate) async fn rest(&mut self) -> String {
        tokio::time::timeout(LONG, self.stream.read_to_end(&mut self.read)).await.unwrap().ok();
        String::from_utf8_lossy(&std::mem::take(&mut self.read)).into_owned()
    }

    /// Sends `bytes` again and again until the other side has taken none for a while, has ended the connection, or has
    /// taken `limit`; says how much it took. Nothing is read meanwhile.
    pub(crate) async fn flood(&mut self, bytes: &[u8], limit: usize) -> usize {
        let mut taken = 0;
        while taken < limit {
            let at = taken % bytes.len();
            let written = tokio::time::timeout(Duration::from_millis(500), self.stream.write(&bytes[at..]));
            match written.await {
                Ok(Ok(written)) => taken += written,
                Ok(Err(_)) | Err(_) => break,
            }
        }
        taken
    }
}

/// A request as a backend has seen it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Seen {
    pub(crate) head: String,
    pub(crate) body: Vec<u8>,
}

impl Seen {
    /// Method and target.
    pub(crate) fn target(&self) -> &str {
        self.head.lines().next().unwrap().strip_suffix(" HTTP/1.1").unwrap()
    }

    pub(crate) fn header(&self, name: &str) -> Vec<&str> {
        let lines = self.head.lines().skip(1).filter_map(|line| line.split_once(": "));
        lines.filter(|(found, _)| *found == name).map(|(_, value)| value).collect()
    }
}

/// The requests in what a backend has received, and what is left. Read by the letter: what leaves room for another
/// reading fails the test.
pub(crate) fn requests(mut bytes: &[u8]) -> (Vec<Seen>, &[u8]) {
    let mut seen = Vec::new();
    while let Some(end) = find(bytes, b"\r\n\r\n") {
        let head = String::from_utf8_lossy(&bytes[..end]).into_owned();
        for line in head.split("\r\n") {
            assert!(!line.contains(['\r', '\n', '\0']) && !line.starts_with([' ', '\t']), "{head:?}");
        }
        let request = Seen { head, body: Vec::new() };
        let mut line = request.head.lines().next().unwrap().split(' ');
        assert!(line.clone().count() == 3 && line.next_back() == Some("HTTP/1.1"), "{request:?}");
        assert_eq!(request.header("host").len(), 1, "{request:?}");
        let (length, coding) = (request.header("content-length"), request.header("transfer-encoding"));
        assert!(length.len() + coding.len() <= 1, "{request:?}");
        let rest = &bytes[end + 4..];
        let (body, rest) = if !coding.is_empty() {
            assert_eq!(coding, ["chunked"]);
            let Some(read) = chunked(rest) else { break };
            read
        } else {
            let length = length.first().map_or(0, |length| {
                assert_eq!(length.parse::<usize>().unwrap().to_string(), *length, "{request:?}");
                length.parse().unwrap()
            });
            if rest.len() < length {
                break;
            }
            (rest[..length].to_vec(), &rest[length..])
        };
        seen.push(Seen { body, ..request });
        bytes = rest;
    }
    (seen, bytes)
}

fn chunked(mut bytes: &[u8]) -> Option<(Vec<u8>, &[u8])> {
    let mut body = Vec::new();
    loop {
        let end = find(bytes, b"\r\n")?;
        let size = usize::from_str_radix(std::str::from_utf8(&bytes[..end]).unwrap(), 16).unwrap();
        bytes = &bytes[end + 2..];
        if size == 0 {
            while find(bytes, b"\r\n")? != 0 {
                bytes = &bytes[find(bytes, b"\r\n")? + 2..];
            }
            return Some((body, &bytes[2..]));
        }
        body.extend(bytes.get(..size)?);
        assert_eq!(bytes.get(size..size + 2)?, b"\r\n");
        bytes = &bytes[size + 2..];
    }
}

pub(crate) fn find(bytes: &[u8], text: &[u8]) -> Option<usize> {
    bytes.windows(text.len()).position(|window| window == text)
}

/// What a backend receives, by connection.
#[derive(Clone, Default)]
pub(crate) struct Recorded(Arc<Mutex<Vec<Vec<u8>>>>);

impl Recorded {
    /// Records one connection and answers each request in it.
    pub(crate) async fn serve(&self, mut stream: impl AsyncReadExt + AsyncWriteExt + Unpin) {
        let index = {
            let mut connections = self.0.lock();
            connections.push(Vec::new());
            connections.len() - 1
        };
        let mut answered = 0;
        let mut buffer = vec![0; 16 << 10];
        while let Ok(read @ 1..) = stream.read(&mut buffer).await {
            let complete = {
                let mut connections = self.0.lock();
                connections[index].extend(&buffer[..read]);
                requests(&connections[index]).0.len()
            };
            for _ in answered..complete {
                if stream.write_all(OK.as_bytes()).await.is_err() {
                    return;
                }
            }
            answered = complete;
        }
    }

    /// All bytes.
    pub(crate) fn bytes(&self) -> String {
        String::from_utf8_lossy(&self.0.lock().concat()).into_owned()
    }

    /// All complete requests, and what was left of each connection.
    pub(crate) fn all(&self) -> (Vec<Seen>, Vec<Vec<u8>>) {
        let (mut seen, mut rests) = (Vec::new(), Vec::new());
        for connection in &*self.0.lock() {
            let (requests, rest) = requests(connection);
            seen.extend(requests);
            rests.push(rest.to_vec());
        }
        (seen, rests)
    }
}

/// A backend that records what it is sent and answers each request.
pub(crate) async fn recorder() -> (SocketAddr, Recorded) {
    let recorded = Recorded::default();
    let serving = recorded.clone();
    let addr = backend(move |wire| {
        let recorded = serving.clone();
        async move { recorded.serve(wire.stream).await }
    })
    .await;
    (addr, recorded)
}

pub(crate) async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// Another client, on a connection of its own, is answered.
pub(crate) async fn others_are_served(addr: SocketAddr) {
    let mut client = Wire::connect(addr).await;
    client.send("GET /other HTTP/1.1\r\nhost: a\r\n\r\n").await;
    client.until("\r\n\r\nok").await;
}
