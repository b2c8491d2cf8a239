//! A local copy of one kind of object, kept by a watch.
//!
//! Reads are local and never block on the API. After its own write a reconciler puts the answer into the cache with
//! [`Cache::put_written`], so that it never acts on an object older than what it wrote itself. Caches of one process share
//! the objects they hold, which are without `managedFields`.

use std::collections::{BTreeMap, HashMap};
use std::fmt::{self, Debug, Display};
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use futures::{Stream, StreamExt, TryStreamExt};
use kube::runtime::watcher::{self, Event};
use kube::runtime::{WatchStreamExt, watcher as watch_objects};
use kube::{Api, Resource, ResourceExt};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::shared::shared;

/// Namespace (empty for cluster-scoped kinds) and name: what a work queue carries.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key {
    /// Namespace, empty for cluster-scoped kinds.
    pub namespace: String,
    /// Name.
    pub name: String,
}

impl Key {
    /// A key of its parts.
    pub fn new(namespace: impl Into<String>, name: impl Into<String>) -> Self {
        Self { namespace: namespace.into(), name: name.into() }
    }

    /// The key of an object.
    pub fn of<K: Resource>(object: &K) -> Self {
        Self::new(object.namespace().unwrap_or_default(), object.name_any())
    }
}

impl Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            write!(f, "{}", self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// What changed.
#[derive(Debug)]
pub enum Change<K> {
    /// The object is new or different; `old` is what the cache held.
    Applied {
        /// What the cache held before, if anything.
        old: Option<Arc<K>>,
        /// What it holds now.
        new: Arc<K>,
    },
    /// The object is gone; its last known state.
    Deleted(Arc<K>),
}

impl<K> Change<K> {
    /// The newest known state of the object.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Self::Applied { new, .. } => new,
            Self::Deleted(last) => last,
        }
    }
}

type Handler<K> = Box<dyn Fn(&Change<K>) + Send + Sync>;

struct State<K> {
    /// By namespace, then name: a listing of one namespace must not walk all of them.
    objects: HashMap<String, BTreeMap<String, Arc<K>>>,
    /// The newest resourceVersion that the watch has delivered. Versions are ordered within one API server.
    delivered: u64,
}

struct Shared<K> {
    state: RwLock<State<K>>,
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
}

/// A watched copy of all objects of kind `K` that the watch's selectors let through. Clones share the copy.
pub struct Cache<K>(Arc<Shared<K>>);

impl<K> Clone for Cache<K> {
    fn clone(&self) -> Self {
        Self(Arc::clone(&self.0))
    }
}

impl<K> Debug for Cache<K> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cache").finish_non_exhaustive()
    }
}

impl<K> Default for Cache<K> {
    fn default() -> Self {
        Self(Arc::new(Shared {
            state: RwLock::new(State { objects: HashMap::new(), delivered: 0 }),
            handlers: Mutex::new(Vec::new()),
            synced: watch::Sender::new(false),
        }))
    }
}

fn version_of<K: Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|v| v.parse().ok()).unwrap_or(0)
}

