//! The same server over TLS with a client library, whether there is a kubectl or not.

use std::collections::BTreeSet;
use std::sync::Arc;

use futures::{AsyncBufReadExt, StreamExt, TryStreamExt};
use k8s_openapi::api::authorization::v1::{ResourceAttributes, SelfSubjectAccessReview};
use k8s_openapi::api::core::v1::{ConfigMap, Pod};
use kube::api::{
    DeleteParams, ListParams, LogParams, Patch, PatchParams, PostParams, Preconditions, WatchEvent,
    WatchParams,
};
use kube::{Api, Client, Error, ResourceExt};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use serde_json::{Value, json};

use crate::{Cluster, LIMIT};

async fn client(cluster: &Cluster) -> Client {
    let _ = rustls::crypto::ring::default_provider().install_default();
    let file = cluster.folder.path().join("kubeconfig");
    let kubeconfig = kube::config::Kubeconfig::read_from(file).unwrap();
    let options = kube::config::KubeConfigOptions::default();
    Client::try_from(kube::Config::from_custom_kubeconfig(kubeconfig, &options).await.unwrap()).unwrap()
}

fn map(name: &str) -> ConfigMap {
    serde_json::from_value(json!({ "metadata": { "name": name }, "data": { "a": "1" } })).unwrap()
}

