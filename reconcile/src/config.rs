//! ConfigMaps of the system namespace as one typed, immutable snapshot.

use std::collections::BTreeMap;
use std::fmt::{self, Display};
use std::future::Future;
use std::sync::Arc;

use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::runtime::watcher;
use kube::{Api, Client, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;

/// ConfigMap data by ConfigMap name, then key.
pub type ConfigMapData = BTreeMap<String, BTreeMap<String, String>>;

/// A typed view of the `config-*` ConfigMaps that follows their edits. An edit that does not parse is reported and
/// leaves the last good snapshot in force. Clones share the snapshot.
pub struct ConfigStore<T> {
    current: Arc<ArcSwap<T>>,
    changes: watch::Sender<u64>,
    cache: Cache<ConfigMap>,
}

impl<T> Clone for ConfigStore<T> {
    fn clone(&self) -> Self {
        Self { current: Arc::clone(&self.current), changes: self.changes.clone(), cache: self.cache.clone() }
    }
}

impl<T> fmt::Debug for ConfigStore<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("ConfigStore").finish_non_exhaustive()
    }
}

impl<T: PartialEq + Send + Sync + 'static> ConfigStore<T> {
    /// A store that holds `initial` until the first ConfigMaps are read by [`ConfigStore::run`].
    #[must_use]
    pub fn new(initial: T) -> Self {
        Self {
            current: Arc::new(ArcSwap::from_pointee(initial)),
            changes: watch::Sender::new(0),
            cache: Cache::new(),
        }
    }

    /// The snapshot in force.
    #[must_use]
    pub fn load(&self) -> Arc<T> {
        self.current.load_full()
    }

    /// Wakes whenever another snapshot comes into force; the number counts them.
    #[must_use]
    pub fn subscribe(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// Waits until the ConfigMaps have been read once.
    pub async fn synced(&self) {
        self.cache.synced().await;
        // The listing is in the cache before it is parsed; the first parse raises the count.
        let _ = self.changes.subscribe().wait_for(|count| *count > 0).await;
    }

    /// Follows the ConfigMaps of `namespace` until `shutdown`.
    pub fn run<E: Display + Send + 'static>(
        &self,
        client: Client,
        namespace: &str,
        parse: impl Fn(&ConfigMapData) -> Result<T, E> + Send + Sync + 'static,
        shutdown: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let (seen, mut changed) = watch::channel(());
        self.cache.on_change(move |_| {
            seen.send_replace(());
        });
        let watching =
            self.cache.run(Api::namespaced(client, namespace), watcher::Config::default(), shutdown.clone());
        let store = self.clone();
        let parsing = async move {
            store.cache.synced().await;
            loop {
                changed.borrow_and_update();
                store.take_over(&parse);
                tokio::select! {
                    () = shutdown.cancelled() => return,
                    result = changed.changed() => if result.is_err() { return },
                }
            }
        };
        async move {
            tokio::join!(watching, parsing);
        }
    }

    fn take_over<E: Display>(&self, parse: &impl Fn(&ConfigMapData) -> Result<T, E>) {
        let data =
            self.cache.all().iter().map(|c| (c.name_any(), c.data.clone().unwrap_or_default())).collect();
        match parse(&data) {
            Ok(next) => {
                let first = *self.changes.borrow() == 0;
                let differs = **self.current.load() != next;
                if differs {
                    self.current.store(Arc::new(next));
                }
                if first || differs {
                    self.changes.send_modify(|count| *count += 1);
                }
            }
            Err(error) => {
                tracing::error!(%error, "a ConfigMap cannot be used; the last good configuration stays in force");
                self.changes.send_if_modified(|count| {
                    let first = *count == 0;
                    *count += u64::from(first);
                    first
                });
            }
        }
    }
}