impl<K> Cache<K>
where
    K: Resource + Clone + Debug + DeserializeOwned + Send + Sync + 'static,
{
    /// An empty cache; [`Cache::run`] fills it. Register handlers before running it, so that none misses the first
    /// listing.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Calls `handler` on every change the watch delivers, in order, on the watch's task: it must be quick, for
    /// instance add a key to a work queue.
    pub fn on_change(&self, handler: impl Fn(&Change<K>) + Send + Sync + 'static) {
        self.0.handlers.lock().push(Box::new(handler));
    }

    /// Keeps the cache up to date until `shutdown`; errors of the API are retried for ever, with back-off.
    pub fn run(
        &self,
        api: Api<K>,
        config: watcher::Config,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let events = watch_objects(api, config).backoff(Retry::default());
        self.clone().follow(events, shutdown)
    }

    async fn follow(
        self,
        events: impl Stream<Item = Result<Event<K>, watcher::Error>> + Send,
        shutdown: CancellationToken,
    ) {
        let mut events = std::pin::pin!(events.into_stream());
        let mut listing: Vec<Arc<K>> = Vec::new();
        loop {
            let event = tokio::select! {
                () = shutdown.cancelled() => return,
                event = events.next() => event,
            };
            match event {
                Some(Ok(Event::Init)) => listing.clear(),
                Some(Ok(Event::InitApply(object))) => listing.push(shared(object)),
                Some(Ok(Event::InitDone)) => {
                    self.replace(std::mem::take(&mut listing));
                    self.0.synced.send_replace(true);
                }
                Some(Ok(Event::Apply(object))) => self.apply(shared(object)),
                Some(Ok(Event::Delete(object))) => self.delete(&object),
                Some(Err(error)) => {
                    tracing::debug!(kind = std::any::type_name::<K>(), %error, "watch failed, trying again");
                }
                None => return,
            }
        }
    }

    fn replace(&self, listing: Vec<Arc<K>>) {
        let mut gone: HashMap<String, BTreeMap<String, Arc<K>>> = self.0.state.read().objects.clone();
        for object in listing {
            let key = Key::of(&*object);
            if let Some(names) = gone.get_mut(&key.namespace) {
                names.remove(&key.name);
            }
            self.apply(object);
        }
        for object in gone.into_values().flat_map(BTreeMap::into_values) {
            self.delete(&*object);
        }
    }

    fn apply(&self, new: Arc<K>) {
        let (key, version) = (Key::of(&*new), version_of(&*new));
        let old = {
            let mut state = self.0.state.write();
            state.delivered = state.delivered.max(version);
            let names = state.objects.entry(key.namespace).or_default();
            match names.get(&key.name) {
                // Our own later write is already here: the event for it will follow.
                Some(known) if version_of(&**known) > version => return,
                _ => names.insert(key.name, Arc::clone(&new)),
            }
        };
        self.notify(&Change::Applied { old, new });
    }

    fn delete(&self, object: &K) {
        let (key, version) = (Key::of(object), version_of(object));
        let last = {
            let mut state = self.0.state.write();
            state.delivered = state.delivered.max(version);
            match state.objects.get_mut(&key.namespace) {
                // Its successor of the same name, written by us, is already here: it stays.
                Some(names) if names.get(&key.name).is_some_and(|known| version_of(&**known) > version) => {
                    None
                }
                Some(names) => {
                    let last = names.remove(&key.name);
                    if names.is_empty() {
                        state.objects.remove(&key.namespace);
                    }
                    last
                }
                None => None,
            }
        };
        let last = last.unwrap_or_else(|| Arc::new(object.clone()));
        self.notify(&Change::Deleted(last));
    }

    fn notify(&self, change: &Change<K>) {
        for handler in self.0.handlers.lock().iter() {
            handler(change);
        }
    }

    /// Puts the API's answer to our own write into the cache, unless the watch has already gone past it.
    pub fn put_written(&self, object: K) {
        let (key, version) = (Key::of(&object), version_of(&object));
        let mut state = self.0.state.write();
        if version <= state.delivered {
            return;
        }
        let names = state.objects.entry(key.namespace).or_default();
        if names.get(&key.name).is_none_or(|known| version_of(&**known) < version) {
            names.insert(key.name, shared(object));
        }
    }

    /// The object, if there is one.
    #[must_use]
    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.0.state.read().objects.get(namespace)?.get(name).cloned()
    }

    /// The object of a key, if there is one.
    #[must_use]
    pub fn get_key(&self, key: &Key) -> Option<Arc<K>> {
        self.get(&key.namespace, &key.name)
    }

    /// All objects of a namespace, by name.
    #[must_use]
    pub fn list(&self, namespace: &str) -> Vec<Arc<K>> {
        self.0.state.read().objects.get(namespace).map(|n| n.values().cloned().collect()).unwrap_or_default()
    }

    /// The objects of a namespace that carry the label, by name.
    #[must_use]
    pub fn list_labelled(&self, namespace: &str, label: &str, value: &str) -> Vec<Arc<K>> {
        let state = self.0.state.read();
        let Some(names) = state.objects.get(namespace) else { return Vec::new() };
        names.values().filter(|o| o.labels().get(label).is_some_and(|v| v == value)).cloned().collect()
    }

    /// All objects of all namespaces.
    #[must_use]
    pub fn all(&self) -> Vec<Arc<K>> {
        let state = self.0.state.read();
        state.objects.values().flat_map(|names| names.values().cloned()).collect()
    }

    /// Whether the first listing is in.
    #[must_use]
    pub fn is_synced(&self) -> bool {
        *self.0.synced.borrow()
    }

    /// Waits for the first listing.
    pub async fn synced(&self) {
        // The sender lives in `self`: waiting cannot fail.
        let _ = self.0.synced.subscribe().wait_for(|synced| *synced).await;
    }
}

