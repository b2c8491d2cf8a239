//! A disk that takes no more: who declares something hears of it, everything else goes on, and room is all it takes.

use std::sync::Arc;

use ember_tests::http::{Client, host};
use ember_tests::instance::{Ember, program, run};
use ember_tests::{PATIENCE, api, eventually};
use serde_json::{Value, json};

use crate::small_disk::SmallDisk;
use crate::versions::first_event;

const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

fn service(name: &str, annotation: (&str, &str)) -> String {
    json!({
        "apiVersion": "serving.knative.dev/v1",
        "kind": "Service",
        "metadata": {"name": name},
        "spec": {"template": {
            "metadata": {"annotations": {format!("autoscaling.knative.dev/{}", annotation.0): annotation.1}},
            "spec": {"containers": [{
                "image": "dev.local/host",
                "command": ["ember", "demo-app", "hello"],
                "env": [{"name": "TARGET", "value": name}],
            }]},
        }},
    })
    .to_string()
}

fn map(name: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"k": "x".repeat(200_000)}})
}

/// Declares ConfigMaps until one is refused; returns the names of the others, and that of the refused one.
async fn declare_until_refused(client: &kube::Client) -> (Vec<String>, String) {
    let mut kept = Vec::new();
    loop {
        let name = format!("m{}", kept.len());
        assert!(kept.len() < 200, "the disk is never full");
        match api::create(client, CONFIG_MAPS, &map(&name)).await {
            Ok(_) => kept.push(name),
            Err(kube::Error::Api(status)) => {
                assert_eq!((status.code, status.reason.as_str()), (507, "InsufficientStorage"), "{status}");
                assert!(status.message.contains("the disk is full"), "{status}");
                return (kept, name);
            }
            Err(error) => panic!("{error}"),
        }
    }
}

async fn names(client: &kube::Client) -> Vec<String> {
    let list = api::get(client, CONFIG_MAPS).await.unwrap();
    let all = list["items"].as_array().unwrap().iter();
    all.filter_map(|map| map["metadata"]["name"].as_str().map(str::to_owned)).collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_full_disk_refuses_declarations_alone_and_room_is_all_it_takes() {
    let Some(disk) = SmallDisk::mount("size=16m,mode=700") else { return };
    let mut ember = Ember::start_in(Arc::clone(&disk.dir), &[]).await;
    ember.apply(&service("steady", ("min-scale", "1")));
    ember.apply(&service("sleeper", ("window", "6s")));
    ember.ready("steady").await;
    ember.ready("sleeper").await;
    let from = api::get(&ember.client, CONFIG_MAPS).await.unwrap();
    let from = crate::declarations::version(&from);
    let client = ember.client.clone();
    let watch = tokio::spawn(async move {
        first_event(&client, from, |event| event["object"]["metadata"]["name"] == "after").await
    });

    disk.fill();
    let (mut kept, refused) = declare_until_refused(&ember.client).await;
    assert_eq!(names(&ember.client).await, kept, "{refused} was refused");
    let gateway = Client::new(ember.gateway);
    assert_eq!(gateway.ok(&host("steady"), "/").await, "Hello steady!\n");
    // Asleep and awake again, without a byte for the disk.
    ember.pods("sleeper", 0).await;
    assert_eq!(gateway.ok(&host("sleeper"), "/").await, "Hello sleeper!\n");
    ember.pods("sleeper", 1).await;
    let refused_again = api::create(&ember.client, CONFIG_MAPS, &map("again")).await;
    assert!(matches!(refused_again, Err(kube::Error::Api(status)) if status.code == 507));

    disk.free();
    eventually("a write goes through", PATIENCE, || async {
        api::create(&ember.client, CONFIG_MAPS, &map("after")).await.map(drop)
    })
    .await;
    let event = watch.await.unwrap();
    assert_eq!(event["type"], "ADDED", "{event}");
    assert_eq!(gateway.ok(&host("steady"), "/").await, "Hello steady!\n");

    ember = ember.crash_and_restart().await;
    kept.push("after".to_owned());
    kept.sort();
    assert_eq!(names(&ember.client).await, kept);
    assert_eq!(Client::new(ember.gateway).ok(&host("sleeper"), "/").await, "Hello sleeper!\n");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_start_without_room_says_so_and_one_with_room_finds_everything() {
    let Some(disk) = SmallDisk::mount("size=16m,mode=700") else { return };
    let ember = Ember::start_in(Arc::clone(&disk.dir), &[]).await;
    disk.fill();
    let (kept, _) = declare_until_refused(&ember.client).await;
    let remains = ember.crash();
    disk.fill();
    let data = disk.data();
    let arguments =
        ["up", "--http", "127.0.0.1:0", "--api", "127.0.0.1:0", "--data-dir", data.to_str().unwrap()];
    let output = run(&program(), &arguments, &data.join("kubeconfig"), "");
    let error = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{error}");
    assert!(error.contains("No space left on device") && error.contains("make room"), "{error}");
    assert!(error.contains(data.to_str().unwrap()), "{error}");

    disk.free();
    let ember = remains.start().await;
    assert_eq!(names(&ember.client).await, kept);
}
