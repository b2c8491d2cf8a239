//! The server's identity and its one client's: CA, server certificate and token, kept in the data directory.

use std::fs;
use std::io::Write as _;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD as BASE64;
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, SanType,
};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

/// Names the server answers to, as in a cluster.
const NAMES: [&str; 5] = [
    "localhost",
    "kubernetes",
    "kubernetes.default",
    "kubernetes.default.svc",
    "kubernetes.default.svc.cluster.local",
];
const USER: &str = "ember";

/// Why the credentials cannot be read or made.
#[derive(Debug, thiserror::Error)]
pub enum CredentialsError {
    /// A file cannot be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// A certificate cannot be made.
    #[error("certificate: {0}")]
    Certificate(#[from] rcgen::Error),
    /// What is in the files cannot serve TLS.
    #[error("TLS: {0}; remove the folder {} to have new credentials made", folder.display())]
    Tls {
        /// Where the credentials are.
        folder: PathBuf,
        /// What is wrong.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// See the module.
pub(crate) struct Credentials {
    ca: String,
    token: String,
    tls: Arc<rustls::ServerConfig>,
}

impl Credentials {
    /// Reads the credentials in `folder`, or makes them.
    ///
    /// # Errors
    /// See [`CredentialsError`].
    pub(crate) fn open(folder: &Path) -> Result<Self, CredentialsError> {
        let files = ["ca.crt", "ca.key", "server.crt", "server.key", "token"].map(|name| folder.join(name));
        if !files.iter().all(|file| file.exists()) {
            make(folder, &files)?;
        }
        let read = |path: &Path| {
            fs::read_to_string(path).map_err(|source| CredentialsError::Io { path: path.to_owned(), source })
        };
        let [ca, _, certificate, key, token] = &files;
        let (ca, token) = (read(ca)?, read(token)?.trim().to_owned());
        let tls = |source: Box<dyn std::error::Error + Send + Sync>| CredentialsError::Tls {
            folder: folder.to_owned(),
            source,
        };
        let certificates = CertificateDer::pem_slice_iter(read(certificate)?.as_bytes())
            .collect::<Result<Vec<_>, _>>()
            .map_err(|e| tls(e.into()))?;
        let key = PrivateKeyDer::from_pem_slice(read(key)?.as_bytes()).map_err(|e| tls(e.into()))?;
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|e| tls(e.into()))?
            .with_no_client_auth()
            .with_single_cert(certificates, key)
            .map_err(|e| tls(e.into()))?;
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        if token.is_empty() {
            return Err(tls("the token is empty".into()));
        }
        Ok(Self { ca, token, tls: Arc::new(config) })
    }

    pub(crate) fn tls(&self) -> Arc<rustls::ServerConfig> {
        self.tls.clone()
    }

    /// Whether an `Authorization` header carries the token. Takes the same time for every wrong one of its length.
    pub(crate) fn admits(&self, authorization: Option<&str>) -> bool {
        let Some((scheme, given)) = authorization.and_then(|text| text.split_once(' ')) else { return false };
        let (given, token) = (given.trim().as_bytes(), self.token.as_bytes());
        scheme.eq_ignore_ascii_case("bearer")
            && given.len() == token.len()
            && given.iter().zip(token).fold(0, |difference, (a, b)| difference | (a ^ b)) == 0
    }

    /// A kubeconfig for a server at `address`.
    pub(crate) fn kubeconfig(&self, address: SocketAddr) -> String {
        let ca = BASE64.encode(self.ca.as_bytes());
        let token = &self.token;
        format!(
            "apiVersion: v1\nkind: Config\ncurrent-context: {USER}\nclusters:\n- name: {USER}\n  cluster:\n    server: \
             https://{address}\n    certificate-authority-data: {ca}\nusers:\n- name: {USER}\n  user:\n    token: \
             {token}\ncontexts:\n- name: {USER}\n  context:\n    cluster: {USER}\n    user: {USER}\n    namespace: \
             default\n"
        )
    }
}

fn make(folder: &Path, files: &[PathBuf; 5]) -> Result<(), CredentialsError> {
    create_private_folder(folder)
        .map_err(|source| CredentialsError::Io { path: folder.to_owned(), source })?;
    let ca_key = KeyPair::generate()?;
    let mut ca = CertificateParams::new(Vec::new())?;
    ca.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    ca.key_usages =
        vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    ca.distinguished_name.push(DnType::CommonName, "ember-ca");
    let ca_certificate = ca.self_signed(&ca_key)?;

    let server_key = KeyPair::generate()?;
    let mut server = CertificateParams::new(NAMES.map(str::to_owned).to_vec())?;
    for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
        server.subject_alt_names.push(SanType::IpAddress(address));
    }
    server.distinguished_name.push(DnType::CommonName, "ember-apiserver");
    server.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
    server.key_usages = vec![KeyUsagePurpose::DigitalSignature, KeyUsagePurpose::KeyEncipherment];
    let certificate = server.signed_by(&server_key, &Issuer::from_params(&ca, &ca_key))?;

    let token = hex::encode([uuid::Uuid::new_v4().into_bytes(), uuid::Uuid::new_v4().into_bytes()].concat());
    // The token is written last: a set is complete when it is there, however the making of one was cut short.
    let [.., token_file] = files;
    let _ = fs::remove_file(token_file);
    let contents =
        [ca_certificate.pem(), ca_key.serialize_pem(), certificate.pem(), server_key.serialize_pem(), token];
    for (file, content) in files.iter().zip(contents) {
        write_private(file, content.as_bytes())
            .map_err(|source| CredentialsError::Io { path: file.clone(), source })?;
    }
    Ok(())
}

/// A folder for its owner alone; one that exists is made so.
pub(crate) fn create_private_folder(path: &Path) -> std::io::Result<()> {
    use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)?;
    fs::set_permissions(path, fs::Permissions::from_mode(0o700))
}

/// Writes a file that only its owner may read, whole or not at all.
pub(crate) fn write_private(path: &Path, content: &[u8]) -> std::io::Result<()> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".new");
    let temporary = PathBuf::from(temporary);
    let _ = fs::remove_file(&temporary);
    let mut file = fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temporary)?;
    file.write_all(content)?;
    file.sync_all()?;
    fs::rename(&temporary, path)?;
    match path.parent().filter(|folder| !folder.as_os_str().is_empty()) {
        Some(folder) => fs::File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}
