//! The server's side.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::danger::ClientCertVerifier;
use rustls::server::{
    ClientHello, NoServerSessionStorage, ResolvesServerCert, VerifierBuilderError, WebPkiClientVerifier,
};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use super::{InvalidSetting, Pair, Roots, Settings, TlsStream};
use crate::io::Stream;

/// Clients cannot be told to prove themselves.
#[derive(Debug, thiserror::Error)]
pub enum InvalidClients {
    /// There is no authority to have a certificate from.
    #[error(transparent)]
    Roots(#[from] VerifierBuilderError),
    /// The settings leave nothing to agree on.
    #[error(transparent)]
    Setting(#[from] InvalidSetting),
}

/// Takes TLS connections in, with one certificate for whoever asks. Cheap to clone; all clones are one.
///
/// ALPN offers `h2` and `http/1.1`; what a client really speaks is told by its first bytes all the same.
#[derive(Clone)]
pub struct Server {
    config: Arc<ServerConfig>,
    current: Arc<Current>,
}

/// The certificate handed out now.
#[derive(Debug)]
struct Current(ArcSwap<CertifiedKey>);

impl ResolvesServerCert for Current {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.0.load_full())
    }
}

impl std::fmt::Debug for Server {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Server").finish_non_exhaustive()
    }
}

/// Clones of one are equal.
impl PartialEq for Server {
    fn eq(&self, other: &Self) -> bool {
        Arc::ptr_eq(&self.current, &other.current)
    }
}

impl Eq for Server {}

impl Server {
    /// A server that proves itself with `pair`.
    ///
    /// # Errors
    /// Settings that leave nothing to agree on.
    pub fn new(pair: Pair, settings: &Settings) -> Result<Self, InvalidSetting> {
        let current = Arc::new(Current(ArcSwap::new(pair.0)));
        Self::build(current, WebPkiClientVerifier::no_client_auth(), settings)
    }

    /// The same certificate, handed out to clients that have one of `roots` themselves; if it is not `required`, also
    /// to those that have none.
    ///
    /// # Errors
    /// No authority, or settings that leave nothing to agree on.
    pub fn with_clients(
        &self,
        roots: &Roots,
        required: bool,
        settings: &Settings,
    ) -> Result<Self, InvalidClients> {
        let builder = WebPkiClientVerifier::builder_with_provider(roots.store(), super::provider());
        let builder = if required { builder } else { builder.allow_unauthenticated() };
        Ok(Self::build(Arc::clone(&self.current), builder.build()?, settings)?)
    }

    fn build(
        current: Arc<Current>,
        clients: Arc<dyn ClientCertVerifier>,
        settings: &Settings,
    ) -> Result<Self, InvalidSetting> {
        let mut config = settings.server(clients)?.with_cert_resolver(Arc::clone(&current) as _);
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 0;
        Ok(Self { config: Arc::new(config), current })
    }

    /// From now on new connections are met with `pair`; those that are open stay.
    pub fn exchange(&self, pair: Pair) {
        self.current.0.store(pair.0);
    }

    /// Shakes hands. The caller sets the deadline.
    pub(crate) async fn accept(&self, stream: Stream) -> io::Result<Stream> {
        let session = TlsAcceptor::from(Arc::clone(&self.config)).accept(stream.into()).await?;
        Ok(Stream::Tls(Box::new(TlsStream::new(session.into()))))
    }
}
