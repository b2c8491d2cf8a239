//! Liveness, startup and readiness probes of app containers, as the kubelet runs them.

mod grpc;
mod http;

use std::time::Duration;

use k8s_openapi::api::core::v1::Probe;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How the kubelet of the served version calls itself.
const USER_AGENT: &str = "kube-probe/1.34";

/// How a probe is repeated, with Kubernetes' defaults filled in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Timing {
    initial_delay: Duration,
    period: Duration,
    pub(crate) timeout: Duration,
    failures: u32,
    successes: u32,
}

impl Timing {
    pub(crate) fn of(probe: &Probe) -> Self {
        let positive = |value: Option<i32>, default: u32| {
            value.and_then(|v| u32::try_from(v).ok()).filter(|v| *v > 0).unwrap_or(default)
        };
        let seconds = |value, default| Duration::from_secs(u64::from(positive(value, default)));
        Self {
            initial_delay: seconds(probe.initial_delay_seconds, 0),
            period: seconds(probe.period_seconds, 10),
            timeout: seconds(probe.timeout_seconds, 1),
            failures: positive(probe.failure_threshold, 3),
            successes: positive(probe.success_threshold, 1),
        }
    }
}

/// What a probe's attempts so far amount to.
#[derive(Debug)]
pub(crate) struct Tally {
    timing: Timing,
    is_new: bool,
    failures: u32,
    successes: u32,
}

impl Tally {
    pub(crate) fn new(probe: &Probe) -> Self {
        Self { timing: Timing::of(probe), is_new: true, failures: 0, successes: 0 }
    }

    /// How long to wait before the next attempt.
    pub(crate) fn wait(&mut self) -> Duration {
        if std::mem::take(&mut self.is_new) { self.timing.initial_delay } else { self.timing.period }
    }

    /// Counts an attempt; whether its outcome has been the same often enough to be believed.
    pub(crate) fn count(&mut self, success: bool) -> bool {
        if success {
            (self.failures, self.successes) = (0, self.successes + 1);
        } else {
            (self.failures, self.successes) = (self.failures + 1, 0);
        }
        self.failures >= self.timing.failures || self.successes >= self.timing.successes
    }
}

/// One attempt of a probe over the network.
pub(crate) async fn attempt(probe: &Probe) -> Result<(), String> {
    let limit = Timing::of(probe).timeout;
    match timeout(limit, exchange(probe)).await {
        Ok(outcome) => outcome,
        Err(_) => Err(format!("no answer within {} s", limit.as_secs())),
    }
}

async fn exchange(probe: &Probe) -> Result<(), String> {
    if let Some(action) = &probe.http_get {
        return http::get(action).await;
    }
    if let Some(action) = &probe.tcp_socket {
        return connect(action.host.as_deref(), &action.port).await.map(drop);
    }
    match &probe.grpc {
        Some(action) => grpc::check(action).await,
        None => Err("no probe found".to_owned()),
    }
}

async fn connect(host: Option<&str>, port: &IntOrString) -> Result<TcpStream, String> {
    let port = match port {
        IntOrString::Int(number) => u16::try_from(*number).map_err(|e| e.to_string())?,
        IntOrString::String(text) => text.parse().map_err(|_| format!("no port is named {text:?}"))?,
    };
    let host = host.filter(|h| !h.is_empty()).unwrap_or("127.0.0.1");
    TcpStream::connect((host, port)).await.map_err(|e| format!("dial tcp {host}:{port}: {e}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    use tokio::net::TcpListener;

    #[test]
    fn thresholds() {
        let probe: Probe = serde_json::from_value(
            json!({"periodSeconds": 2, "initialDelaySeconds": 7, "failureThreshold": 2}),
        )
        .unwrap();
        let mut tally = Tally::new(&probe);
        assert_eq!((tally.wait().as_secs(), tally.wait().as_secs()), (7, 2));
        let believed: Vec<bool> =
            [true, false, true, false, false].into_iter().map(|outcome| tally.count(outcome)).collect();
        assert_eq!(believed, [true, false, true, false, true]);
    }

    async fn answer(status: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let (mut stream, _) = listener.accept().await.unwrap();
            let mut request = [0; 1024];
            let length = stream.read(&mut request).await.unwrap();
            assert!(request[..length].starts_with(b"GET /healthz HTTP/1.1\r\n"));
            let text = format!("HTTP/1.1 {status}\r\ncontent-length: 0\r\n\r\n");
            stream.write_all(text.as_bytes()).await.unwrap();
        });
        port
    }

    #[tokio::test]
    async fn http_and_tcp() {
        let http = |port: u16| -> Probe {
            serde_json::from_value(json!({"httpGet": {"port": port, "path": "/healthz"}})).unwrap()
        };
        let tcp =
            |port: u16| -> Probe { serde_json::from_value(json!({"tcpSocket": {"port": port}})).unwrap() };
        assert_eq!(attempt(&http(answer("302 Found").await)).await, Ok(()));
        let failed = attempt(&http(answer("500 Internal Server Error").await)).await;
        assert_eq!(failed, Err("HTTP probe failed with statuscode: 500".into()));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        assert_eq!(attempt(&tcp(port)).await, Ok(()));
        drop(listener);
        assert!(attempt(&tcp(port)).await.is_err());
    }

    #[tokio::test]
    async fn https_takes_any_certificate() {
        let key = rcgen::KeyPair::generate().unwrap();
        let certificate =
            rcgen::CertificateParams::new(["nobody".to_owned()]).unwrap().self_signed(&key).unwrap();
        let config = tokio_rustls::rustls::ServerConfig::builder()
            .with_no_client_auth()
            .with_single_cert(vec![certificate.der().clone()], key.into())
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(std::sync::Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let server = tokio::spawn(async move {
            for _ in 0..2 {
                let (stream, _) = listener.accept().await.unwrap();
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let mut request = [0; 1024];
                let length = stream.read(&mut request).await.unwrap();
                assert!(String::from_utf8_lossy(&request[..length]).contains("x-probe: yes"));
                stream.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
            }
        });
        let probe = |scheme: &str| -> Probe {
            serde_json::from_value(json!({"timeoutSeconds": 20, "httpGet": {"port": port, "scheme": scheme,
                "httpHeaders": [{"name": "x-probe", "value": "yes"}]}}))
            .unwrap()
        };
        assert_eq!(attempt(&probe("HTTPS")).await, Ok(()));
        assert!(attempt(&probe("HTTP")).await.is_err(), "no clear text there");
        server.await.unwrap();
    }
}
