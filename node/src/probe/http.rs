//! `httpGet`, in clear text and over TLS.

use std::sync::{Arc, OnceLock};

use bytes::Bytes;
use futures::future::Either;
use http_body_util::Empty;
use hyper::rt::{Read, Write};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::HTTPGetAction;
use kube::client::ConfigExt;
use tokio_rustls::TlsConnector;
use tokio_rustls::rustls::pki_types::ServerName;

use super::{USER_AGENT, connect};

/// Asks once. As in Kubernetes no certificate is verified.
pub(super) async fn get(action: &HTTPGetAction) -> Result<(), String> {
    let secure = action.scheme.as_deref().is_some_and(|s| s.eq_ignore_ascii_case("https"));
    let stream = connect(action.host.as_deref(), &action.port).await?;
    let address = stream.peer_addr().map_err(|e| e.to_string())?;
    let status = if secure {
        let stream = connector()?
            .connect(ServerName::from(address.ip()), stream)
            .await
            .map_err(|e| format!("TLS handshake with {address}: {e}"))?;
        ask(TokioIo::new(stream), request(action, address.to_string())?).await?
    } else {
        ask(TokioIo::new(stream), request(action, address.to_string())?).await?
    };
    if (200..400).contains(&status) {
        Ok(())
    } else {
        Err(format!("HTTP probe failed with statuscode: {status}"))
    }
}

/// Takes any certificate; made once.
fn connector() -> Result<TlsConnector, String> {
    static CONNECTOR: OnceLock<Result<TlsConnector, String>> = OnceLock::new();
    let make = || {
        let mut config = kube::Config::new(http::Uri::from_static("https://localhost"));
        config.accept_invalid_certs = true;
        // None of the system's roots are needed.
        config.root_cert = Some(Vec::new());
        let mut tls = config.rustls_client_config().map_err(|e| e.to_string())?;
        tls.alpn_protocols = vec![b"http/1.1".to_vec()];
        Ok(TlsConnector::from(Arc::new(tls)))
    };
    CONNECTOR.get_or_init(make).clone()
}

fn request(action: &HTTPGetAction, authority: String) -> Result<http::Request<Empty<Bytes>>, String> {
    let path = action.path.as_deref().unwrap_or("/");
    let mut request = http::Request::get(format!("/{}", path.trim_start_matches('/')))
        .header(http::header::CONNECTION, "close");
    let mut host = authority;
    for header in action.http_headers.iter().flatten() {
        if header.name.eq_ignore_ascii_case("host") {
            host.clone_from(&header.value);
        } else {
            request = request.header(&header.name, &header.value);
        }
    }
    let named = action.http_headers.iter().flatten().any(|h| h.name.eq_ignore_ascii_case("user-agent"));
    if !named {
        request = request.header(http::header::USER_AGENT, USER_AGENT);
    }
    request.header(http::header::HOST, host).body(Empty::new()).map_err(|e| e.to_string())
}

async fn ask(
    stream: impl Read + Write + Send + Unpin + 'static,
    request: http::Request<Empty<Bytes>>,
) -> Result<u16, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(stream).await.map_err(|e| e.to_string())?;
    let exchange = std::pin::pin!(sender.send_request(request));
    // The connection is driven here, so that dropping the attempt closes it. It may end before its answer is taken.
    let response = match futures::future::select(exchange, std::pin::pin!(connection)).await {
        Either::Left((response, _)) => response,
        Either::Right((_, exchange)) => exchange.await,
    };
    response.map(|r| r.status().as_u16()).map_err(|e| e.to_string())
}
