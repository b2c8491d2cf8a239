//! Collection of what lost its owner or its namespace: the shell around [`graph`].

pub mod graph;
mod remaining;

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, pin_mut};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{self as core, Namespace};
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions, PropagationPolicy};
use kube::core::{ApiResource, DynamicObject, PartialObjectMeta};
use kube::discovery::{Discovery, Scope, verbs};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Client};
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::cache::refused;
use graph::{Action, Graph, Object, Owner};
use remaining::Remaining;

/// An action that has failed so often before is told.
const FAILURES_TOLD: u32 = 3;

/// Only what is needed to know owners is read of each object.
type Meta = PartialObjectMeta<DynamicObject>;

struct Resource {
    api: ApiResource,
    is_namespaced: bool,
}

enum Event {
    Listed(usize, Vec<Meta>),
    Put(usize, Box<Meta>),
    Gone(Box<Meta>),
}

/// Collects until `shutdown`. `retry` is the first wait after a failure.
pub(crate) async fn run(client: Client, retry: Duration, shutdown: CancellationToken) {
    let resources = tokio::select! {
        () = shutdown.cancelled() => return,
        resources = discover(&client, retry) => resources,
    };
    let (sender, mut events) = mpsc::channel(256);
    let mut watches = JoinSet::new();
    for (at, resource) in resources.iter().enumerate() {
        watches.spawn(follow(at, Api::all_with(client.clone(), &resource.api), sender.clone()));
    }
    drop(sender);
    let mut collector = Collector {
        client,
        resources,
        graph: Graph::default(),
        listed: BTreeSet::new(),
        retry,
        failed: BTreeMap::new(),
    };
    loop {
        let next = collector.failed.values().map(|(at, _)| *at).min();
        let actions = tokio::select! {
            () = shutdown.cancelled() => return,
            event = events.recv() => match event {
                Some(event) => collector.hear(event),
                None => return,
            },
            () = sleep_until(next.unwrap_or_else(Instant::now)), if next.is_some() => collector.due(),
        };
        for action in actions {
            collector.act(action).await;
        }
    }
}

/// Every resource that can be listed, watched and deleted.
async fn discover(client: &Client, mut retry: Duration) -> Vec<Resource> {
    loop {
        match Discovery::new(client.clone()).run().await {
            Ok(found) => {
                let all = found.groups().flat_map(kube::discovery::ApiGroup::recommended_resources);
                let usable = all.filter(|(resource, capabilities)| {
                    let supports = |verb| capabilities.supports_operation(verb);
                    resource.kind != "Event"
                        && supports(verbs::LIST)
                        && supports(verbs::WATCH)
                        && supports(verbs::DELETE)
                });
                let resource = |(api, capabilities): (ApiResource, kube::discovery::ApiCapabilities)| {
                    Resource { api, is_namespaced: capabilities.scope == Scope::Namespaced }
                };
                return usable.map(resource).collect();
            }
            Err(error) => tracing::debug!(%error, "discovery"),
        }
        sleep(retry).await;
        retry = (retry * 2).min(Duration::from_secs(5));
    }
}

async fn follow(resource: usize, api: Api<Meta>, events: mpsc::Sender<Event>) {
    let stream = watcher(api, watcher::Config::default()).default_backoff();
    pin_mut!(stream);
    let mut listed = Vec::new();
    while let Some(event) = stream.next().await {
        let event = match event {
            Err(error) => {
                tracing::debug!(%error, "watch");
                continue;
            }
            Ok(watcher::Event::Init) => {
                listed.clear();
                continue;
            }
            Ok(watcher::Event::InitApply(object)) => {
                listed.push(object);
                continue;
            }
            Ok(watcher::Event::InitDone) => Event::Listed(resource, std::mem::take(&mut listed)),
            Ok(watcher::Event::Apply(object)) => Event::Put(resource, Box::new(object)),
            Ok(watcher::Event::Delete(object)) => Event::Gone(Box::new(object)),
        };
        if events.send(event).await.is_err() {
            return;
        }
    }
}

struct Collector {
    client: Client,
    resources: Vec<Resource>,
    graph: Graph,
    /// Resources whose first list is in. Nothing is collected before all are.
    listed: BTreeSet<usize>,
    retry: Duration,
    /// What failed: when it is tried again, and how often it has failed.
    failed: BTreeMap<Action, (Instant, u32)>,
}

