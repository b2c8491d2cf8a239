//! Events of pods, as a kubelet writes them for who reads `kubectl describe pod`: what went wrong, and what followed.
//!
//! They are written behind, a while after they happened: nothing waits for them, and what happens again meanwhile is
//! one write. A pod that starts, serves and ends as it should has none, since each would be a write at a wake-up.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::future::Future;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use kube::api::{Patch, PatchParams, PostParams};
use kube::{Api, Client};
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};
use tokio_util::sync::CancellationToken;

use crate::cache::refused;
use crate::pod_status::Index;

/// How many occurrences may wait to be counted. More are dropped: events explain, they never hold up work.
const WAITING: usize = 1024;
/// From the first occurrence until it is written, so that repetitions are one write.
const PATIENCE: Duration = Duration::from_secs(1);
/// How many Events are remembered, to be counted up. Beyond, the one that was seen last the longest ago is forgotten.
const REMEMBERED: usize = 1024;
/// How many occurrences a pod may have at once, and how many seconds it takes for another one: a kubelet's limits.
const BURST: u32 = 25;
const REFILL_SECONDS: i64 = 300;

/// Whether an event reports trouble.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) enum Kind {
    Normal,
    Warning,
}

/// What an Event tells; occurrences that tell the same are counted.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Told {
    namespace: String,
    pod: String,
    uid: String,
    /// The container; empty for the whole pod.
    field_path: String,
    kind: Kind,
    /// In Kubernetes' words.
    reason: &'static str,
    message: String,
}

impl Told {
    pub(crate) fn new(pod: &Pod, kind: Kind, reason: &'static str, message: String) -> Self {
        let own = |field: &Option<String>| field.clone().unwrap_or_default();
        Self {
            namespace: own(&pod.metadata.namespace),
            pod: own(&pod.metadata.name),
            uid: own(&pod.metadata.uid),
            field_path: String::new(),
            kind,
            reason,
            message,
        }
    }

    /// Of one of its containers.
    pub(crate) fn of(mut self, index: Index, container: &str) -> Self {
        let list = match index {
            Index::Init(_) => "initContainers",
            Index::Main(_) => "containers",
        };
        self.field_path = format!("spec.{list}{{{container}}}");
        self
    }
}

/// Takes note of what happens to pods, without waiting for anything. Clones share the queue.
#[derive(Clone)]
pub(crate) struct Events {
    queue: mpsc::Sender<(Told, Timestamp)>,
}

impl fmt::Debug for Events {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Events").finish_non_exhaustive()
    }
}

impl Events {
    /// With the task that writes the Events of the node `host` until `shutdown`.
    pub(crate) fn new(
        client: Client,
        host: String,
        shutdown: CancellationToken,
    ) -> (Self, impl Future<Output = ()> + Send + 'static) {
        let (queue, waiting) = mpsc::channel(WAITING);
        let write = async move {
            tokio::select! {
                () = shutdown.cancelled() => {}
                () = write_all(client, host, waiting) => {}
            }
        };
        (Self { queue }, write)
    }

    /// Takes note. Dropped when too many wait.
    pub(crate) fn record(&self, told: Told) {
        if let Err(error) = self.queue.try_send((told, Timestamp::now())) {
            tracing::debug!(%error, "an event was dropped: too many wait to be written");
        }
    }
}

async fn write_all(client: Client, host: String, mut waiting: mpsc::Receiver<(Told, Timestamp)>) {
    let mut counter = Counter::default();
    while let Some((told, now)) = waiting.recv().await {
        counter.count(told, now);
        let until = Instant::now() + PATIENCE;
        loop {
            tokio::select! {
                more = waiting.recv() => match more {
                    Some((told, now)) => counter.count(told, now),
                    None => break,
                },
                () = sleep_until(until) => break,
            }
        }
        for (told, counted) in counter.take() {
            if let Err(error) = write(&client, &host, &told, &counted).await {
                tracing::debug!(%error, "an event was not written");
            }
        }
    }
}

