//! What Deployments, Services and owners lead to.

use std::net::IpAddr;
use std::time::Instant;

use ember_node::SidecarSpec;
use ember_node::address::Block;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Endpoints, Namespace, Pod, Service};
use kube::Api;
use kube::api::{
    ApiResource, DeleteParams, DynamicObject, GroupVersionKind, Patch, PatchParams, PostParams,
    PropagationPolicy,
};
use serde_json::{Value, json};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, TEST_APP, deployment, eventually, is_ready};
use crate::processes::gone;

fn service(name: &str) -> Service {
    serde_json::from_value(json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "labels": {"private": "yes"}},
        "spec": {"selector": {"app": name}, "ports": [
            {"name": "http", "port": 80, "targetPort": 8012},
            {"name": "http-autometric", "port": 9090, "targetPort": "http-autometric"}
        ]}
    }))
    .unwrap()
}

fn ips(endpoints: &Endpoints, ready: bool) -> Vec<String> {
    let subsets = endpoints.subsets.iter().flatten();
    let lists =
        subsets.filter_map(|s| if ready { s.addresses.as_ref() } else { s.not_ready_addresses.as_ref() });
    lists.flatten().map(|a| a.ip.clone()).collect()
}

pub(crate) async fn a_deployment_becomes_ready_endpoints_and_goes() {
    let cluster = Cluster::start().await;
    cluster.api().create(&PostParams::default(), &service("hello")).await.unwrap();
    cluster.deploy("hello", 0, json!({})).await;
    cluster.condition("hello", "Progressing", "NewReplicaSetAvailable").await;
    let began = Instant::now();
    cluster.scale("hello", 2).await;
    let pods = cluster.pods("two ready pods", |pods| pods.len() == 2 && pods.iter().all(is_ready)).await;
    println!("scale to 2 → ready: {:?}", began.elapsed());
    let endpoints = eventually("endpoints", async || {
        let endpoints = cluster.api::<Endpoints>().get("hello").await.ok()?;
        (ips(&endpoints, true).len() == 2).then_some(endpoints)
    })
    .await;
    assert_eq!(endpoints.metadata.labels.as_ref().unwrap()["private"], "yes");
    let mut addresses: Vec<String> =
        pods.iter().map(|p| p.status.as_ref().unwrap().pod_ip.clone().unwrap()).collect();
    addresses.sort();
    assert_eq!(ips(&endpoints, true), addresses);
    for address in &addresses {
        assert_eq!(Block::containing(address.parse().unwrap()), Some(cluster.block));
        assert_ne!(address.parse::<IpAddr>().unwrap(), IpAddr::V4(cluster.block.address(1)));
    }
    let specs = cluster.sidecars.borrow().clone();
    let env = |spec: &SidecarSpec, name: &str| spec.env.iter().find(|(n, _)| n == name).unwrap().1.clone();
    assert_ne!(env(&specs[0], "USER_PORT"), env(&specs[1], "USER_PORT"));
    assert!(
        specs
            .iter()
            .all(|s| env(s, "SERVING_POD") == s.pod && env(s, "SERVING_POD_IP") == s.pod_ip.to_string())
    );
    let declared = pods[0].spec.as_ref().unwrap().containers[0].ports.as_ref().unwrap()[0].container_port;
    assert_eq!(declared, 8080, "the Pod object keeps what was declared");
    let status = cluster.api::<Deployment>().get("hello").await.unwrap().status.unwrap();
    assert!(status.conditions.unwrap().iter().any(|c| c.type_ == "Available"));

    let pid = cluster.pid(&pods[0]).await;
    cluster.scale("hello", 0).await;
    cluster.pods("no pods", <[Pod]>::is_empty).await;
    gone(pid).await;
    eventually("no endpoints", async || {
        cluster.api::<Endpoints>().get("hello").await.unwrap().subsets.is_none().then_some(())
    })
    .await;
    let deployment = eventually("zero in status", async || {
        let deployment = cluster.api::<Deployment>().get("hello").await.unwrap();
        deployment.status.as_ref().unwrap().replicas.is_none().then_some(deployment)
    })
    .await;
    assert_eq!(deployment.status.unwrap().ready_replicas, None);
    cluster.api::<Service>().delete("hello", &DeleteParams::default()).await.unwrap();
    eventually("endpoints deleted", async || {
        cluster.api::<Endpoints>().get_opt("hello").await.unwrap().is_none().then_some(())
    })
    .await;
    cluster.stop().await;
}