impl Collector {
    fn hear(&mut self, event: Event) -> Vec<Action> {
        let was_complete = self.listed.len() == self.resources.len();
        let actions = match event {
            Event::Listed(resource, objects) => {
                let mut gone: BTreeSet<String> = self.graph.of_resource(resource).into_iter().collect();
                for object in objects {
                    gone.remove(object.metadata.uid.as_deref().unwrap_or_default());
                    // Everything is reviewed below.
                    self.put(resource, object);
                }
                for uid in gone {
                    self.graph.remove(&uid);
                }
                self.listed.insert(resource);
                // A list may hide any number of events.
                return if self.listed.len() == self.resources.len() {
                    self.graph.review_all()
                } else {
                    Vec::new()
                };
            }
            Event::Put(resource, object) => self.put(resource, *object),
            Event::Gone(object) => self.graph.remove(object.metadata.uid.as_deref().unwrap_or_default()),
        };
        if was_complete { actions } else { Vec::new() }
    }

    fn put(&mut self, resource: usize, object: Meta) -> Vec<Action> {
        let api = &self.resources[resource].api;
        let meta = object.metadata;
        let owner = |o: k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference| Owner {
            uid: o.uid,
            api_version: o.api_version,
            kind: o.kind,
            name: o.name,
            blocks: o.block_owner_deletion == Some(true),
        };
        let uid = meta.uid.unwrap_or_default();
        let object = Object {
            resource,
            namespace: meta.namespace.unwrap_or_default(),
            name: meta.name.unwrap_or_default(),
            owners: meta.owner_references.into_iter().flatten().map(owner).collect(),
            is_deleting: meta.deletion_timestamp.is_some(),
            finalizers: meta.finalizers.unwrap_or_default(),
            is_namespace: api.kind == "Namespace" && api.group.is_empty(),
        };
        self.graph.put(&uid, object)
    }

    fn due(&self) -> Vec<Action> {
        let now = Instant::now();
        self.failed.iter().filter(|(_, (at, _))| *at <= now).map(|(action, _)| action.clone()).collect()
    }

    async fn act(&mut self, action: Action) {
        match self.try_act(&action).await {
            Ok(()) => {
                self.failed.remove(&action);
            }
            // Gone, or changed: the event of the change brings us back.
            Err(error) if refused(&error, 404) || refused(&error, 409) => {
                self.failed.remove(&action);
            }
            Err(error) => {
                let failures = self.failed.get(&action).map_or(0, |(_, failures)| *failures);
                // What stays so is for someone to see, once; what passes by itself is not.
                if failures == FAILURES_TOLD {
                    let (namespace, name) = self.subject(&action);
                    tracing::warn!(%namespace, %name, ?action, %error, "garbage collection is stuck, and goes on trying");
                } else {
                    tracing::debug!(?action, %error, "garbage collection");
                }
                let wait = self.retry * 2_u32.pow(failures.min(7));
                self.failed.insert(action, (Instant::now() + wait, failures + 1));
            }
        }
    }