/// Counts the Event up if it is there, or else creates it.
async fn write(client: &Client, host: &str, told: &Told, counted: &Counted) -> kube::Result<()> {
    let api: Api<Event> = Api::namespaced(client.clone(), &told.namespace);
    if counted.is_written {
        let patch = json!({"count": counted.count, "lastTimestamp": Time(counted.last)});
        match api.patch(&counted.name, &PatchParams::default(), &Patch::Merge(patch)).await {
            // It was dropped as old.
            Err(error) if refused(&error, 404) => {}
            outcome => return outcome.map(drop),
        }
    }
    api.create(&PostParams::default(), &event(told, counted, host)).await.map(drop)
}

fn event(told: &Told, counted: &Counted, host: &str) -> Event {
    let kind = match told.kind {
        Kind::Normal => "Normal",
        Kind::Warning => "Warning",
    };
    Event {
        metadata: ObjectMeta {
            name: Some(counted.name.clone()),
            namespace: Some(told.namespace.clone()),
            ..ObjectMeta::default()
        },
        involved_object: ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Pod".to_owned()),
            name: Some(told.pod.clone()),
            namespace: Some(told.namespace.clone()),
            uid: Some(told.uid.clone()),
            field_path: Some(told.field_path.clone()).filter(|path| !path.is_empty()),
            ..ObjectReference::default()
        },
        type_: Some(kind.to_owned()),
        reason: Some(told.reason.to_owned()),
        message: Some(told.message.clone()),
        source: Some(EventSource { component: Some("kubelet".to_owned()), host: Some(host.to_owned()) }),
        reporting_component: Some("kubelet".to_owned()),
        reporting_instance: Some(host.to_owned()),
        first_timestamp: Some(Time(counted.first)),
        last_timestamp: Some(Time(counted.last)),
        count: Some(counted.count),
        ..Event::default()
    }
}

/// How often something was told.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Counted {
    /// The Event's.
    name: String,
    count: i32,
    first: Timestamp,
    last: Timestamp,
    is_written: bool,
}

/// What a pod may still tell.
#[derive(Debug)]
struct Allowance {
    left: u32,
    since: Timestamp,
}

/// Counts what is told, and bounds it.
#[derive(Debug, Default)]
struct Counter {
    known: BTreeMap<Told, Counted>,
    /// Of `known`, in the order of their first occurrence since the last [`Counter::take`].
    changed: Vec<Told>,
    allowances: HashMap<String, Allowance>,
}

impl Counter {
    fn count(&mut self, told: Told, now: Timestamp) {
        if !self.allows(&told.uid, now) {
            return;
        }
        if let Some(known) = self.known.get_mut(&told) {
            (known.count, known.last) = (known.count.saturating_add(1), now);
        } else {
            if self.known.len() >= REMEMBERED {
                self.forget();
            }
            let name = format!("{}.{:016x}", told.pod, fastrand::u64(..));
            let counted = Counted { name, count: 1, first: now, last: now, is_written: false };
            self.known.insert(told.clone(), counted);
        }
        if !self.changed.contains(&told) {
            self.changed.push(told);
        }
    }

    fn allows(&mut self, uid: &str, now: Timestamp) -> bool {
        if self.allowances.len() >= REMEMBERED && !self.allowances.contains_key(uid) {
            let oldest = self.allowances.iter().min_by_key(|(_, a)| a.since).map(|(uid, _)| uid.clone());
            oldest.and_then(|uid| self.allowances.remove(&uid));
        }
        let allowance =
            self.allowances.entry(uid.to_owned()).or_insert(Allowance { left: BURST, since: now });
        let more = (now.as_second() - allowance.since.as_second()).max(0) / REFILL_SECONDS;
        if more > 0 {
            let left = i64::from(allowance.left).saturating_add(more).min(i64::from(BURST));
            allowance.left = u32::try_from(left).unwrap_or(BURST);
            allowance.since = now;
        }
        let allowed = allowance.left > 0;
        allowance.left = allowance.left.saturating_sub(1);
        allowed
    }

