//! The sidecar with a certificate, over real sockets, in front of a real app; and apps that speak TLS themselves.

use std::convert::Infallible;
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;

use ember_dataplane::body::Body;
use ember_dataplane::io::Io;
use ember_queue_proxy::Config;
use http::{HeaderMap, Request, Response};
use http_body::Frame;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::{PrivateKeyDer, ServerName};
use rustls::{ClientConfig, ServerConfig, SupportedProtocolVersion};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{Semaphore, watch};
use tokio_rustls::client::TlsStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};
use tokio_util::sync::CancellationToken;

use crate::authority::{Authority, provider};
use crate::pod::{self, MS, Sidecar, eventually, soon};

const NAME: &str = "data-plane.knative.dev";
/// Those of a certificate of the data plane.
const NAMES: &[&str] = &["kn-user-default", NAME];
const V1_2: &SupportedProtocolVersion = &rustls::version::TLS12;
const V1_3: &SupportedProtocolVersion = &rustls::version::TLS13;

impl Authority {
    async fn handshake(
        &self,
        addr: SocketAddr,
        version: &'static SupportedProtocolVersion,
    ) -> std::io::Result<TlsStream<TcpStream>> {
        let config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[version])
            .unwrap()
            .with_root_certificates(self.roots())
            .with_no_client_auth();
        let stream = TcpStream::connect(addr).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        soon(TlsConnector::from(Arc::new(config)).connect(name, stream)).await
    }
}

fn put(directory: &Path, (certificate, key): &(String, String)) {
    std::fs::write(directory.join("tls.crt"), certificate).unwrap();
    std::fs::write(directory.join("tls.key"), key).unwrap();
}

fn config(directory: &Path, user_port: u16, more: &[(&str, &str)]) -> Config {
    Config {
        certificate_directory: Some(directory.to_owned()),
        certificate_period: 10 * MS,
        ..pod::config(user_port, more)
    }
}

impl Sidecar {
    async fn is_open(&self, port: u16) -> bool {
        TcpStream::connect((self.ip, port)).await.is_ok()
    }

    fn tls(&self) -> SocketAddr {
        (self.ip, 8112).into()
    }

    async fn plain(&self, port: u16, request: Request<Body>) -> Response<Incoming> {
        http1(TcpStream::connect((self.ip, port)).await.unwrap(), request).await
    }
}

async fn refused(config: Config) -> String {
    let running =
        ember_queue_proxy::run(config, Io::system(), watch::channel(false).0, CancellationToken::new());
    soon(running).await.unwrap_err().to_string()
}

fn get(path: &str, headers: &[(&'static str, &'static str)]) -> Request<Body> {
    let mut request = Request::get(path).header("host", "app").body(Body::empty()).unwrap();
    request.headers_mut().extend(
        headers.iter().map(|(name, value)| {
            (http::HeaderName::from_static(name), http::HeaderValue::from_static(value))
        }),
    );
    request
}

trait Wire: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static {}
impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin + Send + 'static> Wire for T {}

async fn http1(stream: impl Wire, request: Request<Body>) -> Response<Incoming> {
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    soon(sender.send_request(request)).await.unwrap()
}

async fn http2(stream: impl Wire, request: Request<Body>) -> Response<Incoming> {
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    soon(sender.send_request(request)).await.unwrap()
}

async fn text(response: Response<Incoming>) -> String {
    String::from_utf8(soon(response.into_body().collect()).await.unwrap().to_bytes().to_vec()).unwrap()
}

/// Where slow requests wait.
struct Gate {
    arrived: Semaphore,
    permits: Semaphore,
}

impl Gate {
    fn new() -> Arc<Self> {
        Arc::new(Self { arrived: Semaphore::new(0), permits: Semaphore::new(0) })
    }
}

