//! Services that call each other.

use ember_tests::http::{Client, host};
use ember_tests::{PATIENCE, api, eventually};
use http::StatusCode;
use serde_json::json;

use crate::app::{asleep, service};

#[tokio::test(flavor = "multi_thread")]
async fn a_service_calls_another_by_the_url_in_its_status() {
    let ember = asleep("front", false).await;
    if ember.output().contains("cannot call each other") {
        println!("left out: this machine gives containers no file system of their own");
        return;
    }
    // It runs before the others are known.
    let client = Client::new(ember.gateway);
    client.ok(&host("front"), "/seen").await;
    let mut inside = service("inside", false);
    inside["metadata"]["labels"] = json!({"networking.knative.dev/visibility": "cluster-local"});
    let hidden = |name: &str| format!("{name}.default.svc.cluster.local");
    for (name, declared) in [("outside", service("outside", true)), ("inside", inside)] {
        ember.apply(&declared.to_string());
        ember.ready(name).await;
        let path = format!("/apis/serving.knative.dev/v1/namespaces/default/services/{name}");
        let object = api::get(&ember.client, &path).await.unwrap();
        let url = object["status"]["address"]["url"].as_str().unwrap().to_owned();
        assert!(url.starts_with(&format!("http://{}", hidden(name))), "{url}");
        // The name may arrive a moment after the service is ready.
        let seen = eventually(&format!("an answer of {url}"), PATIENCE, || async {
            let answer = client.get(&host("front"), &format!("/call?{url}/seen")).await?;
            if answer.status == StatusCode::OK { Ok(answer.text) } else { Err(answer.text) }
        })
        .await;
        assert!(seen.contains(" GET ") && seen.contains("/seen\n"), "{seen}");
        // Nobody finds it from outside by that name.
        let outside = client.get(&hidden(name), "/seen").await.unwrap();
        assert_eq!(outside.status, StatusCode::NOT_FOUND);
    }
    // A name that is gone is gone for callers too.
    api::delete(&ember.client, "/apis/serving.knative.dev/v1/namespaces/default/services/inside")
        .await
        .unwrap();
    eventually("the name is gone", PATIENCE, || async {
        let answer = client.get(&host("front"), &format!("/call?http://{}/seen", hidden("inside"))).await?;
        if answer.status == StatusCode::BAD_GATEWAY { Ok(()) } else { Err(answer.text) }
    })
    .await;
}
