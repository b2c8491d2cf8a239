//! The client's side.

use std::fmt;
use std::io;
use std::sync::Arc;

use arc_swap::ArcSwapOption;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{Resumption, verify_server_name};
use rustls::crypto::CryptoProvider;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, DnsName, IpAddr, ServerName, UnixTime};
use rustls::server::ParsedCertificate;
use rustls::{CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};
use tokio_rustls::TlsConnector;

use super::stream::Carrier;
use super::{TlsStream, provider};
use crate::io::Stream;

/// What every certificate of the data plane is valid for.
const SERVER_NAME: &str = "data-plane.knative.dev";

/// Who a backend has to be: a name among the DNS names of its certificate, which says for whom it works. Cheap to
/// clone.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Identity(Arc<Box<str>>);

impl Identity {
    /// The pods of a namespace: `kn-user-<namespace>`.
    #[must_use]
    pub fn of_namespace(namespace: &str) -> Self {
        Self(Arc::new(format!("kn-user-{}", namespace.to_lowercase()).into()))
    }

    /// The name.
    #[must_use]
    pub fn name(&self) -> &str {
        &self.0
    }
}

/// Why there is no TLS connection.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// There is no certificate to trust, so nobody is.
    #[error("tls: no certificate authority to trust")]
    NoRoots,
    /// The certificate is good, but somebody else's.
    #[error("san {name:?} does not have a matching name in [{}]", presented.join(" "))]
    Stranger {
        /// Who it has to be.
        name: String,
        /// Who it is.
        presented: Vec<String>,
    },
    /// One side does not accept the other.
    #[error("tls: {0}")]
    Refused(#[source] rustls::Error),
    /// The connection broke.
    #[error("tls: {0}")]
    Broken(#[source] io::Error),
}

impl From<io::Error> for Error {
    fn from(error: io::Error) -> Self {
        match error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()) {
            Some(refusal) => Self::Refused(refusal.clone()),
            None => Self::Broken(error),
        }
    }
}

/// The certificate authorities a client trusts. Those of the system are not among them.
#[derive(Debug, Clone)]
pub struct Roots(RootCertStore);

impl Default for Roots {
    fn default() -> Self {
        Self(RootCertStore::empty())
    }
}

impl Roots {
    /// Adds every certificate of a PEM text. What cannot be used is left out; the answer says why, one text for each.
    pub fn add_pem(&mut self, text: &[u8]) -> Vec<String> {
        let mut left_out = Vec::new();
        for block in blocks(text) {
            // Each on its own: a damaged one does not take others along.
            for certificate in CertificateDer::pem_slice_iter(block) {
                let added = certificate
                    .map_err(|error| error.to_string())
                    .and_then(|der| self.0.add(der).map_err(|error| error.to_string()));
                left_out.extend(added.err());
            }
        }
        if text.iter().any(|byte| !byte.is_ascii_whitespace()) && blocks(text).next().is_none() {
            left_out.push("not PEM".to_owned());
        }
        left_out
    }

    pub(super) fn store(&self) -> Arc<RootCertStore> {
        Arc::new(self.0.clone())
    }

    /// How many there are.
    #[must_use]
    pub fn len(&self) -> usize {
        self.0.len()
    }

    /// Whether there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}

/// The parts of a PEM text that begin with a block.
fn blocks(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    const BEGIN: &[u8] = b"-----BEGIN ";
    let next = |from: usize| {
        let found = text.get(from..)?.windows(BEGIN.len()).position(|window| window == BEGIN)?;
        Some(from + found)
    };
    let mut begin = next(0);
    std::iter::from_fn(move || {
        let from = begin?;
        begin = next(from + BEGIN.len());
        text.get(from..begin.unwrap_or(text.len()))
    })
}

/// Makes TLS connections to queue-proxies: TLS 1.3, no ALPN, and a certificate that is valid for
/// `data-plane.knative.dev`, comes from one of the roots, and names the [`Identity`] asked for. Cheap to clone; all
/// clones are one.
#[derive(Clone, Default)]
pub struct Client(Arc<ArcSwapOption<ClientConfig>>);

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client").finish_non_exhaustive()
    }
}

impl Client {
    /// A client that trusts `roots`; without any it connects to nobody.
    ///
    /// # Errors
    /// None that is known: the provider is one that fits.
    pub fn new(roots: Roots) -> Result<Self, Error> {
        let client = Self::default();
        client.trust(roots)?;
        Ok(client)
    }

    /// Trusts `roots` from now on, and nobody else. Connections that are open stay.
    ///
    /// # Errors
    /// As for [`new`](Self::new).
    pub fn trust(&self, roots: Roots) -> Result<(), Error> {
        if roots.is_empty() {
            self.0.store(None);
            return Ok(());
        }
        let mut config = ClientConfig::builder_with_provider(provider())
            .with_protocol_versions(&[&rustls::version::TLS13])
            .map_err(Error::Refused)?
            .with_root_certificates(roots.0)
            .with_no_client_auth();
        config.resumption = Resumption::disabled();
        self.0.store(Some(Arc::new(config)));
        Ok(())
    }