/// Back-off between attempts at a failing watch: the first retries come at once, so that a blip costs nothing.
#[derive(Debug, Default)]
struct Retry {
    failures: u32,
}

impl Iterator for Retry {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let base = Duration::from_millis(20).saturating_mul(1 << self.failures.min(10));
        self.failures = self.failures.saturating_add(1);
        Some(base.min(Duration::from_secs(10)).mul_f64(0.75 + fastrand::f64() / 2.0))
    }
}

impl kube::runtime::utils::Backoff for Retry {
    fn reset(&mut self) {
        self.failures = 0;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use k8s_openapi::api::core::v1::ConfigMap;

    fn object(name: &str, version: u64) -> Arc<ConfigMap> {
        Arc::new(config_map(name, version))
    }

    fn config_map(name: &str, version: u64) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("ns".into());
        object.metadata.name = Some(name.into());
        object.metadata.resource_version = Some(version.to_string());
        object
    }

    fn version(cache: &Cache<ConfigMap>, name: &str) -> Option<u64> {
        cache.get("ns", name).map(|o| version_of(&*o))
    }

    #[test]
    fn own_write_is_seen_before_its_event_and_not_undone_by_an_older_one() {
        let cache: Cache<ConfigMap> = Cache::new();
        cache.apply(object("a", 5));
        cache.put_written(config_map("a", 9));
        assert_eq!(version(&cache, "a"), Some(9));
        cache.apply(object("a", 7));
        assert_eq!(version(&cache, "a"), Some(9));
    }

    #[test]
    fn a_late_answer_does_not_bring_back_a_deleted_object() {
        let cache: Cache<ConfigMap> = Cache::new();
        cache.apply(object("a", 5));
        cache.delete(&config_map("a", 9));
        cache.put_written(config_map("a", 8));
        assert_eq!(version(&cache, "a"), None);
    }

    #[test]
    fn the_end_of_an_object_does_not_take_its_successor_along() {
        let cache: Cache<ConfigMap> = Cache::new();
        let gone = Arc::new(Mutex::new(0));
        let count = Arc::clone(&gone);
        cache.on_change(move |change| *count.lock() += usize::from(matches!(change, Change::Deleted(_))));
        cache.apply(object("a", 5));
        // Deleted by someone at 8, made anew by us at 9: the watch is behind.
        cache.put_written(config_map("a", 9));
        cache.delete(&config_map("a", 8));
        assert_eq!((version(&cache, "a"), *gone.lock()), (Some(9), 1));
    }

    #[test]
    fn a_new_listing_reports_what_is_gone() {
        let cache: Cache<ConfigMap> = Cache::new();
        let seen = Arc::new(Mutex::new(Vec::new()));
        let log = Arc::clone(&seen);
        cache.on_change(move |change| {
            let word = if matches!(change, Change::Deleted(_)) { "gone" } else { "here" };
            log.lock().push(format!("{word} {}", change.object().name_any()));
        });
        cache.replace(vec![object("a", 1), object("b", 2)]);
        cache.replace(vec![object("b", 2)]);
        assert_eq!(*seen.lock(), ["here a", "here b", "here b", "gone a"]);
    }
}
