//! The embedded Kubernetes-style API server: store, watch, patch, discovery, tables.
//!
//! Objects live in memory; what has to survive the process is written to one file in the data directory. Writes
//! of declared intent (everything but status of Namespaces, ConfigMaps, Secrets, and the serving kinds) are on
//! disk before they are acknowledged, and become visible then; other writes are acknowledged from memory, and
//! logged behind unless they describe this run only (Pods, Endpoints, EndpointSlices, Leases, Events).

mod admission;
mod api;
mod body;
mod contents;
mod credentials;
mod decode;
mod discovery;
mod journal;
mod jsonpath;
mod kinds;
mod knative;
mod logs;
mod managed_fields;
mod metadata;
mod object;
mod openapi;
mod patch;
mod pod_columns;
mod pod_log;
mod protobuf;
mod request;
mod resource;
mod review;
mod selector;
mod server;
mod status;
mod store;
mod store_file;
mod strategy;
mod structure;
mod table;
mod typed;
mod unstored;
mod verbs;
mod watch;

use std::fs::{File, TryLockError};
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use parking_lot::Mutex;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

pub use admission::{Admission, AdmitAll, Denied, Operation, Review};
pub use credentials::CredentialsError;
pub use knative::KnativeAdmission;
pub use logs::{LogError, LogOptions, LogStream, PodLogs};
pub use store_file::OpenError;

use api::{Api, Caller};
use credentials::Credentials;
use kinds::Kinds;
use openapi::OpenApi;
use server::Local;
use store::{History, Store};

/// Past events of each resource that are kept whatever they take.
const LEAST_HISTORY: usize = 32;

/// How the server is set up.
#[derive(Clone)]
pub struct Config {
    /// Where the store, the credentials and the lock are. Made with mode 0700 when absent.
    pub data_dir: PathBuf,
    /// How long a write that is logged behind may wait before its commit starts. Default 50 ms.
    pub flush_interval: Duration,
    /// How many resourceVersions are reserved on disk at once. Default 1,000,000.
    pub version_block: u64,
    /// How many past events of each resource a watch can resume from at most. Default 4096.
    pub watch_history: usize,
    /// How many bytes of each resource the states that such a watch is to be told of may take, apart from those that are
    /// current; the last 32 events are kept whatever they take. Default 2 MiB.
    pub watch_history_bytes: usize,
    /// How often watches that ask for bookmarks get one. Default 60 s.
    pub bookmark_interval: Duration,
    /// Who the in-process client is, in `serving.knative.dev/creator` and the like.
    pub system_user: String,
    /// Defaulting and validation. Default: Knative's, with the ConfigMaps of `knative-serving` in this store.
    pub admission: Arc<dyn Admission>,
}

impl Config {
    /// The defaults, with the data in `data_dir`.
    #[must_use]
    pub fn new(data_dir: impl Into<PathBuf>) -> Self {
        Self {
            data_dir: data_dir.into(),
            flush_interval: Duration::from_millis(50),
            version_block: 1_000_000,
            watch_history: 4096,
            watch_history_bytes: 2 << 20,
            bookmark_interval: Duration::from_secs(60),
            system_user: "system:serviceaccount:knative-serving:controller".into(),
            admission: Arc::new(KnativeAdmission::new()),
        }
    }
}