    /// Shakes hands and looks whom it has met, before anything is said. The caller sets the deadline.
    pub(crate) async fn connect(&self, stream: Stream, identity: &Identity) -> Result<Stream, Error> {
        let config = self.0.load_full().ok_or(Error::NoRoots)?;
        let name = ServerName::DnsName(DnsName::try_from(SERVER_NAME).map_err(io::Error::other)?);
        let session = TlsConnector::from(config).connect(name, Carrier::shared(stream)).await?;
        let leaf = session.get_ref().1.peer_certificates().and_then(<[_]>::first);
        let presented = leaf.map(dns_names).transpose().map_err(Error::Refused)?.unwrap_or_default();
        if !presented.iter().any(|name| name == identity.name()) {
            return Err(Error::Stranger { name: identity.name().to_owned(), presented });
        }
        Ok(Stream::Tls(Box::new(TlsStream::new(session.into()))))
    }
}

/// The DNS names of a certificate.
///
/// They are what a certificate that is valid for none of them is said to present: the list of names that are valid
/// would leave out those with a label of more than 63 characters, and namespaces may be that long.
fn dns_names(certificate: &CertificateDer<'_>) -> Result<Vec<String>, rustls::Error> {
    let nobody = ServerName::IpAddress(IpAddr::from(std::net::Ipv6Addr::UNSPECIFIED));
    let Err(error) = verify_server_name(&ParsedCertificate::try_from(certificate)?, &nobody) else {
        return Ok(Vec::new());
    };
    match error {
        rustls::Error::InvalidCertificate(CertificateError::NotValidForNameContext { presented, .. }) => {
            let names =
                presented.iter().filter_map(|name| name.strip_prefix("DnsName(\"")?.strip_suffix("\")"));
            Ok(names.map(str::to_owned).collect())
        }
        other => Err(other),
    }
}

/// Makes TLS connections to whoever answers: for readiness probes, which ask an app whose address is known whether it
/// is up, and trust it with nothing. Kubernetes does not verify there either. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Unverified(Arc<ClientConfig>);

impl Unverified {
    /// Offers `alpn`, TLS 1.2 and 1.3.
    ///
    /// # Errors
    /// None that is known: the provider is one that fits.
    pub fn new(alpn: &[&[u8]]) -> Result<Self, Error> {
        let provider = provider();
        let mut config = ClientConfig::builder_with_provider(Arc::clone(&provider))
            .with_protocol_versions(&[&rustls::version::TLS13, &rustls::version::TLS12])
            .map_err(Error::Refused)?
            .dangerous()
            .with_custom_certificate_verifier(Arc::new(Anybody(provider)))
            .with_no_client_auth();
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.to_vec()).collect();
        config.resumption = Resumption::disabled();
        Ok(Self(Arc::new(config)))
    }

    /// Shakes hands with who is asked for as `host`, a name or an address. The caller sets the deadline.
    ///
    /// # Errors
    /// [`Error::Refused`] and [`Error::Broken`].
    pub async fn connect(&self, stream: Stream, host: &str) -> Result<TlsStream, Error> {
        let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
        let connector = TlsConnector::from(Arc::clone(&self.0));
        Ok(TlsStream::new(connector.connect(name, Carrier::from(stream)).await?.into()))
    }
}

/// Takes any certificate.
#[derive(Debug)]
struct Anybody(Arc<CryptoProvider>);

impl ServerCertVerifier for Anybody {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.0.signature_verification_algorithms.supported_schemes()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn certificate(names: &[&str]) -> rcgen::Certificate {
        let key = rcgen::KeyPair::generate().unwrap();
        let names: Vec<_> = names.iter().map(|name| (*name).to_owned()).collect();
        rcgen::CertificateParams::new(names).unwrap().self_signed(&key).unwrap()
    }

    #[test]
    fn names_of_a_certificate_are_all_its_dns_names() {
        let long = format!("kn-user-{}", "n".repeat(63));
        let names = ["data-plane.knative.dev", "kn-user-a", "*.wild", "127.0.0.1", &long];
        let found = dns_names(certificate(&names).der()).unwrap();
        assert_eq!(found, ["data-plane.knative.dev", "kn-user-a", "*.wild", &long]);
        assert_eq!(dns_names(certificate(&[]).der()).unwrap(), [""; 0]);
        assert!(dns_names(&CertificateDer::from(vec![1, 2, 3])).is_err());
    }

    #[test]
    fn strangers_are_named() {
        let error = Error::Stranger {
            name: "kn-user-a".to_owned(),
            presented: vec!["data-plane.knative.dev".to_owned(), "kn-user-b".to_owned()],
        };
        assert_eq!(
            error.to_string(),
            "san \"kn-user-a\" does not have a matching name in [data-plane.knative.dev kn-user-b]"
        );
    }

    #[test]
    fn roots_take_what_is_good() {
        let (one, two) = (certificate(&["one"]).pem(), certificate(&["two"]).pem());
        let key = rcgen::KeyPair::generate().unwrap().serialize_pem();
        let broken = "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n";
        let open = "-----BEGIN CERTIFICATE-----\nAAAA\n";
        let mut roots = Roots::default();
        let left_out = roots.add_pem(format!("# a bundle\n{one}{open}{broken}{key}{two}").as_bytes());
        assert_eq!(roots.len(), 2);
        assert_eq!(left_out.len(), 2, "{left_out:?}");
        for text in ["garbage", "\u{0}\u{1}", "-----BEGIN "] {
            assert_eq!(roots.add_pem(text.as_bytes()).len(), 1, "{text:?}");
        }
        assert!(roots.add_pem(b" \n").is_empty());
        assert_eq!(roots.len(), 2);
    }
}