fn refusal<T: std::fmt::Debug>(result: Result<T, Error>) -> (u16, String, String) {
    let Err(Error::Api(status)) = result else { panic!("expected a refusal, got {result:?}") };
    (status.code, status.reason.clone(), status.message.clone())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn lists_come_in_pages_and_watches_resume() {
    let c = Cluster::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client(&c).await);
    for name in ["a", "b", "c", "d", "e"] {
        api.create(&PostParams::default(), &map(name)).await.unwrap();
    }
    let (mut names, mut pages, mut token) = (BTreeSet::new(), 0, None::<String>);
    let first = loop {
        let mut params = ListParams::default().limit(2);
        params.continue_token.clone_from(&token);
        let page = api.list(&params).await.unwrap();
        names.extend(page.items.iter().map(ResourceExt::name_any));
        pages += 1;
        token = page.metadata.continue_.filter(|t| !t.is_empty());
        if token.is_none() {
            break page.metadata.resource_version.unwrap();
        }
    };
    assert_eq!((names.len(), pages), (5, 3));

    api.delete("a", &DeleteParams::default()).await.unwrap();
    let patch = Patch::Merge(json!({ "data": { "a": "2" } }));
    let patched = api.patch("b", &PatchParams::default(), &patch).await.unwrap();
    let mut seen = Vec::new();
    let mut watch = api.watch(&WatchParams::default(), &first).await.unwrap().boxed();
    while seen.len() < 2 {
        let event = tokio::time::timeout(LIMIT, watch.try_next()).await.unwrap().unwrap().unwrap();
        seen.push(match event {
            WatchEvent::Deleted(o) => format!("deleted {}", o.name_any()),
            WatchEvent::Modified(o) => format!("modified {}", o.name_any()),
            other => panic!("{other:?}"),
        });
    }
    assert_eq!(seen, ["deleted a", "modified b"]);
    // From where another watch ended, nothing is told twice.
    api.create(&PostParams::default(), &map("f")).await.unwrap();
    let version = patched.resource_version().unwrap();
    let mut watch = api.watch(&WatchParams::default(), &version).await.unwrap().boxed();
    let event = tokio::time::timeout(LIMIT, watch.try_next()).await.unwrap().unwrap().unwrap();
    assert!(matches!(event, WatchEvent::Added(o) if o.name_any() == "f"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_from_before_what_is_remembered_is_told_so() {
    let c = Cluster::start_with(|config| config.watch_history = 2).await;
    let api: Api<ConfigMap> = Api::default_namespaced(client(&c).await);
    let first = api.create(&PostParams::default(), &map("a")).await.unwrap().resource_version().unwrap();
    for name in ["b", "c", "d"] {
        api.create(&PostParams::default(), &map(name)).await.unwrap();
    }
    let mut watch = api.watch(&WatchParams::default(), &first).await.unwrap().boxed();
    let event = tokio::time::timeout(LIMIT, watch.next()).await.unwrap().unwrap();
    let Ok(WatchEvent::Error(status)) = event else { panic!("{event:?}") };
    assert_eq!((status.code, status.reason.as_str()), (410, "Expired"));
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn objects_are_patched_and_deleted_on_conditions() {
    let c = Cluster::start().await;
    let api: Api<ConfigMap> = Api::default_namespaced(client(&c).await);
    let made = api.create(&PostParams::default(), &map("a")).await.unwrap();
    let params = PatchParams::default();
    let json: json_patch::Patch =
        serde_json::from_value(json!([{ "op": "add", "path": "/data/b", "value": "2" }])).unwrap();
    let patched = api.patch("a", &params, &Patch::<ConfigMap>::Json(json)).await.unwrap();
    assert_eq!(patched.data.unwrap()["b"], "2");
    let strategic = Patch::Strategic(json!({ "data": { "b": null, "c": "3" } }));
    let patched = api.patch("a", &params, &strategic).await.unwrap();
    assert_eq!(patched.data.as_ref().unwrap().keys().collect::<Vec<_>>(), ["a", "c"]);

    let on = |uid: Option<String>, version: Option<String>| {
        DeleteParams::default().preconditions(Preconditions { uid, resource_version: version })
    };
    let (code, reason, _) = refusal(api.delete("a", &on(Some("other".into()), None)).await);
    assert_eq!((code, reason.as_str()), (409, "Conflict"));
    assert_eq!(refusal(api.delete("a", &on(None, made.resource_version())).await).0, 409);
    api.delete("a", &on(made.uid(), patched.resource_version())).await.unwrap();
    assert_eq!(refusal(api.get("a").await).0, 404);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn field_validation_names_unknown_and_duplicate_fields() {
    let c = Cluster::start().await;
    let client = client(&c).await;
    let send = async |path: &str, validation: &str, body: &str| {
        let request = http::Request::post(format!("{path}?fieldValidation={validation}&dryRun=All"))
            .header("content-type", "application/json")
            .body(body.as_bytes().to_vec())
            .unwrap();
        client.send(request.map(Into::into)).await.unwrap()
    };
    let map = r#"{"metadata":{"name":"m"},"data":{"a":"1","a":"2"},"dta":{}}"#;
    let service = r#"{"apiVersion":"serving.knative.dev/v1","kind":"Service","metadata":{"name":"m","odd":1},
        "spec":{"template":{"spec":{"containers":[{"image":"dev.local/host","image":"dev.local/host"}],"x":1}}}}"#;
    let services = "/apis/serving.knative.dev/v1/namespaces/default/services";
    for (path, kind, body, faults) in [
        (
            "/api/v1/namespaces/default/configmaps",
            "ConfigMap",
            map,
            &[r#"duplicate field "data.a""#, r#"unknown field "dta""#][..],
        ),
        (
            services,
            "Service",
            service,
            &[
                r#"duplicate field "spec.template.spec.containers[0].image""#,
                r#"unknown field "metadata.odd""#,
                r#"unknown field "spec.template.spec.x""#,
            ],
        ),
    ] {
        let strict = send(path, "Strict", body).await;
        assert_eq!(strict.status(), 400);
        let status: Value = serde_json::from_slice(
            &http_body_util::BodyExt::collect(strict.into_body()).await.unwrap().to_bytes(),
        )
        .unwrap();
        let message = status["message"].as_str().unwrap();
        let head = format!("{kind} in version \"v1\" cannot be handled as a {kind}: strict decoding error: ");
        assert!(message.starts_with(&head), "{message}");
        assert!(faults.iter().all(|fault| message.contains(fault)), "{message}");
        let warned = send(path, "Warn", body).await;
        assert_eq!(warned.status(), 201);
        let warnings: Vec<String> = warned
            .headers()
            .get_all("warning")
            .iter()
            .map(|w| w.to_str().unwrap().replace('\\', ""))
            .collect();
        for fault in faults {
            assert!(warnings.contains(&format!("299 - \"{fault}\"")), "{fault}: {warnings:?}");
        }
        let ignored = send(path, "Ignore", body).await;
        assert_eq!(ignored.status(), 201);
        let told = ignored.headers().get_all("warning").iter().any(|w| w.to_str().unwrap().contains("field"));
        assert!(!told, "{:?}", ignored.headers());
    }
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn logs_stream_and_reviews_are_answered() {
    let c = Cluster::start().await;
    let client = client(&c).await;
    let pods: Api<Pod> = Api::default_namespaced(client.clone());
    let pod = json!({ "metadata": { "name": "p" }, "spec": { "nodeName": "n",
                      "containers": [{ "name": "c", "image": "i" }] } });
    pods.create(&PostParams::default(), &serde_json::from_value(pod).unwrap()).await.unwrap();
    let params = LogParams { follow: true, tail_lines: Some(7), ..LogParams::default() };
    let mut lines = pods.log_stream("p", &params).await.unwrap().lines();
    let line = tokio::time::timeout(LIMIT, lines.try_next()).await.unwrap().unwrap();
    assert_eq!(line.as_deref(), Some("p/c tail=Some(7)"));
    let both = LogParams { since_seconds: Some(0), ..LogParams::default() };
    assert_eq!(refusal(pods.logs("p", &both).await).0, 422);

    let reviews: Api<SelfSubjectAccessReview> = Api::all(client);
    let mut review = SelfSubjectAccessReview::default();
    review.spec.resource_attributes = Some(ResourceAttributes {
        verb: Some("get".into()),
        resource: Some("pods".into()),
        ..Default::default()
    });
    let answer = reviews.create(&PostParams::default(), &review).await.unwrap();
    assert!(answer.status.unwrap().allowed);
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_becomes_somebody_else() {
    let c = Cluster::start().await;
    let client = client(&c).await;
    for (header, what) in [
        ("Impersonate-User", "users"),
        ("Impersonate-Group", "groups"),
        ("Impersonate-Extra-x", "userextras"),
    ] {
        let request =
            http::Request::get("/api/v1/namespaces").header(header, "bob").body(Vec::new()).unwrap();
        let (code, reason, message) = refusal(client.request::<Value>(request).await);
        assert_eq!((code, reason.as_str()), (403, "Forbidden"));
        let wanted = format!("{what} \"bob\" is forbidden: Ember does not support impersonation");
        assert!(message.starts_with(&wanted), "{message}");
    }
    c.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_connection_outlives_a_body_that_is_too_large() {
    let c = Cluster::start().await;
    let pki = c.folder.path().join("data/pki");
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(pki.join("ca.crt")).unwrap()).unwrap();
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let tls =
        rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
    let tls = tls.with_root_certificates(roots).with_no_client_auth();
    let stream = tokio::net::TcpStream::connect(c.address).await.unwrap();
    let name = ServerName::from(c.address.ip());
    let stream = tokio_rustls::TlsConnector::from(Arc::new(tls)).connect(name, stream).await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.unwrap();
    let connection = tokio::spawn(connection);
    let token = std::fs::read_to_string(pki.join("token")).unwrap();
    let mut send = async |size: usize, token: &str| {
        let request = http::Request::post("/api/v1/namespaces/default/configmaps")
            .header("host", c.address.to_string())
            .header("authorization", format!("Bearer {token}"))
            .header("content-type", "application/json")
            .body(http_body_util::Full::new(bytes::Bytes::from(vec![b' '; size])))
            .unwrap();
        sender.ready().await.unwrap();
        let answer = tokio::time::timeout(LIMIT, sender.send_request(request)).await.unwrap().unwrap();
        let closes = answer.headers().contains_key("connection");
        let status = answer.status().as_u16();
        http_body_util::BodyExt::collect(answer.into_body()).await.unwrap();
        (status, closes)
    };
    assert_eq!(send(4 << 20, token.trim()).await, (413, false));
    assert_eq!(send(5, token.trim()).await, (400, false));
    // Who is turned away at the door has not been listened to.
    assert_eq!(send(5, "another").await, (401, true));
    let _ = tokio::time::timeout(LIMIT, connection).await.unwrap();
    c.stop().await;
}