/// Why the server cannot be opened, or stopped cleanly.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The store.
    #[error(transparent)]
    Store(#[from] OpenError),
    /// The certificates and the token.
    #[error(transparent)]
    Credentials(#[from] CredentialsError),
    /// A file of the data directory.
    #[error("{}: {source}", path.display())]
    Io {
        /// The file.
        path: PathBuf,
        /// The system's error.
        source: std::io::Error,
    },
    /// The last writes did not reach the disk.
    #[error("{0}")]
    Flush(String),
}

/// Locks the folder for this process, and notes there which one it is.
fn lock(folder: &Path) -> Result<File, Error> {
    let path = folder.join("lock");
    let io = |source| Error::Io { path: path.clone(), source };
    let mut options = File::options();
    let mut file =
        options.create(true).truncate(false).read(true).write(true).mode(0o600).open(&path).map_err(io)?;
    match file.try_lock() {
        Ok(()) => {}
        Err(TryLockError::WouldBlock) => {
            let mut holder = String::new();
            // It is named if it can be: who has just taken the lock may not have written yet.
            let _ = file.read_to_string(&mut holder);
            let holder = holder.trim().parse().ok();
            return Err(OpenError::Locked { path: folder.to_owned(), holder }.into());
        }
        Err(TryLockError::Error(e)) => return Err(io(e)),
    }
    // The lock is what counts: on a full disk it goes without the note.
    let _ = file.set_len(0).and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

/// The server. Clones share it; it lives until the last clone and the last client of it are gone.
#[derive(Clone)]
pub struct ApiServer {
    api: Arc<Api>,
    credentials: Arc<Credentials>,
    /// Held for as long as this process serves the data directory.
    lock: Arc<Mutex<Option<File>>>,
    stop: CancellationToken,
    client: Arc<OnceLock<kube::Client>>,
}

impl ApiServer {
    /// Opens the data directory. Blocks on the disk; meant for start-up.
    ///
    /// # Errors
    /// When another process uses the directory, when the store is damaged (the message says what to do), or when
    /// files cannot be read or written.
    pub fn open(config: Config) -> Result<Self, Error> {
        let folder = &config.data_dir;
        let io = |path: &Path, source| Error::Io { path: path.to_owned(), source };
        credentials::create_private_folder(folder).map_err(|e| io(folder, e))?;
        let lock = lock(folder)?;
        let credentials = Credentials::open(&folder.join("pki"))?;
        let options =
            journal::Options { flush_interval: config.flush_interval, version_block: config.version_block };
        let (opened, recovered) = store_file::open(&folder.join("store.redb"), &options)?;
        let history =
            History { writes: config.watch_history, bytes: config.watch_history_bytes, least: LEAST_HISTORY };
        let store = Store::start(opened, recovered, &options, history)?;
        let kinds = Kinds::new();
        let api = Arc::new(Api {
            store,
            openapi: OpenApi::default(),
            kinds,
            admission: config.admission,
            configured: Mutex::new(None),
            logs: OnceLock::new(),
            bookmark_interval: config.bookmark_interval,
            system_user: config.system_user,
        });
        verbs::seed_namespace(&api, "default");
        Ok(Self {
            api,
            credentials: Arc::new(credentials),
            lock: Arc::new(Mutex::new(Some(lock))),
            stop: CancellationToken::new(),
            client: Arc::default(),
        })
    }

    /// Who serves `pods/log`. Only the first call counts.
    pub fn set_pod_logs(&self, logs: Arc<dyn PodLogs>) {
        // A second one is ignored, as documented.
        let _ = self.api.logs.set(logs);
    }

    /// A client that calls this server in process; its default namespace is `default`. The first call must be made
    /// inside the runtime that outlives all users of the client.
    #[must_use]
    pub fn client(&self) -> kube::Client {
        self.client.get_or_init(|| self.own_client()).clone()
    }

    /// A client for a runtime of its own: it passes requests on where this is called, inside of that runtime, and does
    /// not wait for what else the clients of [`ApiServer::client`] ask for.
    #[must_use]
    pub fn own_client(&self) -> kube::Client {
        let caller = Caller { user: self.api.system_user.clone(), local: true, stop: self.stop.clone() };
        kube::Client::new(Local { api: self.api.clone(), caller }, "default")
    }

    /// Serves TLS on `listener` until `shutdown`; then ends watches and lets requests finish for at most 5 s.
    pub async fn serve(&self, listener: TcpListener, shutdown: CancellationToken) {
        server::serve(self.api.clone(), self.credentials.clone(), listener, shutdown).await;
    }

    /// A kubeconfig for this server when it listens on `address`.
    #[must_use]
    pub fn kubeconfig(&self, address: SocketAddr) -> String {
        self.credentials.kubeconfig(address)
    }

    /// Writes [`ApiServer::kubeconfig`] to `path`, readable by its owner alone.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write_kubeconfig(&self, path: &Path, address: SocketAddr) -> Result<(), Error> {
        credentials::write_private(path, self.kubeconfig(address).as_bytes())
            .map_err(|source| Error::Io { path: path.to_owned(), source })
    }

    /// Waits until every write acknowledged so far is on disk.
    ///
    /// # Errors
    /// When the disk does not take them.
    pub async fn flush(&self) -> Result<(), Error> {
        self.api.store.flush().await.map_err(|e| Error::Flush(e.to_string()))
    }

    /// Ends in-process watches, writes what is left, closes the store and gives up the data directory. Writes that
    /// have to be stored fail from now on. Blocks on the disk.
    pub fn close(&self) {
        self.stop.cancel();
        self.api.store.close();
        self.lock.lock().take();
    }
}
