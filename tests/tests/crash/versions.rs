//! The resourceVersions that a reader has seen, and what a watch from them may lead to.

use std::collections::BTreeMap;

use ember_tests::{PATIENCE, api};
use futures::io::AsyncBufReadExt;
use futures::{StreamExt, TryStreamExt};
use kube::Client;
use serde_json::{Value, json};

use crate::declarations::version;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
/// Collections with intent alone, with intent and status, and with what controllers make.
const COLLECTIONS: [&str; 4] = [
    CONFIG_MAPS,
    "/apis/serving.knative.dev/v1/namespaces/default/services",
    "/apis/serving.knative.dev/v1/namespaces/default/revisions",
    "/apis/apps/v1/namespaces/default/deployments",
];

/// The newest versions seen.
#[derive(Debug, Default, Clone)]
pub(crate) struct Seen {
    collections: BTreeMap<&'static str, u64>,
    /// By collection and uid.
    objects: BTreeMap<(&'static str, String), u64>,
}

impl Seen {
    /// Reads every collection once, and fails if a version is older than what was seen before.
    pub(crate) async fn look(&mut self, client: &Client) -> Result<(), kube::Error> {
        for path in COLLECTIONS {
            let list = api::get(client, path).await?;
            let newest = self.collections.entry(path).or_default();
            assert!(version(&list) >= *newest, "{path} went back from {newest} to {}", version(&list));
            *newest = version(&list);
            for object in list["items"].as_array().into_iter().flatten() {
                let uid = object["metadata"]["uid"].as_str().unwrap_or_default().to_owned();
                let newest = self.objects.entry((path, uid)).or_default();
                let name = &object["metadata"]["name"];
                assert!(
                    version(object) >= *newest,
                    "{name} of {path} went back from {newest} to {}",
                    version(object)
                );
                *newest = version(object);
            }
        }
        Ok(())
    }

    /// A watch from the last version seen of an instance that is no more either goes on or says that the version is
    /// gone; and from a new list it goes on with the next write.
    pub(crate) async fn check_watches(&self, client: &Client) {
        let old = self.collections.get(CONFIG_MAPS).copied().unwrap_or(1);
        let probe = json!({"metadata": {"name": "watched"}});
        let now = version(&api::get(client, CONFIG_MAPS).await.expect("a list"));
        let _ = api::delete(client, &format!("{CONFIG_MAPS}/watched")).await;
        api::create(client, CONFIG_MAPS, &probe).await.expect("a write");

        let resumed = first_event(client, old, |_| true).await;
        let gone = resumed["type"] == "ERROR" && resumed["object"]["code"] == 410;
        assert!(gone || version(&resumed["object"]) > old, "a watch from {old} said {resumed}");
        let fresh = first_event(client, now, |event| event["type"] == "ADDED").await;
        assert_eq!(fresh["object"]["metadata"]["name"], "watched", "a watch from {now} said {fresh}");
    }
}

/// The first wanted event of a watch on ConfigMaps.
pub(crate) async fn first_event(client: &Client, from: u64, wanted: impl Fn(&Value) -> bool) -> Value {
    let path = format!("{CONFIG_MAPS}?watch=true&resourceVersion={from}");
    let request = http::Request::get(path).body(Vec::new()).expect("a request");
    let watching = async {
        let mut lines = match client.request_stream(request).await {
            Ok(stream) => stream.lines().into_stream(),
            Err(kube::Error::Api(status)) if status.code == 410 => {
                return json!({"type": "ERROR", "object": {"code": 410}});
            }
            Err(error) => panic!("a watch from {from}: {error}"),
        };
        while let Some(line) = lines.next().await {
            let event: Value = serde_json::from_str(&line.expect("a line")).expect("an event");
            if wanted(&event) {
                return event;
            }
        }
        panic!("a watch from {from} ended");
    };
    tokio::time::timeout(PATIENCE, watching).await.expect("an event in time")
}
