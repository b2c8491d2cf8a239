//! TLS inside the system (`system-internal-tls`): the activator's own certificate, and whom it trusts, followed in the
//! API.

use std::future::Future;
use std::sync::Arc;

use ember_api::configmaps::network::Network;
use ember_dataplane::address::Address;
use ember_dataplane::port;
use ember_dataplane::tls::{Client, Identity, InvalidPair, InvalidSetting, Pair, Roots, Server, Settings};
use ember_reconcile::cache::Cache;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::runtime::watcher;
use kube::{Api, ResourceExt};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::config::Config;

/// The Secret with the activator's certificate, its key and the authority that signs the pods' certificates.
pub const SECRET: &str = "routing-serving-certs";
/// ConfigMaps with this label hold more authorities.
const TRUST_BUNDLE: &str = "networking.knative.dev/trust-bundle";

/// TLS is asked for, but cannot be spoken.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no certificate.
    #[error("system-internal-tls is enabled, but Secret {namespace}/{SECRET} is missing")]
    Missing {
        /// The system namespace.
        namespace: String,
    },
    /// There is something else.
    #[error("system-internal-tls is enabled, but Secret {namespace}/{SECRET} cannot be used: {source}")]
    Invalid {
        /// The system namespace.
        namespace: String,
        /// What is wrong.
        #[source]
        source: InvalidPair,
    },
    /// `ACTIVATOR_TLS_*` cannot be followed.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
    /// The client cannot be made.
    #[error(transparent)]
    Client(#[from] ember_dataplane::tls::Error),
}

/// Both sides of the activator's TLS.
#[derive(Debug, Clone)]
pub(crate) struct Tls {
    /// What ingresses connect to.
    pub(crate) server: Server,
    /// What connects to pods.
    pub(crate) client: Client,
}

/// What the API has.
struct Sources {
    namespace: String,
    secrets: Cache<Secret>,
    bundles: Cache<ConfigMap>,
}

impl Tls {
    /// What TLS takes, if `network` asks for it and `config` has a port for it.
    ///
    /// # Errors
    /// As for [`start`](Self::start).
    pub(crate) async fn wanted(
        config: &Config,
        network: &Network,
        api: kube::Client,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Option<Self>, Error> {
        if !network.system_internal_tls {
            return Ok(None);
        }
        if config.tls_port.is_none() {
            tracing::warn!(
                "system-internal-tls is enabled, but not supported here: requests go in clear text"
            );
            return Ok(None);
        }
        Self::start(api, &config.system_namespace, &config.tls_settings, tasks, stop).await.map(Some)
    }

    /// Reads certificate and authorities, and follows them by `tasks` until `stop`.
    ///
    /// # Errors
    /// [`Error`]: what is wrong at start. What goes wrong later is logged, and the certificate in force stays.
    async fn start(
        api: kube::Client,
        namespace: &str,
        settings: &Result<Settings, InvalidSetting>,
        tasks: &TaskTracker,
        stop: &CancellationToken,
    ) -> Result<Self, Error> {
        let settings = settings.as_ref().map_err(Clone::clone)?;
        let sources =
            Sources { namespace: namespace.to_owned(), secrets: Cache::new(), bundles: Cache::new() };
        let (seen, mut changed) = watch::channel(());
        let seen = Arc::new(seen);
        sources.secrets.on_change({
            let seen = Arc::clone(&seen);
            move |_| seen.send_modify(|()| {})
        });
        sources.bundles.on_change(move |_| seen.send_modify(|()| {}));
        tasks.spawn(sources.follow(api, stop.clone()));
        tokio::join!(sources.secrets.synced(), sources.bundles.synced());
        // Before the first look: what changes after it is not to be missed.
        changed.borrow_and_update();

        let missing = || Error::Missing { namespace: namespace.to_owned() };
        let secret = sources.secret().ok_or_else(missing)?;
        let invalid = |source| Error::Invalid { namespace: namespace.to_owned(), source };
        let server = Server::new(pair(&secret).map_err(invalid)?, settings)?;
        let client = Client::new(sources.roots(&secret))?;
        let tls = Self { server, client };
        let keeping = tls.clone().keep(sources, secret, changed);
        tasks.spawn(stop.clone().run_until_cancelled_owned(keeping));
        Ok(tls)
    }

    /// Takes every change over. A Secret that is gone leaves what it held.
    async fn keep(self, sources: Sources, mut secret: Arc<Secret>, mut changed: watch::Receiver<()>) {
        while changed.changed().await.is_ok() {
            if let Some(now) = sources.secret() {
                if now.data != secret.data {
                    match pair(&now) {
                        Ok(pair) => {
                            self.server.exchange(pair);
                            tracing::info!(
                                "the certificate in Secret {SECRET} has changed and was taken over"
                            );
                        }
                        Err(error) => tracing::error!("Secret {SECRET} cannot be used: {error}"),
                    }
                }
                secret = now;
            }
            if let Err(error) = self.client.trust(sources.roots(&secret)) {
                tracing::error!("the certificate authorities cannot be used: {error}");
            }
        }
    }
}

impl Sources {
    fn follow(
        &self,
        api: kube::Client,
        stop: CancellationToken,
    ) -> impl Future<Output = ()> + Send + 'static {
        let by_name = watcher::Config::default().fields(&format!("metadata.name={SECRET}"));
        let by_label = watcher::Config::default().labels(TRUST_BUNDLE);
        let secrets = Api::namespaced(api.clone(), &self.namespace);
        let secrets = self.secrets.run(secrets, by_name, stop.clone());
        let bundles = self.bundles.run(Api::namespaced(api, &self.namespace), by_label, stop);
        async move {
            tokio::join!(secrets, bundles);
        }
    }

