//! Too many clients.

use std::time::Duration;

use ember_tests::http::{Client, host};
use ember_tests::instance::Ember;
use ember_tests::{PATIENCE, api, eventually};
use futures::future::join_all;
use serde_json::json;
use tokio::net::TcpStream;

use crate::app::{service, started};

/// More than a process may open files.
const CLIENTS: usize = 1200;

#[tokio::test(flavor = "multi_thread")]
async fn idle_clients_take_no_more_than_their_share_of_few_open_files() {
    let mut ember = Ember::start_by(&["sh", "-c", "ulimit -n 1024; exec \"$@\"", "sh"], &[]).await;
    eventually("the limit is told", PATIENCE, || async {
        let output = ember.output();
        if output.contains("1024 open files, at most 512 clients") { Ok(()) } else { Err(output) }
    })
    .await;
    let pid = ember.pid();
    started(&ember, "warm", &json!({})).await;
    let mut cold = service("cold", &json!({}));
    cold["spec"]["template"]["metadata"] =
        json!({"annotations": {"autoscaling.knative.dev/initial-scale": "0"}});
    ember.apply(&cold.to_string());
    ember.ready("cold").await;
    let early = Client::new(ember.gateway);
    early.ok(&host("warm"), "/facts").await;

    // Those for whom there is no room are not accepted, or wait without an answer.
    let idle = (0..CLIENTS).map(|_| async {
        let connecting = TcpStream::connect(ember.gateway);
        tokio::time::timeout(Duration::from_secs(1), connecting).await.ok().and_then(Result::ok)
    });
    let idle: Vec<TcpStream> = join_all(idle).await.into_iter().flatten().collect();
    let held = || std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().count();
    eventually("the places of clients are taken", PATIENCE, || async {
        let held = held();
        if held >= 512 { Ok(()) } else { Err(held) }
    })
    .await;

    // Who was there before is served, a service is woken, the API answers and takes another service.
    early.ok(&host("warm"), "/facts").await;
    early.ok(&host("cold"), "/facts").await;
    api::get(&ember.client, "/api/v1/namespaces/default/pods").await.unwrap();
    ember.apply(&service("late", &json!({})).to_string());
    ember.ready("late").await;
    assert!(held() < 1024, "{}", held());

    drop(idle);
    for name in ["warm", "cold", "late"] {
        Client::new(ember.gateway).ok(&host(name), "/facts").await;
    }
    assert!(!ember.output().contains("panicked"), "{}", ember.output());
    let (_, well) = ember.interrupt();
    assert!(well, "{}", ember.output());
}