    /// Forgets what was seen last the longest ago.
    fn forget(&mut self) {
        let oldest = self.known.iter().min_by_key(|(_, counted)| counted.last).map(|(told, _)| told.clone());
        if let Some(told) = oldest {
            self.known.remove(&told);
            self.changed.retain(|changed| *changed != told);
        }
    }

    /// What has changed since the last time, to be written.
    fn take(&mut self) -> Vec<(Told, Counted)> {
        let mut changed = Vec::new();
        for told in std::mem::take(&mut self.changed) {
            if let Some(known) = self.known.get_mut(&told) {
                let counted = known.clone();
                known.is_written = true;
                changed.push((told, counted));
            }
        }
        changed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    fn told(uid: &str, message: &str) -> Told {
        let pod: Pod =
            serde_json::from_value(json!({"metadata": {"name": "p", "namespace": "n", "uid": uid}})).unwrap();
        Told::new(&pod, Kind::Warning, "Unhealthy", message.to_owned()).of(Index::Main(0), "app")
    }

    #[test]
    fn repetitions_are_counted() {
        let mut counter = Counter::default();
        counter.count(told("1", "b"), at(0));
        counter.count(told("1", "a"), at(1));
        counter.count(told("1", "b"), at(2));
        let taken = counter.take();
        let seen = |taken: &[(Told, Counted)]| -> Vec<(String, i32, bool)> {
            taken.iter().map(|(t, c)| (t.message.clone(), c.count, c.is_written)).collect()
        };
        assert_eq!(seen(&taken), [("b".to_owned(), 2, false), ("a".to_owned(), 1, false)]);
        counter.count(told("1", "b"), at(3));
        let again = counter.take();
        assert_eq!(seen(&again), [("b".to_owned(), 3, true)]);
        assert_eq!(again[0].1.name, taken[0].1.name);
        assert_eq!((again[0].1.first, again[0].1.last), (at(0), at(3)));
        assert_eq!(counter.take(), []);
    }

    #[test]
    fn a_pod_that_tells_too_much_is_silenced_for_a_while() {
        let mut counter = Counter::default();
        for _ in 0..100 {
            counter.count(told("1", "a"), at(0));
        }
        counter.count(told("2", "a"), at(0));
        let counts = |counter: &mut Counter| -> Vec<i32> {
            counter.take().into_iter().map(|(_, counted)| counted.count).collect()
        };
        assert_eq!(counts(&mut counter), [25, 1]);
        counter.count(told("1", "a"), at(299));
        assert_eq!(counts(&mut counter), [0; 0]);
        counter.count(told("1", "a"), at(300));
        counter.count(told("1", "a"), at(300));
        assert_eq!(counts(&mut counter), [26]);
    }

    #[test]
    fn memory_is_bounded() {
        let mut counter = Counter::default();
        for pod in 0..3000 {
            counter.count(told(&pod.to_string(), "a"), at(pod));
        }
        assert_eq!((counter.known.len(), counter.allowances.len()), (REMEMBERED, REMEMBERED));
        assert_eq!(counter.take().len(), REMEMBERED);
    }

    #[test]
    fn an_event_is_what_a_kubelet_writes() {
        let mut counter = Counter::default();
        counter.count(told("1", "Liveness probe failed: no answer within 1 s"), at(0));
        let (told, counted) = counter.take().remove(0);
        let event = serde_json::to_value(event(&told, &counted, "ember")).unwrap();
        assert_eq!(event["involvedObject"]["fieldPath"], "spec.containers{app}");
        assert_eq!(event["involvedObject"]["uid"], "1");
        assert_eq!(event["source"], json!({"component": "kubelet", "host": "ember"}));
        assert_eq!((&event["type"], &event["reason"]), (&json!("Warning"), &json!("Unhealthy")));
        assert_eq!(event["count"], 1);
    }
}
