//! Metrics by TLS.

use std::sync::Arc;

use ember_dataplane::metrics::prometheus::{Clients, Tls};
use ember_dataplane::tls::Settings;
use rcgen::{CertificateParams, KeyPair};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use serde_json::json;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::world::*;

const NAME: &str = "activator.example";

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn metrics_are_served_by_tls_where_a_certificate_is_named() {
    let directory = tempfile::tempdir().unwrap();
    let key = KeyPair::generate().unwrap();
    let certificate = CertificateParams::new(vec![NAME.to_owned()]).unwrap().self_signed(&key).unwrap().pem();
    let at = |name: &str| directory.path().join(name);
    std::fs::write(at("crt"), &certificate).unwrap();
    std::fs::write(at("key"), key.serialize_pem()).unwrap();
    let world = World::start(json!({}), |config| {
        config.metrics_tls = Some(Tls {
            certificate: at("crt"),
            key: at("key"),
            clients: Clients::Any,
            settings: Settings::default(),
        });
    })
    .await;
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()).unwrap();
    let client = ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_protocol_versions(&[&rustls::version::TLS13])
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    let ask = b"GET /metrics HTTP/1.1\r\nhost: a\r\nconnection: close\r\n\r\n";
    let stream = TcpStream::connect(world.metrics).await.unwrap();
    let name = ServerName::try_from(NAME).unwrap();
    let mut stream = soon("TLS", TlsConnector::from(Arc::new(client)).connect(name, stream)).await.unwrap();
    stream.write_all(ask).await.unwrap();
    let mut answer = String::new();
    soon("the metrics", stream.read_to_string(&mut answer)).await.unwrap();
    assert!(answer.starts_with("HTTP/1.1 200") && answer.contains("kn_activator_stats_conn"), "{answer}");

    // In clear text nothing is told.
    let mut stream = TcpStream::connect(world.metrics).await.unwrap();
    stream.write_all(ask).await.unwrap();
    let mut answer = Vec::new();
    let _ = soon("the end", stream.read_to_end(&mut answer)).await;
    assert!(!answer.starts_with(b"HTTP"));
    world.stop().await;
}