/// An app in clear text: HTTP/2 if `multiplexed`. Answers `/slow` when there is a permit.
async fn app(multiplexed: bool, gate: Arc<Gate>) -> u16 {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let gate = Arc::clone(&gate);
            let service = service_fn(move |request: Request<Incoming>| {
                let gate = Arc::clone(&gate);
                async move {
                    if request.uri().path() == "/slow" {
                        gate.arrived.add_permits(1);
                        gate.permits.acquire().await.unwrap().forget();
                    }
                    Ok::<_, Infallible>(answer(&request))
                }
            });
            let stream = TokioIo::new(stream);
            if multiplexed {
                let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(builder.serve_connection(stream, service));
            } else {
                tokio::spawn(hyper::server::conn::http1::Builder::new().serve_connection(stream, service));
            }
        }
    });
    port
}

fn answer(request: &Request<Incoming>) -> Response<Body> {
    let mut trailers = HeaderMap::new();
    trailers.insert("grpc-status", "0".parse().unwrap());
    let text = format!("{:?} {}", request.version(), request.uri().path());
    let frames = [Frame::data(text.into()), Frame::trailers(trailers)].map(Ok::<_, Infallible>);
    Response::new(Body::stream(StreamBody::new(futures::stream::iter(frames))))
}

#[tokio::test]
async fn without_both_files_there_is_no_tls() {
    let port = app(false, Gate::new()).await;
    let directory = tempfile::tempdir().unwrap();
    let (certificate, _) = Authority::new().pair(NAMES);
    // Nobody is to follow the setting, so that it may be anything.
    let wrong = ("QUEUE_PROXY_TLS_MIN_VERSION", "1.1");
    for _ in 0..2 {
        let sidecar = Sidecar::start(config(directory.path(), port, &[wrong])).await;
        assert!(!sidecar.is_open(8112).await);
        assert_eq!(text(sidecar.plain(8012, get("/a", &[])).await).await, "HTTP/1.1 /a");
        sidecar.running.abort();
        std::fs::write(directory.path().join("tls.crt"), &certificate).unwrap();
    }
}

#[tokio::test]
async fn what_cannot_be_served_with_is_fatal() {
    let directory = tempfile::tempdir().unwrap();
    let (certificate, key) = Authority::new().pair(NAMES);
    put(directory.path(), &(certificate.clone(), key.clone()));
    let said = refused(config(directory.path(), 1, &[("QUEUE_PROXY_TLS_MIN_VERSION", "1.1")])).await;
    assert_eq!(said, "invalid QUEUE_PROXY_TLS_MIN_VERSION \"1.1\": must be 1.2 or 1.3");
    let said = refused(config(directory.path(), 1, &[("QUEUE_PROXY_TLS_CURVE_PREFERENCES", "X448")])).await;
    assert!(said.contains("unknown curve \"X448\""), "{said}");

    let another = Authority::new().pair(NAMES).1;
    put(directory.path(), &(certificate.clone(), another));
    let said = refused(config(directory.path(), 1, &[])).await;
    assert!(said.contains("certificate and private key"), "{said}");
    put(directory.path(), &("garbage".to_owned(), key));
    let said = refused(config(directory.path(), 1, &[])).await;
    assert!(said.ends_with(": certificate: no items found"), "{said}");

    // There is something, but nobody can tell what.
    let file = directory.path().join("tls.crt");
    let said = refused(config(&file, 1, &[])).await;
    assert!(said.contains("tls.crt"), "{said}");
}

#[tokio::test]
async fn requests_and_probes_go_by_either_port() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), &authority.pair(NAMES));
    let port = app(false, Gate::new()).await;
    let mut sidecar = Sidecar::start(config(directory.path(), port, &[])).await;
    sidecar.until_ready().await;
    let connect = async || authority.handshake(sidecar.tls(), V1_3).await.unwrap();
    let probe = [("user-agent", "Knative-Activator-Probe"), ("k-network-probe", "queue")];
    for path in ["/", "/healthz", "/any/where"] {
        assert_eq!(text(http1(connect().await, get(path, &probe)).await).await, "queue");
        assert_eq!(
            text(http2(connect().await, get(&format!("https://app{path}"), &probe)).await).await,
            "queue"
        );
        assert_eq!(text(sidecar.plain(8012, get(path, &probe)).await).await, "queue");
    }
    assert_eq!(text(http1(connect().await, get("/b", &[])).await).await, "HTTP/1.1 /b");
    assert_eq!(text(sidecar.plain(8012, get("/c", &[])).await).await, "HTTP/1.1 /c");
    assert_eq!(sidecar.plain(8022, get("/", &[])).await.status(), 404);
    let statistics = sidecar.plain(9090, get("/metrics", &[])).await;
    assert_eq!(statistics.headers()["content-type"], "application/protobuf");
    let hash = [("k-network-probe", "probe"), ("k-network-hash", "abc")];
    assert_eq!(http1(connect().await, get("/healthz", &hash)).await.headers()["k-network-hash"], "abc");
    assert!(authority.handshake(sidecar.tls(), V1_2).await.is_err());
}

