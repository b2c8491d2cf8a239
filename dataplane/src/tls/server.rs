//! The server's side.

use std::io;
use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::ServerConfig;
use rustls::server::{ClientHello, NoServerSessionStorage, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_rustls::TlsAcceptor;

use super::{InvalidSetting, Pair, Settings, TlsStream};
use crate::io::Stream;

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
        let mut config = settings.server()?.with_cert_resolver(Arc::clone(&current) as _);
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