    fn secret(&self) -> Option<Arc<Secret>> {
        self.secrets.get(&self.namespace, SECRET)
    }

    /// Every certificate of the Secret's `ca.crt` and of the bundles.
    fn roots(&self, secret: &Secret) -> Roots {
        let mut roots = Roots::default();
        let mut add = |whose: &str, key: &str, text: &[u8]| {
            for why in roots.add_pem(text) {
                tracing::warn!("{key} of {whose} holds something that is no certificate authority: {why}");
            }
        };
        add(SECRET, "ca.crt", value(secret, "ca.crt"));
        for bundle in self.bundles.list(&self.namespace) {
            for (key, text) in bundle.data.iter().flatten() {
                add(&bundle.name_any(), key, text.as_bytes());
            }
        }
        if roots.is_empty() {
            tracing::warn!("no certificate authority is known: no pod can be connected to");
        }
        roots
    }
}

fn value<'a>(secret: &'a Secret, key: &str) -> &'a [u8] {
    secret.data.as_ref().and_then(|data| data.get(key)).map(|value| value.0.as_slice()).unwrap_or_default()
}

fn pair(secret: &Secret) -> Result<Pair, InvalidPair> {
    Pair::from_pem(value(secret, "tls.crt"), value(secret, "tls.key"))
}

/// A request on its way to pods by TLS.
#[derive(Debug)]
pub(crate) struct Secured {
    identity: Identity,
    way: Option<Address>,
    /// The backends that could not be spoken to. They answer probes in clear text all the same: a request that comes
    /// back to one of them is not to go round for ever.
    failed: Vec<Address>,
}

impl Secured {
    pub(crate) fn new(identity: &Identity) -> Self {
        Self { identity: identity.clone(), way: None, failed: Vec::new() }
    }

    /// Where a backend that was found in clear text is to be had by TLS: a pod on one port, its Service on another.
    pub(crate) fn way_to(&mut self, backend: &Address) -> &Address {
        let is_service = backend.port() == port::SERVICE_HTTP1;
        let port = if is_service { port::SERVICE_HTTPS } else { port::HTTPS };
        self.way.insert(backend.secured(port, self.identity.clone()))
    }

    /// The request failed there; returns whether it has done so before.
    pub(crate) fn failed(&mut self, backend: &Address) -> bool {
        let again = self.failed.contains(backend);
        if !again {
            self.failed.push(backend.clone());
        }
        again
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pods_and_services_have_their_own_ports() {
        let mut secured = Secured::new(&Identity::of_namespace("ns"));
        for (plain, port) in [("10.0.0.1:8012", 8112), ("[2001:db8::1]:8013", 8112), ("10.96.0.9:80", 443)] {
            let plain: Address = plain.parse().unwrap();
            let way = secured.way_to(&plain);
            assert_eq!((way.host(), way.port()), (plain.host(), port));
            assert_eq!(way.identity().unwrap().name(), "kn-user-ns");
            assert!(!secured.failed(&plain) && secured.failed(&plain));
        }
    }
}
