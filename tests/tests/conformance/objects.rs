//! Objects of `serving.knative.dev` that run an app which greets, and what their tests wait for.

use std::collections::BTreeMap;

use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;
use ember_tests::load::Load;
use ember_tests::{PATIENCE, api, eventually};
use futures::future::join_all;
use serde_json::{Value, json};

const SERVING: &str = "/apis/serving.knative.dev/v1/namespaces/default";

/// Where the API has the objects of a kind, such as `services`.
pub(crate) fn all(kind: &str) -> String {
    format!("{SERVING}/{kind}")
}

/// Where the API has one of them.
pub(crate) fn one(kind: &str, name: &str) -> String {
    format!("{SERVING}/{kind}/{name}")
}

/// A revision template whose app says `Hello TEXT!`: one text stands for one image of upstream's.
pub(crate) fn template(text: &str) -> Value {
    json!({"spec": {"containers": [{
        "image": "dev.local/host", "command": ["ember", "demo-app", "hello"],
        "env": [{"name": "TARGET", "value": text}]
    }]}})
}

/// An object with such a template: a Service or a Configuration.
pub(crate) fn greeter(kind: &str, metadata: &Value, text: &str) -> Value {
    json!({
        "apiVersion": "serving.knative.dev/v1", "kind": kind, "metadata": metadata,
        "spec": {"template": template(text)}
    })
}

/// A patch that changes what the app says.
pub(crate) fn says(text: &str) -> Value {
    json!({"spec": {"template": template(text)}})
}

/// Creates an object; returns it with its name.
pub(crate) async fn create(ember: &Ember, kind: &str, object: &Value) -> (String, Value) {
    let object = api::create(&ember.client, &all(kind), object).await.unwrap();
    (object["metadata"]["name"].as_str().unwrap().to_owned(), object)
}

/// An instance with a Service of this name that is Ready and says `Hello TEXT!`.
pub(crate) async fn serving(name: &str, text: &str) -> Ember {
    let ember = Ember::start().await;
    create(&ember, "services", &greeter("Service", &json!({"name": name}), text)).await;
    ember.ready(name).await;
    ember
}

/// The object as it is now.
pub(crate) async fn get(ember: &Ember, kind: &str, name: &str) -> Value {
    api::get(&ember.client, &one(kind, name)).await.unwrap()
}

/// The objects of a kind as they are now.
pub(crate) async fn list(ember: &Ember, kind: &str) -> Vec<Value> {
    let list = api::get(&ember.client, &all(kind)).await.unwrap();
    list["items"].as_array().unwrap().clone()
}

/// Changes an object.
pub(crate) async fn patch(ember: &Ember, kind: &str, name: &str, patch: &Value) -> Value {
    api::merge(&ember.client, &one(kind, name), patch).await.unwrap()
}

/// Waits until the object is as wanted.
pub(crate) async fn until(
    ember: &Ember,
    kind: &str,
    name: &str,
    what: &str,
    is: impl Fn(&Value) -> bool,
) -> Value {
    eventually(&format!("{kind} {name}: {what}"), PATIENCE, || async {
        let object = api::get(&ember.client, &one(kind, name)).await.map_err(|e| e.to_string())?;
        if is(&object) { Ok(object) } else { Err(object.to_string()) }
    })
    .await
}

/// Whether the condition `Ready` of an object's present generation has this status.
pub(crate) fn is_ready(object: &Value, status: &str) -> bool {
    object["status"]["observedGeneration"] == object["metadata"]["generation"]
        && api::condition(object, "Ready").is_some_and(|ready| ready["status"] == status)
}

/// Waits until an object is Ready.
pub(crate) async fn ready(ember: &Ember, kind: &str, name: &str) -> Value {
    until(ember, kind, name, "Ready", |object| is_ready(object, "True")).await
}

/// Waits until a Service or Configuration is Ready with this as its latest revision.
pub(crate) async fn ready_with(ember: &Ember, kind: &str, name: &str, revision: &str) -> Value {
    let is =
        |object: &Value| is_ready(object, "True") && object["status"]["latestReadyRevisionName"] == revision;
    until(ember, kind, name, &format!("Ready with {revision}"), is).await
}

/// What `requests` requests of eight clients to a service's or tag's host are answered with; every one with 200.
pub(crate) async fn answers(ember: &Ember, name: &str, requests: usize) -> BTreeMap<String, usize> {
    let clients = (0..8).map(|_| {
        let client = Client::new(ember.gateway);
        async move {
            let mut texts = Vec::new();
            for _ in 0..requests / 8 {
                texts.push(client.ok(&host(name), "/").await.trim().to_owned());
            }
            texts
        }
    });
    let mut counts = BTreeMap::new();
    for text in join_all(clients).await.into_iter().flatten() {
        *counts.entry(text).or_default() += 1;
    }
    counts
}

/// All of 200 requests are answered with `Hello TEXT!`.
pub(crate) async fn only_says(ember: &Ember, name: &str, text: &str) {
    let expected = BTreeMap::from([(format!("Hello {text}!"), 200)]);
    assert_eq!(answers(ember, name, 200).await, expected, "{name}");
}

/// A request after the other, as upstream's prober does, until [`Prober::stop`].
pub(crate) struct Prober(Load);

impl Prober {
    pub(crate) fn start(ember: &Ember, name: &str) -> Self {
        Self(Load::start(ember.gateway, &host(name), "/", 1))
    }

    /// Waits for another ten answers; none of all may have failed.
    pub(crate) async fn stop(self) {
        let before = self.0.tally().answered();
        eventually("ten more answers", PATIENCE, || async {
            let tally = self.0.tally();
            if tally.answered() >= before + 10 { Ok(()) } else { Err(tally) }
        })
        .await;
        let tally = self.0.stop().await;
        assert!(tally.failures.is_empty(), "{:?}", tally.failures);
    }
}
