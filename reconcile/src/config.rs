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

/// A typed view of the `config-*` ConfigMaps that follows their edits. An edit that does not parse is reported, and
/// the ConfigMap's last good content stays in force. Clones share the snapshot.
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
            tokio::select! {
                () = shutdown.cancelled() => return,
                () = store.cache.synced() => {}
            }
            let mut accepted = ConfigMapData::new();
            loop {
                changed.borrow_and_update();
                store.take_over(&mut accepted, &parse);
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

    /// Parses what the cache holds. `accepted` is what the snapshot in force was made of: a ConfigMap that cannot be
    /// used keeps its last good content, and does not hold up the others.
    fn take_over<E: Display>(
        &self,
        accepted: &mut ConfigMapData,
        parse: &impl Fn(&ConfigMapData) -> Result<T, E>,
    ) {
        let data: ConfigMapData =
            self.cache.all().iter().map(|c| (c.name_any(), c.data.clone().unwrap_or_default())).collect();
        let next = match parse(&data) {
            Ok(next) => {
                *accepted = data;
                Ok(next)
            }
            Err(_) => {
                one_by_one(accepted, data, parse);
                parse(accepted)
            }
        };
        let differs = match next {
            Ok(next) if **self.current.load() != next => {
                self.current.store(Arc::new(next));
                true
            }
            Ok(_) => false,
            Err(error) => {
                tracing::error!(%error, "the configuration cannot be used; the last good one stays in force");
                false
            }
        };
        self.changes.send_if_modified(|count| {
            let told = differs || *count == 0;
            *count += u64::from(told);
            told
        });
    }
}

/// Takes over each ConfigMap that can be used together with those accepted before it.
fn one_by_one<T, E: Display>(
    accepted: &mut ConfigMapData,
    data: ConfigMapData,
    parse: &impl Fn(&ConfigMapData) -> Result<T, E>,
) {
    accepted.retain(|name, _| data.contains_key(name));
    for (name, content) in data {
        let before = accepted.insert(name.clone(), content);
        if let Err(error) = parse(accepted) {
            tracing::error!(config_map = %name, %error, "a ConfigMap cannot be used; its last good content stays in force");
            match before {
                Some(before) => accepted.insert(name, before),
                None => accepted.remove(&name),
            };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    type Numbers = BTreeMap<String, u32>;

    fn parse(data: &ConfigMapData) -> Result<Numbers, std::num::ParseIntError> {
        data.iter().map(|(name, content)| Ok((name.clone(), content["n"].parse()?))).collect()
    }

    fn maps(list: &[(&str, &str)]) -> ConfigMapData {
        let map = |(name, n): &(&str, &str)| {
            ((*name).to_owned(), BTreeMap::from([("n".to_owned(), (*n).to_owned())]))
        };
        list.iter().map(map).collect()
    }

    #[test]
    fn a_bad_config_map_keeps_its_last_good_content_and_holds_up_no_other() {
        let mut accepted = maps(&[("a", "1"), ("b", "1"), ("gone", "1")]);
        one_by_one(&mut accepted, maps(&[("a", "x"), ("b", "2"), ("new", "y"), ("other", "3")]), &parse);
        assert_eq!(accepted, maps(&[("a", "1"), ("b", "2"), ("other", "3")]));
    }

    #[tokio::test]
    async fn ends_at_shutdown_though_the_api_never_answered() {
        let unreachable = kube::Config::new("http://127.0.0.1:1".parse().unwrap());
        let client = Client::try_from(unreachable).unwrap();
        let shutdown = CancellationToken::new();
        let store = ConfigStore::new(Numbers::new());
        let running = tokio::spawn(store.run(client, "ns", parse, shutdown.clone()));
        shutdown.cancel();
        tokio::time::timeout(std::time::Duration::from_secs(10), running).await.unwrap().unwrap();
    }
}
