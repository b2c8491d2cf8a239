//! TLS over real sockets: servers met by clients of rustls' own, and hops that meet servers.
#![expect(clippy::unwrap_used, reason = "a test")]

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use bytes::Bytes;
use ember_dataplane::address::Address;
use ember_dataplane::body::Body;
use ember_dataplane::drain::{Drain, Outcome};
use ember_dataplane::error::respond;
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::protocol::Protocol;
use ember_dataplane::proxy::{Failure, Outbound, Proxy};
use ember_dataplane::server::{self, Conn, Options};
use ember_dataplane::timeout::Timeouts;
use ember_dataplane::tls::{Client, Identity, Pair, Roots, Server, Settings};
use ember_dataplane::worker::Workers;
use http::{HeaderMap, Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tokio_util::sync::CancellationToken;

const LONG: Duration = Duration::from_secs(20);
const NAME: &str = "data-plane.knative.dev";

async fn soon<T>(future: impl Future<Output = T>) -> T {
    tokio::time::timeout(LONG, future).await.unwrap()
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) {
    let begun = tokio::time::Instant::now();
    while !done() {
        assert!(begun.elapsed() < LONG, "never: {what}");
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

/// A certificate authority.
struct Authority {
    pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let key = KeyPair::generate().unwrap();
        Self { pem: params.self_signed(&key).unwrap().pem(), issuer: Issuer::new(params, key) }
    }

    fn pair(&self, names: &[&str]) -> Pair {
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        let key = KeyPair::generate().unwrap();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &self.issuer).unwrap();
        Pair::from_pem(certificate.pem().as_bytes(), key.serialize_pem().as_bytes()).unwrap()
    }

    fn roots(&self) -> Roots {
        let mut roots = Roots::default();
        assert!(roots.add_pem(self.pem.as_bytes()).is_empty());
        roots
    }

    /// A client of rustls' own.
    fn client(&self, versions: &[&'static SupportedProtocolVersion], alpn: &[&str]) -> TlsConnector {
        let mut roots = RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(self.pem.as_bytes()).unwrap()).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = ClientConfig::builder_with_provider(provider)
            .with_protocol_versions(versions)
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
        Arc::new(config).into()
    }
}

const V1_2: &SupportedProtocolVersion = &rustls::version::TLS12;
const V1_3: &SupportedProtocolVersion = &rustls::version::TLS13;

async fn handshake(client: &TlsConnector, addr: SocketAddr) -> std::io::Result<TlsStream<TcpStream>> {
    let stream = TcpStream::connect(addr).await.unwrap();
    stream.set_nodelay(true).unwrap();
    soon(client.connect(ServerName::try_from(NAME).unwrap(), stream)).await
}

fn settings(variables: &[(&str, &'static str)]) -> Settings {
    let get = |name: &str| variables.iter().find(|(known, _)| *known == name).map(|(_, value)| *value);
    Settings::from_env("", get).unwrap()
}

/// A running server.
struct Running {
    addr: SocketAddr,
    drain: Drain,
    tls: Server,
    connections: Arc<AtomicUsize>,
}

/// Answers with what it is asked: version and path, then the body, then a trailer.
async fn serve(tls: Server, options: Options) -> Running {
    let listener = Io::system().network.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let drain = Drain::new();
    let connections: Arc<AtomicUsize> = Arc::default();
    let running = Running { addr, drain: drain.clone(), tls: tls.clone(), connections };
    let options = Options { tls: Some(tls), ..options };
    let peers = parking_lot::Mutex::new(std::collections::HashSet::new());
    let connections = Arc::clone(&running.connections);
    let handler = Arc::new(move |request: Request<Body>, conn: Arc<Conn>| {
        if peers.lock().insert(conn.peer()) {
            connections.fetch_add(1, Ordering::Relaxed);
        }
        async move {
            let mut response = answer(request);
            response.headers_mut().insert("x-parked", conn.parked().into());
            response
        }
    });
    tokio::spawn(async move {
        server::serve(listener, &Workers::current(), &options, &drain, |_| Arc::clone(&handler)).await;
    });
    running
}

fn answer(request: Request<Body>) -> Response<Body> {
    let seen = format!("{:?} {} ", request.version(), request.uri().path());
    let first = futures::stream::once(async move { Ok(Frame::data(Bytes::from(seen))) });
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let last =
        futures::stream::once(
            async move { Ok::<_, ember_dataplane::body::Error>(Frame::trailers(trailers)) },
        );
    let (_, body) = request.into_parts();
    let frames = http_body_util::BodyDataStream::new(body);
    let body = futures::StreamExt::map(frames, |data| Ok(Frame::data(data?)));
    let all = futures::StreamExt::chain(futures::StreamExt::chain(first, body), last);
    let mut response = Response::new(Body::stream(StreamBody::new(all)));
    response.headers_mut().insert("trailer", "grpc-status".parse().unwrap());
    response
}

async fn http1_over(stream: TlsStream<TcpStream>) -> String {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("/one").header("host", "app").body(Body::full("body")).unwrap();
    text(soon(sender.send_request(request)).await.unwrap()).await
}

async fn http2_over(stream: TlsStream<TcpStream>) -> String {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let request = Request::post("https://app/two").body(Body::full("body")).unwrap();
    text(soon(sender.send_request(request)).await.unwrap()).await
}

/// The whole answer, its trailer included.
async fn text<B>(response: Response<B>) -> String
where
    B: http_body::Body<Data = Bytes>,
    B::Error: std::fmt::Debug,
{
    assert_eq!(response.status(), 200);
    let collected = soon(response.into_body().collect()).await.unwrap();
    let trailers = collected.trailers().cloned().unwrap_or_default();
    let status = trailers.get("grpc-status").map_or("none", |value| value.to_str().unwrap());
    format!("{} status {status}", String::from_utf8(collected.to_bytes().to_vec()).unwrap())
}

#[tokio::test]
async fn tls_1_3_unless_the_environment_says_otherwise() {
    let authority = Authority::new();
    let server = |settings| Server::new(authority.pair(&[NAME]), &settings).unwrap();
    let modern = serve(server(settings(&[])), Options::default()).await;
    let refused = handshake(&authority.client(&[V1_2], &[]), modern.addr).await.unwrap_err();
    assert!(refused.to_string().contains("ProtocolVersion"), "{refused}");
    assert!(
        http1_over(handshake(&authority.client(&[V1_3], &[]), modern.addr).await.unwrap()).await.len() > 4
    );

    let both = serve(server(settings(&[("TLS_MIN_VERSION", "1.2")])), Options::default()).await;
    for version in [V1_2, V1_3] {
        let stream = handshake(&authority.client(&[version], &[]), both.addr).await.unwrap();
        assert_eq!(stream.get_ref().1.protocol_version(), Some(version.version));
        assert_eq!(http1_over(stream).await, "HTTP/1.1 /one body status none");
    }

    let old =
        [("TLS_MIN_VERSION", "1.2"), ("TLS_MAX_VERSION", "1.2"), ("TLS_CURVE_PREFERENCES", "CurveP384")];
    let old = serve(server(settings(&old)), Options::default()).await;
    assert!(handshake(&authority.client(&[V1_3], &[]), old.addr).await.is_err());
    let stream = handshake(&authority.client(&[V1_2], &[]), old.addr).await.unwrap();
    let group = stream.get_ref().1.negotiated_key_exchange_group().unwrap().name();
    assert_eq!(group, rustls::NamedGroup::secp384r1);
}

#[tokio::test]
async fn the_first_bytes_tell_the_protocol_whatever_was_agreed_on() {
    let authority = Authority::new();
    let server = Server::new(authority.pair(&[NAME]), &Settings::default()).unwrap();
    let server = serve(server, Options::default()).await;
    for (offered, agreed) in [
        (&[][..], None),
        (&["h2"][..], Some("h2")),
        (&["http/1.1"][..], Some("http/1.1")),
        (&["http/1.1", "h2"][..], Some("h2")),
    ] {
        let client = authority.client(&[V1_3], offered);
        let connect = async || {
            let stream = handshake(&client, server.addr).await.unwrap();
            let protocol = stream.get_ref().1.alpn_protocol();
            assert_eq!(protocol, agreed.map(str::as_bytes), "{offered:?}");
            stream
        };
        assert_eq!(http2_over(connect().await).await, "HTTP/2.0 /two body status 0", "{offered:?}");
        assert_eq!(http1_over(connect().await).await, "HTTP/1.1 /one body status none", "{offered:?}");
    }
}

#[tokio::test]
async fn a_certificate_is_exchanged_under_open_connections() {
    let (before, after) = (Authority::new(), Authority::new());
    let server = Server::new(before.pair(&[NAME]), &Settings::default()).unwrap();
    let server = serve(server, Options::default()).await;
    let stream = handshake(&before.client(&[V1_3], &[]), server.addr).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let mut ask = async || {
        let request = Request::get("/").header("host", "app").body(Body::empty()).unwrap();
        text(soon(sender.send_request(request)).await.unwrap()).await
    };
    assert_eq!(ask().await, "HTTP/1.1 /  status none");
    server.tls.exchange(after.pair(&[NAME]));
    assert_eq!(ask().await, "HTTP/1.1 /  status none");
    let refused = handshake(&before.client(&[V1_3], &[]), server.addr).await.unwrap_err();
    assert!(refused.to_string().contains("certificate"), "{refused}");
    http1_over(handshake(&after.client(&[V1_3], &[]), server.addr).await.unwrap()).await;
    assert_eq!(ask().await, "HTTP/1.1 /  status none");
}

#[tokio::test]
async fn a_silent_handshake_is_cut_and_holds_nobody_up() {
    let authority = Authority::new();
    let server = || Server::new(authority.pair(&[NAME]), &Settings::default()).unwrap();
    let options = Options { handshake_timeout: Duration::from_millis(100), ..Options::default() };
    let short = serve(server(), options).await;
    let mut silent = TcpStream::connect(short.addr).await.unwrap();
    // The beginning of a record that never ends.
    silent.write_all(&[22, 3, 1, 0, 200, 1]).await.unwrap();
    let mut nothing = [0];
    assert_eq!(soon(silent.read(&mut nothing)).await.unwrap_or(0), 0);

    let patient = serve(server(), Options::default()).await;
    let silent = TcpStream::connect(patient.addr).await.unwrap();
    http1_over(handshake(&authority.client(&[V1_3], &[]), patient.addr).await.unwrap()).await;
    // Who has only just knocked is not waited for.
    assert_eq!(soon(patient.drain.finish(LONG)).await, Outcome::Drained);
    drop(silent);

    // In clear text there is nothing to be had.
    let mut plain = TcpStream::connect(short.addr).await.unwrap();
    plain.write_all(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n").await.unwrap();
    let mut answer = Vec::new();
    let _ = soon(plain.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"), "{answer:?}");
}

#[tokio::test]
async fn idle_connections_give_up_their_buffers_and_miss_nothing() {
    let authority = Authority::new();
    let server = Server::new(authority.pair(&[NAME]), &Settings::default()).unwrap();
    let server = serve(server, Options { warm_connections: 0, ..Options::default() }).await;
    let mut stream = handshake(&authority.client(&[V1_3], &[]), server.addr).await.unwrap();
    let mut answers = String::new();
    for round in 0.. {
        assert!(round < 10_000, "never parked");
        // Two at a time, in one record and in several.
        let ask = "GET /1 HTTP/1.1\r\nhost: a\r\n\r\nGET /2 HTTP/1.1\r\nhost: a\r\n\r\n";
        let (begin, rest) = ask.split_at(if round % 2 == 0 { ask.len() } else { 1 + round % 40 });
        for part in [begin, rest] {
            stream.write_all(part.as_bytes()).await.unwrap();
            stream.flush().await.unwrap();
        }
        answers.clear();
        while answers.matches("0\r\n\r\n").count() < 2 {
            let mut bytes = vec![0; 4096];
            let read = soon(stream.read(&mut bytes)).await.unwrap();
            assert!(read > 0, "ended after {answers:?}");
            answers.push_str(std::str::from_utf8(&bytes[..read]).unwrap());
        }
        if answers.contains("x-parked: 5\r\n") {
            break;
        }
        // Time for it to be idle.
        tokio::task::yield_now().await;
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 1);
}

#[tokio::test]
async fn a_drain_lets_tls_connections_finish() {
    let authority = Authority::new();
    let server = Server::new(authority.pair(&[NAME]), &Settings::default()).unwrap();
    let server = serve(server, Options::default()).await;
    let stream = handshake(&authority.client(&[V1_3], &[]), server.addr).await.unwrap();
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (mut frames, body) = channel();
    let request = Request::post("/slow").header("host", "app").body(body).unwrap();
    let response = soon(sender.send_request(request)).await.unwrap();
    let finishing = tokio::spawn({
        let drain = server.drain.clone();
        async move { drain.finish(LONG).await }
    });
    eventually("the drain has begun", || server.drain.stopped().is_cancelled()).await;
    futures::SinkExt::send(&mut frames, Ok(Frame::data(Bytes::from("late")))).await.unwrap();
    drop(frames);
    assert_eq!(text(response).await, "HTTP/1.1 /slow late status none");
    assert_eq!(soon(finishing).await.unwrap(), Outcome::Drained);
}

type Frames = futures::channel::mpsc::Sender<Result<Frame<Bytes>, std::convert::Infallible>>;

/// A body that is sent frame by frame.
fn channel() -> (Frames, Body) {
    let (sender, frames) = futures::channel::mpsc::channel(1);
    (sender, Body::stream(StreamBody::new(frames)))
}

#[tokio::test]
async fn a_client_that_reads_no_more_is_cut_at_the_end_of_the_request() {
    let authority = Authority::new();
    let tls = Server::new(authority.pair(&[NAME]), &Settings::default()).unwrap();
    let listener = Io::system().network.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let (drain, over) = (Drain::new(), CancellationToken::new());
    let handler = Arc::new({
        let over = over.clone();
        move |_: Request<Body>, conn: Arc<Conn>| {
            let over = over.clone().drop_guard();
            async move {
                let endless = futures::stream::repeat_with(|| {
                    Ok::<_, ember_dataplane::body::Error>(Frame::data(Bytes::from(vec![b'x'; 16 << 10])))
                });
                let mut response = Response::new(Body::stream(StreamBody::new(endless)));
                let total = Some(Duration::from_millis(200));
                let deadlines = Timeouts { total, ..Timeouts::default() }.start();
                response.body_mut().limit(deadlines, "over", Some(&conn));
                response.body_mut().attach(over);
                response
            }
        }
    });
    tokio::spawn({
        let (drain, options) = (drain.clone(), Options { tls: Some(tls), ..Options::default() });
        async move {
            server::serve(listener, &Workers::current(), &options, &drain, |_| Arc::clone(&handler)).await;
        }
    });
    let mut stream = handshake(&authority.client(&[V1_3], &[]), addr).await.unwrap();
    stream.write_all(b"GET / HTTP/1.1\r\nhost: app\r\n\r\n").await.unwrap();
    soon(over.cancelled()).await;
    assert_eq!(soon(drain.finish(LONG)).await, Outcome::Drained);
    drop(stream);
}

/// The client's side of a hop.
struct Hop {
    proxy: Proxy,
    conn: Conn,
}

impl Hop {
    fn new(client: Option<Client>) -> Self {
        let options = pool::Options { tls: client, ..pool::Options::default() };
        let drain = Drain::new();
        Self {
            proxy: Proxy::new(Pool::new(Io::system(), options), drain.clone()),
            conn: Conn::new(([127, 0, 0, 1], 1).into(), 0, drain),
        }
    }

    async fn forward(&self, to: &Address, protocol: Protocol, body: Body) -> Result<Response<Body>, Failure> {
        let request = Request::post("/hop").header("te", "trailers").body(body).unwrap();
        let mut outbound = Outbound::new(request, &self.conn).unwrap();
        outbound.set_protocol(protocol);
        soon(self.proxy.forward(outbound, to, None)).await
    }

    async fn refused(&self, to: &Address, protocol: Protocol) -> String {
        let failure = self.forward(to, protocol, Body::full("body")).await.unwrap_err();
        assert!(matches!(failure, Failure::Final(_)), "{failure:?}");
        let response = respond(failure.error());
        assert_eq!(response.status(), StatusCode::BAD_GATEWAY);
        let body = response.into_body().collect(1 << 10).await.unwrap();
        String::from_utf8(body.to_vec()).unwrap()
    }
}

fn secured(addr: SocketAddr, namespace: &str) -> Address {
    Address::from(addr).secured(addr.port(), Identity::of_namespace(namespace))
}

#[tokio::test]
async fn requests_stream_through_a_hop_and_share_its_connections() {
    let authority = Authority::new();
    let pair = authority.pair(&[NAME, "kn-user-default"]);
    let server = serve(Server::new(pair, &Settings::default()).unwrap(), Options::default()).await;
    let to = secured(server.addr, "Default");
    let hop = Hop::new(Some(Client::new(authority.roots()).unwrap()));
    for (protocol, answered) in
        [(Protocol::Http1, "HTTP/1.1 /hop  status 0"), (Protocol::H2c, "HTTP/2.0 /hop  status 0")]
    {
        let before = server.connections.load(Ordering::Relaxed);
        for _ in 0..5 {
            let response = hop.forward(&to, protocol, Body::empty()).await.unwrap();
            assert_eq!(text(response).await, answered);
            if protocol == Protocol::Http1 {
                eventually("the connection is back", || hop.proxy.pool().idle() == 1).await;
            }
        }
        assert_eq!(server.connections.load(Ordering::Relaxed) - before, 1, "{protocol:?}");

        // Both ways at a time.
        let (mut frames, body) = channel();
        let response = hop.forward(&to, protocol, body).await.unwrap();
        let mut answer = response.into_body();
        let mut next = async || soon(answer.frame()).await.unwrap().unwrap().into_data().unwrap();
        next().await;
        for text in ["one", "two"] {
            futures::SinkExt::send(&mut frames, Ok(Frame::data(Bytes::from(text)))).await.unwrap();
            assert_eq!(next().await, text);
        }

        // More than any buffer holds.
        drop(frames);
        let large = Bytes::from(vec![7; 4 << 20]);
        let response = hop.forward(&to, protocol, Body::full(large.clone())).await.unwrap();
        let body = soon(response.into_body().collect(8 << 20)).await.unwrap();
        assert!(body.ends_with(&large), "{protocol:?}");
    }
}

#[tokio::test]
async fn only_who_proves_to_be_asked_for_is_told_anything() {
    let (authority, other) = (Authority::new(), Authority::new());
    let served =
        async |pair| serve(Server::new(pair, &Settings::default()).unwrap(), Options::default()).await;
    let server = served(authority.pair(&[NAME, "kn-user-a"])).await;
    let hop = Hop::new(Some(Client::new(authority.roots()).unwrap()));
    for protocol in [Protocol::Http1, Protocol::H2c] {
        // A connection that is there for one identity is of no use for another.
        let response = hop.forward(&secured(server.addr, "a"), protocol, Body::empty()).await.unwrap();
        text(response).await;
        assert_eq!(
            hop.refused(&secured(server.addr, "b"), protocol).await,
            "san \"kn-user-b\" does not have a matching name in [data-plane.knative.dev kn-user-a]\n"
        );

        let elsewhere = served(authority.pair(&["elsewhere", "kn-user-a"])).await;
        let said = hop.refused(&secured(elsewhere.addr, "a"), protocol).await;
        assert!(said.starts_with("tls: invalid peer certificate: certificate not valid for name"), "{said}");
        assert_eq!(elsewhere.connections.load(Ordering::Relaxed), 0);

        let unknown = served(other.pair(&[NAME, "kn-user-a"])).await;
        let said = hop.refused(&secured(unknown.addr, "a"), protocol).await;
        assert!(said.starts_with("tls: invalid peer certificate: "), "{said}");

        let old = settings(&[("TLS_MIN_VERSION", "1.2"), ("TLS_MAX_VERSION", "1.2")]);
        let old = Server::new(authority.pair(&[NAME, "kn-user-a"]), &old).unwrap();
        let old = serve(old, Options::default()).await;
        let said = hop.refused(&secured(old.addr, "a"), protocol).await;
        assert!(said.starts_with("tls: "), "{said}");
    }
    assert_eq!(server.connections.load(Ordering::Relaxed), 2);
}

#[tokio::test]
async fn who_is_trusted_changes_while_running() {
    let (before, after) = (Authority::new(), Authority::new());
    let tls = Server::new(before.pair(&[NAME, "kn-user-a"]), &Settings::default()).unwrap();
    let server = serve(tls, Options::default()).await;
    let to = secured(server.addr, "a");
    let client = Client::new(Roots::default()).unwrap();
    let hop = Hop::new(Some(client.clone()));
    assert_eq!(hop.refused(&to, Protocol::Http1).await, "tls: no certificate authority to trust\n");
    assert_eq!(
        Hop::new(None).refused(&to, Protocol::Http1).await,
        "tls: no certificate authority to trust\n"
    );
    let mut both = before.roots();
    both.add_pem(after.pem.as_bytes());
    client.trust(both).unwrap();
    text(hop.forward(&to, Protocol::Http1, Body::empty()).await.unwrap()).await;
    server.tls.exchange(after.pair(&[NAME, "kn-user-a"]));
    hop.proxy.pool().forget(&to);
    text(hop.forward(&to, Protocol::Http1, Body::empty()).await.unwrap()).await;
    client.trust(before.roots()).unwrap();
    hop.proxy.pool().forget(&to);
    hop.refused(&to, Protocol::Http1).await;
}

#[tokio::test]
async fn a_connection_the_server_has_closed_is_not_used_again() {
    let authority = Authority::new();
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let addr = listener.local_addr().unwrap();
    // One answer a connection, then its end without a word.
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let key = KeyPair::generate().unwrap();
    let params = CertificateParams::new(vec![NAME.to_owned(), "kn-user-a".to_owned()]).unwrap();
    let certificate = params.signed_by(&key, &authority.issuer).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(
            vec![certificate.der().clone()],
            rustls::pki_types::PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
        )
        .unwrap();
    let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
    let served = Arc::new(AtomicUsize::new(0));
    tokio::spawn({
        let served = Arc::clone(&served);
        async move {
            while let Ok((stream, _)) = listener.accept().await {
                let mut stream = acceptor.accept(stream).await.unwrap();
                let mut head = Vec::new();
                while !head.ends_with(b"\r\n\r\nbody") {
                    stream.read_buf(&mut head).await.unwrap();
                }
                stream.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok").await.unwrap();
                stream.flush().await.unwrap();
                drop(stream);
                served.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
    let hop = Hop::new(Some(Client::new(authority.roots()).unwrap()));
    for round in 1..=20 {
        let response = hop.forward(&secured(addr, "a"), Protocol::Http1, Body::full("body")).await.unwrap();
        assert_eq!(response.version(), Version::HTTP_11);
        assert_eq!(text(response).await, "ok status none");
        eventually("it is closed", || served.load(Ordering::Relaxed) == round).await;
    }
}

#[tokio::test]
async fn upgraded_streams_go_over_tls() {
    let authority = Authority::new();
    let backend = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let to = Address::from(backend.local_addr().unwrap());
    tokio::spawn(async move {
        let (mut stream, _) = backend.accept().await.unwrap();
        let mut seen = Vec::new();
        while !seen.ends_with(b"\r\n\r\n") {
            stream.read_buf(&mut seen).await.unwrap();
        }
        let switch = "HTTP/1.1 101 Switching Protocols\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
        stream.write_all(switch.as_bytes()).await.unwrap();
        // Everything until the client has nothing more to say, then all of it.
        let mut said = Vec::new();
        stream.read_to_end(&mut said).await.unwrap();
        stream.write_all(&said).await.unwrap();
    });
    let inner = Server::new(authority.pair(&[NAME, "kn-user-a"]), &Settings::default()).unwrap();
    let first = front(inner, to, None).await;
    let outer = Server::new(authority.pair(&[NAME]), &Settings::default()).unwrap();
    let client = Client::new(authority.roots()).unwrap();
    let second = front(outer, secured(first, "a"), Some(client)).await;
    let mut stream = handshake(&authority.client(&[V1_3], &[]), second).await.unwrap();
    let ask = "GET / HTTP/1.1\r\nhost: app\r\nconnection: upgrade\r\nupgrade: echo\r\n\r\n";
    stream.write_all(ask.as_bytes()).await.unwrap();
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        soon(stream.read_buf(&mut head)).await.unwrap();
    }
    assert!(head.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&head));
    let said = vec![b'z'; 1 << 20];
    let (mut read, mut write) = tokio::io::split(stream);
    let writing = async {
        write.write_all(&said).await.unwrap();
        write.shutdown().await.unwrap();
    };
    let mut heard = Vec::new();
    let (read, ()) = soon(async { tokio::join!(read.read_to_end(&mut heard), writing) }).await;
    read.unwrap();
    assert_eq!(heard.len(), said.len());
}

/// A TLS server that forwards everything to `to`.
async fn front(tls: Server, to: Address, client: Option<Client>) -> SocketAddr {
    let listener = Io::system().network.listen(([127, 0, 0, 1], 0).into()).await.unwrap();
    let addr = listener.local_addr().unwrap();
    let drain = Drain::new();
    let options = pool::Options { tls: client, ..pool::Options::default() };
    let proxy = Proxy::new(Pool::new(Io::system(), options), drain.clone());
    let handler = Arc::new(move |request: Request<Body>, conn: Arc<Conn>| {
        let (proxy, to) = (proxy.clone(), to.clone());
        async move {
            match proxy.forward(Outbound::new(request, &conn).unwrap(), &to, None).await {
                Ok(response) => response,
                Err(failure) => respond(failure.error()),
            }
        }
    });
    tokio::spawn(async move {
        let options = Options { tls: Some(tls), ..Options::default() };
        server::serve(listener, &Workers::current(), &options, &drain, |_| Arc::clone(&handler)).await;
    });
    addr
}
