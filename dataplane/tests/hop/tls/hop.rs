//! Hops whose backends are behind TLS.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use ember_dataplane::address::Address;
use ember_dataplane::body::Body;
use ember_dataplane::drain::Drain;
use ember_dataplane::error::respond;
use ember_dataplane::io::Io;
use ember_dataplane::pool::{self, Pool};
use ember_dataplane::protocol::Protocol;
use ember_dataplane::proxy::{Failure, Outbound, Proxy};
use ember_dataplane::server::{self, Conn, Options};
use ember_dataplane::tls::{Client, Identity, Roots, Server, Settings};
use ember_dataplane::worker::Workers;
use http::{Request, Response, StatusCode, Version};
use http_body::Frame;
use http_body_util::BodyExt as _;
use rcgen::{CertificateParams, KeyPair};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::{Authority, NAME, V1_3, handshake, serve, settings, text};
use crate::wire::{channel, eventually, soon};

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
