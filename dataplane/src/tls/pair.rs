//! What a server proves itself with.

use std::sync::Arc;

use rustls::pki_types::pem::{self, PemObject as _};
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;

/// A certificate with its chain, and the key that belongs to it. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Pair(pub(super) Arc<CertifiedKey>);

/// No such pair.
#[derive(Debug, thiserror::Error)]
pub enum InvalidPair {
    /// The certificate is not PEM, or there is none.
    #[error("certificate: {0}")]
    Certificate(#[source] pem::Error),
    /// The key is not PEM, or there is none.
    #[error("private key: {0}")]
    Key(#[source] pem::Error),
    /// The key is of an unknown kind, or does not belong to the certificate.
    #[error("certificate and private key: {0}")]
    Mismatch(#[from] rustls::Error),
}

impl Pair {
    /// Reads the certificate, followed by its chain, and the private key (PKCS #8, PKCS #1 or SEC1), both as PEM.
    ///
    /// # Errors
    /// [`InvalidPair`]; a key that does not belong to the certificate is one.
    pub fn from_pem(certificate: &[u8], key: &[u8]) -> Result<Self, InvalidPair> {
        let chain = CertificateDer::pem_slice_iter(certificate).collect::<Result<Vec<_>, _>>();
        let chain = chain.map_err(InvalidPair::Certificate)?;
        if chain.is_empty() {
            return Err(InvalidPair::Certificate(pem::Error::NoItemsFound));
        }
        let key = PrivateKeyDer::from_pem_slice(key).map_err(InvalidPair::Key)?;
        Ok(Self(Arc::new(CertifiedKey::from_der(chain, key, &super::provider())?)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_no_pair_is_refused() {
        let made = || rcgen::generate_simple_self_signed(["a".to_owned()]).unwrap();
        let (one, other) = (made(), made());
        let (certificate, key) = (one.cert.pem(), one.signing_key.serialize_pem());
        assert!(Pair::from_pem(certificate.as_bytes(), key.as_bytes()).is_ok());
        let said = |certificate: &str, key: &str| {
            Pair::from_pem(certificate.as_bytes(), key.as_bytes()).unwrap_err().to_string()
        };
        assert_eq!(said("", &key), "certificate: no items found");
        assert_eq!(said(&certificate, "garbage"), "private key: no items found");
        let mismatch = said(&certificate, &other.signing_key.serialize_pem());
        assert!(mismatch.starts_with("certificate and private key: "), "{mismatch}");
        let truncated = &certificate[..certificate.len() / 2];
        assert!(said(truncated, &key).starts_with("certificate: missing section end"));
    }
}
