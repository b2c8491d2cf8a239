//! PodAutoscalers of the HPA class against an API that has HorizontalPodAutoscalers.
//!
//! The embedded API server has no such kind, as nothing there runs one. A layer between the autoscaler and the real API
//! keeps the objects of this one kind, with the rules that writers meet: versions, conflicts, a status of its own,
//! watches that tell of changes in order.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use ember_api::autoscaling::v1alpha1::{Metric, PodAutoscaler};
use ember_api::networking::v1alpha1::ServerlessService;
use ember_autoscaler::HpaClass;
use futures::stream;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use k8s_openapi::api::autoscaling::v2::HorizontalPodAutoscaler;
use k8s_openapi::api::core::v1::Event;
use kube::api::{DeleteParams, Patch, PatchParams, PostParams};
use kube::{Api, Client, ResourceExt};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::watch;

use crate::stage::cluster::create;
use crate::stage::{eventually, no_timers};
use crate::world::{Through, World, sleepy};

type Failure = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<UnsyncBoxBody<Bytes, Failure>>;

const KIND: &str = "horizontalpodautoscalers";
const GROUP: &str = "/apis/autoscaling/v2/";

#[derive(Default)]
struct Objects {
    /// By namespace and name.
    live: BTreeMap<(String, String), Value>,
    version: u64,
    /// Every change so far: its version and what watches are told.
    log: Vec<(u64, Value)>,
    /// Why creations are refused, if they are.
    refusal: Option<String>,
    /// Writes and how they were answered.
    writes: Vec<(Method, StatusCode)>,
}

impl Objects {
    /// Takes an object over as its next version.
    fn put(&mut self, type_: &str, key: (String, String), mut object: Value) -> Value {
        self.version += 1;
        object["metadata"]["resourceVersion"] = self.version.to_string().into();
        self.log.push((self.version, json!({"type": type_, "object": object})));
        match type_ {
            "DELETED" => self.live.remove(&key),
            _ => self.live.insert(key, object.clone()),
        };
        object
    }

    fn write(&mut self, method: &Method, key: (String, String), body: &[u8]) -> (StatusCode, Value) {
        let failed = |code: StatusCode, reason: &str, message: String| {
            let status = json!({
                "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
                "reason": reason, "message": message, "code": code.as_u16(),
            });
            (code, status)
        };
        let live = self.live.get(&key).cloned();
        let read = || serde_json::from_slice::<Value>(body).unwrap();
        match (method, live) {
            (&Method::POST, _) => {
                let mut object = read();
                let key = (key.0, object["metadata"]["name"].as_str().unwrap().to_owned());
                if let Some(why) = &self.refusal {
                    return failed(StatusCode::FORBIDDEN, "Forbidden", why.clone());
                }
                if self.live.contains_key(&key) {
                    let message = format!("{KIND} \"{}\" already exists", key.1);
                    return failed(StatusCode::CONFLICT, "AlreadyExists", message);
                }
                object["metadata"]["namespace"] = key.0.clone().into();
                object["metadata"]["uid"] = format!("hpa-{}", self.version).into();
                object.as_object_mut().unwrap().remove("status");
                (StatusCode::CREATED, self.put("ADDED", key, object))
            }
            (_, None) => failed(StatusCode::NOT_FOUND, "NotFound", format!("{KIND} \"{}\" not found", key.1)),
            (&Method::GET, Some(live)) => (StatusCode::OK, live),
            (&Method::PUT, Some(live)) => {
                let mut object = read();
                let seen = &object["metadata"]["resourceVersion"];
                if !seen.is_null() && *seen != live["metadata"]["resourceVersion"] {
                    let message = format!("{KIND} \"{}\": the object has been modified", key.1);
                    return failed(StatusCode::CONFLICT, "Conflict", message);
                }
                // It is not written with the rest.
                object["status"] = live["status"].clone();
                (StatusCode::OK, self.put("MODIFIED", key, object))
            }
            (&Method::DELETE, Some(live)) => (StatusCode::OK, self.put("DELETED", key, live)),
            (method, _) => failed(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed", method.to_string()),
        }
    }
}

/// The kind's API.
struct Horizontal {
    objects: Mutex<Objects>,
    /// How many changes of the log watches are told of.
    told: watch::Sender<usize>,
    /// Whether watches wait.
    held: Mutex<bool>,
}

impl Horizontal {
    fn new() -> Arc<Self> {
        Arc::new(Self { objects: Mutex::default(), told: watch::Sender::new(0), held: Mutex::new(false) })
    }

