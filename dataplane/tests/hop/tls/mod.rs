//! TLS over real sockets: servers met by clients of rustls' own, and hops that meet servers.

mod hop;
mod server;

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

use bytes::Bytes;
use ember_dataplane::body::Body;
use ember_dataplane::drain::Drain;
use ember_dataplane::io::Io;
use ember_dataplane::server::{Conn, Options};
use ember_dataplane::tls::{Pair, Roots, Server, Settings};
use ember_dataplane::worker::Workers;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore, SupportedProtocolVersion};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use crate::wire::soon;

const NAME: &str = "data-plane.knative.dev";

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
        ember_dataplane::server::serve(listener, &Workers::current(), &options, &drain, |_| {
            Arc::clone(&handler)
        })
        .await;
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
