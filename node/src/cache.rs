//! The objects of one kind, kept current by a watch, with notice of every change to those who ask for it.
//!
//! Whoever writes an object hands the answer to [`Cache::observe`], so that neither its own next decision nor that of
//! another controller waits for the watch to bring it back.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::sync::{Arc, Weak};

use futures::{StreamExt, pin_mut};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Api, Resource, ResourceExt};
use parking_lot::Mutex;
use serde::de::DeserializeOwned;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

/// Namespace (empty for cluster-wide kinds) and name.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(crate) struct Key {
    pub(crate) namespace: String,
    pub(crate) name: String,
}

impl Key {
    pub(crate) fn of<K: Resource>(object: &K) -> Self {
        Self { namespace: object.namespace().unwrap_or_default(), name: object.name_any() }
    }
}

/// Cheap to clone.
pub(crate) struct Cache<K>(Arc<Shared<K>>);

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

struct Shared<K> {
    state: Mutex<State<K>>,
    synced: watch::Sender<bool>,
}

struct State<K> {
    objects: BTreeMap<Key, Arc<K>>,
    /// The highest resourceVersion that the watch has brought.
    seen: u64,
    /// UIDs of objects that are known to be gone though the watch has yet to say so.
    gone: BTreeSet<String>,
    subscribers: Vec<Weak<Subscriber<K>>>,
}

struct Subscriber<K> {
    /// Changed keys with an object each: as it is now, or as it last was. One entry a key, so it is bounded.
    changed: Mutex<BTreeMap<Key, Arc<K>>>,
    notify: Notify,
}

/// The changes of a cache since they were last asked for.
pub(crate) struct Changes<K>(Arc<Subscriber<K>>);

impl<K> Changes<K> {
    /// The keys that changed since the last call (at least one), with the object as it is or last was. Cancel safe.
    pub(crate) async fn next(&mut self) -> BTreeMap<Key, Arc<K>> {
        loop {
            let changed = std::mem::take(&mut *self.0.changed.lock());
            if !changed.is_empty() {
                return changed;
            }
            self.0.notify.notified().await;
        }
    }
}

fn version<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl<K> Cache<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    pub(crate) fn new() -> Self {
        let state =
            State { objects: BTreeMap::new(), seen: 0, gone: BTreeSet::new(), subscribers: Vec::new() };
        Self(Arc::new(Shared { state: Mutex::new(state), synced: watch::Sender::new(false) }))
    }

    /// Every object that is there or comes is a change to a new subscriber.
    pub(crate) fn subscribe(&self) -> Changes<K> {
        let mut state = self.0.state.lock();
        let subscriber =
            Arc::new(Subscriber { changed: Mutex::new(state.objects.clone()), notify: Notify::new() });
        state.subscribers.push(Arc::downgrade(&subscriber));
        Changes(subscriber)
    }

    /// Completes when the first list is in.
    pub(crate) async fn synced(&self) {
        // The sender lives as long as self.
        let _ = self.0.synced.subscribe().wait_for(|synced| *synced).await;
    }

    pub(crate) fn get(&self, key: &Key) -> Option<Arc<K>> {
        self.0.state.lock().objects.get(key).cloned()
    }

    /// The objects of a namespace.
    pub(crate) fn list(&self, namespace: &str) -> Vec<Arc<K>> {
        let from = Key { namespace: namespace.to_owned(), name: String::new() };
        let state = self.0.state.lock();
        state
            .objects
            .range(from..)
            .take_while(|(key, _)| key.namespace == namespace)
            .map(|(_, o)| Arc::clone(o))
            .collect()
    }

    /// Takes note of an object that the API server answered with.
    pub(crate) fn observe(&self, object: K) {
        let mut state = self.0.state.lock();
        // Older than what the watch has brought, and absent: it was deleted since.
        if !state.objects.contains_key(&Key::of(&object)) && version(&object) <= state.seen {
            return;
        }
        state.put(object);
    }

    /// Takes note that an object is gone.
    pub(crate) fn forget(&self, object: &K) {
        let mut state = self.0.state.lock();
        if state.take(object)
            && let Some(uid) = object.uid()
        {
            state.gone.insert(uid);
        }
    }

    /// Follows the API until `shutdown`.
    pub(crate) async fn run(self, api: Api<K>, shutdown: CancellationToken) {
        let events = watcher(api, watcher::Config::default()).default_backoff();
        pin_mut!(events);
        let mut listed: Vec<K> = Vec::new();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                None => return,
                Some(Err(error)) => tracing::debug!(%error, "watch"),
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(object))) => listed.push(object),
                Some(Ok(watcher::Event::InitDone)) => {
                    self.0.state.lock().replace(std::mem::take(&mut listed));
                    self.0.synced.send_replace(true);
                }
                Some(Ok(watcher::Event::Apply(object))) => {
                    let mut state = self.0.state.lock();
                    state.seen = state.seen.max(version(&object));
                    state.put(object);
                }
                Some(Ok(watcher::Event::Delete(object))) => self.0.state.lock().delete(&object),
            }
        }
    }
}