#[tokio::test]
async fn http2_apps_and_older_clients_are_served_too() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), &authority.pair(NAMES));
    let port = app(true, Gate::new()).await;
    let more = [("QUEUE_SERVING_PORT", "8013"), ("QUEUE_PROXY_TLS_MIN_VERSION", "1.2")];
    let sidecar = Sidecar::start(config(directory.path(), port, &more)).await;
    for version in [V1_2, V1_3] {
        let stream = authority.handshake(sidecar.tls(), version).await.unwrap();
        let response = http2(stream, get("https://app/echo.Echo/Talk", &[("te", "trailers")])).await;
        let collected = soon(response.into_body().collect()).await.unwrap();
        assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
        assert_eq!(collected.to_bytes(), "HTTP/2.0 /echo.Echo/Talk");
    }
}

#[tokio::test]
async fn a_changed_pair_is_taken_over_and_a_bad_one_is_not() {
    let (before, after) = (Authority::new(), Authority::new());
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), &before.pair(NAMES));
    let port = app(false, Gate::new()).await;
    let sidecar = Sidecar::start(config(directory.path(), port, &[])).await;
    let stream = before.handshake(sidecar.tls(), V1_3).await.unwrap();
    let (mut open, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);

    // For as long as the files do not fit together nothing happens, and nothing tells that they were looked at: a few
    // periods of it.
    let next = after.pair(NAMES);
    std::fs::write(directory.path().join("tls.crt"), &next.0).unwrap();
    for _ in 0..5 {
        tokio::time::sleep(10 * MS).await;
        assert!(before.handshake(sidecar.tls(), V1_3).await.is_ok());
    }
    std::fs::remove_file(directory.path().join("tls.key")).unwrap();
    tokio::time::sleep(30 * MS).await;
    assert!(before.handshake(sidecar.tls(), V1_3).await.is_ok());
    put(directory.path(), &next);
    eventually("the new one is served", async || after.handshake(sidecar.tls(), V1_3).await.is_ok()).await;
    assert!(before.handshake(sidecar.tls(), V1_3).await.is_err());
    assert_eq!(text(soon(open.send_request(get("/open", &[]))).await.unwrap()).await, "HTTP/1.1 /open");

    // The key alone may change, with a certificate that goes with it.
    put(directory.path(), &before.pair(NAMES));
    eventually("the old one is back", async || before.handshake(sidecar.tls(), V1_3).await.is_ok()).await;
}