    /// The namespace and the name of what an action is about.
    fn subject<'a>(&'a self, action: &'a Action) -> (&'a str, &'a str) {
        match action {
            Action::Collect(uid)
            | Action::Delete(uid)
            | Action::Disown(uid, _)
            | Action::Forget(uid)
            | Action::Unblock(uid, _) => {
                self.graph.get(uid).map_or(("", uid), |object| (&object.namespace, &object.name))
            }
            Action::Empty(name) | Action::ReportNamespace(name) | Action::FinishNamespace(name) => ("", name),
        }
    }

    async fn try_act(&self, action: &Action) -> Result<(), kube::Error> {
        match action {
            Action::Collect(uid) => {
                let Some(object) = self.graph.get(uid) else { return Ok(()) };
                for owner in &object.owners {
                    if self.exists(&object.namespace, owner).await? {
                        return Ok(());
                    }
                }
                self.delete(uid, object).await
            }
            Action::Delete(uid) => match self.graph.get(uid) {
                Some(object) => self.delete(uid, object).await,
                None => Ok(()),
            },
            Action::Disown(uid, owner) => {
                let Some(object) = self.graph.get(uid) else { return Ok(()) };
                self.edit(object, |meta| {
                    meta.owner_references.get_or_insert_default().retain(|o| o.uid != *owner);
                })
                .await
            }
            Action::Forget(uid) => {
                let Some(object) = self.graph.get(uid) else { return Ok(()) };
                let mut gone = BTreeSet::new();
                for owner in &object.owners {
                    if self.graph.get(&owner.uid).is_none() && !self.exists(&object.namespace, owner).await? {
                        gone.insert(&owner.uid);
                    }
                }
                if gone.is_empty() {
                    return Ok(());
                }
                self.edit(object, |meta| {
                    meta.owner_references.get_or_insert_default().retain(|o| !gone.contains(&o.uid));
                })
                .await
            }
            Action::Unblock(uid, finalizer) => {
                let Some(object) = self.graph.get(uid) else { return Ok(()) };
                self.edit(object, |meta| meta.finalizers.get_or_insert_default().retain(|f| f != finalizer))
                    .await
            }
            Action::Empty(namespace) => {
                let api = Api::<Namespace>::all(self.client.clone());
                if api.get_opt(namespace).await?.is_some() {
                    return Ok(());
                }
                for uid in self.graph.contents(namespace) {
                    if let Some(object) = self.graph.get(&uid)
                        && let Err(error) = self.delete(&uid, object).await
                        && !refused(&error, 404)
                    {
                        return Err(error);
                    }
                }
                Ok(())
            }
            Action::ReportNamespace(name) => self.report(name).await,
            Action::FinishNamespace(name) => self.finish(name).await,
        }
    }

    fn api(&self, resource: &Resource, namespace: &str) -> Api<Meta> {
        if resource.is_namespaced {
            Api::namespaced_with(self.client.clone(), namespace, &resource.api)
        } else {
            Api::all_with(self.client.clone(), &resource.api)
        }
    }

    /// Whether an owner is there. One of a kind that is not served might be.
    async fn exists(&self, namespace: &str, owner: &Owner) -> Result<bool, kube::Error> {
        let kind = self.resources.iter().find(|r| {
            // Another version of the same group is the same object.
            r.api.kind == owner.kind
                && r.api.group == owner.api_version.rsplit_once('/').map_or("", |(group, _)| group)
        });
        let Some(resource) = kind else { return Ok(true) };
        let found = self.api(resource, namespace).get_metadata_opt(&owner.name).await?;
        Ok(found.is_some_and(|o| o.metadata.uid.as_deref() == Some(&owner.uid)))
    }

    async fn delete(&self, uid: &str, object: &Object) -> Result<(), kube::Error> {
        if object.is_deleting {
            return Ok(());
        }
        let preconditions = Preconditions { uid: Some(uid.to_owned()), resource_version: None };
        let params = DeleteParams {
            propagation_policy: Some(PropagationPolicy::Background),
            ..DeleteParams::default().preconditions(preconditions)
        };
        let api = self.dynamic(object);
        api.delete(&object.name, &params).await.map(drop)
    }

    fn dynamic(&self, object: &Object) -> Api<DynamicObject> {
        let resource = &self.resources[object.resource];
        if resource.is_namespaced {
            Api::namespaced_with(self.client.clone(), &object.namespace, &resource.api)
        } else {
            Api::all_with(self.client.clone(), &resource.api)
        }
    }

    /// Changes lists of an object's metadata, unless it changed meanwhile.
    async fn edit(
        &self,
        object: &Object,
        change: impl Fn(&mut k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta),
    ) -> Result<(), kube::Error> {
        let api = self.dynamic(object);
        let mut meta = api.get(&object.name).await?.metadata;
        change(&mut meta);
        let patch = serde_json::json!({"metadata": {
            "resourceVersion": meta.resource_version,
            "finalizers": meta.finalizers,
            "ownerReferences": meta.owner_references,
        }});
        api.patch(&object.name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }

    /// Says in the status of a Namespace what is left in it.
    async fn report(&self, name: &str) -> Result<(), kube::Error> {
        let mut left = Remaining::default();
        for object in self.graph.contents(name).iter().filter_map(|uid| self.graph.get(uid)) {
            let api = &self.resources[object.resource].api;
            *left.resources.entry(format!("{}.{}", api.plural, api.group)).or_default() += 1;
            for finalizer in &object.finalizers {
                *left.finalizers.entry(finalizer.clone()).or_default() += 1;
            }
        }
        let api = Api::<Namespace>::all(self.client.clone());
        let status = api.get(name).await?.status.unwrap_or_default();
        let old = status.conditions.unwrap_or_default();
        let conditions = remaining::conditions(&left, &old, Timestamp::now());
        if conditions == old {
            return Ok(());
        }
        let patch = serde_json::json!({ "status": { "conditions": conditions } });
        api.patch_status(name, &PatchParams::default(), &Patch::Merge(patch)).await.map(drop)
    }

    /// Tells the API server that a Namespace is empty. The events in it, which are not followed, go before.
    async fn finish(&self, name: &str) -> Result<(), kube::Error> {
        let events = Api::<core::Event>::namespaced(self.client.clone(), name);
        events.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        let api = Api::<Namespace>::all(self.client.clone());
        let mut namespace = api.get(name).await?;
        namespace.spec.get_or_insert_default().finalizers = Some(Vec::new());
        let body = serde_json::to_vec(&namespace).map_err(kube::Error::SerdeError)?;
        let request = http::Request::put(format!("/api/v1/namespaces/{name}/finalize"))
            .header(http::header::CONTENT_TYPE, "application/json")
            .body(body)
            .map_err(kube::Error::HttpError)?;
        self.client.request_text(request).await.map(drop)
    }
}