pub(crate) async fn a_new_template_replaces_the_old_one() {
    let cluster = Cluster::start().await;
    cluster.deploy("roll", 2, json!({})).await;
    let old = cluster.pods("two ready pods", |pods| pods.len() == 2 && pods.iter().all(is_ready)).await;
    let mut next = deployment("roll", 2, json!({"args": [TEST_APP, "again"]}));
    next.metadata.resource_version =
        cluster.api::<Deployment>().get("roll").await.unwrap().metadata.resource_version;
    cluster.api::<Deployment>().replace("roll", &PostParams::default(), &next).await.unwrap();
    let label = |pod: &Pod| pod.metadata.labels.as_ref().unwrap()["pod-template-hash"].clone();
    let hash = label(&old[0]);
    let mut fewest = usize::MAX;
    eventually("two new ready pods", async || {
        let pods = cluster.api::<Pod>().list(&Default::default()).await.unwrap().items;
        fewest = fewest
            .min(pods.iter().filter(|p| is_ready(p) && p.metadata.deletion_timestamp.is_none()).count());
        (pods.len() == 2 && pods.iter().all(|p| is_ready(p) && label(p) != hash)).then_some(())
    })
    .await;
    assert!(fewest >= 2, "availability was kept: {fewest}");
    cluster.condition("roll", "Progressing", "NewReplicaSetAvailable").await;
    cluster.stop().await;
}

pub(crate) async fn termination_waits_for_the_sidecar() {
    let cluster = Cluster::start_with(CancellationToken::new()).await;
    cluster.api().create(&PostParams::default(), &service("drain")).await.unwrap();
    cluster.deploy("drain", 1, json!({})).await;
    let pods = cluster.pods("ready", |pods| pods.iter().any(is_ready)).await;
    let pid = cluster.pid(&pods[0]).await;
    cluster.scale("drain", 0).await;
    eventually("no endpoints while it drains", async || {
        let endpoints = cluster.api::<Endpoints>().get("drain").await.unwrap();
        endpoints.subsets.is_none().then_some(())
    })
    .await;
    let draining = cluster.api::<Pod>().list(&Default::default()).await.unwrap().items;
    assert!(draining[0].metadata.deletion_timestamp.is_some());
    assert!(
        std::path::Path::new(&format!("/proc/{pid}")).exists(),
        "the app serves until the sidecar has drained"
    );
    // A new pod does not take the draining one's name.
    cluster.scale("drain", 1).await;
    let both = cluster.pods("another pod", |pods| pods.len() == 2 && pods.iter().any(is_ready)).await;
    assert_ne!(both[0].metadata.name, both[1].metadata.name);
    cluster.release.cancel();
    gone(pid).await;
    cluster.pods("one pod", |pods| pods.len() == 1).await;
    cluster.stop().await;
}