    /// Requests for the kind are answered here, all others by the API behind.
    fn client(self: &Arc<Self>, behind: Client) -> Client {
        let here = Arc::clone(self);
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let (here, behind) = (Arc::clone(&here), behind.clone());
            async move {
                if request.uri().path().starts_with(GROUP) {
                    return Ok::<Answer, Failure>(here.answer(request).await);
                }
                let answer = behind.send(request).await?;
                Ok(answer.map(|body| body.map_err(Into::into).boxed_unsync()))
            }
        });
        Client::new(service, "default")
    }

    fn through(self: &Arc<Self>) -> Through {
        let here = Arc::clone(self);
        Box::new(move |client| here.client(client))
    }

    async fn answer(self: &Arc<Self>, request: Request<kube::client::Body>) -> Answer {
        let (parts, body) = request.into_parts();
        let body = body.collect_bytes().await.unwrap();
        let path: Vec<&str> = parts.uri.path().trim_start_matches(GROUP).split('/').collect();
        let query = parts.uri.query().unwrap_or_default();
        let (code, value) = match path[..] {
            [KIND] if query.contains("watch=true") => {
                let mut pairs = query.split('&').filter_map(|pair| pair.split_once('='));
                let from = pairs.find(|(name, _)| *name == "resourceVersion").unwrap().1.parse().unwrap();
                return self.watch(from);
            }
            [KIND] => {
                let objects = self.objects.lock();
                let items: Vec<_> = objects.live.values().collect();
                let metadata = json!({"resourceVersion": objects.version.to_string()});
                let list = json!({
                    "kind": "HorizontalPodAutoscalerList", "apiVersion": "autoscaling/v2",
                    "metadata": metadata, "items": items,
                });
                (StatusCode::OK, list)
            }
            ["namespaces", namespace, KIND, ref name @ ..] => {
                let key = (namespace.to_owned(), name.first().copied().unwrap_or_default().to_owned());
                let mut objects = self.objects.lock();
                let (code, value) = objects.write(&parts.method, key, &body);
                if parts.method != Method::GET {
                    objects.writes.push((parts.method, code));
                }
                drop(objects);
                self.tell();
                (code, value)
            }
            _ => panic!("{path:?}"),
        };
        let body = Full::from(value.to_string()).map_err(|never| match never {}).boxed_unsync();
        Response::builder().status(code).header("content-type", "application/json").body(body).unwrap()
    }

    fn watch(self: &Arc<Self>, from: u64) -> Answer {
        let next = self.objects.lock().log.iter().filter(|(version, _)| *version <= from).count();
        let state = (Arc::clone(self), self.told.subscribe(), next);
        let events = stream::unfold(state, |(here, mut told, next)| async move {
            told.wait_for(|told| *told > next).await.ok()?;
            let line = format!("{}\n", here.objects.lock().log[next].1);
            Some((Ok(Frame::data(Bytes::from(line))), (here, told, next + 1)))
        });
        let body = StreamBody::new(events).boxed_unsync();
        Response::builder().header("content-type", "application/json").body(body).unwrap()
    }

    fn tell(&self) {
        if !*self.held.lock() {
            self.told.send_replace(self.objects.lock().log.len());
        }
    }

    /// What the controller of the kind finds out.
    fn report(&self, name: &str, current: i32, desired: i32) {
        let key = ("ns".to_owned(), name.to_owned());
        let mut objects = self.objects.lock();
        let mut object = objects.live[&key].clone();
        object["status"] = json!({"currentReplicas": current, "desiredReplicas": desired});
        objects.put("MODIFIED", key, object);
        drop(objects);
        self.tell();
    }

    /// Keeps what happens from watches until they are released.
    fn hold(&self, held: bool) {
        *self.held.lock() = held;
        self.tell();
    }

    fn wrote(&self, method: &Method, code: StatusCode) -> bool {
        self.objects.lock().writes.contains(&(method.clone(), code))
    }
}

