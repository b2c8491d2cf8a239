//! What a client of the gateway cannot do.

use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;
use ember_tests::{PATIENCE, api, eventually};
use http::StatusCode;
use serde_json::{Value, json};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

use crate::app::{service, started};

/// Headers by which Knative's components talk to each other.
const INTERNAL: [(&str, &str); 8] = [
    ("K-Kubelet-Probe", "true"),
    // The activator sets it itself.
    ("K-Proxy-Request", "somebody"),
    ("K-Original-Host", "other.default.localhost"),
    ("K-Passthrough-Lb", "true"),
    ("Knative-Direct-Lb", "true"),
    ("K-Network-Probe", "queue"),
    ("Knative-Serving-Revision", "other-00001"),
    ("Knative-Serving-Namespace", "other"),
];

#[tokio::test(flavor = "multi_thread")]
async fn headers_of_embers_own_are_taken_from_clients() {
    let ember = Ember::start().await;
    started(&ember, "plain", &json!({})).await;
    started(&ember, "other", &json!({})).await;
    let client = Client::new(ember.gateway);
    let mut all = INTERNAL.to_vec();
    all.push(("x-mine", "stays"));
    // One by one, so that none hides behind another, and all at once.
    let sets = INTERNAL.iter().map(std::slice::from_ref).chain([all.as_slice()]);
    for sent in sets {
        let answer = client.get_with(&host("plain"), "/headers", sent).await.unwrap();
        assert_eq!(answer.status, StatusCode::OK, "{sent:?}: {}", answer.text);
        let got: Value = serde_json::from_str(&answer.text).unwrap();
        for (name, _) in &INTERNAL {
            let value = &got[name.to_ascii_lowercase()];
            let own = *name == "K-Proxy-Request" && *value == json!(["activator"]);
            assert!(value.is_null() || own, "{sent:?}: {name}: {value}");
        }
        assert_eq!(got["host"], json!([host("plain")]), "{sent:?}");
        // The program that answers is the host's, whatever else the client said.
        let facts = client.get_with(&host("plain"), "/facts", sent).await.unwrap();
        let facts: Value = serde_json::from_str(&facts.text).unwrap();
        assert_eq!(facts["environment"]["K_SERVICE"], "plain", "{sent:?}");
    }
}

/// The status of a request as it is written here.
async fn status(ember: &Ember, request: &str) -> String {
    let mut stream = TcpStream::connect(ember.gateway).await.unwrap();
    stream.write_all(request.as_bytes()).await.unwrap();
    let mut answer = String::new();
    tokio::time::timeout(PATIENCE, stream.read_to_string(&mut answer)).await.unwrap().unwrap();
    answer.split(' ').nth(1).unwrap_or_default().to_owned()
}

#[tokio::test(flavor = "multi_thread")]
async fn cluster_local_hosts_are_unknown_outside() {
    let ember = Ember::start().await;
    started(&ember, "public", &json!({})).await;
    let mut local = service("local", &json!({}));
    local["metadata"]["labels"] = json!({"networking.knative.dev/visibility": "cluster-local"});
    ember.apply(&local.to_string());
    ember.ready("local").await;

    // They are served within.
    let inside = eventually("the gateway's own address", PATIENCE, || async {
        let path = "/api/v1/namespaces/knative-serving/endpoints/ember-gateway";
        let endpoints = api::get(&ember.client, path).await.map_err(|e| e.to_string())?;
        let subset = &endpoints["subsets"][0];
        let port = subset["ports"].as_array().and_then(|ports| ports[0]["port"].as_u64());
        match (subset["addresses"][0]["ip"].as_str(), port) {
            (Some(ip), Some(port)) => Ok(format!("{ip}:{port}")),
            _ => Err(endpoints.to_string()),
        }
    })
    .await;
    let within = Client::new(inside.parse().unwrap());
    for name in ["local", "public"] {
        within.ok(&format!("{name}.default.svc.cluster.local"), "/facts").await;
    }

    for name in ["local", "public"] {
        for form in ["", ".svc", ".svc.cluster.local"] {
            let host = format!("{name}.default{form}");
            let port = ember.gateway.port();
            let (upper, mixed) = (host.to_uppercase(), host.replace("default", "Default"));
            for said in [
                host.clone(),
                format!("{host}:{port}"),
                format!("{host}:80"),
                format!("{host}."),
                format!("{host}.:{port}"),
                upper.clone(),
                format!("{upper}.:{port}"),
                mixed,
            ] {
                let end = "connection: close\r\n\r\n";
                let plain = format!("GET /facts HTTP/1.1\r\nhost: {said}\r\n{end}");
                assert_eq!(status(&ember, &plain).await, "404", "{said}");
                // A target with a host of its own, with the same Host and with one that may be asked for.
                for header in [said.as_str(), "public.default.localhost"] {
                    let target = format!("GET http://{said}/facts HTTP/1.1\r\nhost: {header}\r\n{end}");
                    let status = status(&ember, &target).await;
                    assert!(["404", "400"].contains(&status.as_str()), "{target}: {status}");
                }
            }
        }
    }
    let public = "GET http://public.default.localhost/facts HTTP/1.1\r\nhost: public.default.localhost\r\n\
                  connection: close\r\n\r\n";
    assert_eq!(status(&ember, public).await, "200");
}