impl<K: Resource + Clone> State<K> {
    /// Keeps an object, but not its `managedFields`, which nobody here reads.
    fn put(&mut self, mut object: K) {
        let key = Key::of(&object);
        if object.meta().uid.as_ref().is_some_and(|uid| self.gone.contains(uid)) {
            return;
        }
        // The watch repeats what was observed.
        if self.objects.get(&key).is_some_and(|known| version(&**known) >= version(&object)) {
            return;
        }
        object.meta_mut().managed_fields = None;
        // A clone is without the spare room that reading leaves in strings and lists.
        let object = Arc::new(object.clone());
        self.objects.insert(key.clone(), Arc::clone(&object));
        self.tell(&key, &object);
    }

    fn delete(&mut self, object: &K) {
        self.seen = self.seen.max(version(object));
        self.take(object);
        if let Some(uid) = &object.meta().uid {
            self.gone.remove(uid);
        }
    }

    /// Removes an object, but not another one that took its name meanwhile; whether it was there.
    fn take(&mut self, object: &K) -> bool {
        let key = Key::of(object);
        let same = self.objects.get(&key).is_some_and(|known| known.meta().uid == object.meta().uid);
        if same && let Some(last) = self.objects.remove(&key) {
            self.tell(&key, &last);
        }
        same
    }

    fn replace(&mut self, listed: Vec<K>) {
        self.gone.clear();
        let keys: BTreeSet<Key> = listed.iter().map(Key::of).collect();
        let gone: Vec<Key> = self.objects.keys().filter(|key| !keys.contains(key)).cloned().collect();
        for key in gone {
            if let Some(last) = self.objects.remove(&key) {
                self.tell(&key, &last);
            }
        }
        for object in listed {
            self.seen = self.seen.max(version(&object));
            self.put(object);
        }
    }

    fn tell(&mut self, key: &Key, object: &Arc<K>) {
        self.subscribers.retain(|subscriber| {
            let Some(subscriber) = subscriber.upgrade() else { return false };
            subscriber.changed.lock().insert(key.clone(), Arc::clone(object));
            subscriber.notify.notify_one();
            true
        });
    }
}

/// Whether the API server refused because the object is there already, is not there, or has changed.
pub(crate) fn refused(error: &kube::Error, code: u16) -> bool {
    matches!(error, kube::Error::Api(status) if status.code == code)
}

/// What brings a stored status to `wanted` as a merge patch; `None` if it is there.
pub(crate) fn status_patch(
    stored: &serde_json::Value,
    wanted: &serde_json::Value,
) -> Option<serde_json::Value> {
    if stored == wanted {
        return None;
    }
    let mut status = wanted.clone();
    if let (Some(status), Some(stored)) = (status.as_object_mut(), stored.as_object()) {
        for key in stored.keys().filter(|key| wanted.get(key.as_str()).is_none()) {
            status.insert(key.clone(), serde_json::Value::Null);
        }
    }
    Some(serde_json::json!({ "status": status }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::Pod;
    use serde_json::json;

    fn pod(name: &str, uid: &str, version: u64) -> Pod {
        serde_json::from_value(
            json!({"metadata": {"namespace": "ns", "name": name, "uid": uid, "resourceVersion": version.to_string()}}),
        )
        .unwrap()
    }

    #[tokio::test]
    async fn an_answer_does_not_bring_back_what_was_deleted() {
        let cache = Cache::<Pod>::new();
        let mut changes = cache.subscribe();
        cache.observe(pod("a", "1", 5));
        assert_eq!(changes.next().await.len(), 1);
        let key = Key { namespace: "ns".into(), name: "a".into() };
        cache.0.state.lock().delete(&pod("a", "1", 9));
        assert!(cache.get(&key).is_none());
        cache.observe(pod("a", "1", 8));
        assert!(cache.get(&key).is_none());
        cache.observe(pod("a", "2", 10));
        cache.0.state.lock().put(pod("a", "2", 10));
        cache.0.state.lock().delete(&pod("a", "1", 9));
        assert_eq!(cache.get(&key).unwrap().uid().as_deref(), Some("2"));
        assert_eq!(changes.next().await.len(), 1);
        assert_eq!(cache.list("ns").len(), 1);
        assert!(cache.list("n").is_empty());
        cache.forget(&pod("a", "2", 10));
        cache.0.state.lock().put(pod("a", "2", 11));
        assert!(cache.get(&key).is_none(), "the watch is behind");
        cache.0.state.lock().delete(&pod("a", "2", 12));
        assert!(cache.0.state.lock().gone.is_empty());
        cache.0.state.lock().replace(vec![pod("b", "3", 13)]);
        assert_eq!(changes.next().await.len(), 2);
    }

    #[test]
    fn a_status_patch_removes_what_is_no_longer_there() {
        let patch = status_patch(&json!({"a": 1, "b": 2}), &json!({"a": 1}));
        assert_eq!(patch, Some(json!({"status": {"a": 1, "b": null}})));
        assert_eq!(status_patch(&json!({"a": 1}), &json!({"a": 1})), None);
    }
}
