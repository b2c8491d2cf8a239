//! Who may talk to the API.

use std::net::SocketAddr;

use ember_tests::instance::Ember;
use ember_tests::{PATIENCE, api};
use kube::config::{AuthInfo, KubeConfigOptions, Kubeconfig};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

/// What a client may ask for that knows the certificate and has this token.
async fn client(ember: &Ember, token: Option<String>) -> kube::Client {
    let kubeconfig = Kubeconfig::read_from(&ember.kubeconfig).unwrap();
    let mut config =
        kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await.unwrap();
    config.auth_info = AuthInfo { token: token.map(Into::into), ..AuthInfo::default() };
    kube::Client::try_from(config).unwrap()
}

/// The token, as the kubeconfig has it.
fn token(ember: &Ember) -> String {
    let text = std::fs::read_to_string(&ember.kubeconfig).unwrap();
    text.lines().find_map(|line| line.trim().strip_prefix("token: ")).unwrap().to_owned()
}

/// Where the API listens.
fn address(ember: &Ember) -> SocketAddr {
    let text = std::fs::read_to_string(&ember.kubeconfig).unwrap();
    text.lines().find_map(|line| line.trim().strip_prefix("server: https://")).unwrap().parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn without_the_token_every_path_is_refused() {
    let ember = Ember::start().await;
    let token = token(&ember);
    let last = if token.ends_with('0') { "1" } else { "0" };
    let other = format!("{}{last}", &token[..token.len() - 1]);
    let wrong = [None, Some(String::new()), Some("x".to_owned()), Some(other), Some(format!("{token}0"))];
    for token in wrong {
        let client = client(&ember, token.clone()).await;
        for path in [
            "/api/v1/namespaces/default/secrets",
            "/apis/serving.knative.dev/v1/services",
            "/apis/serving.knative.dev/v1/services?watch=true",
            "/version",
            "/healthz",
            "/nothing/here",
        ] {
            match api::get(&client, path).await {
                Err(kube::Error::Api(status)) => {
                    assert_eq!(
                        (status.code, status.reason.as_str()),
                        (401, "Unauthorized"),
                        "{token:?}: {path}"
                    );
                }
                other => panic!("{token:?}: {path}: {other:?}"),
            }
        }
    }
    let right = client(&ember, Some(token)).await;
    api::get(&right, "/api/v1/namespaces/default/secrets").await.unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn the_api_speaks_tls_on_loopback_only() {
    let ember = Ember::start().await;
    let address = address(&ember);
    assert!(address.ip().is_loopback(), "{address}");
    let mut stream = TcpStream::connect(address).await.unwrap();
    let request =
        format!("GET /version HTTP/1.1\r\nhost: x\r\nauthorization: Bearer {}\r\n\r\n", token(&ember));
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = Vec::new();
    // However it ends, HTTP is not what was said.
    tokio::time::timeout(PATIENCE, stream.read_to_end(&mut answer)).await.unwrap().ok();
    assert!(!answer.starts_with(b"HTTP"), "{}", String::from_utf8_lossy(&answer));
}
