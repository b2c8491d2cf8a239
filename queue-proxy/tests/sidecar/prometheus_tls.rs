//! Metrics over TLS, for those who can prove who they are; and requests that came by TLS, as metrics tell them.

use std::path::Path;
use std::sync::Arc;

use ember_queue_proxy::Config;
use rustls::ClientConfig;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::authority::{Authority, provider};
use crate::pod::{Sidecar, app, config, echo, soon};

const NAME: &str = "queue-proxy.example";
const ASK: &str = "GET /metrics HTTP/1.1\r\nhost: app\r\nconnection: close\r\n\r\n";

impl Authority {
    /// What a client that trusts this authority, and may prove itself with `pair`, is answered.
    async fn ask(
        &self,
        sidecar: &Sidecar,
        port: u16,
        request: &str,
        pair: Option<&(String, String)>,
    ) -> Option<String> {
        let builder = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(self.roots());
        let config = match pair {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
                let key = PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap();
                builder.with_client_auth_cert(chain, key).unwrap()
            }
        };
        let stream = TcpStream::connect((sidecar.ip, port)).await.unwrap();
        let name = ServerName::try_from(NAME).unwrap();
        let exchange = async {
            // Whom the server refuses learns it with the first answer, in TLS 1.3.
            let mut stream = TlsConnector::from(Arc::new(config)).connect(name, stream).await.ok()?;
            stream.write_all(request.as_bytes()).await.ok()?;
            let mut answer = String::new();
            stream.read_to_string(&mut answer).await.ok()?;
            Some(answer)
        };
        soon(exchange).await
    }
}

fn put(directory: &Path, name: &str, text: &str) -> String {
    let path = directory.join(name);
    std::fs::write(&path, text).unwrap();
    path.to_str().unwrap().to_owned()
}

#[tokio::test]
async fn who_may_read_metrics() {
    let directory = tempfile::tempdir().unwrap();
    let (authority, clients, strangers) = (Authority::new(), Authority::new(), Authority::new());
    let (certificate, key) = authority.pair(&[NAME]);
    let certificate = put(directory.path(), "metrics.crt", &certificate);
    let key = put(directory.path(), "metrics.key", &key);
    let ca = put(directory.path(), "clients.crt", &clients.pem);
    let port = app(echo).await;
    // Who is answered: nobody's client, a known one, a stranger.
    for (auth, answered) in
        [("none", [true, true, true]), ("optional", [true, true, false]), ("require", [false, true, false])]
    {
        let more = [
            ("OBSERVABILITY_CONFIG", r#"{"requestMetrics":{"protocol":"prometheus"}}"#),
            ("METRICS_PROMETHEUS_TLS_CERT", &certificate),
            ("METRICS_PROMETHEUS_TLS_KEY", &key),
            ("METRICS_PROMETHEUS_TLS_CLIENT_AUTH", auth),
            ("METRICS_PROMETHEUS_TLS_CLIENT_CA_FILE", &ca),
        ];
        let sidecar = Sidecar::start(config(port, &more)).await;
        let pairs = [None, Some(clients.pair(&[NAME])), Some(strangers.pair(&[NAME]))];
        for (pair, answered) in pairs.iter().zip(answered) {
            let answer = authority.ask(&sidecar, 9091, ASK, pair.as_ref()).await;
            let found = answer.is_some_and(|answer| answer.contains("target_info{"));
            assert_eq!(found, answered, "{auth}");
        }
        let plain = sidecar.send(9091, ASK).await;
        assert!(!plain.contains("target_info"), "{plain}");
    }
}

#[tokio::test]
async fn a_request_by_tls_is_told_as_that() {
    let directory = tempfile::tempdir().unwrap();
    let authority = Authority::new();
    let (certificate, key) = authority.pair(&[NAME]);
    put(directory.path(), "tls.crt", &certificate);
    put(directory.path(), "tls.key", &key);
    let port = app(echo).await;
    let more = [("OBSERVABILITY_CONFIG", r#"{"requestMetrics":{"protocol":"prometheus"}}"#)];
    let certificate_directory = Some(directory.path().to_owned());
    let sidecar = Sidecar::start(Config { certificate_directory, ..config(port, &more) }).await;
    let request = "GET / HTTP/1.1\r\nhost: app:443\r\nconnection: close\r\n\r\n";
    let answer = authority.ask(&sidecar, 8112, request, None).await;
    assert!(answer.as_ref().is_some_and(|answer| answer.starts_with("HTTP/1.1 200")), "{answer:?}");
    let labels = r#"http_request_method="GET",http_response_status_code="200",kn_route_tag="kn:disabled",network_protocol_name="http",network_protocol_version="1.1",otel_scope_name="go.opentelemetry.io/contrib/instrumentation/net/http/otelhttp",otel_scope_schema_url="",otel_scope_version="0.69.0",server_address="app",url_scheme="https""#;
    sidecar.until_line(&format!("http_server_request_duration_seconds_count{{{labels}}} 1")).await;
    let text = sidecar.metrics().await;
    let client =
        text.lines().find(|line| line.starts_with("http_client_request_duration_seconds_count")).unwrap();
    assert!(client.contains(r#"url_scheme="http""#), "{client}");
}

#[tokio::test]
async fn files_that_are_not_there_are_told_by_their_variable() {
    let port = app(echo).await;
    let more = [
        ("OBSERVABILITY_CONFIG", r#"{"requestMetrics":{"protocol":"prometheus"}}"#),
        ("METRICS_PROMETHEUS_TLS_CERT", "/nowhere/tls.crt"),
        ("METRICS_PROMETHEUS_TLS_KEY", "/nowhere/tls.key"),
    ];
    let (readiness, _) = tokio::sync::watch::channel(false);
    let io = ember_dataplane::io::Io::system();
    let shutdown = tokio_util::sync::CancellationToken::new();
    let error = ember_queue_proxy::run(config(port, &more), io, readiness, shutdown).await.unwrap_err();
    assert!(error.to_string().starts_with("METRICS_PROMETHEUS_TLS_CERT: /nowhere/tls.crt: "), "{error}");
}