fn autoscaler(name: &str, annotations: &Value) -> Value {
    let mut all = json!({"autoscaling.knative.dev/class": "hpa.autoscaling.knative.dev"});
    all.as_object_mut().unwrap().extend(annotations.as_object().unwrap().clone());
    let labels = json!({
        "serving.knative.dev/revision": name, "serving.knative.dev/revisionUID": "u-1",
        "serving.knative.dev/configuration": "hello",
    });
    json!({
        "metadata": {"name": name, "annotations": all, "labels": labels},
        "spec": {
            "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": format!("{name}-deployment")},
            "reachability": "Reachable",
            "protocolType": "http1",
        },
    })
}

async fn start() -> (World, Arc<Horizontal>, Api<HorizontalPodAutoscaler>) {
    let horizontal = Horizontal::new();
    let world = World::start_through(horizontal.through(), sleepy(), |config| {
        no_timers(config);
        config.hpa_class = HpaClass::Managed;
    })
    .await;
    let api = Api::namespaced(horizontal.client(world.client.clone()), "ns");
    (world, horizontal, api)
}

impl World {
    async fn annotate(&self, name: &str, annotations: Value) {
        let patch = Patch::Merge(json!({"metadata": {"annotations": annotations}}));
        self.api::<PodAutoscaler>().patch(name, &PatchParams::default(), &patch).await.unwrap();
    }

    async fn until_event(&self, text: &str) {
        eventually(text, async || {
            let events = self.api::<Event>().list(&Default::default()).await.unwrap();
            let mut events =
                events.into_iter().filter(|event| event.reason.as_deref() == Some("InternalError"));
            events.find(|event| event.message.as_deref() == Some(text))
        })
        .await;
    }
}