pub(crate) async fn dependents_follow_their_owner_and_namespaces_empty() {
    let cluster = Cluster::start().await;
    let created = cluster.deploy("owner", 1, json!({})).await;
    let map = |name: &str, uid: &str| -> ConfigMap {
        serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": [
            {"apiVersion": "apps/v1", "kind": "Deployment", "name": "owner", "uid": uid, "blockOwnerDeletion": true}
        ]}}))
        .unwrap()
    };
    let maps = cluster.api::<ConfigMap>();
    maps.create(&PostParams::default(), &map("child", created.metadata.uid.as_deref().unwrap()))
        .await
        .unwrap();
    maps.create(&PostParams::default(), &map("stray", "another-uid")).await.unwrap();
    let absent = async |name: &str| {
        eventually(name, async || maps.get_opt(name).await.unwrap().is_none().then_some(())).await;
    };
    absent("stray").await;
    cluster.pods("ready", |pods| pods.iter().any(is_ready)).await;
    assert!(maps.get_opt("child").await.unwrap().is_some());
    cluster.api::<Deployment>().delete("owner", &DeleteParams::default()).await.unwrap();
    absent("child").await;
    cluster.pods("no pods", <[Pod]>::is_empty).await;

    let created = cluster.deploy("owner", 1, json!({})).await;
    maps.create(&PostParams::default(), &map("child", created.metadata.uid.as_deref().unwrap()))
        .await
        .unwrap();
    cluster.pods("ready", |pods| pods.iter().any(is_ready)).await;
    let foreground =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Foreground), ..DeleteParams::default() };
    cluster.api::<Deployment>().delete("owner", &foreground).await.unwrap();
    eventually("the owner goes last", async || {
        cluster.api::<Deployment>().get_opt("owner").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(maps.get_opt("child").await.unwrap().is_none());
    assert!(cluster.api::<Pod>().list(&Default::default()).await.unwrap().items.is_empty());

    let namespaces = Api::<Namespace>::all(cluster.client.clone());
    let namespace: Namespace = serde_json::from_value(json!({"metadata": {"name": "team"}})).unwrap();
    namespaces.create(&PostParams::default(), &namespace).await.unwrap();
    let team = Api::<ConfigMap>::namespaced(cluster.client.clone(), "team");
    let map: ConfigMap = serde_json::from_value(json!({"metadata": {"name": "m"}})).unwrap();
    team.create(&PostParams::default(), &map).await.unwrap();
    namespaces.delete("team", &DeleteParams::default()).await.unwrap();
    eventually("the namespace goes", async || {
        namespaces.get_opt("team").await.unwrap().is_none().then_some(())
    })
    .await;
    assert!(team.list(&Default::default()).await.unwrap().items.is_empty());
    cluster.stop().await;
}

pub(crate) async fn dependents_stay_where_their_owner_lets_them_go() {
    let cluster = Cluster::start().await;
    let serving = |kind: &str, plural: &str| -> Api<DynamicObject> {
        let gvk = GroupVersionKind::gvk("serving.knative.dev", "v1", kind);
        let resource = ApiResource::from_gvk_with_plural(&gvk, plural);
        Api::namespaced_with(cluster.client.clone(), "default", &resource)
    };
    let services = serving("Service", "services");
    let template = json!({"spec": {"containers": [{"name": "c", "image": "dev.local/host"}]}});
    let object = |kind: &str, metadata: Value, spec: Value| -> DynamicObject {
        let value =
            json!({"apiVersion": "serving.knative.dev/v1", "kind": kind, "metadata": metadata, "spec": spec});
        serde_json::from_value(value).unwrap()
    };
    let service = object("Service", json!({"name": "hello"}), json!({"template": template}));
    let made = services.create(&PostParams::default(), &service).await.unwrap();
    let child = json!({
        "name": "hello", "labels": {"serving.knative.dev/service": "hello"},
        "ownerReferences": [{"apiVersion": "serving.knative.dev/v1", "kind": "Service", "name": "hello",
            "uid": made.metadata.uid, "controller": true, "blockOwnerDeletion": true}]
    });
    let (configurations, routes) = (serving("Configuration", "configurations"), serving("Route", "routes"));
    let configuration = object("Configuration", child.clone(), json!({"template": template}));
    configurations.create(&PostParams::default(), &configuration).await.unwrap();
    let route = object("Route", child, json!({"traffic": [{"configurationName": "hello", "percent": 100}]}));
    routes.create(&PostParams::default(), &route).await.unwrap();

    let orphan =
        DeleteParams { propagation_policy: Some(PropagationPolicy::Orphan), ..DeleteParams::default() };
    services.delete("hello", &orphan).await.unwrap();
    eventually("the owner goes", async || services.get_opt("hello").await.unwrap().is_none().then_some(()))
        .await;
    for api in [&configurations, &routes] {
        let left = api.get("hello").await.unwrap();
        assert_eq!(left.metadata.owner_references, None);
        assert_eq!(left.metadata.deletion_timestamp, None);
        // What is left can be changed like any other.
        let patch = Patch::Merge(json!({"metadata": {"annotations": {"example.com/a": "b"}}}));
        api.patch("hello", &PatchParams::default(), &patch).await.unwrap();
    }

    // A reference to an owner that is gone does not outlive it, while another one keeps the object.
    let maps = cluster.api::<ConfigMap>();
    let map = |name: &str, owners: &[&ConfigMap]| -> ConfigMap {
        let reference = |owner: &&ConfigMap| json!({"apiVersion": "v1", "kind": "ConfigMap", "name": owner.metadata.name, "uid": owner.metadata.uid});
        let owners: Vec<Value> = owners.iter().map(reference).collect();
        serde_json::from_value(json!({"metadata": {"name": name, "ownerReferences": owners}})).unwrap()
    };
    let one = maps.create(&PostParams::default(), &map("one", &[])).await.unwrap();
    let other = maps.create(&PostParams::default(), &map("other", &[])).await.unwrap();
    maps.create(&PostParams::default(), &map("both", &[&one, &other])).await.unwrap();
    maps.delete("one", &DeleteParams::default()).await.unwrap();
    eventually("one owner is left", async || {
        let owners = maps.get("both").await.unwrap().metadata.owner_references?;
        (owners.len() == 1 && owners[0].name == "other").then_some(())
    })
    .await;
    cluster.stop().await;
}
