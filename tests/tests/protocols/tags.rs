//! Routing by tag header.

use ember_tests::api;
use ember_tests::http::host;
use ember_tests::instance::Ember;
use ember_tests::soon;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use tokio::net::TcpStream;

fn service(target: &str, traffic: &Value) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": "tagged"},
        "spec": {
            "template": {
                "metadata": {"name": format!("tagged-{target}")},
                "spec": {"containers": [{
                    "image": "dev.local/host",
                    "command": ["ember", "demo-app", "hello"],
                    "env": [{"name": "TARGET", "value": target}],
                }]},
            },
            "traffic": traffic,
        },
    })
}

async fn ask(ember: &Ember, http2: bool, headers: &[(&str, &str)]) -> (u16, String) {
    let io = TokioIo::new(TcpStream::connect(ember.gateway).await.unwrap());
    let mut request =
        Request::get(if http2 { format!("http://{}/", host("tagged")) } else { "/".to_owned() });
    if !http2 {
        request = request.header("host", host("tagged"));
    }
    for (name, value) in headers {
        request = request.header(*name, *value);
    }
    let request = request.body(Empty::<Bytes>::new()).unwrap();
    let answer: Response<Incoming> = if http2 {
        let (mut client, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        soon("an answer", client.send_request(request)).await.unwrap()
    } else {
        let (mut client, connection) = hyper::client::conn::http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        soon("an answer", client.send_request(request)).await.unwrap()
    };
    let status = answer.status().as_u16();
    let body = answer.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).trim().to_owned())
}

#[tokio::test(flavor = "multi_thread")]
async fn a_tag_header_chooses_the_revision() {
    let ember = Ember::start().await;
    let features = "/api/v1/namespaces/knative-serving/configmaps/config-features";
    let enabled = json!({"data": {"tag-header-based-routing": "enabled"}});
    api::merge(&ember.client, features, &enabled).await.unwrap();
    ember.apply(&service("one", &json!([{"revisionName": "tagged-one", "percent": 100}])).to_string());
    ember.ready("tagged").await;
    let traffic = json!([
        {"revisionName": "tagged-one", "percent": 100},
        {"revisionName": "tagged-two", "percent": 0, "tag": "next"},
    ]);
    ember.apply(&service("two", &traffic).to_string());
    ember.ready("tagged").await;
    for http2 in [false, true] {
        let next = [("Knative-Serving-Tag", "next")];
        let unknown = [("Knative-Serving-Tag", "nobody")];
        assert_eq!(ask(&ember, http2, &[]).await, (200, "Hello one!".to_owned()));
        assert_eq!(ask(&ember, http2, &next).await, (200, "Hello two!".to_owned()));
        assert_eq!(ask(&ember, http2, &unknown).await, (200, "Hello one!".to_owned()));
    }
}
