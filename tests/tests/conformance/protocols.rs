//! The protocol that reaches the app: `protocol_test`.

use std::convert::Infallible;

use bytes::Bytes;
use ember_tests::instance::Ember;
use http_body_util::Full;
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::json;
use tokio::net::TcpListener;

use crate::app::ready;

#[tokio::test(flavor = "multi_thread")]
async fn test_protocols() {
    let ember = Ember::start().await;
    let program = std::env::current_exe().unwrap();
    for (name, version) in [("h2c", "HTTP/2.0"), ("http1", "HTTP/1.1"), ("", "HTTP/1.1")] {
        let container = json!({
            "command": [program.to_str().unwrap()],
            "args": ["--exact", "--ignored", "protocols::serve_as_app"],
            "ports": [{"name": name, "containerPort": 8080}]
        });
        let name = format!("speaks{name}");
        let app = ready(&ember, &crate::app::service(&name, &container, &json!({}))).await;
        assert_eq!(app.get("/").await, version, "{name}");
    }
}

/// Not a test: an app that answers with the version of HTTP it is asked in.
#[tokio::test]
#[ignore = "an app for the other tests, not a test"]
async fn serve_as_app() {
    let Ok(port) = std::env::var("PORT") else { return };
    let listener = TcpListener::bind(("127.0.0.1", port.parse().unwrap())).await.unwrap();
    loop {
        let (stream, _) = listener.accept().await.unwrap();
        let service = hyper::service::service_fn(async |request: http::Request<hyper::body::Incoming>| {
            let version = format!("{:?}", request.version());
            Ok::<_, Infallible>(http::Response::new(Full::new(Bytes::from(version))))
        });
        tokio::spawn(async move {
            let server = hyper_util::server::conn::auto::Builder::new(TokioExecutor::new());
            // A client that goes away ends its connection only.
            server.serve_connection(TokioIo::new(stream), service).await.ok();
        });
    }
}
