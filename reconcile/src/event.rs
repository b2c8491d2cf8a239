//! Events on objects, for people who read `kubectl describe`.

use std::fmt;
use std::future::Future;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::PostParams;
use kube::core::Resource;
use kube::{Api, Client, ResourceExt};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;

/// How many events may wait to be written. More are dropped: events explain, they never hold up work.
const WAITING: usize = 1024;

/// Whether an event reports trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum EventType {
    /// The ordinary course of things.
    Normal,
    /// Something that needs attention.
    Warning,
}

impl EventType {
    /// Kubernetes' word for it.
    #[must_use]
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Normal => "Normal",
            Self::Warning => "Warning",
        }
    }
}

/// Records events without waiting for the API. Clones share the queue.
#[derive(Clone)]
pub struct EventRecorder {
    component: &'static str,
    queue: mpsc::Sender<Event>,
}

impl fmt::Debug for EventRecorder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("EventRecorder").field("component", &self.component).finish_non_exhaustive()
    }
}

impl EventRecorder {
    /// A recorder for `component` (for instance `service-controller`) and the task that writes its events until
    /// `shutdown`.
    pub fn new(
        client: Client,
        component: &'static str,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, mut waiting) = mpsc::channel::<Event>(WAITING);
        let write = async move {
            loop {
                let event = tokio::select! {
                    () = shutdown.cancelled() => return,
                    event = waiting.recv() => event,
                };
                let Some(event) = event else { return };
                let namespace = event.metadata.namespace.clone().unwrap_or_default();
                let api: Api<Event> = Api::namespaced(client.clone(), &namespace);
                let parameters = PostParams::default();
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    created = api.create(&parameters, &event) => if let Err(error) = created {
                        tracing::debug!(%error, "an event was not written");
                    },
                }
            }
        };
        (Self { component, queue }, write)
    }

    /// The same queue under another component's name.
    #[must_use]
    pub fn named(&self, component: &'static str) -> Self {
        Self { component, queue: self.queue.clone() }
    }

    /// Records an event on `object` at `now`. Dropped when too many wait.
    pub fn record<K: Resource<DynamicType = ()>>(
        &self,
        object: &K,
        kind: EventType,
        reason: &str,
        message: &str,
        now: Timestamp,
    ) {
        let namespace = object.namespace().unwrap_or_else(|| "default".to_owned());
        let event = Event {
            metadata: ObjectMeta {
                name: Some(format!("{}.{:016x}", object.name_any(), fastrand::u64(..))),
                namespace: Some(namespace),
                ..ObjectMeta::default()
            },
            involved_object: ObjectReference {
                api_version: Some(K::api_version(&()).into_owned()),
                kind: Some(K::kind(&()).into_owned()),
                name: Some(object.name_any()),
                namespace: object.namespace(),
                uid: object.uid(),
                resource_version: object.resource_version(),
                ..ObjectReference::default()
            },
            type_: Some(kind.as_str().to_owned()),
            reason: Some(reason.to_owned()),
            message: Some(message.to_owned()),
            source: Some(EventSource { component: Some(self.component.to_owned()), host: None }),
            reporting_component: Some(self.component.to_owned()),
            first_timestamp: Some(Time(now)),
            last_timestamp: Some(Time(now)),
            count: Some(1),
            ..Event::default()
        };
        if self.queue.try_send(event).is_err() {
            tracing::debug!(reason, message, "an event was dropped: too many wait to be written");
        }
    }
}