#[tokio::test]
async fn the_drain_waits_for_tls_requests_too() {
    let authority = Authority::new();
    let directory = tempfile::tempdir().unwrap();
    put(directory.path(), &authority.pair(NAMES));
    let gate = Gate::new();
    let port = app(false, Arc::clone(&gate)).await;
    let sidecar = Sidecar::start(config(directory.path(), port, &[])).await;
    let (tls, ip) = (sidecar.tls(), sidecar.ip);
    let slow = authority.handshake(tls, V1_3).await.unwrap();
    let slow = tokio::spawn(async move { text(http1(slow, get("/slow", &[])).await).await });
    soon(gate.arrived.acquire()).await.unwrap().forget();
    let silent = TcpStream::connect(tls).await.unwrap();
    let probe = [("user-agent", "Knative-Activator-Probe"), ("k-network-probe", "queue")];
    sidecar.shutdown.cancel();
    eventually("probes are refused", async || {
        let stream = authority.handshake(tls, V1_3).await.unwrap();
        http1(stream, get("/", &probe)).await.status() == 503
    })
    .await;
    let stream = authority.handshake(tls, V1_3).await.unwrap();
    let last = http1(stream, get("/last", &[])).await;
    assert_eq!(last.headers()["connection"], "close");
    assert_eq!(text(last).await, "HTTP/1.1 /last");
    assert!(!sidecar.running.is_finished());
    gate.permits.add_permits(1);
    assert_eq!(slow.await.unwrap(), "HTTP/1.1 /slow");
    sidecar.ended().await;
    assert!(TcpStream::connect((ip, 8112)).await.is_err());
    drop(silent);
}

/// An app that speaks TLS with a certificate of its own making, and what ALPN says. Answers `/ready` with 200 and what
/// is not under it with a way there.
async fn tls_app(alpn: &[&str], versions: &[&'static SupportedProtocolVersion]) -> u16 {
    let made = rcgen::generate_simple_self_signed(["whoever".to_owned()]).unwrap();
    let key = PrivateKeyDer::try_from(made.signing_key.serialize_der()).unwrap();
    let mut config = ServerConfig::builder_with_provider(provider())
        .with_protocol_versions(versions)
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(vec![made.cert.der().clone()], key)
        .unwrap();
    config.alpn_protocols = alpn.iter().map(|name| name.as_bytes().to_vec()).collect();
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    let multiplexed = alpn.contains(&"h2");
    tokio::spawn(async move {
        while let Ok((stream, _)) = listener.accept().await {
            let acceptor = acceptor.clone();
            tokio::spawn(async move {
                let Ok(stream) = acceptor.accept(stream).await else { return };
                let service = service_fn(|request: Request<Incoming>| async move {
                    assert_eq!(request.headers()["user-agent"], "kube-probe//");
                    assert_eq!(request.headers()["x-probe"], "yes");
                    let answer = match request.uri().path() {
                        "/ready" => Response::builder().status(200),
                        "/moved" => Response::builder().status(302).header("location", "/ready"),
                        _ => Response::builder().status(500),
                    };
                    Ok::<_, Infallible>(answer.body(Body::full("body")).unwrap())
                });
                let stream = TokioIo::new(stream);
                let _ = if multiplexed {
                    let builder = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                    builder.serve_connection(stream, service).await
                } else {
                    hyper::server::conn::http1::Builder::new().serve_connection(stream, service).await
                };
            });
        }
    });
    port
}

#[tokio::test]
async fn https_probes_believe_whoever_answers() {
    let nowhere = tempfile::tempdir().unwrap();
    let probed = async |port: u16, path: &str| {
        let probe = format!(
            r#"{{"httpGet":{{"path":"{path}","port":{port},"host":"127.0.0.1","scheme":"HTTPS","httpHeaders":[{{"name":"X-Probe","value":"yes"}}]}},"periodSeconds":1,"timeoutSeconds":10}}"#
        );
        Sidecar::start(config(nowhere.path(), port, &[("SERVING_READINESS_PROBE", &probe)])).await
    };
    let ready = async |port: u16, path: &str| {
        let mut sidecar = probed(port, path).await;
        sidecar.until_ready().await;
    };
    ready(tls_app(&[], &[V1_3]).await, "/ready").await;
    ready(tls_app(&["http/1.1"], &[V1_2]).await, "/moved").await;
    ready(tls_app(&["h2"], &[V1_3, V1_2]).await, "/moved").await;

    let failing = probed(tls_app(&[], &[V1_3]).await, "/broken").await;
    let probe = [("user-agent", "kube-probe/1.34"), ("k-network-probe", "queue")];
    let asked = tokio::time::timeout(300 * MS, failing.plain(8012, get("/", &probe))).await;
    assert!(asked.is_err() || asked.unwrap().status() == 503);
    assert!(!*failing.ready.borrow());
}