async fn until_most(api: &Api<HorizontalPodAutoscaler>, name: &str, most: i32) -> HorizontalPodAutoscaler {
    eventually(&format!("at most {most} replicas"), async || {
        let hpa = api.get_opt(name).await.unwrap()?;
        hpa.spec.as_ref().is_some_and(|spec| spec.max_replicas == most).then_some(hpa)
    })
    .await
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn it_is_created_followed_and_kept_in_order() {
    let (world, horizontal, api) = start().await;
    let annotations = json!({
        "autoscaling.knative.dev/metric": "cpu", "autoscaling.knative.dev/target": "50",
        "autoscaling.knative.dev/min-scale": "2",
    });
    create::<PodAutoscaler>(&world.client, "ns", autoscaler("rev", &annotations)).await;
    let hpa = until_most(&api, "rev", i32::MAX).await;
    let owner = &hpa.owner_references()[0];
    assert_eq!(
        (owner.kind.as_str(), owner.name.as_str(), owner.controller),
        ("PodAutoscaler", "rev", Some(true))
    );
    let spec = serde_json::to_value(hpa.spec.unwrap()).unwrap();
    assert_eq!(
        (&spec["minReplicas"], &spec["scaleTargetRef"]["name"]),
        (&json!(2), &json!("rev-deployment"))
    );
    assert_eq!(spec["metrics"][0]["resource"]["target"]["averageUtilization"], 50);

    // What its controller does is the status.
    horizontal.report("rev", 2, 3);
    let status = eventually("Ready", async || {
        let status = world.api::<PodAutoscaler>().get("rev").await.unwrap().status?;
        (status.conditions.is_true("Ready") && status.desired_scale == Some(3)).then_some(status)
    })
    .await;
    assert_eq!((status.actual_scale, status.service_name.as_str()), (Some(2), "rev"));
    let sks = world.api::<ServerlessService>().get("rev").await.unwrap();
    assert_eq!((sks.spec.mode.as_str(), sks.spec.num_activators), ("Serve", 0));

    // An update by an outdated view is refused, and done again with a newer one: nothing of the other writer is lost.
    horizontal.hold(true);
    let mut hpa = api.get("rev").await.unwrap();
    hpa.metadata.annotations.get_or_insert_default().insert("other".into(), "writer".into());
    api.replace("rev", &PostParams::default(), &hpa).await.unwrap();
    world.annotate("rev", json!({"autoscaling.knative.dev/max-scale": "7"})).await;
    eventually("a conflict", async || horizontal.wrote(&Method::PUT, StatusCode::CONFLICT).then_some(()))
        .await;
    horizontal.hold(false);
    let hpa = until_most(&api, "rev", 7).await;
    assert_eq!(hpa.annotations()["other"], "writer");
    assert_eq!(hpa.status.unwrap().current_replicas, Some(2), "the status is its controller's");

    // Whoever edits or deletes it finds it in order again.
    let mut hpa = api.get("rev").await.unwrap();
    hpa.spec.as_mut().unwrap().max_replicas = 9;
    api.replace("rev", &PostParams::default(), &hpa).await.unwrap();
    until_most(&api, "rev", 7).await;
    api.delete("rev", &DeleteParams::default()).await.unwrap();
    until_most(&api, "rev", 7).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_belongs_to_others_and_what_is_refused_is_told_and_tried_again() {
    let (world, horizontal, api) = start().await;
    let foreign = json!({
        "metadata": {"name": "foreign"},
        "spec": {"maxReplicas": 3, "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": "other"}},
    });
    let foreign: HorizontalPodAutoscaler = serde_json::from_value(foreign).unwrap();
    let made = api.create(&PostParams::default(), &foreign).await.unwrap();
    create::<PodAutoscaler>(&world.client, "ns", autoscaler("foreign", &json!({}))).await;
    let pa = world.until_active("foreign", "False", "NotOwned").await;
    let active = pa.status.unwrap().conditions.get("Active").unwrap().clone();
    assert_eq!(
        active.message,
        "There is an existing HorizontalPodAutoscaler \"foreign\" that we do not own."
    );
    world.until_event("PodAutoscaler: \"foreign\" does not own HPA: \"foreign\"").await;
    assert_eq!(api.get("foreign").await.unwrap(), made, "it is left alone");

    horizontal.objects.lock().refusal = Some("exceeded quota: none is left".to_owned());
    create::<PodAutoscaler>(&world.client, "ns", autoscaler("refused", &json!({}))).await;
    let pa = world.until_active("refused", "False", "FailedCreate").await;
    let active = pa.status.unwrap().conditions.get("Active").unwrap().clone();
    assert_eq!(active.message, "Failed to create HorizontalPodAutoscaler \"refused\".");
    world.until_event("failed to create HPA: exceeded quota: none is left").await;
    assert!(world.api::<ServerlessService>().get_opt("refused").await.unwrap().is_none(), "it stops there");
    horizontal.objects.lock().refusal = None;
    world.until_active("refused", "True", "").await;
    until_most(&api, "refused", i32::MAX).await;
    world.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn who_leaves_the_class_is_let_go_of() {
    let (world, horizontal, api) = start().await;
    for name in ["leaving", "deleted", "staying"] {
        create::<PodAutoscaler>(&world.client, "ns", autoscaler(name, &json!({}))).await;
        until_most(&api, name, i32::MAX).await;
        world.until_active(name, "True", "").await;
    }
    let class = json!({
        "autoscaling.knative.dev/class": "kpa.autoscaling.knative.dev", "autoscaling.knative.dev/metric": "concurrency",
    });
    world.annotate("leaving", class).await;
    eventually("the Metric of the other class", async || {
        world.api::<Metric>().get_opt("leaving").await.unwrap()
    })
    .await;
    world.api::<PodAutoscaler>().delete("deleted", &DeleteParams::default()).await.unwrap();
    // What is theirs is collected by the API for want of an owner, and comes back for neither.
    horizontal.objects.lock().writes.clear();
    for name in ["leaving", "deleted"] {
        api.delete(name, &DeleteParams::default()).await.unwrap();
    }
    api.delete("staying", &DeleteParams::default()).await.unwrap();
    until_most(&api, "staying", i32::MAX).await;
    for name in ["leaving", "deleted"] {
        assert_eq!(api.get_opt(name).await.unwrap(), None, "{name}");
    }
    world.stop().await;
}
